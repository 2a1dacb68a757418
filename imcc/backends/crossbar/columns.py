"""Columns of a programmed matrix as the kernels of a read want them.

They are made once for each matrix, trial and way of reading, and kept with the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from imcc.backends.crossbar.dialect import MatrixType, Mvm, ReadMatrix
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.semantics.nn import convolve

LANES = 16
"""Columns or positions that kernels work on together."""

GROUP = 4
"""Rows whose bits choose one entry of a table of sums."""

UNROLL = 4
"""Lookups in one turn of a loop; groups of rows are a multiple of it."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class DigitalTerms:
    """What is added to outputs behind the converters, float64.

    ``correction [outputs, N]``, and ``factor [outputs, N]`` times the sum of the inputs of a
    column's block or group.
    """

    correction: Tensor
    factor: Tensor | None = None


@dataclass(frozen=True)
class Chunks:
    """Columns in chunks of ``LANES`` that lie side by side in the result and count alike.

    ``order`` picks columns, one more than there are standing for an empty one; ``weight`` and
    ``place`` say for each chunk what a code counts and where it is added, in a total of ``width``
    columns for each output. ``bias_place`` is where the bias of a logical column is added up.
    """

    order: Tensor
    weight: Tensor
    place: Tensor
    width: int
    bias_place: Tensor


def chunks_of(kind: MatrixType, cell: Tensor, columns: int) -> Chunks:
    """Chunks of a matrix of one group with ``columns`` converted columns."""

    def padded(count: int) -> int:
        return -(-count // LANES) * LANES

    logical, empty = kind.group_columns, columns
    planes = (columns - kind.bias_columns) // logical
    wide, more = padded(logical), padded(kind.bias_columns)
    physical = torch.arange(logical * planes).reshape(logical, planes).T
    order = [torch.nn.functional.pad(physical, (0, wide - logical), value=empty).flatten()]
    weight = [cell.to(torch.float32).repeat_interleave(wide // LANES)]
    place = [torch.arange(0, wide, LANES).repeat(planes)]
    if more:
        bias = torch.arange(kind.bias_columns) + columns - kind.bias_columns
        order.append(torch.nn.functional.pad(bias, (0, more - len(bias)), value=empty))
        weight.append(torch.ones(more // LANES))
        place.append(torch.arange(wide, wide + more, LANES))
    if sum(len(item) for item in weight) % 2:
        order.append(torch.full((LANES,), empty))
        weight.append(torch.zeros(1))
        place.append(torch.zeros(1, dtype=torch.int64))
    bias_place = wide + bias_tile(kind) if more else torch.zeros(0, dtype=torch.int64)
    return Chunks(torch.cat(order), torch.cat(weight), torch.cat(place), wide + more, bias_place)


def bias_tile(kind: MatrixType) -> Tensor:
    """The crossbar whose bias column serves each logical column of a group.

    It is the one that holds the digit which the bias is in.
    """
    digit = (kind.weight_bits - 1) // kind.cell_bits
    cells = torch.arange(kind.physical_columns) // kind.usable_columns
    return cells.reshape(kind.group_columns, kind.slices)[:, digit]


def run_bounds(kind: MatrixType) -> list[tuple[int, int]]:
    """Logical rows of each run of a group."""
    made: list[tuple[int, int]] = []
    for block in range(kind.blocks):
        first = block * kind.block_rows
        last = min(first + kind.block_rows, kind.group_rows)
        for run in range(kind.runs_per_block):
            start = first + run * kind.run_rows
            made.append((min(start, last), min(start + kind.run_rows, last)))
    return made


@dataclass(frozen=True)
class Filters:
    """One run of rows as a convolution over the part of the window that holds its rows.

    ``weight`` and ``variance`` are ``[G * columns, channels, kernel]``, ``ones`` ``[G, channels,
    kernel]`` has 1 for each row. Channels and places of the kernel start at ``first``. Without a
    kernel ``weight`` is ``[columns, rows]``.
    """

    op: Mvm | ReadMatrix
    groups: int
    weight: Tensor
    variance: Tensor | None
    ones: Tensor
    first: tuple[int, ...]

    def products(self, x: Tensor, lines: tuple[int, int]) -> Tensor:
        """Column sums ``[M, G * columns, positions]`` of padded images ``[M, C, spatial]``."""
        return self._apply(self._part(x, lines), self.weight)

    def variances(self, x: Tensor, lines: tuple[int, int]) -> Tensor:
        """Variances of the sums, shaped like them."""
        if self.variance is None:
            raise ValueError("all cells have one variance")
        return self._apply(self._part(x, lines) ** 2, self.variance)

    def inputs(self, x: Tensor, lines: tuple[int, int], squared: bool) -> Tensor:
        """Sums of the (squared) inputs of the run's rows, ``[M, G, positions]``."""
        part = self._part(x, lines)
        part = part**2 if squared else part
        if self.groups > 1 or not self.op.kernel:
            return self._apply(part, self.ones)
        # Channels that the run holds whole are added up first.
        whole = self.ones[0].flatten(1).all(1)
        if not whole.any():
            return self._apply(part, self.ones)
        ones = torch.cat((self.ones[:, whole][:, :1], self.ones[:, ~whole]), 1)
        summed = part[:, whole].sum(1, keepdim=True)
        return self._apply(torch.cat((summed, part[:, ~whole]), 1), ones)

    def _part(self, x: Tensor, lines: tuple[int, int]) -> Tensor:
        """What the run sees of images when only some lines of the result are wanted."""
        op = self.op
        count = self.ones.shape[1]
        if isinstance(op, ReadMatrix) or not op.kernel:
            # Positions are the lines of the one image.
            part = x[:, lines[0] : lines[1]]
            part = part.reshape(*part.shape[:2], self.groups, -1)
            return part[..., self.first[0] : self.first[0] + count].permute(0, 2, 3, 1)
        channel, *places = self.first
        if count * self.groups < x.shape[1]:
            grouped = x.reshape(len(x), self.groups, -1, *x.shape[2:])
            x = grouped[:, :, channel : channel + count].flatten(1, 2)
        for axis, (place, size) in enumerate(zip(places, self.ones.shape[2:], strict=True)):
            stride, apart = op.stride[axis], op.dilation[axis]
            results = (x.shape[axis + 2] - apart * (op.kernel[axis] - 1) - 1) // stride + 1
            first = place * apart
            if axis == 0:
                results, first = lines[1] - lines[0], first + lines[0] * stride
            x = x.narrow(axis + 2, first, (results - 1) * stride + apart * (size - 1) + 1)
        return x

    def _apply(self, x: Tensor, weight: Tensor) -> Tensor:
        op = self.op
        if isinstance(op, ReadMatrix) or not op.kernel:
            made = weight.reshape(self.groups, -1, weight.shape[-1]) @ x
            return made.flatten(1, 2)
        groups = self.groups
        made = convolve(x, weight, None, op.stride, [0] * len(op.kernel), op.dilation, groups)
        return made.flatten(2)


@dataclass
class Columns:
    """Levels of converted columns in one trial.

    ``product [G, T, rows, columns]`` gives the sums (differences of pairs where those are
    converted), ``shift [G, T, columns]`` is added to them; ``variance`` times ``scale`` gives the
    variance of the read noise, None where all cells have one. Levels are multiples of ``2^-bits``,
    ``target`` is the one that they were made for.
    """

    product: Tensor
    shift: Tensor
    bits: int
    target: CrossbarTarget
    variance: Tensor | None = None
    scale: float = 1.0
    _made: dict[str, Any] = field(default_factory=dict)

    def _once(self, name: str, make: Callable[[], Made]) -> Made:
        if name not in self._made:
            self._made[name] = make()
        return cast("Made", self._made[name])

    def chunks(self, kind: MatrixType, cell: Tensor) -> Chunks:
        """Chunks of columns, for a matrix of one group."""
        columns = self.product.shape[-1]
        return self._once("chunks", lambda: chunks_of(kind, cell, columns))

    def products(self, layout: Chunks) -> tuple[Tensor, Tensor]:
        """Levels ``[T, pairs, rows, 2 LANES]`` and shifts ``[T, pairs, 2 LANES]``.

        Chunk c lies beside chunk ``c + pairs``.
        """

        def paired(values: Tensor) -> Tensor:
            made = _in_chunks(values, layout)
            made = made.reshape(*made.shape[:-1], 2, -1, LANES)
            return made.movedim(-2, 1).flatten(-2).contiguous()

        return self._once("products", lambda: (paired(self.product[0]), paired(self.shift[0])))

    def table_rows(self, layout: Chunks) -> tuple[Tensor, Tensor] | None:
        """Whole levels ``[T, rows, columns]``, ``2^bits`` for one, rows as many as kernels want.

        In 16 bits where every sum of theirs fits, else in 32; and the shifts. None for levels that
        are no multiples of ``2^-bits``.
        """
        return self._once("table_rows", lambda: self._table_rows(layout))

    def _table_rows(self, layout: Chunks) -> tuple[Tensor, Tensor] | None:
        whole = self.product[0].to(torch.float64) * 2.0**self.bits
        if not torch.equal(whole, whole.round()):
            return None
        small = float(whole.abs().sum(1).max()) < 2**15
        held = _in_chunks(whole.to(torch.int16 if small else torch.int32), layout)
        held = torch.nn.functional.pad(held, (0, 0, 0, -held.shape[1] % (GROUP * UNROLL)))
        return held, _in_chunks(self.shift[0], layout)

    def filters(self, kind: MatrixType, op: Mvm | ReadMatrix) -> list[Filters]:
        """The runs as convolutions."""
        return self._once("filters", lambda: list(self._filters(kind, op)))

    def _filters(self, kind: MatrixType, op: Mvm | ReadMatrix) -> Iterator[Filters]:
        ones = torch.ones(kind.groups, kind.run_rows, 1)
        for run, bounds in enumerate(run_bounds(kind)):
            held = _window(ones, kind, op, bounds)
            # Groups have the same rows, so one of them says where the window has rows.
            spans = [(int(at.min()), int(at.max()) + 1) for at in held[0].nonzero().T]
            cut = (slice(None), *(slice(*span) for span in spans))
            variance = None
            if self.variance is not None:
                variance = _window(self.variance[:, run] * self.scale, kind, op, bounds)[cut]
            weight = _window(self.product[:, run], kind, op, bounds)[cut].contiguous()
            first = tuple(span[0] for span in spans)
            yield Filters(op, kind.groups, weight, variance, held[cut].contiguous(), first)


def _in_chunks(values: Tensor, layout: Chunks) -> Tensor:
    """``[..., columns]`` in the order of the chunks, 0 for columns that are not there."""
    return torch.nn.functional.pad(values, (0, 1))[..., layout.order].contiguous()


def _window(
    values: Tensor, kind: MatrixType, op: Mvm | ReadMatrix, bounds: tuple[int, int]
) -> Tensor:
    """Rows of a run ``[G, rows, columns]`` in a whole window, ``[G * columns, C, kernel]``."""
    start, stop = bounds
    room = values.new_zeros(values.shape[0], kind.group_rows, values.shape[-1])
    room[:, start:stop] = values[:, : stop - start]
    room = room.transpose(1, 2).flatten(0, 1)
    if not op.kernel:
        return room
    if kind.row_order == "position":
        return room.reshape(len(room), *op.kernel, -1).movedim(-1, 1)
    return room.reshape(len(room), -1, *op.kernel)
