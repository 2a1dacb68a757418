"""From levels asked for to cells as they are: writing, devices, drift, faults, wires, drivers.

Everything that stays as it is between reads is folded into one *effective* matrix for each trial,
in units of a level, so that it costs nothing when the matrix is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imcc.backends.crossbar import ir_drop
from imcc.backends.crossbar.dialect import MatrixType
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.semantics.draws import Draws

FINEST_GRID = 6
"""Cells lie on a grid of at most 2^-6 of a level; see :func:`on_grid`."""


@dataclass
class Cells:
    """A matrix as programmed, R trials.

    ``levels`` ``[R, G, T, rows, C]`` are effective levels, ``constant`` ``[R, G, T, C]`` is what
    the offsets of row drivers add to every column sum, ``converter_offsets`` ``[R, G, T, C]`` those
    of converters, in their steps. Where a matrix adapts, ``conductances`` ``[R, G, T, rows, C]``
    keeps the cells as written, in units of g_max, without wires and drivers.
    """

    levels: Tensor
    constant: Tensor | None = None
    converter_offsets: Tensor | None = None
    conductances: Tensor | None = None


def program(
    kind: MatrixType,
    ideal: Tensor,
    target: CrossbarTarget,
    draws: Draws,
    stream: str,
    written: Callable[[str, Sequence[int]], Tensor] | None = None,
    *,
    keep: bool = False,
) -> Cells:
    """Cells that hold the levels ``ideal`` ``[G, T, rows, C]``, drawn for each trial of ``draws``.

    ``written`` draws what is new with each write (the write and the drift after it); absent, that
    too is drawn once for each trial.

    In this order: the device's deviation, the write, drift until the time of reading, stuck cells,
    IR drop of the crossbars, errors of row drivers. ``keep`` keeps the conductances for updates.
    """
    held = write(ideal, target, draws, stream, stream, written)
    return effective(kind, ideal, held, target, draws, stream, keep=keep)


def conductances_of(levels: Tensor, target: CrossbarTarget) -> Tensor:
    """Conductances that levels stand for, in units of g_max."""
    low = 1 / target.keys.device.on_off_ratio
    return low + levels * ((1 - low) / (target.levels - 1))


def write(
    ideal: Tensor,
    target: CrossbarTarget,
    draws: Draws,
    device: str,
    stream: str,
    written: Callable[[str, Sequence[int]], Tensor] | None = None,
) -> Tensor:
    """Conductances ``[R, ...]`` of cells after one write, drift, and faults.

    ``device`` names the draws that stay with a cell, ``stream`` those of this write, which
    ``written`` makes, as for :func:`program`.
    """
    shape = tuple(ideal.shape)
    meant = conductances_of(ideal, target)
    held = meant.expand(len(draws.trials), *shape)
    written = written or draws.per_trial
    writing, variation, drift = target.write_noise, target.variation, target.drift
    if not variation.silent and not writing.verified:
        held = variation.sample(held, draws.per_trial(f"{device}/device", shape))
    if not writing.silent:
        held = writing.sample(held, written(stream, shape))
    if not drift.silent:
        held = drift.sample(held, written(f"{stream}/drift", shape))
    return stuck(held, target, draws, device)


def effective(
    kind: MatrixType,
    ideal: Tensor,
    held: Tensor,
    target: CrossbarTarget,
    draws: Draws,
    stream: str,
    *,
    keep: bool = False,
) -> Cells:
    """Effective levels of cells with conductances ``held``, which are meant to be ``ideal``."""
    keys = target.keys
    low = 1 / keys.device.on_off_ratio
    step = (1 - low) / (target.levels - 1)
    shape = tuple(ideal.shape)
    meant = conductances_of(ideal, target)
    kept = held if keep else None
    wires = keys.array.wires
    if wires.model != "none":
        conductances = held * keys.device.g_max_us
        used = _used_rows(kind, ideal)
        conductances = conductances * used
        lines = (wires.word_line_ohm, wires.bit_line_ohm)
        made = torch.zeros_like(conductances)
        for columns in array_columns(kind):
            # The first row lies next to the converters, so that empty rows lengthen no line.
            part = _stacked(kind, conductances[..., columns]).flip(-2)
            part = ir_drop.effective(part, *lines, wires.model).flip(-2)
            made[..., columns] = _unstacked(kind, part)
        held = torch.where(used > 0, made / keys.device.g_max_us, held)
    levels = ideal + (held - meant) / step
    constant = None
    if keys.dac.offset_lsb:
        errors = draws.per_trial(f"{stream}/drivers", (*shape[:3], kind.column_tiles))
        errors = errors * keys.dac.offset_lsb
        spread = torch.empty_like(levels)
        for tile, columns in enumerate(array_columns(kind)):
            spread[..., columns] = errors[..., tile, None]
        if keys.dac.bits == 1:
            levels = levels * (1 + spread)
        else:
            constant = (spread * levels).sum(-2)
    offsets = None
    if keys.adc.offset_lsb:
        offsets = keys.adc.offset_lsb * _converters(kind, target, draws, stream, shape)
    levels = on_grid(levels, _bound(ideal, target), FINEST_GRID)
    return Cells(levels, constant, offsets, kept)


def _bound(ideal: Tensor, target: CrossbarTarget) -> float:
    """A bound of column sums that does not depend on which trials run together.

    Twice the largest ideal sum (deviations of many cells average out), and what a full column of
    cells at a quarter of the range adds.
    """
    return sum_bound(float(ideal.sum(-2).max()), ideal.shape[-2], target)


def sum_bound(largest: float, rows: int, target: CrossbarTarget) -> float:
    """That bound for ``rows`` cells in a column, whose ideal sums are at most ``largest``."""
    inputs: int = 2**target.keys.dac.bits - 1
    return inputs * (2 * largest + 0.25 * rows * (target.levels - 1))


def grid_bits(bound: float, finest: int) -> int:
    """Bits behind the point of a grid on which sums up to ``bound`` are exact in float32."""
    return max(23 - math.ceil(math.log2(max(bound, 1.0))), finest)


def level_bits(ideal: Tensor, target: CrossbarTarget) -> int:
    """Bits behind the point of effective levels of cells that are meant to hold ``ideal``."""
    return grid_bits(_bound(ideal, target), FINEST_GRID)


def on_grid(values: Tensor, bound: float, finest: int = 0) -> Tensor:
    """Values on a binary grid on which sums up to ``bound`` are exact in float32.

    Sums are then the same in any order: results do not depend on batch size, chunking or threads.
    Where that would take a grid coarser than ``2^-finest`` (several input bits at a time on cells
    of many levels), the grid is that fine all the same, and sums are rounded by 2^-24 of their
    size.
    """
    bits = grid_bits(bound, finest)
    return torch.round(values * 2.0**bits) * 2.0**-bits


def stuck(held: Tensor, target: CrossbarTarget, draws: Draws, stream: str) -> Tensor:
    """Conductances with those of faulty cells in their place."""
    faults = target.keys.device.stuck
    low = 1 / target.keys.device.on_off_ratio
    if not faults.off_fraction and not faults.on_fraction:
        return held
    if faults.map_seed is not None:
        draws = Draws(faults.map_seed)
    place = torch.special.ndtr(draws.per_trial(f"{stream}/stuck", tuple(held.shape[1:])).double())
    held = torch.where(place < faults.off_fraction, torch.full_like(held, low), held)
    return torch.where(place > 1 - faults.on_fraction, torch.ones_like(held), held)


def array_columns(kind: MatrixType) -> list[list[int]]:
    """For each crossbar side by side, the physical columns that it holds, in order."""
    if kind.encoding == "sign_arrays" and kind.paired:
        signs = [list(range(first, kind.physical_columns, 2)) for first in (0, 1)]
    else:
        signs = [list(range(kind.physical_columns))]
    made = [
        columns[start : start + kind.usable_columns]
        for columns in signs
        for start in range(0, len(columns), kind.usable_columns)
    ]
    if kind.biased:
        made = [[*columns, kind.physical_columns + tile] for tile, columns in enumerate(made)]
    return made


def _used_rows(kind: MatrixType, ideal: Tensor) -> Tensor:
    """1 for rows that hold weights, 0 for the rest of a run, ``[G or 1, T, rows, 1]``."""
    rows = torch.arange(kind.blocks * kind.block_rows) < kind.group_rows
    blocks = rows.reshape(kind.blocks, kind.block_rows)
    wide = kind.runs_per_block * kind.run_rows - kind.block_rows
    runs = torch.nn.functional.pad(blocks, (0, wide))
    return runs.reshape(1, kind.row_tiles, kind.run_rows, 1).to(ideal.dtype)


def _stacked(kind: MatrixType, cells: Tensor) -> Tensor:
    """Runs that share a crossbar, on top of one another: ``[..., crossbars, rows, columns]``."""
    turns = kind.runs_in_turn
    runs, rows, columns = cells.shape[-3:]
    wanted = -(-runs // turns) * turns
    padded = torch.nn.functional.pad(cells, (0, 0, 0, 0, 0, wanted - runs))
    return padded.reshape(*cells.shape[:-3], wanted // turns, turns * rows, columns)


def _unstacked(kind: MatrixType, cells: Tensor) -> Tensor:
    flat = cells.reshape(*cells.shape[:-3], -1, kind.run_rows, cells.shape[-1])
    return flat[..., : kind.row_tiles, :, :]


def _converters(
    kind: MatrixType, target: CrossbarTarget, draws: Draws, stream: str, shape: tuple[int, ...]
) -> Tensor:
    """A standard normal for each converter, repeated for the columns that it serves."""
    count = target.adcs_per_crossbar
    drawn = draws.per_trial(f"{stream}/converters", (*shape[:2], kind.column_tiles, count))
    made = torch.empty(len(draws.trials), *shape[:2], shape[3])
    for tile, columns in enumerate(array_columns(kind)):
        served = torch.arange(len(columns)) // target.keys.adc.columns_per_adc
        made[..., columns] = drawn[..., tile, :][..., served]
    return made
