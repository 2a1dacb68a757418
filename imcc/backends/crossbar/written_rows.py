"""Reads of matrices that were written at run time, for many rows of a batch together.

A row ``r * B + b`` has matrices of its own. Where cells differ from what was asked by the noise of
writing and of reading alone, its numbers are those of reading it by itself, to the bit: noise comes
from the row's keys, and levels lie on the grid that the row's own sums ask for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imcc.backends.crossbar import kernels
from imcc.backends.crossbar.cells import FINEST_GRID, conductances_of, grid_bits, sum_bound
from imcc.backends.crossbar.columns import DigitalTerms
from imcc.backends.crossbar.fused import FusedReader
from imcc.backends.crossbar.linear_read import digit_squares
from imcc.ir.semantics.draws import Draws

if TYPE_CHECKING:
    from imcc.backends.crossbar.run_time import WrittenMatrices
    from imcc.backends.crossbar.simulate import Reader


@dataclass(frozen=True)
class RowColumns:
    """Converted columns of the matrices of R rows, as in :class:`..columns.Columns` for one.

    ``product`` and ``variance`` are ``[R, G, T, rows, columns]``; ``scale`` is ``[R, 1, 1, 1, 1]``.
    """

    product: Tensor
    variance: Tensor | None
    scale: Tensor


class RowsReader(FusedReader):
    """Reads the matrices of several rows with one op.

    ``reader`` is that of any one row; ``noisy`` says whether reads are.
    """

    def __init__(self, reader: Reader, noisy: bool) -> None:
        none = torch.zeros(reader.outputs, reader.kind.columns, dtype=torch.float64)
        super().__init__(reader, DigitalTerms(none), torch.float64)
        self.noisy = noisy

    @property
    def serves(self) -> bool:
        """Whether rows can be read together: nothing but noise makes cells differ."""
        kind, constant = self.kind, self.target.read_noise.constant_variance
        lifted = bool(self.target.column_offset) and not self.reader.pairs
        # Those that lie in rows have kernels, and counters of noise, of their own.
        in_rows = kind.groups == 1 and not lifted and (not self.noisy or constant is not None)
        return self.target.only_writes_err and not kind.biased and not in_rows

    def held(self, matrix: WrittenMatrices, ideal: Tensor, draws: Draws | None) -> RowColumns:
        """Columns for the levels ``ideal [R, G, T, rows, cells]``; ``draws`` are of these rows."""
        reader, target = self.reader, self.target
        asked = matrix.asked(ideal)
        levels = asked
        if draws is not None:
            meant = conductances_of(asked, target)
            normal = draws.per_read(matrix.stream, asked.shape[1:])
            held = target.write_noise.sample(meant, normal)
            largest = asked.sum(-2).flatten(1).max(1).values.tolist()
            bounds = [sum_bound(item, asked.shape[-2], target) for item in largest]
            levels = _on_grids(asked + (held - meant) / reader.step, bounds, FINEST_GRID)
        product = self._paired(levels)
        one = torch.ones(len(ideal), 1, 1, 1, 1)
        noise = target.read_noise
        if not self.noisy or noise.constant_variance is not None:
            return RowColumns(product, None, one)
        conductance = reader.low + levels * reader.step
        mean, variance = noise.moments(conductance)
        rows = float(levels.shape[-2] * (2**self.op.dac_bits - 1) ** 2)
        difference = self._paired((mean - conductance) / reader.step)
        product = product + _on_grids(difference, [8.0 * rows], 0)
        if reader.pairs:
            variance = variance[..., 0::2] + variance[..., 1::2]
        variance = variance / reader.step**2
        scale = variance.flatten(1).max(1).values.clamp_min(1e-30).reshape(one.shape)
        return RowColumns(product, _on_grids(variance / scale, [rows], 0), scale)

    def _paired(self, columns: Tensor) -> Tensor:
        return columns[..., 0::2] - columns[..., 1::2] if self.reader.pairs else columns

    @property
    def _lift(self) -> float:
        return 0.0 if self.reader.pairs else self.target.column_offset

    def converted(self, held: RowColumns, vectors: Tensor, draws: Draws | None) -> Tensor:
        """What converters give, ``[R, positions, G * N]`` float64, for ``[R, positions, G, K]``."""
        op, kind = self.op, self.kind
        count, positions = vectors.shape[:2]
        columns = held.product.shape[-1]
        out_row, weight = self._rows_of_columns(kind.groups * columns)
        total = torch.zeros(count, kind.columns, positions, dtype=self.exact)
        low, high = self._keys_of(draws, count, positions)
        spread_row = torch.arange(kind.groups * columns)
        if held.variance is None:
            spread_row = spread_row // columns if self.noisy else torch.zeros_like(spread_row)
        quiet = torch.zeros(count, 1, positions)
        shift = torch.zeros(kind.groups * columns)
        runs = [
            (
                held.product[:, :, run, : stop - start].transpose(-1, -2).contiguous(),
                None
                if held.variance is None
                else (held.variance[:, :, run, : stop - start] * held.scale[:, 0]).mT.contiguous(),
            )
            for run, (start, stop) in enumerate(self.bounds)
        ]
        for digit, values in self._digits(vectors):
            for run, (product, variance) in enumerate(runs):
                start, stop = self.bounds[run]
                part = values[..., start:stop].permute(0, 2, 3, 1)
                sums = product @ part
                if self._lift:
                    sums = sums + self._lift * part.sum(2, keepdim=True)
                spread = quiet
                if self.noisy:
                    squares = part**2
                    if variance is None:
                        spread = squares.sum(2) * self.reader.constant_variance
                    else:
                        spread = (variance @ squares).flatten(1, 2)
                    spread = spread.sqrt()
                kernels.add_positions(
                    sums.flatten(1, 2).contiguous().numpy(),
                    spread.contiguous().numpy(),
                    spread_row.numpy(),
                    shift.numpy(),
                    low,
                    high,
                    (run * op.digits + digit) * ((kind.groups * columns + 1) // 2),
                    self.adc,
                    (weight * float(self.digit[digit])).numpy(),
                    out_row.numpy(),
                    self.noisy,
                    self.threads,
                    total.numpy(),
                )
        return total.mT.double() * op.adc_step

    def linear(self, held: RowColumns, vectors: Tensor, draws: Draws | None) -> Tensor:
        """The same without converters: products with what cells amount to, plus read noise.

        The noise of an output has the variance of its sum and is drawn once for it, as in
        :mod:`~imcc.backends.crossbar.linear_read`.
        """
        kind = self.kind
        cell = self.cell.to(torch.float32)
        inputs = vectors.transpose(1, 2).to(torch.float32)
        made = inputs @ self._weights(held.product + self._lift, cell)
        if self.noisy and draws is not None:
            squares = digit_squares(inputs, self.reader)
            if held.variance is None:
                each = self.reader.constant_variance * float(cell.square().sum())
                variance = (squares.sum(-1, keepdim=True) * each).expand_as(made)
            else:
                variance = squares @ self._weights(held.variance * held.scale, cell.square())
            shape = (kind.groups, *made.shape[2:])
            made = made + draws.per_read(self.op.stream, shape) * variance.clamp_min(0).sqrt()
        return made.transpose(1, 2).flatten(2)

    def _weights(self, columns: Tensor, cell: Tensor) -> Tensor:
        """Cells ``[R, G, T, rows, columns]`` weighted and joined to ``[R, G, K, N]``."""
        kind = self.kind
        made = columns.reshape(*columns.shape[:-1], kind.group_columns, -1) @ cell
        return made.flatten(2, 3)[:, :, : kind.group_rows]

    def _keys_of(self, draws: Draws | None, rows: int, positions: int) -> tuple[Any, Any]:
        keys = torch.zeros(rows, dtype=torch.uint64).numpy()
        if draws is not None:
            keys = draws.keys(self.op.stream)
        low, high = self._position_keys(keys, 0, positions, rows * positions)
        return low.reshape(rows, -1), high.reshape(rows, -1)

    @property
    def threads(self) -> int:
        """Threads of the kernels."""
        import numba

        return numba.get_num_threads()


def _on_grids(values: Tensor, bounds: list[float], finest: int) -> Tensor:
    """:func:`~imcc.backends.crossbar.cells.on_grid` with a bound for each row, or one for all."""
    grid = torch.tensor([2.0 ** grid_bits(bound, finest) for bound in bounds])
    grid = grid.reshape(-1, *[1] * (values.dim() - 1))
    return torch.round(values * grid) / grid
