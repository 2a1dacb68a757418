"""Reads by the CPU kernels: blocks of positions, products, conversion, digital terms.

Columns are laid out for the kernels once for each matrix and trial. A read then goes through
positions in blocks that stay in the cache: column sums come from products of a matrix library
(several input bits at a time, or cells whose noise differs) or from lookups (inputs bit by bit),
then one kernel draws noise, converts and adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numba
import numpy as np
import torch
from torch import Tensor

from imcc.backends.crossbar import kernels
from imcc.backends.crossbar.columns import (
    GROUP,
    LANES,
    UNROLL,
    Chunks,
    DigitalTerms,
    bias_tile,
    run_bounds,
)
from imcc.backends.crossbar.dialect import EXACT_FLOAT32, Mvm

if TYPE_CHECKING:
    from imcc.backends.crossbar.simulate import Reader

ROOM = 1 << 19
"""Column sums that a block holds at a time, about: the cache's share of one core."""

LOOKUP_POSITIONS = 16 * kernels.LOOKUPS
"""Positions whose bits are taken apart at a time."""


class FusedReader:
    """Reads one matrix with one op; ``terms`` are added to what the converters give."""

    def __init__(self, reader: Reader, terms: DigitalTerms, result: torch.dtype) -> None:
        self.reader, self.terms, self.result = reader, terms, result
        self.op, self.kind, self.target = reader.op, reader.kind, reader.target
        self.noisy = reader.draws is not None
        kind = self.kind
        self.digit, self.cell = reader.digit_weights, reader.cell_weights
        self.outputs = reader.outputs
        self.bounds = run_bounds(kind)
        self.bias = 0.0
        if kind.bias_columns:
            self.bias = 2.0 ** (kind.cell_bits * ((kind.weight_bits - 1) // kind.cell_bits))
        largest = kind.row_tiles * max(abs(reader.bottom), reader.top)
        largest *= float(self.digit.abs().sum() * self.cell.abs().sum()) * (1 + self.bias)
        self.exact = torch.float32 if largest < EXACT_FLOAT32 else torch.float64
        inverse = np.float32(reader.inverse_step)
        self.adc = (inverse, np.float32(reader.bottom), np.float32(reader.top))

    def read(self, x: Tensor, zero: float, trial: int, out: Tensor) -> None:
        """Read the samples ``x`` of one trial into ``out``.

        ``x`` is ``[samples, ..., K]`` or ``[samples, ..., C, spatial]``, ``out`` is ``[samples,
        ..., outputs, N]`` or ``[samples, ..., N, spatial]``. Padding applies ``zero``.
        """
        from imcc.backends.crossbar.simulate import windows

        reader, kind, spatial = self.reader, self.kind, len(self.op.kernel)
        reader.select(trial)
        self.columns = reader.held
        keys = self._keys(trial, 0, x.shape[0])
        few = spatial > 0 and kind.group_columns < LANES // 2
        if not self._in_rows or few or (spatial and self.op.dac_bits > 1):
            self._read_images(x, zero, keys, out)
        elif not spatial:
            rows = x.reshape(-1, kind.group_rows)
            self._read_rows(rows, keys, 0, len(rows) // len(x), out.view(-1, *out.shape[-2:]))
        else:
            images = x.reshape(-1, *x.shape[-spatial - 1 :])
            results = out.view(-1, *out.shape[-spatial - 1 :])
            positions = math.prod(results.shape[2:])
            per_sample = len(images) // len(x) * positions
            size = max(1, LOOKUP_POSITIONS // positions)
            for start in range(0, len(images), size):
                part = images[start : start + size]
                vectors = windows(cast("Mvm", self.op), part, kind, zero).reshape(
                    -1, kind.group_rows
                )
                made = torch.empty(len(vectors), 1, kind.columns, dtype=out.dtype)
                self._read_rows(vectors, keys, start * positions, per_sample, made)
                whole = made.view(len(part), positions, kind.columns).transpose(1, 2)
                results[start : start + size].flatten(2).copy_(whole)

    def read_vectors(self, vectors: Tensor, trial: int, first: int) -> Tensor:
        """Read ``[samples, positions, G, K/G]`` into ``[samples, positions, outputs, N]``.

        ``first`` is the number of the first sample.
        """
        reader, kind = self.reader, self.kind
        reader.select(trial)
        self.columns = reader.held
        count, positions = vectors.shape[:2]
        keys = self._keys(trial, first, count)
        out = torch.empty(count, positions, self.outputs, kind.columns, dtype=self.result)
        if self._in_rows:
            rows = vectors.reshape(-1, kind.group_rows).to(torch.float32)
            self._read_rows(rows, keys, 0, positions, out.view(-1, *out.shape[2:]))
        else:
            self._read_images(vectors.flatten(2).to(torch.float32), 0.0, keys, out)
        return out

    @property
    def _in_rows(self) -> bool:
        """Whether columns lie beside one another in the kernels, not positions."""
        lifted = bool(self.target.column_offset) and not self.reader.pairs
        return self.columns.variance is None and not lifted and self.kind.groups == 1

    def _keys(self, trial: int, first: int, samples: int) -> Any:
        draws = self.reader.draws
        if draws is None:
            return np.zeros(samples, dtype=np.uint64)
        held = tuple(draws.samples[first : first + samples])
        return replace(draws, trials=(draws.trials[trial],), samples=held).keys(self.op.stream)

    def _position_keys(self, keys: Any, first: int, per_sample: int, count: int) -> tuple[Any, Any]:
        low, high = np.zeros(count, np.uint32), np.zeros(count, np.uint32)
        if self.noisy:
            kernels.position_keys(keys, first, per_sample, low, high)
        return low, high

    @property
    def _deviation(self) -> float:
        """Deviation of a sum for an input of 1 on one row, where all cells have the same."""
        return math.sqrt(self.reader.constant_variance) if self.noisy else 0.0

    def _read_rows(self, rows: Tensor, keys: Any, first: int, per_sample: int, out: Tensor) -> None:
        """Read vectors ``rows [P, K]`` into ``out [P, outputs, N]``, chunks of columns at a time.

        ``first`` counts positions through the samples of ``keys``, ``per_sample`` for each.
        """
        kind, op, held = self.kind, self.op, self.columns
        layout = held.chunks(kind, self.cell)
        lookups = op.dac_bits == 1 and held.table_rows(layout) is not None
        size = max(LANES, ROOM // layout.width)
        if lookups:
            size = max(kernels.LOOKUPS, min(LOOKUP_POSITIONS, size))
        add = self._add_lookups if lookups else self._add_products
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            total = torch.zeros(len(part), self.outputs * layout.width, dtype=self.exact)
            low, high = self._position_keys(keys, first + start, per_sample, len(part))
            add(part, layout, low, high, total.numpy())
            inputs = self._inputs(part)
            for output in range(self.outputs):
                # Transposed: the kernel goes through totals in the order they lie in.
                sums = total[:, output * layout.width : (output + 1) * layout.width]
                made = out[start : start + size, output]
                given = inputs[:, output : output + 1].T if inputs is not None else None
                self._finish(sums.T[None], layout.bias_place, output, given, made.T[None])

    def _inputs(self, rows: Tensor) -> Tensor | None:
        """Sums of the inputs of each block, ``[P, outputs]``, where digital terms need them."""
        if self.terms.factor is None:
            return None
        wide = rows.to(torch.float64)
        if not self.kind.split:
            return wide.sum(1, keepdim=True)
        return torch.stack([part.sum(1) for part in torch.split(wide, self.kind.block_rows, 1)], 1)

    def _finish(
        self, total: Tensor, bias_place: Tensor, output: int, inputs: Tensor | None, out: Tensor
    ) -> None:
        """Write ``out [M, N, P]``; ``total`` is ``[M, rows, P]``, ``inputs`` ``[M, groups, P]``."""
        kind, terms = self.kind, self.terms
        factor = terms.factor
        empty = np.zeros((len(out), 0, 0))
        kernels.finish(
            total.numpy(),
            bias_place.numpy(),
            self.bias,
            float(self.op.adc_step),
            terms.correction[output].contiguous().numpy(),
            np.zeros(0) if factor is None else factor[output].contiguous().numpy(),
            empty if inputs is None else inputs.reshape(len(out), -1, out.shape[2]).numpy(),
            np.arange(kind.columns) // kind.group_columns,
            out.numpy(),
        )

    def _place(self, layout: Chunks, run: int) -> Any:
        block = run // self.kind.runs_per_block if self.kind.split else 0
        return (layout.place + block * layout.width).numpy()

    def _add_lookups(self, rows: Tensor, layout: Chunks, low: Any, high: Any, total: Any) -> None:
        held, kind, op = self.columns, self.kind, self.op
        found = held.table_rows(layout)
        if found is None:
            raise ValueError("the levels lie on no grid")
        levels, shift = found
        groups = levels.shape[1] // GROUP
        shape = (len(rows), kind.row_tiles)
        index = np.empty((*shape, -(-op.digits // 8), groups), np.uint64)
        driven = np.empty((*shape, op.digits), np.float32)
        bounds = np.array([0, *(stop for _, stop in self.bounds)])
        turn = GROUP * UNROLL
        used = -(-np.diff(bounds) // turn) * UNROLL
        kernels.bits_of_rows(rows.numpy(), bounds, op.digits, index, driven)
        kernels.add_lookups(
            levels.numpy(),
            np.float32(2.0**-held.bits),
            index,
            used,
            np.sqrt(driven) * np.float32(self._deviation),
            shift.numpy(),
            low,
            high,
            self.digit.to(torch.float32).numpy(),
            self.adc,
            layout.weight.numpy(),
            np.stack([self._place(layout, run) for run in range(kind.row_tiles)]),
            self.noisy,
            kernels.room_for_tables(levels.numpy()),
            total,
        )

    def _add_products(self, rows: Tensor, layout: Chunks, low: Any, high: Any, total: Any) -> None:
        held, op, tiles = self.columns, self.op, self.kind.row_tiles
        levels, shift = held.products(layout)
        bounds = np.array([0, *(stop for _, stop in self.bounds)])
        place = np.stack([self._place(layout, run) for run in range(tiles)])
        draws = len(layout.order) // 2
        for digit, values in self._digits(rows):
            parts = torch.split(values, np.diff(bounds).tolist(), 1)
            norms = [torch.linalg.vector_norm(part, dim=1) for part in parts]
            kernels.add_products(
                values.contiguous().numpy(),
                bounds,
                levels.numpy(),
                (torch.stack(norms) * self._deviation).numpy(),
                shift.numpy(),
                low,
                high,
                (np.arange(tiles) * op.digits + digit) * draws,
                self.adc,
                (layout.weight * float(self.digit[digit])).numpy(),
                place,
                self.noisy,
                numba.get_num_threads(),
                total,
            )

    def _digits(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Input digits, least significant first, as float32."""
        op = self.op
        if op.digits == 1 and not self.reader.twos_complement:
            yield 0, x.to(torch.float32)
            return
        whole, mask = x.to(torch.int32), 2**op.dac_bits - 1
        for digit in range(op.digits):
            yield digit, ((whole >> (digit * op.dac_bits)) & mask).to(torch.float32)

    def _read_images(self, x: Tensor, zero: float, keys: Any, out: Tensor) -> None:
        """Read with sums ``[images, columns, positions]``; vectors are lines of one image."""
        kind, op, spatial = self.kind, self.op, len(self.op.kernel)
        if isinstance(op, Mvm) and spatial:
            images = x.reshape(-1, *x.shape[-spatial - 1 :])
            pads = [size for p in reversed(op.padding) for size in (p, p)]
            images = torch.nn.functional.pad(images, pads, value=zero) if any(pads) else images
            results = out.view(1, -1, *out.shape[-spatial - 1 :])
        else:
            images = x.reshape(1, -1, kind.rows)
            results = out.view(1, -1, *out.shape[-2:]).permute(2, 0, 3, 1)
        lines, across = results.shape[3], math.prod(results.shape[4:])
        per_sample = len(images) * lines * across // len(x)
        columns = kind.groups * self.columns.product.shape[-1]
        some = min(lines, max(1, 4 * ROOM // (columns * across)))
        size = max(1, ROOM // (columns * across * lines)) if some == lines else 1
        for start in range(0, len(images), size):
            for line in range(0, lines, some):
                target = results[:, start : start + size, :, line : line + some]
                first = (start * lines + line) * across
                keyed = self._position_keys(keys, first, per_sample, target[0, :, 0].numel())
                part = images[start : start + size]
                made = self._read_block(part, (line, line + target.shape[3]), keyed)
                target.copy_(made.reshape(target.shape))

    def _read_block(self, images: Tensor, lines: tuple[int, int], keys: tuple[Any, Any]) -> Tensor:
        """Results ``[outputs, M, N, positions]`` of some lines of images."""
        kind, op, held, reader = self.kind, self.op, self.columns, self.reader
        count = len(images)
        low, high = (key.reshape(count, -1) for key in keys)
        positions = low.shape[1]
        columns = kind.groups * held.product.shape[-1]
        rows = kind.columns + kind.groups * kind.bias_columns
        filters = held.filters(kind, op)
        out_row, weight = self._rows_of_columns(columns)
        total = torch.zeros(count, self.outputs * rows, positions, dtype=self.exact)
        differing = held.variance is not None
        spread_row = np.arange(columns) if differing else np.arange(columns) // (
            columns // kind.groups
        )  # fmt: skip
        quiet = np.zeros((count, 1, positions), np.float32)
        for digit, values in self._digits(images):
            driven = [item.inputs(values, lines, True) for item in filters] if self.noisy else []
            for run, item in enumerate(filters):
                sums = item.products(values, lines)
                if self.target.column_offset and not reader.pairs:
                    raised = item.inputs(values, lines, False)
                    shape = (count, kind.groups, -1, positions)
                    sums = sums.view(shape) + self.target.column_offset * raised[:, :, None]
                    sums = sums.view(count, columns, positions)
                spread = quiet
                if self.noisy:
                    deviation = item.variances(values, lines) if differing else None
                    spread = self._spread(driven, run, deviation).contiguous().numpy()
                block = run // kind.runs_per_block if kind.split else 0
                kernels.add_positions(
                    sums.contiguous().numpy(),
                    spread,
                    spread_row if self.noisy else np.zeros(columns, np.int64),
                    held.shift[:, run].flatten().numpy(),
                    low,
                    high,
                    (run * op.digits + digit) * ((columns + 1) // 2),
                    self.adc,
                    (weight * float(self.digit[digit])).numpy(),
                    (out_row + block * rows).numpy(),
                    self.noisy,
                    numba.get_num_threads(),
                    total.numpy(),
                )
        inputs = None
        if self.terms.factor is not None:
            given = [item.inputs(images, lines, False) for item in filters]
            blocks = torch.stack(given).double()
            inputs = blocks.reshape(self.outputs, -1, *blocks.shape[1:]).sum(1)
        made = torch.empty(self.outputs, count, kind.columns, positions, dtype=self.result)
        bias = torch.zeros(0, dtype=torch.int64)
        if kind.bias_columns:
            groups = torch.arange(kind.groups)[:, None] * kind.bias_columns
            bias = (kind.columns + groups + bias_tile(kind)).flatten()
        for output in range(self.outputs):
            part = total[:, output * rows : (output + 1) * rows]
            added = inputs[output] if inputs is not None else None
            self._finish(part, bias, output, added, made[output])
        return made

    def _rows_of_columns(self, columns: int) -> tuple[Tensor, Tensor]:
        """Row of the total and weight of each converted column of all groups."""
        kind = self.kind
        each = columns // kind.groups
        physical = each - kind.bias_columns
        cells = physical // kind.group_columns
        group = torch.arange(kind.groups)[:, None]
        logical = group * kind.group_columns + torch.arange(physical) // cells
        bias = kind.columns + group * kind.bias_columns + torch.arange(kind.bias_columns)
        weight = torch.cat((self.cell.repeat(kind.group_columns), torch.ones(kind.bias_columns)))
        return torch.cat((logical, bias), 1).flatten(), weight.repeat(kind.groups).float()

    def _spread(self, driven: list[Tensor], run: int, variance: Tensor | None) -> Tensor:
        """Deviations ``[M, groups or columns, positions]`` of the sums of a run."""
        kind, reader = self.kind, self.reader
        if variance is None:
            variance = driven[run] * reader.constant_variance
        if kind.packing == "diagonal" and kind.groups_abreast > 1:
            whole = torch.stack(driven).permute(2, 0, 1, 3)
            near = reader.neighbours(whole)[:, run].transpose(0, 1)
            each = variance.shape[1] // kind.groups
            variance = variance + near.repeat_interleave(each, dim=1)
        return variance.sqrt()
