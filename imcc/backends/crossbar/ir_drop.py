"""IR drop: what the wires of an array make of the conductances in it.

Cells and wires are linear, so an array of m word lines and n bit lines is a linear map from word
line voltages to bit line currents. :func:`exact` gives that map, an *effective* matrix of
conductances, from the nodal equations of the whole circuit; reads with it cost what reads without
wires cost. :func:`fast` is an approximation in O(m n).

The circuit: word line k is driven at its left end through one segment of wire, then has one segment
between neighbouring columns; bit line j is held at 0 V at its lower end through one segment, with
one segment between neighbouring rows. Cell (k, j) connects them. This is the circuit that the
package badcrossbar solves.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

WORK = 1 << 24
"""Float64 numbers that a batch of tiles may take."""


def effective(
    g_us: Tensor, word_ohm: float, bit_ohm: float, method: Literal["exact", "fast"]
) -> Tensor:
    """Effective conductances ``[..., m, n]`` of cells with conductances ``g_us``, in microsiemens.

    Column j carries the current ``sum_k V_k effective[k, j]``.
    """
    flat = g_us.reshape(-1, *g_us.shape[-2:])
    solve = exact if method == "exact" else fast
    size = max(1, WORK // max(1, flat.shape[1] * flat.shape[2] ** 2))
    parts = [
        solve(part.to(torch.float64) * 1e-6, word_ohm, bit_ohm) * 1e6
        for part in torch.split(flat, size)
    ]
    return torch.cat(parts).reshape(g_us.shape).to(g_us.dtype)


def exact(g: Tensor, word_ohm: float, bit_ohm: float) -> Tensor:
    """Exact effective conductances of tiles ``[tiles, m, n]``, in siemens.

    Node voltages are eliminated row by row. With the conductances of row i on the diagonal of D,
    T the tridiagonal matrix (2 on the diagonal, 1 at its end, -1 beside it) of the word line and e
    its first unit vector, a unit voltage on the line gives node voltages
    ``w_i = (T + rw D)^-1 e``; seen from the bit lines, the row is a current source ``u_i = D w_i``
    beside the admittance ``Y_i = D - rw D (T + rw D)^-1 D``. Going down the bit lines the
    admittance of all rows so far is ``Z_i = Y_i + Z_(i-1) K_(i-1)`` with ``K = (1 + rb Z)^-1``, and
    the currents of the sources reach the next row as ``K`` times what they were. Both recursions
    add positive terms only, hence no cancellation for small wire resistances.
    """
    tiles, rows, columns = g.shape
    line = torch.diag_embed(torch.full((columns,), 2.0, dtype=g.dtype))
    line[-1, -1] = 1.0
    line -= torch.diag_embed(torch.ones(columns - 1, dtype=g.dtype), 1)
    line -= torch.diag_embed(torch.ones(columns - 1, dtype=g.dtype), -1)
    unit = torch.eye(columns, dtype=g.dtype)
    currents = g.new_zeros(tiles, columns, rows)
    admittance = g.new_zeros(tiles, columns, columns)
    for row in range(rows):
        d = g[:, row]
        inverse = _inverse(line + word_ohm * torch.diag_embed(d))
        if row:
            passed = _inverse(unit + bit_ohm * admittance)
            admittance = admittance @ passed
            currents[:, :, :row] = passed @ currents[:, :, :row]
        admittance = admittance + torch.diag_embed(d)
        admittance -= word_ohm * d[:, :, None] * inverse * d[:, None, :]
        currents[:, :, row] = d * inverse[:, :, 0]
    made = _inverse(unit + bit_ohm * admittance) @ currents
    return made.transpose(1, 2)


def _inverse(matrix: Tensor) -> Tensor:
    """Inverse of symmetric positive definite matrices."""
    symmetric = 0.5 * (matrix + matrix.transpose(-1, -2))
    made: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(symmetric))
    return made


def fast(g: Tensor, word_ohm: float, bit_ohm: float) -> Tensor:
    """Approximate effective conductances ``g_kj a_kj b_kj`` of tiles ``[tiles, m, n]``.

    ``a_kj`` is the share of the voltage that reaches column j of word line k when all bit lines are
    at 0 V, ``b_kj`` the share of a current put into bit line j at row k that reaches its end when
    all word lines are at 0 V: two ladders, each solved exactly by continued fractions. What is left
    out is that the lines of the two ladders are not at 0 V.
    """
    return g * _ladder(g, word_ohm, 2) * _ladder(g.flip(1), bit_ohm, 1).flip(1)


def _ladder(g: Tensor, ohm: float, axis: int) -> Tensor:
    """Voltages along a ladder that is driven with 1 V in front of its first cell."""
    held = g.movedim(axis, 0)
    seen = torch.empty_like(held)
    seen[-1] = held[-1]
    for index in range(held.shape[0] - 2, -1, -1):
        seen[index] = held[index] + seen[index + 1] / (1 + ohm * seen[index + 1])
    steps = 1 / (1 + ohm * seen)
    return torch.cumprod(steps, 0).movedim(0, axis)
