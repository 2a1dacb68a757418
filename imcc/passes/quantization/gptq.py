"""GPTQ: rounding column by column, each error spread over the columns still to come.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
ICLR 2023, algorithm 1, with columns in order of falling diagonal and a grid fixed beforehand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imcc.passes.quantization.blocks import Layer
from imcc.passes.quantization.grid import Grid
from imcc.passes.quantization.moments import InputMoments, per_group

DAMPING = 0.01
"""Share of the mean diagonal added to it; the paper's section 4."""
COLUMNS = 128
"""Columns whose updates are applied at once; the paper's B."""


def gptq_codes(layer: Layer, weight: Tensor, grid: Grid, moments: InputMoments) -> Tensor:
    """Codes ``[R, G, g]`` of ``weight`` on ``grid`` that keep the layer's output near.

    With ``H = E[x x^T] + damping`` and ``U`` the upper Cholesky factor of ``H^-1``: for each column
    j, ``e = (w_j - round(w_j)) / U_jj``, then ``w_k -= e U_jk`` for all k > j.
    """
    shape = weight.shape
    rows = per_group(layer, weight).double()
    scale = per_group(layer, grid.expanded(grid.scale, shape).expand(shape)).double()
    zero = per_group(layer, grid.expanded(grid.zero_point, shape).expand(shape)).double()
    made = torch.empty_like(rows)
    for index, (part, second) in enumerate(zip(rows, moments.second.double(), strict=True)):
        made[index] = _round(part, second, scale[index], zero[index], grid)
    return grid.format.rows(made.reshape(shape))


def _round(rows: Tensor, second: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    diagonal = second.diagonal()
    dead = diagonal == 0
    hessian = second + torch.diag(dead.double())
    hessian = hessian + DAMPING * diagonal.mean() * torch.eye(len(diagonal), dtype=hessian.dtype)
    order = torch.argsort(diagonal, descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    left = rows[:, order].clone()
    left[:, dead[order]] = 0
    scale, zero = scale[:, order], zero[:, order]
    codes = torch.empty_like(left)
    size = left.shape[1]
    for start in range(0, size, COLUMNS):
        stop = min(start + COLUMNS, size)
        errors = torch.zeros_like(left[:, start:stop])
        for column in range(start, stop):
            held = left[:, column]
            code = grid.clamp(torch.round(held / scale[:, column]) + zero[:, column])
            codes[:, column] = code
            real = (code - zero[:, column]) * scale[:, column]
            error = (held - real) / upper[column, column]
            left[:, column:stop] -= error[:, None] * upper[column, column:stop]
            errors[:, column - start] = error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    made = torch.empty_like(codes)
    made[:, order] = codes
    return made
