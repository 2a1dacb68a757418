"""What crossbars compute: evaluation rules of ``xbar``, with noise and converters.

Units: one level step of a cell times one step of an input digit is 1, so that an ideal column sum
is an integer.

Noise is drawn only when the caller gives draws; without them the devices are ideal, converters
still round and clip. Programmed cells are kept on a binary grid so fine that a float32 sum over a
column is exact in any order: results do not depend on batch size, chunking or threads. The grid
(2^-14 of a level for 128 rows of 2-bit cells) is far below any programming error.

Memory is bounded: positions of a convolution are read in blocks of at most ``BLOCK`` column sums,
a size that depends on the op alone since draws are keyed by it, and as many samples at a time as
keep ``WORK`` column sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from imcc.backends.crossbar.dialect import EXACT_FLOAT32, MatrixType, Mvm, Program
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects.core import tensor
from imcc.ir.ops import Op
from imcc.ir.rules import EVAL
from imcc.ir.semantics.draws import Draws
from imcc.ir.semantics.interpreter import EvalContext
from imcc.ir.semantics.nn import convolve
from imcc.ir.semantics.resources import TORCH_DTYPES

BLOCK = 1 << 22
WORK = 1 << 22
USE_KERNEL = True
"""False makes every read take the torch form; tests compare the two."""


@dataclass
class ColumnMonitor:
    """Histogram of ideal column sums, one bin for each integer; for calibrating converters."""

    counts: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))

    def record(self, sums: Tensor) -> None:
        """Add column sums, rounded up."""
        seen = torch.bincount(sums.flatten().ceil().to(torch.int64))
        size = max(seen.numel(), self.counts.numel())
        total = torch.zeros(size, dtype=torch.int64)
        total[: self.counts.numel()] += self.counts
        total[: seen.numel()] += seen
        self.counts = total

    def quantile(self, share: float) -> int:
        """The smallest sum that at least ``share`` of the sums do not exceed."""
        cumulative = self.counts.cumsum(0)
        wanted = share * int(cumulative[-1])
        return int(torch.searchsorted(cumulative.to(torch.float64), wanted))


@dataclass
class Matrix:
    """A programmed matrix: what a ``!xbar.matrix`` value is at run time.

    ``codes`` ``[G, N/G, K/G]`` are the weights as asked for. ``cells``
    ``[R, G, row tiles, rows, physical columns]`` are the levels as written, a set for each trial;
    None while every cell holds exactly its level. ``monitors`` gather column sums by the stream of
    the op that reads; an op with a monitor bypasses its converters.
    """

    kind: MatrixType
    codes: Tensor
    cells: Tensor | None = None
    monitors: dict[str, ColumnMonitor] = field(default_factory=dict)
    _ideal: Tensor | None = None

    @property
    def ideal(self) -> Tensor:
        """Levels meant, ``[G, row tiles, rows, physical columns]``."""
        if self._ideal is None:
            self._ideal = levels(self.codes, self.kind)
        return self._ideal

    def of_trial(self, trial: int) -> Tensor:
        """Levels held in one trial."""
        if self.cells is None:
            return self.ideal
        return self.cells[trial if self.cells.shape[0] > 1 else 0]

    @property
    def largest_sum(self) -> float:
        """The largest ideal column sum when every row applies 1."""
        return float(self.ideal.sum(-2).max())


def tile_rows(kind: MatrixType) -> int:
    """Rows of a crossbar that hold weights of the matrix; the last run may use fewer."""
    return min(kind.array_rows, kind.group_rows)


def levels(weights: Tensor, kind: MatrixType) -> Tensor:
    """Levels ``[G, row tiles, rows, physical columns]`` of codes ``[G, N/G, K/G]``.

    Column ``(n * slices + s) * 2 + sign`` holds digit s of ``|w[n]|`` where the sign of the weight
    is that of the column (0 positive, 1 negative), else 0. Rows beyond K/G hold 0.
    """
    magnitude = weights.abs().to(torch.int64)
    shifts = torch.arange(kind.slices) * kind.cell_bits
    digits = (magnitude[:, :, None, :] >> shifts[:, None]) & (2**kind.cell_bits - 1)
    signs = torch.stack((weights > 0, weights < 0), dim=2)
    held = digits[:, :, :, None, :] * signs[:, :, None, :, :]
    flat = held.reshape(kind.groups, kind.physical_columns, kind.group_rows).to(torch.float32)
    rows = tile_rows(kind)
    flat = torch.nn.functional.pad(flat, (0, kind.row_tiles * rows - kind.group_rows))
    split = flat.reshape(kind.groups, kind.physical_columns, kind.row_tiles, rows)
    return split.permute(0, 2, 3, 1).contiguous()


def on_grid(values: Tensor, largest: float, terms: int) -> Tensor:
    """Values up to ``largest`` rounded so that any float32 sum of ``terms`` of them is exact."""
    bits = 23 - math.ceil(math.log2(max(largest * terms, 1.0)))
    return torch.round(values * 2.0**bits) * 2.0**-bits


def _target(op: Op, ctx: EvalContext) -> CrossbarTarget:
    if not isinstance(ctx.target, CrossbarTarget):
        raise DiagnosticError(
            op.diagnostic(
                codes.BAD_TARGET,
                "the simulator needs a crossbar target",
                help='give one, for instance find_target("rram")',
            )
        )
    return ctx.target


@EVAL.register(Program, backend="crossbar")
def _program(op: Program, ctx: EvalContext, *, codes: Tensor) -> Matrix:
    target = _target(op, ctx)
    kind = cast("MatrixType", op.matrix.type)
    weights = codes.detach().reshape(kind.groups, kind.group_columns, kind.group_rows)
    made = Matrix(kind, weights)
    noise = target.write_noise
    if ctx.draws is None or noise.silent:
        return made
    ideal = made.ideal
    low = 1 / target.keys.device.on_off_ratio
    step = (1 - low) / (target.levels - 1)
    normal = ctx.draws.per_trial(op.stream, tuple(ideal.shape))
    meant = (low + ideal * step).expand_as(normal)
    written = ideal + (noise.sample(meant, normal) - meant) / step
    # The bound does not depend on which trials run together: 8 sigma lie below twice the range.
    bound = 2.0 * target.levels * (2**target.keys.dac.bits - 1)
    made.cells = on_grid(written, bound, ideal.shape[-2])
    return made


@EVAL.register(Mvm, backend="crossbar")
def _mvm(
    op: Mvm, ctx: EvalContext, *, x: Tensor, matrix: Matrix, x_zero_point: Tensor | None
) -> Tensor:
    target = _target(op, ctx)
    zero = 0.0 if x_zero_point is None else float(x_zero_point)
    x = x.detach()
    dtype = TORCH_DTYPES[str(tensor(op.y).element)]
    draws = None if target.read_noise.silent else ctx.draws
    if lossless(op, matrix, target, draws):
        return _integer_product(op, x.to(dtype) - zero, matrix)
    spatial = len(op.kernel)
    axis = tensor(op.x).batch_axis or 0
    x = x.movedim(axis, 0)
    leading = x.shape[: -spatial - 1]
    trials = ctx.trials if matrix.cells is not None or draws is not None else 1
    if not leading or leading[0] % trials:
        raise DiagnosticError(
            op.diagnostic(
                codes.BAD_INPUT,
                f"input of shape {list(x.shape)} does not hold {trials} trials on its first axis",
                help="a program that runs trials needs the batch as an axis of every value",
            )
        )
    batch = leading[0] // trials
    if draws is not None and len(draws.samples) != batch:
        raise DiagnosticError(
            op.diagnostic(
                codes.BAD_INPUT, f"{len(draws.samples)} samples have draws, the batch is {batch}"
            )
        )
    out = torch.empty(tuple(_result_shape(op, x)), dtype=dtype)
    flat = out.reshape(leading[0], -1, matrix.kind.columns)
    reader = _Reader(op, target, matrix, draws)
    for trial in range(trials):
        for start, stop in reader.sample_chunks(batch, flat.shape[1]):
            rows = slice(trial * batch + start, trial * batch + stop)
            flat[rows] = reader.read(_vectors(op, x[rows], matrix.kind, zero), trial, start).to(
                dtype
            )
    flat -= zero * matrix.codes.to(dtype).sum(-1).flatten()
    out = flat.reshape(out.shape).movedim(-1, -1 - spatial) if spatial else out
    return out.movedim(0, axis).contiguous()


def lossless(op: Mvm, matrix: Matrix, target: CrossbarTarget, draws: Draws | None) -> bool:
    """Whether the read is an exact integer product: ideal cells, no noise, nothing clipped."""
    return (
        matrix.cells is None
        and draws is None
        and op.stream not in matrix.monitors
        and target.column_offset == 0
        and op.adc_step == 1.0
        and op.adc_offset == 0.0
        and matrix.largest_sum * (2**op.dac_bits - 1) <= 2**op.adc_bits - 1
    )


def _integer_product(op: Mvm, x: Tensor, matrix: Matrix) -> Tensor:
    kind = matrix.kind
    weights = matrix.codes.to(x.dtype).reshape(kind.columns, kind.group_rows)
    if not op.kernel:
        return torch.nn.functional.linear(x, weights)
    filters = weights.reshape(kind.columns, -1, *op.kernel)
    return convolve(x, filters, None, op.stride, op.padding, op.dilation, kind.groups)


def _result_shape(op: Mvm, x: Tensor) -> list[int]:
    """The result's shape with the channel axis last."""
    count = len(op.kernel)
    sizes = list(x.shape[: -count - 1])
    for size, k, s, p, d in zip(
        x.shape[x.dim() - count :], op.kernel, op.stride, op.padding, op.dilation, strict=True
    ):
        sizes.append((size + 2 * p - d * (k - 1) - 1) // s + 1)
    return [*sizes, op.held.columns]


def _vectors(op: Mvm, x: Tensor, kind: MatrixType, zero: float) -> Tensor:
    """Input vectors ``[batch, positions, G, K/G]``, padded with the zero point's code."""
    count = len(op.kernel)
    if not count:
        return x.reshape(x.shape[0], -1, kind.groups, kind.group_rows)
    pads = [size for p in reversed(op.padding) for size in (p, p)]
    padded = torch.nn.functional.pad(x, pads, value=zero) if any(pads) else x
    padded = padded.contiguous()
    sizes, strides = list(padded.shape), list(padded.stride())
    outer = len(sizes) - count
    shape, stride = sizes[: outer - 1], strides[: outer - 1]
    for axis in range(count):
        reach = op.dilation[axis] * (op.kernel[axis] - 1) + 1
        shape.append((sizes[outer + axis] - reach) // op.stride[axis] + 1)
        stride.append(strides[outer + axis] * op.stride[axis])
    shape += [sizes[outer - 1], *op.kernel]
    stride += [strides[outer - 1]]
    stride += [strides[outer + axis] * op.dilation[axis] for axis in range(count)]
    windows = padded.as_strided(shape, stride)
    return windows.reshape(x.shape[0], -1, kind.groups, kind.group_rows)


class _Reader:
    """Reads one matrix with one op: digits, column sums, noise, conversion, shift and add."""

    def __init__(
        self, op: Mvm, target: CrossbarTarget, matrix: Matrix, draws: Draws | None
    ) -> None:
        self.op, self.target, self.matrix, self.draws = op, target, matrix, draws
        self.kind = matrix.kind
        self.monitor = matrix.monitors.get(op.stream)
        self.sums_per_position = (
            op.digits * self.kind.groups * self.kind.row_tiles * self.kind.physical_columns
        )
        self.block = max(1, BLOCK // self.sums_per_position)
        low = 1 / target.keys.device.on_off_ratio
        self.step = (1 - low) / (target.levels - 1)
        self.low = low
        self.signed = tensor(op.x).quant.signed
        self._variance: tuple[int, Tensor, Tensor, float] | None = None

    def sample_chunks(self, batch: int, positions: int) -> Iterator[tuple[int, int]]:
        """Runs of samples that are read together."""
        size = max(1, WORK // (self.sums_per_position * min(positions, self.block)))
        for start in range(0, batch, size):
            yield start, min(batch, start + size)

    def read(self, vectors: Tensor, trial: int, first: int) -> Tensor:
        """Products ``[batch, positions, N]`` of vectors ``[batch, positions, G, K/G]``."""
        batch, positions = vectors.shape[:2]
        made: list[Tensor] = []
        for number, start in enumerate(range(0, positions, self.block)):
            part = vectors[:, start : start + self.block]
            sums = self._column_sums(part, trial)
            if self.fused:
                made.append(self._fused(sums, trial, first, start))
                continue
            if self.draws is not None:
                sums = self._add_noise(sums, part, trial, first, number)
            made.append(self._combine(self._convert(sums)))
        whole = made[0] if len(made) == 1 else torch.cat(made, dim=1)
        return whole.reshape(batch, positions, self.kind.columns)

    @property
    def fused(self) -> bool:
        """Whether the CPU kernel serves this read; the torch form below serves every read."""
        constant = self.draws is None or self.target.read_noise.constant_variance is not None
        return USE_KERNEL and self.monitor is None and constant

    def _fused(self, sums: Tensor, trial: int, first: int, position: int) -> Tensor:
        """Noise, conversion and shift-and-add by the kernel; ``[batch, positions, G, N/G]``."""
        from imcc.backends.crossbar import kernels

        kind, op = self.kind, self.op
        group, tiles, batch, positions, digits, columns = sums.shape
        spread = torch.zeros(group * tiles, batch, positions, digits)
        keys = np.zeros(batch, dtype=np.uint64)
        if self.draws is not None:
            constant = self.target.read_noise.constant_variance or 0.0
            squares = (self._last_digits**2).sum(-1) * (constant / self.step**2)
            spread = squares.sqrt().reshape(spread.shape)
            samples = self.draws.samples[first : first + batch]
            trials = (self.draws.trials[trial],)
            keys = replace(self.draws, trials=trials, samples=tuple(samples)).keys(op.stream)
        digit, cell = self._weights()
        out = torch.empty(batch, positions, group, kind.group_columns, dtype=torch.float64)
        kernels.convert_and_add(
            sums.reshape(group * tiles, batch, positions, digits, columns).numpy(),
            spread.numpy(),
            keys,
            position,
            np.float32(op.adc_step),
            np.float32(op.adc_offset),
            np.float32(2**op.adc_bits - 1),
            digit.numpy(),
            cell.numpy(),
            tiles,
            self.draws is not None,
            out.numpy(),
        )
        return out if op.adc_step == 1.0 else out * op.adc_step

    def _weights(self) -> tuple[Tensor, Tensor]:
        """What a converted digit and a converted cell of a logical column count, float64."""
        kind, op = self.kind, self.op
        digit = 2.0 ** (op.dac_bits * torch.arange(op.digits, dtype=torch.float64))
        if self.signed:
            digit[-1] = -digit[-1]
        cell = 2.0 ** (kind.cell_bits * torch.arange(kind.slices, dtype=torch.float64))
        return digit, torch.stack((cell, -cell), dim=1).flatten()

    def _digits(self, part: Tensor) -> Tensor:
        """Input digits ``[G * row tiles, batch * positions * digits, rows]``."""
        kind, op = self.kind, self.op
        rows = tile_rows(kind)
        whole = torch.nn.functional.pad(
            part.to(torch.int32), (0, kind.row_tiles * rows - kind.group_rows)
        )
        batch, positions = part.shape[:2]
        whole = whole.reshape(batch, positions, kind.groups, kind.row_tiles, rows)
        whole = whole.permute(2, 3, 0, 1, 4)
        shifts = (torch.arange(op.digits, dtype=torch.int32) * op.dac_bits)[:, None]
        mask: int = 2**op.dac_bits - 1
        digits: Tensor = (whole[..., None, :] >> shifts) & mask
        return digits.reshape(kind.groups * kind.row_tiles, -1, rows).to(torch.float32)

    def _column_sums(self, part: Tensor, trial: int) -> Tensor:
        """Ideal or programmed sums ``[G, row tiles, batch, positions, digits, columns]``."""
        digits = self._digits(part)
        cells = self.matrix.of_trial(trial)
        sums = torch.bmm(digits, cells.reshape(-1, *cells.shape[-2:]))
        if self.target.column_offset:
            sums += self.target.column_offset * digits.sum(-1, keepdim=True)
        self._last_digits = digits
        return sums.reshape(
            self.kind.groups,
            self.kind.row_tiles,
            part.shape[0],
            part.shape[1],
            self.op.digits,
            self.kind.physical_columns,
        )

    def _add_noise(self, sums: Tensor, part: Tensor, trial: int, first: int, number: int) -> Tensor:
        """Add read noise, referred to the column: variance ``sum_k x_k^2 var(cell k)``."""
        if self.draws is None:
            return sums
        squares = self._last_digits**2
        noise = self.target.read_noise
        constant = noise.constant_variance
        if constant is not None:
            spread = (squares.sum(-1, keepdim=True) * (constant / self.step**2)).sqrt()
        else:
            mean, variance, scale = self._moments(trial)
            spread = (torch.bmm(squares, variance) * scale).sqrt()
            sums = sums + torch.bmm(self._last_digits, mean).reshape(sums.shape)
        group, tiles, batch, positions, digits, columns = sums.shape
        stream = self.op.stream if number == 0 else f"{self.op.stream}/{number}"
        keyed = replace(
            self.draws,
            trials=(self.draws.trials[trial],),
            samples=tuple(self.draws.samples[first : first + batch]),
        )
        normal = keyed.per_read(stream, (group, tiles, positions, digits, columns))
        normal = normal.permute(1, 2, 0, 3, 4, 5)
        return sums + normal * spread.reshape(group, tiles, batch, positions, digits, -1)

    def _moments(self, trial: int) -> tuple[Tensor, Tensor, float]:
        """Mean shift and relative variance of each cell in level units, for models of any form."""
        if self._variance is None or self._variance[0] != trial:
            cells = self.matrix.of_trial(trial)
            held = self.low + cells * self.step
            mean, variance = self.target.read_noise.moments(held)
            shift, spread = (mean - held) / self.step, variance / self.step**2
            scale = max(float(spread.max()), 1e-30)
            rows = cells.shape[-2] * (2**self.op.dac_bits - 1) ** 2
            shape = (-1, *cells.shape[-2:])
            self._variance = (
                trial,
                on_grid(shift, 8.0, rows).reshape(shape),
                on_grid(spread / scale, 1.0, rows).reshape(shape),
                scale,
            )
        _, mean, variance, scale = self._variance
        return mean, variance, scale

    def _convert(self, sums: Tensor) -> Tensor:
        """Codes of the converters; with a monitor, the sums themselves."""
        if self.monitor is not None:
            self.monitor.record(sums)
            return sums
        op = self.op
        scaled = (sums - op.adc_offset) / op.adc_step if op.adc_offset else sums / op.adc_step
        return scaled.round_().clamp_(0, 2**op.adc_bits - 1)

    def _combine(self, converted: Tensor) -> Tensor:
        """Sum over row tiles, digits, slices and signs; ``[batch, positions, G, N/G]``.

        Converter codes are integers and are added as such, exactly; the converter's step is
        applied once at the end. Its offset cancels in the difference of a pair.
        """
        kind, op = self.kind, self.op
        digit, cell = self._weights()
        largest = kind.row_tiles * 2.0**op.adc_bits * float(digit.abs().sum() * cell.abs().sum())
        exact = self.monitor is None and largest < EXACT_FLOAT32
        dtype = torch.float32 if exact else torch.float64
        total = converted.sum(1).to(dtype)
        group, batch, positions, digits, _ = total.shape
        total = total.reshape(group, batch, positions, digits, kind.group_columns, -1)
        weighted = (total @ cell.to(dtype)) * digit.to(dtype)[:, None]
        made = weighted.sum(3).permute(1, 2, 0, 3)
        if self.monitor is not None:
            return made.round()
        return made if op.adc_step == 1.0 else made.to(torch.float64) * op.adc_step
