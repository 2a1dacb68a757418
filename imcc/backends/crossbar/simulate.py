"""What crossbars compute: evaluation rules of ``xbar``, with noise and converters.

Units: one level step of a cell times one step of an input digit is 1, so that an ideal column sum
is an integer.

Noise is drawn only when the caller gives draws; without them the devices and wires are ideal,
converters still round and clip. What ``cells`` makes of a matrix is folded into effective levels
once for each trial; a read is then a product, read noise, a conversion and a weighted sum.

Memory is bounded: positions of a convolution are read in blocks of at most ``BLOCK`` column sums,
a size that depends on the op alone since draws are keyed by it, and as many samples at a time as
keep ``WORK`` column sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from imcc.backends.crossbar.cells import Cells, level_bits, on_grid, program
from imcc.backends.crossbar.columns import Columns, DigitalTerms, bias_tile
from imcc.backends.crossbar.dialect import EXACT_FLOAT32, MatrixType, Mvm, Program, ReadMatrix
from imcc.backends.crossbar.learning_ops import adapts
from imcc.backends.crossbar.linear_read import (
    input_lift,
    linear_read,
    matrix_product,
    with_read_noise,
)
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects.core import tensor
from imcc.ir.ops import Op
from imcc.ir.rules import EVAL
from imcc.ir.semantics.draws import Draws
from imcc.ir.semantics.interpreter import EvalContext
from imcc.ir.semantics.resources import TORCH_DTYPES

if TYPE_CHECKING:
    from imcc.backends.crossbar.fused import FusedReader

BLOCK = 1 << 22
WORK = 1 << 22
USE_KERNEL = True
"""False makes every read take the torch form; tests compare the two."""


@dataclass
class ColumnMonitor:
    """Histogram of the sizes of ideal column sums, a bin for each integer, to set converters by."""

    counts: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))

    def record(self, sums: Tensor) -> None:
        """Add absolute values of column sums, rounded up."""
        seen = torch.bincount(sums.flatten().abs().ceil().to(torch.int64))
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

    ``codes`` ``[G, N/G, K/G]`` are the weights as asked for, rows in the matrix' order. ``cells``
    are the levels as written; None while every cell holds exactly its level. ``monitors`` gather
    column sums by the stream of the op that reads; an op with a monitor bypasses its converters.
    ``stream`` names the draws of its devices. Of a matrix that adapts, ``wear`` counts the writes
    of each cell since it was deployed, ``updates`` the updates.
    """

    kind: MatrixType
    codes: Tensor
    cells: Cells | None = None
    stream: str = ""
    wear: Tensor | None = None
    updates: int = 0
    monitors: dict[str, ColumnMonitor] = field(default_factory=dict)
    _ideal: Tensor | None = None
    _largest_sum: float | None = field(default=None, init=False)
    _columns: dict[tuple[object, ...], Columns] = field(default_factory=dict, init=False)

    def columns(self, key: tuple[object, ...], make: Callable[[], Columns]) -> Columns:
        """What kernels read, made once for each trial and way of reading, which ``key`` says."""
        key = (*key, id(self.cells))
        if key not in self._columns:
            self._columns[key] = make()
        return self._columns[key]

    @property
    def ideal(self) -> Tensor:
        """Levels meant, ``[G, T, rows, physical columns]``."""
        if self._ideal is None:
            self._ideal = levels(self.codes, self.kind)
        return self._ideal

    def of_trial(self, trial: int) -> Tensor:
        """Levels held in one trial."""
        if self.cells is None:
            return self.ideal
        return self.cells.levels[trial if self.cells.levels.shape[0] > 1 else 0]

    @property
    def largest_sum(self) -> float:
        """The largest ideal column sum when every row applies 1."""
        if self._largest_sum is None:
            self._largest_sum = float(self.ideal.sum(-2).max())
        return self._largest_sum


def runs(rows: Tensor, kind: MatrixType) -> Tensor:
    """Cut the last axis, of logical rows, into runs: ``[..., K/G]`` to ``[..., T, rows]``."""
    pad = torch.nn.functional.pad
    rows = pad(rows, (0, kind.blocks * kind.block_rows - kind.group_rows))
    blocks = rows.reshape(*rows.shape[:-1], kind.blocks, kind.block_rows)
    blocks = pad(blocks, (0, kind.runs_per_block * kind.run_rows - kind.block_rows))
    return blocks.reshape(*rows.shape[:-1], kind.row_tiles, kind.run_rows)


def levels(weights: Tensor, kind: MatrixType) -> Tensor:
    """Levels ``[G, T, rows, physical columns]`` of codes ``[G, N/G, K/G]``.

    In pairs, column ``(n * slices + s) * 2 + sign`` holds digit s of ``|w[n]|`` where the sign of
    the weight is that of the column (0 positive, 1 negative), else 0. Without pairs, column
    ``n * slices + s`` holds digit s of ``w[n]`` plus the offset of the codes, and bias columns, the
    last ones, the digit of the offset that is not 0. Rows that hold no weight hold 0.
    """
    whole = weights.to(torch.int64)
    magnitude = whole.abs() if kind.paired else whole + kind.code_offset
    shifts = torch.arange(kind.slices) * kind.cell_bits
    digits = (magnitude[:, :, None, :] >> shifts[:, None]) & (2**kind.cell_bits - 1)
    if kind.paired:
        signs = torch.stack((weights > 0, weights < 0), dim=2)
        digits = digits[:, :, :, None, :] * signs[:, :, None, :, :]
    flat = digits.reshape(kind.groups, kind.physical_columns, kind.group_rows).to(torch.float32)
    if kind.bias_columns:
        held = float(2 ** ((kind.weight_bits - 1) % kind.cell_bits))
        bias = torch.full((kind.groups, kind.bias_columns, kind.group_rows), held)
        flat = torch.cat((flat, bias), dim=1)
    return runs(flat, kind).permute(0, 2, 3, 1).contiguous()


def crossbar_target(op: Op, ctx: EvalContext) -> CrossbarTarget:
    """The target that a rule runs on; a diagnostic if it is none of crossbars."""
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
    target = crossbar_target(op, ctx)
    kind = cast("MatrixType", op.matrix.type)
    made = Matrix(kind, arranged(codes, kind), stream=op.stream)
    if ctx.draws is not None and not target.cells_are_exact:
        keep = adapts(op)
        made.cells = program(kind, made.ideal, target, ctx.draws, op.stream, keep=keep)
    return made


def arranged(codes: Tensor, kind: MatrixType) -> Tensor:
    """Codes ``[N, ...]`` as ``[G, N/G, K/G]``, rows in the order of the matrix."""
    weights = codes
    if kind.row_order == "position":
        weights = weights.flatten(2).transpose(1, 2)
    return weights.reshape(kind.groups, kind.group_columns, kind.group_rows)


@EVAL.register(Mvm, backend="crossbar")
def _mvm(
    op: Mvm,
    ctx: EvalContext,
    *,
    x: Tensor,
    matrix: Matrix,
    x_zero_point: Tensor | None,
    weight_zero_point: Tensor | None,
) -> Tensor:
    differentiable = torch.is_grad_enabled() and (x.requires_grad or matrix.codes.requires_grad)
    read: Tensor | None = None
    if not ctx.linear_reads:
        with torch.no_grad():
            read = _read(op, ctx, x, matrix, x_zero_point, weight_zero_point)
        if not differentiable:
            return read
    target = crossbar_target(op, ctx)
    zero = 0.0 if x_zero_point is None else float(x_zero_point)
    draws = None if target.read_noise.silent else ctx.draws
    reader = Reader(op, target, matrix, draws)
    made = linear_read(op, reader, x, zero, weight_zero_point, trials=ctx.trials)
    if read is None:
        return with_read_noise(op, reader, made, x, zero, trials=ctx.trials)
    # What the hardware gives, with the gradient of the weights that its cells hold: straight
    # through converters, and a device's deviations are taken for given.
    return read + (made - made.detach())


def _read(
    op: Mvm,
    ctx: EvalContext,
    x: Tensor,
    matrix: Matrix,
    x_zero_point: Tensor | None,
    weight_zero_point: Tensor | None,
) -> Tensor:
    target = crossbar_target(op, ctx)
    kind = matrix.kind
    zero = 0.0 if x_zero_point is None else float(x_zero_point)
    dtype = TORCH_DTYPES[str(tensor(op.y).element)]
    draws = None if target.read_noise.silent else ctx.draws
    if lossless(op, matrix, target, draws):
        weights = matrix.codes.reshape(kind.columns, kind.group_rows)
        return matrix_product(op, x.to(dtype) - zero, weights, weight_zero_point)
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
    lift = input_lift(op)
    if lift:
        x, zero = x + lift, zero + lift
    outputs = kind.blocks if kind.split else 1
    shape = _result_shape(op, x)
    reader = Reader(op, target, matrix, draws)
    correction = torch.zeros(outputs, kind.columns, dtype=torch.float64)
    if zero:
        correction = -zero * _block_sums(matrix.codes, kind, outputs)
    factor = None
    if kind.code_offset and not kind.biased:
        factor = torch.full((outputs, kind.columns), -float(kind.code_offset), dtype=torch.float64)
    if weight_zero_point is not None:
        zeros = weight_zero_point.to(torch.float64).reshape(kind.columns, outputs).T
        terms = _block_sums(torch.ones(1, 1, kind.group_rows), kind, outputs)
        correction = correction + zero * zeros * terms
        factor = -zeros if factor is None else factor - zeros
    if reader.fused:
        placed = (*shape[:-1], outputs, shape[-1])
        if spatial:
            placed = (*shape[: -1 - spatial], shape[-1], *shape[-1 - spatial : -1])
        out = torch.empty(placed, dtype=dtype)
        fused = reader.kernels(DigitalTerms(correction, factor), dtype)
        for trial in range(trials):
            rows = slice(trial * batch, (trial + 1) * batch)
            fused.read(x[rows].to(torch.float32), zero, trial, out[rows])
        if not spatial:
            out = out.transpose(-1, -2) if kind.split else out.squeeze(-2)
        return out.movedim(0, axis).contiguous()
    flat = torch.empty(leading[0], math.prod(shape[1:-1]), outputs, kind.columns, dtype=dtype)
    for trial in range(trials):
        for start, stop in reader.sample_chunks(batch, flat.shape[1]):
            rows = slice(trial * batch + start, trial * batch + stop)
            vectors = windows(op, x[rows], kind, zero)
            made = reader.read(vectors, trial, start)
            if correction.any():
                made += correction
            if factor is not None:
                inputs = _block_sums(vectors.to(torch.float64), kind, outputs)
                made += factor * _for_columns(inputs, kind)
            flat[rows] = made.to(dtype)
    if kind.split:
        out = flat.transpose(-1, -2).reshape(*shape, kind.blocks)
    else:
        out = flat.reshape(shape)
        out = out.movedim(-1, -1 - spatial) if spatial else out
    return out.movedim(0, axis).contiguous()


def _block_sums(rows: Tensor, kind: MatrixType, outputs: int) -> Tensor:
    """Sums over the rows of each output's block.

    ``[G, N/G, K/G]`` to ``[outputs, N]`` for weights, ``[..., G, K/G]`` to ``[..., outputs]`` or
    ``[..., G]`` for inputs.
    """
    rows = rows.to(torch.float64)
    if outputs == 1 and not kind.split:
        sums = rows.sum(-1)
        return sums.reshape(1, -1) if rows.dim() == 3 else sums
    padded = torch.nn.functional.pad(rows, (0, kind.blocks * kind.block_rows - kind.group_rows))
    sums = padded.reshape(*rows.shape[:-1], kind.blocks, kind.block_rows).sum(-1)
    return sums[0].T if rows.dim() == 3 else sums.squeeze(-2)


def _for_columns(inputs: Tensor, kind: MatrixType) -> Tensor:
    """Sums of inputs shaped for ``[..., outputs, N]``."""
    if kind.split:
        return inputs[..., None]
    return inputs.repeat_interleave(kind.group_columns, dim=-1)[..., None, :]


def lossless(op: Mvm, matrix: Matrix, target: CrossbarTarget, draws: Draws | None) -> bool:
    """Whether the read is an exact integer product: ideal cells, no noise, nothing clipped."""
    top = code_range(op)[1]
    return (
        matrix.cells is None
        and draws is None
        and op.stream not in matrix.monitors
        and (target.column_offset == 0 or op.converts == "pair")
        and op.adc_step == 1.0
        and matrix.largest_sum * (2**op.dac_bits - 1) <= top
    )


def code_range(op: Mvm | ReadMatrix) -> tuple[float, float]:
    """Smallest and largest code of a converter."""
    if op.converts == "pair":
        return -(2.0 ** (op.adc_bits - 1)), 2.0 ** (op.adc_bits - 1) - 1
    return 0.0, 2.0**op.adc_bits - 1


def applied(op: Mvm, x: Tensor, zero: float) -> Tensor:
    """What drives the rows for codes ``x`` without trials: ``[batch, positions, G, K/G]``.

    Offsets of signed codes are added and windows padded as the hardware does.
    """
    lift = input_lift(op)
    x = x.movedim(tensor(op.x).batch_axis or 0, 0)
    return windows(op, x + lift, op.held, zero + lift)


def _result_shape(op: Mvm, x: Tensor) -> list[int]:
    """The result's shape with the channel axis last."""
    count = len(op.kernel)
    sizes = list(x.shape[: -count - 1])
    for size, k, s, p, d in zip(
        x.shape[x.dim() - count :], op.kernel, op.stride, op.padding, op.dilation, strict=True
    ):
        sizes.append((size + 2 * p - d * (k - 1) - 1) // s + 1)
    return [*sizes, op.held.columns]


def windows(op: Mvm, x: Tensor, kind: MatrixType, zero: float) -> Tensor:
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
    channels = sizes[outer - 1] // kind.groups
    window = [strides[outer + axis] * op.dilation[axis] for axis in range(count)]
    apart, step = [kind.groups], [channels * strides[outer - 1]]
    if kind.row_order == "position":
        shape += [*apart, *op.kernel, channels]
        stride += [*step, *window, strides[outer - 1]]
    else:
        shape += [*apart, channels, *op.kernel]
        stride += [*step, strides[outer - 1], *window]
    windows = padded.as_strided(shape, stride)
    return windows.reshape(x.shape[0], -1, kind.groups, kind.group_rows)


class Reader:
    """Reads one matrix with one op: digits, column sums, noise, conversion, shift and add.

    Columns are physical ones, or pairs where those are converted; bias columns come last.
    """

    def __init__(
        self,
        op: Mvm | ReadMatrix,
        target: CrossbarTarget,
        matrix: Matrix,
        draws: Draws | None,
    ) -> None:
        self.op, self.target, self.matrix, self.draws = op, target, matrix, draws
        self.kind = kind = matrix.kind
        self.pairs = op.converts == "pair"
        self.monitor = matrix.monitors.get(op.stream)
        self.columns = kind.physical_columns // (2 if self.pairs else 1) + kind.bias_columns
        self.sums_per_position = op.digits * kind.groups * kind.row_tiles * self.columns
        self.block = max(1, BLOCK // self.sums_per_position)
        low = 1 / target.keys.device.on_off_ratio
        self.step = (1 - low) / (target.levels - 1)
        self.low = low
        self.twos_complement = tensor(op.x).quant.signed and op.dac_bits == 1
        self.bottom, self.top = code_range(op)
        self.outputs = kind.blocks if kind.split else 1
        # Both forms of a read multiply by the same float32.
        self.inverse_step = float(np.float32(1.0) / np.float32(op.adc_step))
        self._trial = -1
        # What a converted digit and a converted cell of a logical column count.
        digit = 2.0 ** (op.dac_bits * torch.arange(op.digits, dtype=torch.float64))
        if self.twos_complement:
            digit[-1] = -digit[-1]
        cell = 2.0 ** (kind.cell_bits * torch.arange(kind.slices, dtype=torch.float64))
        if kind.paired and not self.pairs:
            cell = torch.stack((cell, -cell), dim=1).flatten()
        self.digit_weights, self.cell_weights = digit, cell

    def sample_chunks(self, batch: int, positions: int) -> Iterator[tuple[int, int]]:
        """Runs of samples that are read together."""
        size = max(1, WORK // (self.sums_per_position * min(positions, self.block)))
        for start in range(0, batch, size):
            yield start, min(batch, start + size)

    def read(self, vectors: Tensor, trial: int, first: int) -> Tensor:
        """Products ``[batch, positions, outputs, N]`` of vectors ``[batch, positions, G, K/G]``."""
        if self.fused:
            none = torch.zeros(self.outputs, self.kind.columns, dtype=torch.float64)
            fused = self.kernels(DigitalTerms(none), torch.float64)
            return fused.read_vectors(vectors, trial, first)
        self.select(trial)
        batch, positions = vectors.shape[:2]
        made: list[Tensor] = []
        for number, start in enumerate(range(0, positions, self.block)):
            part = vectors[:, start : start + self.block]
            digits = self._digits(part)
            sums = self._column_sums(digits, part)
            if self.draws is not None:
                sums = self._add_noise(sums, digits, trial, first, number)
            made.append(self._combine(self._convert(sums)))
        whole = made[0] if len(made) == 1 else torch.cat(made, dim=1)
        return whole.reshape(batch, positions, self.outputs, self.kind.columns)

    def kernels(self, terms: DigitalTerms, result: torch.dtype) -> FusedReader:
        """The same reads by the CPU kernels, with what is added digitally."""
        from imcc.backends.crossbar.fused import FusedReader

        return FusedReader(self, terms, result)

    @property
    def fused(self) -> bool:
        """Whether the CPU kernel serves this read; the torch form below serves every read."""
        on_cpu = self.matrix.codes.device.type == "cpu"
        return USE_KERNEL and on_cpu and self.monitor is None

    @property
    def constant_variance(self) -> float:
        """Variance of a converted sum for an input of 1 on one row, where cells have the same."""
        constant = self.target.read_noise.constant_variance or 0.0
        return constant / self.step**2 * (2 if self.pairs else 1)

    def _paired(self, columns: Tensor) -> Tensor:
        """Differences of the columns of pairs, where those are converted."""
        return columns[..., 0::2] - columns[..., 1::2] if self.pairs else columns

    def select(self, trial: int) -> None:
        """Ready the cells of a trial: ``product``, ``shift``, ``variance`` and ``constant``."""
        if trial == self._trial:
            return
        self._trial = trial
        key = (trial, self.pairs, self.op.adc_step, self.op.dac_bits, self.op.kernel)
        target = (self.draws is None, id(self.target))
        self.held = self.matrix.columns((*key, *target), lambda: self._columns(trial))
        self.product = self.held.product.flatten(0, 1)
        self.shift = self.held.shift
        self.shift_is_zero = not self.shift.any()
        self.constant = self.target.read_noise.constant_variance
        variance = self.held.variance
        self.variance = None if variance is None else variance.flatten(0, 1)
        self.scale = self.held.scale

    def _columns(self, trial: int) -> Columns:
        held, cells = self.matrix.of_trial(trial), self.matrix.cells
        product = self._paired(held)
        groups, tiles = self.kind.groups, self.kind.row_tiles
        shift = torch.zeros(groups, tiles, self.columns)
        bits = 0
        if cells is not None:
            bits = level_bits(self.matrix.ideal, self.target)
            index = trial if cells.levels.shape[0] > 1 else 0
            if cells.constant is not None:
                shift += self._paired(cells.constant[index])
            if cells.converter_offsets is not None:
                offsets = cells.converter_offsets[index]
                shift += self.op.adc_step * (offsets[..., 0::2] if self.pairs else offsets)
        noise = self.target.read_noise
        if self.draws is None or noise.constant_variance is not None:
            return Columns(product, shift, bits, self.target)
        conductance = self.low + held * self.step
        mean, variance = noise.moments(conductance)
        rows = held.shape[-2] * (2**self.op.dac_bits - 1) ** 2
        difference = (mean - conductance) / self.step
        if difference.any():
            product = product + on_grid(self._paired(difference), 8.0 * rows)
        if self.pairs:
            variance = variance[..., 0::2] + variance[..., 1::2]
        variance = variance / self.step**2
        scale = max(float(variance.max()), 1e-30)
        variance = on_grid(variance / scale, float(rows))
        return Columns(product, shift, bits, self.target, variance, scale)

    def _digits(self, part: Tensor) -> Tensor:
        """Input digits ``[G * T, batch * positions * digits, rows]``."""
        kind, op = self.kind, self.op
        whole = runs(part, kind).permute(2, 3, 0, 1, 4)
        if op.digits == 1 and not self.twos_complement:
            flat = whole.reshape(kind.groups * kind.row_tiles, -1, kind.run_rows)
            return flat.to(torch.float32)
        shifts = (torch.arange(op.digits, dtype=torch.int32) * op.dac_bits)[:, None]
        mask: int = 2**op.dac_bits - 1
        digits: Tensor = (whole.to(torch.int32)[..., None, :] >> shifts) & mask
        return digits.reshape(kind.groups * kind.row_tiles, -1, kind.run_rows).to(torch.float32)

    def _column_sums(self, digits: Tensor, part: Tensor) -> Tensor:
        """Ideal or programmed sums ``[G, T, batch, positions, digits, columns]``."""
        sums = torch.bmm(digits, self.product)
        if self.target.column_offset and not self.pairs:
            sums += self.target.column_offset * digits.sum(-1, keepdim=True)
        shape = (self.kind.groups, self.kind.row_tiles, *part.shape[:2], self.op.digits)
        return sums.reshape(*shape, self.columns)

    def _deviation(self, digits: Tensor, sums: Tensor) -> Tensor:
        """Deviation of the read noise of column sums, ``sum_k x_k^2 var(cell k)`` under the root.

        Shaped as the sums, with one column for all where cells have one variance. Cells of other
        groups on the same bit line add theirs where groups lie on a diagonal.
        """
        squares = digits if self.op.dac_bits == 1 else digits**2
        shape = (*sums.shape[:-1], -1)
        if self.variance is None:
            made = squares.sum(-1, keepdim=True).reshape(shape) * self.constant_variance
        else:
            made = (torch.bmm(squares, self.variance) * self.scale).reshape(shape)
        if self.kind.packing == "diagonal" and self.kind.groups_abreast > 1:
            made = made + self.neighbours(squares.sum(-1).reshape(sums.shape[:-1]))[..., None]
        return made.sqrt()

    def neighbours(self, driven: Tensor) -> Tensor:
        """Variance from driven rows of other groups on the same bit lines, at level 0 here."""
        off = self.target.read_noise.moments(torch.tensor([self.low], dtype=torch.float64))[1]
        abreast = self.kind.groups_abreast
        groups = driven.shape[0]
        wanted = -(-groups // abreast) * abreast
        whole = driven.sum(1, keepdim=True)
        padded = torch.nn.functional.pad(whole, (0, 0) * (whole.dim() - 1) + (0, wanted - groups))
        shared = padded.reshape(-1, abreast, *whole.shape[1:]).sum(1)
        others = shared.repeat_interleave(abreast, dim=0)[:groups] - driven
        return others * float(off) / self.step**2 * (2 if self.pairs else 1)

    def logical_columns(self, values: Tensor) -> Tensor:
        """Logical columns ``[..., N/G]`` from physical ones, less the bias of their crossbar."""
        kind, cell = self.kind, self.cell_weights
        plain = values[..., : values.shape[-1] - kind.bias_columns]
        made = plain.reshape(*plain.shape[:-1], kind.group_columns, -1) @ cell.to(values.dtype)
        if not kind.bias_columns:
            return made
        weight = 2.0 ** (kind.cell_bits * ((kind.weight_bits - 1) // kind.cell_bits))
        tile = bias_tile(kind)
        return made - weight * values[..., kind.physical_columns :][..., tile]

    def _add_noise(
        self, sums: Tensor, digits: Tensor, trial: int, first: int, number: int
    ) -> Tensor:
        """Add read noise, referred to the column."""
        if self.draws is None:
            return sums
        group, tiles, batch, positions, count, columns = sums.shape
        stream = self.op.stream if number == 0 else f"{self.op.stream}/{number}"
        keyed = replace(
            self.draws,
            trials=(self.draws.trials[trial],),
            samples=tuple(self.draws.samples[first : first + batch]),
        )
        normal = keyed.per_read(stream, (group, tiles, positions, count, columns))
        normal = normal.permute(1, 2, 0, 3, 4, 5)
        return sums + normal * self._deviation(digits, sums)

    def _convert(self, sums: Tensor) -> Tensor:
        """Codes of the converters; with a monitor, the sums themselves."""
        if self.monitor is not None:
            self.monitor.record(sums)
            return sums
        if not self.shift_is_zero:
            sums = sums + self.shift[:, :, None, None, None]
        return (sums * self.inverse_step).round_().clamp_(self.bottom, self.top)

    def _combine(self, converted: Tensor) -> Tensor:
        """Sum over runs, digits, slices and signs; ``[batch, positions, outputs, N/G]``.

        Converter codes are integers and are added as such, exactly; the converter's step is
        applied once at the end.
        """
        kind, op = self.kind, self.op
        digit, cell = self.digit_weights, self.cell_weights
        largest = kind.row_tiles * 2.0**op.adc_bits * float(digit.abs().sum() * cell.abs().sum())
        exact = self.monitor is None and largest < EXACT_FLOAT32
        dtype = torch.float32 if exact else torch.float64
        if kind.split:
            converted = converted.reshape(kind.blocks, kind.runs_per_block, *converted.shape[2:])
        total = converted.sum(1).to(dtype)
        weighted = self.logical_columns(total) * digit.to(dtype)[:, None]
        made = weighted.sum(3).permute(1, 2, 0, 3)
        if self.monitor is not None:
            return made.double().round()
        return made if op.adc_step == 1.0 else made.to(torch.float64) * op.adc_step


# The rules of weights that adapt have a file of their own, which needs what stands above.
import imcc.backends.crossbar.adaptation  # noqa: E402, F401
