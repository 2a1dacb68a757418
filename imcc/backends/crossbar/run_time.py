"""What crossbars compute with matrices that are written at run time: ``xbar.write``, ``matmul``.

Each sample has matrices of its own, and so has each trial: a row ``r * B + b`` of a batch is
written and read by itself, with its leading axes (heads, for instance) as the groups of one matrix.
Cells are drawn when they are read, from keys, so that memory holds those of one row at a time and
a matrix that is read twice is the same twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from imcc.backends.crossbar.cells import Cells, program
from imcc.backends.crossbar.dialect import MatrixType, ReadMatrix, RunTimeMatrixType, Write
from imcc.backends.crossbar.linear_read import input_lift
from imcc.backends.crossbar.simulate import (
    ColumnMonitor,
    Matrix,
    Reader,
    code_range,
    crossbar_target,
    levels,
)
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.backends.crossbar.written_rows import RowsReader
from imcc.ir import codes as diagnostic_codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Monomial
from imcc.ir.rules import EVAL
from imcc.ir.semantics.draws import Draws
from imcc.ir.semantics.interpreter import EvalContext
from imcc.ir.semantics.resources import TORCH_DTYPES

FINEST = 2.0**-7
"""Steps of converters, in levels, up to which they count as resolving everything."""
CACHED = 1 << 17
"""Cells of written matrices that are worked on together."""


@dataclass
class WrittenMatrices:
    """What a ``!xbar.run_time_matrix`` value is at run time: the codes asked for, and its draws.

    ``codes`` ``[..., K, N]``. ``draws`` None means that every cell holds exactly its level.
    ``monitors`` are those of :class:`~imcc.backends.crossbar.simulate.Matrix`. ``alpha`` and
    ``beta`` are those of the write.
    """

    kind: RunTimeMatrixType
    codes: Tensor
    target: CrossbarTarget
    stream: str
    draws: Draws | None = None
    monitors: dict[str, ColumnMonitor] = field(default_factory=dict)
    alpha: float = 0.0
    beta: float = 1.0

    @property
    def clips(self) -> bool:
        """Whether cells are asked for other conductances than those of their levels."""
        return self.alpha > 0.0 or self.beta < 1.0

    def asked(self, ideal: Tensor) -> Tensor:
        """What cells are asked to hold for their levels, in levels."""
        if not self.clips:
            return ideal
        low = 1 / self.target.keys.device.on_off_ratio
        step = (1 - low) / (self.target.levels - 1)
        conductance = (low + ideal * step - self.alpha * low).clamp_min(low).clamp_max(self.beta)
        return (conductance - low) / step

    def of_row(self, row: int, codes: Tensor, layout: MatrixType) -> Matrix:
        """The matrix of one row ``r * B + b``, from its codes ``[G, K, N]``, as written."""
        made = Matrix(layout, codes.transpose(-1, -2), monitors=self.monitors)
        if self.clips:
            made.cells = Cells(self.asked(made.ideal)[None])
        if self.draws is None:
            return made
        once = row_draws(self.draws, row)
        made.cells = program(
            layout,
            self.asked(made.ideal),
            self.target,
            once,
            self.stream,
            written=once.per_read,
        )
        return made


def row_draws(draws: Draws, row: int) -> Draws:
    """The draws of one row ``r * B + b``."""
    trial, sample = divmod(row, len(draws.samples))
    return Draws(draws.seed, (draws.trials[trial],), (draws.samples[sample],))


@EVAL.register(Write, backend="crossbar")
def _write(op: Write, ctx: EvalContext, *, codes: Tensor) -> WrittenMatrices:
    target = crossbar_target(op, ctx).dynamic
    kind = op.matrix.type
    if not isinstance(kind, RunTimeMatrixType):
        raise TypeError(f"{op.matrix!r} is no run-time matrix")
    draws = None if target.cells_are_exact else ctx.draws
    return WrittenMatrices(kind, codes, target, op.stream, draws, alpha=op.alpha, beta=op.beta)


@EVAL.register(ReadMatrix, backend="crossbar")
def _read(
    op: ReadMatrix,
    ctx: EvalContext,
    *,
    x: Tensor,
    matrix: WrittenMatrices,
    x_zero_point: Tensor | None,
    matrix_zero_point: Tensor | None,
) -> Tensor:
    target = matrix.target
    zero_x = 0.0 if x_zero_point is None else float(x_zero_point)
    zero_b = 0.0 if matrix_zero_point is None else float(matrix_zero_point)
    dtype = TORCH_DTYPES[str(tensor(op.y).element)]
    draws = None if target.read_noise.silent else ctx.draws
    trained = x.requires_grad or matrix.codes.requires_grad
    exact = _lossless(op, matrix, target, draws, x.shape[-1])
    if exact or trained:
        ideal = (x.to(dtype) - zero_x) @ (matrix.codes.to(dtype) - zero_b)
        if exact:
            return ideal
    with torch.no_grad():
        made = _noisy(op, matrix, target, draws, x, (zero_x, zero_b), dtype, ctx)
    # Straight through cells and converters: the gradient is that of the integer product.
    return ideal + (made - ideal.detach()) if trained else made


def _lossless(
    op: ReadMatrix,
    matrix: WrittenMatrices,
    target: CrossbarTarget,
    draws: Draws | None,
    terms: int,
) -> bool:
    """Whether no sum of columns can be changed: ideal cells, no noise, nothing clipped."""
    largest = target.largest_column_sum(min(terms, target.keys.array.rows))
    return (
        matrix.draws is None
        and not matrix.clips
        and draws is None
        and op.stream not in matrix.monitors
        and (target.column_offset == 0 or op.converts == "pair")
        and op.adc_step == 1.0
        and largest <= code_range(op)[1]
    )


def _noisy(
    op: ReadMatrix,
    matrix: WrittenMatrices,
    target: CrossbarTarget,
    draws: Draws | None,
    x: Tensor,
    zeros: tuple[float, float],
    dtype: torch.dtype,
    ctx: EvalContext,
) -> Tensor:
    """Write and read row by row."""
    order = _Order(op, x, matrix.codes)
    vectors, held = order.vectors(x), order.matrices(matrix.codes)
    drawn = draws or matrix.draws
    if drawn is not None and len(drawn.samples) * len(drawn.trials) != order.rows:
        raise DiagnosticError(
            op.diagnostic(
                diagnostic_codes.BAD_INPUT,
                f"{len(drawn.trials)} trials of {len(drawn.samples)} samples have draws, the "
                f"operands have {order.rows} rows",
                help="a program that runs trials needs the batch as an axis of every value",
            )
        )
    zero_x, zero_b = zeros
    lift = input_lift(op)
    vectors, zero_x = vectors + lift, zero_x + lift
    groups, terms, columns = held.shape[1:]
    layout = matrix.kind.layout(groups, terms, columns)
    offset = zero_b + (layout.code_offset if not layout.biased else 0)
    if _transparent(op, matrix, target, draws):
        held = _read_back(matrix, held, layout, target) - zero_b
        made = (vectors.to(dtype) - zero_x).transpose(1, 2) @ held.to(dtype)
        return order.result(made.transpose(1, 2).flatten(2), columns)
    out = torch.empty(order.rows, vectors.shape[1], groups * columns, dtype=dtype)
    one = Reader(op, target, Matrix(layout, held[0].mT, monitors=matrix.monitors), None)
    several = RowsReader(one, draws is not None)
    if several.serves and (ctx.linear_reads or one.fused):
        for trial, start, stop in _row_chunks(drawn, order.rows, layout.cells):
            kind = matrix.kind.layout((stop - start) * groups, terms, columns)
            ideal = levels(held[start:stop].flatten(0, 1).mT, kind)
            ideal = ideal.reshape(stop - start, groups, *ideal.shape[1:])
            written = _of_rows(matrix.draws, trial, start, stop)
            read = _of_rows(draws, trial, start, stop)
            columns_of_rows = several.held(matrix, ideal, written)
            part = vectors[start:stop]
            rule = several.linear if ctx.linear_reads else several.converted
            made = rule(columns_of_rows, part, read)
            if zero_x:
                sums = held[start:stop].to(torch.float64).sum(2) - terms * zero_b
                made = made - zero_x * sums.flatten(1)[:, None]
            if offset:
                inputs = part.to(torch.float64).sum(-1)
                made = made - offset * inputs.repeat_interleave(columns, dim=-1)
            out[start:stop] = made.to(dtype)
        return order.result(out, columns)
    for row in range(order.rows):
        cells = matrix.of_row(row, held[row], layout)
        reader = Reader(op, target, cells, row_draws(draws, row) if draws is not None else None)
        part = vectors[row : row + 1]
        made = reader.read(part, 0, 0)[0, :, 0]
        if zero_x:
            sums = held[row].to(torch.float64).sum(1) - terms * zero_b
            made = made - zero_x * sums.reshape(-1)
        if offset:
            inputs = part[0].to(torch.float64).sum(-1)
            made = made - offset * inputs.repeat_interleave(columns, dim=-1)
        out[row] = made.to(dtype)
    return order.result(out, columns)


def applied_to_written(op: ReadMatrix, x: Tensor, codes: Tensor) -> tuple[Tensor, MatrixType]:
    """What drives the rows of the matrices ``codes``: ``[rows, positions, G, K]``; their layout.

    A row is a sample; offsets of signed codes are added as the hardware does.
    """
    order = _Order(op, x, codes)
    groups, terms, columns = order.matrices(codes).shape[1:]
    return order.vectors(x) + input_lift(op), op.held.layout(groups, terms, columns)


def _transparent(
    op: ReadMatrix, matrix: WrittenMatrices, target: CrossbarTarget, draws: Draws | None
) -> bool:
    """Whether a read is the product with what the cells hold.

    The cells deviate by the noise of writing alone, and converters resolve :data:`FINEST` of a
    level, up to twice the largest ideal sum: what they round and clip is left out.
    """
    keys = target.keys
    largest = target.largest_column_sum(keys.array.rows)
    return (
        draws is None
        and op.stream not in matrix.monitors
        and not matrix.kind.layout(1, 1, 1).biased
        and op.adc_step <= FINEST
        and code_range(op)[1] * op.adc_step >= 2 * largest
        and target.only_writes_err
        and target.column_offset == 0.0
    )


def _read_back(
    matrix: WrittenMatrices, codes: Tensor, layout: MatrixType, target: CrossbarTarget
) -> Tensor:
    """The codes ``[rows, groups, K, N]`` as the cells hold them: digits weighted and added up."""
    rows, groups, terms, columns = codes.shape
    noise, draws = target.write_noise, matrix.draws
    if draws is None and not matrix.clips:
        return codes
    low = 1 / target.keys.device.on_off_ratio
    step = (1 - low) / (target.levels - 1)
    cell = 2.0 ** (layout.cell_bits * torch.arange(layout.slices, dtype=torch.float64))
    if layout.paired:
        cell = torch.stack((cell, -cell), dim=1).flatten()
    made = torch.empty(rows, groups, terms, columns, dtype=torch.float64)
    for trial, start, stop in _row_chunks(draws, rows, layout.cells):
        part = codes[start:stop].flatten(0, 1).transpose(-1, -2)
        held = matrix.asked(levels(part, matrix.kind.layout(len(part), terms, columns)))
        if draws is not None:
            drawn = _of_rows(draws, trial, start, stop) or draws
            normal = drawn.per_read(matrix.stream, (groups, *held.shape[1:])).flatten(0, 1)
            held = (noise.sample(low + held * step, normal) - low) / step
        digits = held.flatten(1, 2)[:, :terms].to(torch.float64)
        found = digits.reshape(-1, groups, terms, columns, len(cell)) @ cell
        made[start:stop] = found - layout.code_offset
    return made


def _of_rows(draws: Draws | None, trial: int, start: int, stop: int) -> Draws | None:
    """The draws of the rows ``start`` to ``stop`` of one trial."""
    if draws is None:
        return None
    first = trial * len(draws.samples)
    return Draws(draws.seed, (draws.trials[trial],), draws.samples[start - first : stop - first])


def _row_chunks(draws: Draws | None, rows: int, cells: int) -> Iterator[tuple[int, int, int]]:
    """Trials, and runs of their rows ``r * B + b`` whose cells fit a cache together."""
    size = max(1, CACHED // cells)
    trials = 1 if draws is None else len(draws.trials)
    for trial in range(trials):
        last = (trial + 1) * (rows // trials)
        for start in range(trial * (rows // trials), last, size):
            yield trial, start, min(last, start + size)


class _Order:
    """How the axes of a product go over into rows, positions and groups, and back.

    Behind the batch an axis where the matrix has more than one index gives groups, one where rows
    of the input share the matrix gives positions.
    """

    def __init__(self, op: ReadMatrix, x: Tensor, codes: Tensor) -> None:
        self.axis = tensor(op.y).batch_axis or 0
        self.rank = max(x.dim(), codes.dim())
        x, codes = self._widened(x), self._widened(codes)
        leading = [max(pair) for pair in zip(x.shape[:-2], codes.shape[:-2], strict=True)]
        size = tensor(op.y).shape[self.axis]
        self.factor = size.coefficient if isinstance(size, Monomial) else 1
        self.rows = leading[self.axis] // self.factor
        self.leading = tuple(leading)
        behind = [self.factor, *(n for i, n in enumerate(leading) if i != self.axis)]
        own = [self.factor, *(n for i, n in enumerate(codes.shape[:-2]) if i != self.axis)]
        pairs = list(zip(behind, own, strict=True))
        self.behind = behind
        self.apart = [i for i, (_, n) in enumerate(pairs) if n > 1]
        self.shared = [i for i, (_, n) in enumerate(pairs) if n == 1]
        self.length = x.shape[-2]

    def _widened(self, x: Tensor) -> Tensor:
        return x.reshape(*[1] * (self.rank - x.dim()), *x.shape)

    def _split(self, x: Tensor) -> Tensor:
        """``[rows, factor, ...]``: the batch first, then what is behind it."""
        x = x.movedim(self.axis, 0)
        return x.reshape(self.rows, self.factor, *x.shape[1:])

    def vectors(self, x: Tensor) -> Tensor:
        """Inputs ``[rows, positions, groups, K]``."""
        x = self._split(self._widened(x).expand(*self.leading, *x.shape[-2:]))
        last = x.dim() - 1
        order = [0, *(i + 1 for i in self.shared), last - 1, *(i + 1 for i in self.apart), last]
        groups = math.prod(self.behind[i] for i in self.apart)
        return x.permute(order).reshape(self.rows, -1, groups, x.shape[-1])

    def matrices(self, codes: Tensor) -> Tensor:
        """Codes ``[rows, groups, K, N]``."""
        codes = self._split(self._widened(codes))
        return codes.reshape(self.rows, -1, *codes.shape[-2:])

    def result(self, out: Tensor, columns: int) -> Tensor:
        """``[rows, positions, groups * N]`` in the order of the result's axes."""
        sizes = [self.behind[i] for i in (*self.shared, *self.apart)]
        shape: Sequence[int] = [
            self.rows,
            *sizes[: len(self.shared)],
            self.length,
            *sizes[len(self.shared) :],
            columns,
        ]
        out = out.reshape(shape)
        places = {axis: i + 1 for i, axis in enumerate(self.shared)}
        places |= {axis: len(self.shared) + 2 + i for i, axis in enumerate(self.apart)}
        order = [0, *(places[i] for i in range(len(self.behind))), len(self.shared) + 1, -1]
        out = out.permute([axis % out.dim() for axis in order])
        out = out.reshape(self.rows * self.factor, *out.shape[2:])
        return out.movedim(0, self.axis).contiguous()
