"""Ops of ``xbar`` for weights that adapt: new codes over old ones, reads in the other direction."""

from __future__ import annotations

import dataclasses
from typing import Literal

from imcc.backends.crossbar.dialect import EXACT_FLOAT32, MatrixType, Mvm, Program
from imcc.ir.dialects.core import tensor
from imcc.ir.dialects.quant import largest_product_sum
from imcc.ir.ops import Op, Value, attribute, operand, result
from imcc.ir.types import TensorType, Type

_MATRIX = (
    "%m: !xbar.matrix<rows=4, columns=3, groups=1, weight_bits=8, signed=true, cell_bits=2, "
    'slices=4, encoding="differential", array_rows=128, array_columns=128, row_block=0, '
    'row_order="channel", packing="separate">'
)


class _Held(Op):
    @property
    def kind(self) -> MatrixType:
        """The type of the matrix that is read or written."""
        held = self.__dict__["held"].type
        if not isinstance(held, MatrixType):
            raise TypeError(f"{self.__dict__['held']!r} is not a matrix")
        return held


class Update(_Held, name="xbar.update"):
    """Write codes ``[N, ...]`` over those that a matrix holds.

    Cells whose level changes are written, the others stay as they are. With ``write = "program"``
    a cell is programmed to its new level like any other (write noise of the level, whatever it was
    before). With ``"pulses"`` its conductance moves by one level step for each level between, one
    noisy pulse after the other from where it really was, within [g_min, g_max]. A cell that was
    written as often as the device endures stays as it is. ``held`` is consumed: the result is the
    same cells.
    """

    draws = True
    writes = True
    example = (
        "%c: tensor<3x4xq<s8, axis=0>>, "
        + _MATRIX
        + ' => %n = xbar.update %m, %c {stream = "w.update"} : '
        + _MATRIX.removeprefix("%m: ")
    )

    held: Value = operand(MatrixType, consumes=True)
    codes: Value = operand(TensorType, quantised=True, doc="[N, ...], as they were programmed")
    write: Literal["program", "pulses"] = attribute(default="program")
    stream: str = attribute(doc="name of its random draws, unique in the module")
    matrix: Value = result()

    def infer(self) -> Type:
        """The type of the matrix."""
        kind, codes = self.kind, tensor(self.codes)
        sizes = [size for size in codes.shape if isinstance(size, int)]
        rows = 1
        for size in sizes[1:]:
            rows *= size
        fits = len(sizes) == codes.rank and sizes[0] == kind.columns
        if not fits or rows * kind.groups != kind.rows or codes.quant.bits != kind.weight_bits:
            raise self.fail(f"codes {codes} are not those of a matrix {kind}")
        return kind


class ReadCodes(_Held, name="xbar.read_codes"):
    """The codes that a matrix holds, cell by cell: each cell rounded to the nearest level.

    ``shape`` is that of the codes which were programmed. What a write left between two levels is
    read as the nearer one.
    """

    example = (
        _MATRIX
        + " => %c = xbar.read_codes %m {shape = [3, 4], axis = 0} : tensor<3x4xq<s8, axis=0>>"
    )

    held: Value = operand(MatrixType, doc="read, not consumed")
    shape: tuple[int, ...] = attribute(minimum=1)
    axis: int | None = attribute(default=None, minimum=0, doc="axis of the scales")
    codes: Value = result()

    def infer(self) -> Type:
        """Codes of the matrix' element type."""
        kind = self.kind
        rows = 1
        for size in self.shape[1:]:
            rows *= size
        if not self.shape or self.shape[0] != kind.columns or rows * kind.groups != kind.rows:
            raise self.fail(f"codes {list(self.shape)} are not those of a matrix {kind}")
        return TensorType(self.shape, dataclasses.replace(kind.element, axis=self.axis))


class TransposedMvm(_Held, name="xbar.transposed_mvm"):
    """Read a matrix from its columns: ``y[..., k] = sum_n x[..., n] w[n, k]``.

    Exactly that, when nothing is noisy and the converter loses nothing. Columns are driven with
    input digits, rows are converted. A code is spread over cells of several columns that count
    differently, so the columns of one slice (and, unless ``converts = "pair"``, one sign) are
    driven at once, one slice after the other; each row sum of each crossbar is converted by
    ``adc_step * clamp(round(v / adc_step), 0, 2^adc_bits - 1)`` as in ``xbar.mvm``, and shift and
    add, the sum over crossbars side by side and the correction of offset codes are digital and
    exact. The array needs drivers at its columns and converters at its rows.
    """

    draws = True
    example = (
        "%x: tensor<Bx3xq<s8>>, "
        + _MATRIX
        + " => %y = xbar.transposed_mvm %x, %m {input_bits = 8, adc_bits = 8, adc_step = 1.0, "
        'stream = "fc"} : tensor<Bx4xf32>'
    )

    x: Value = operand(TensorType, quantised=True, doc="codes, [..., N]")
    held: Value = operand(MatrixType, doc="read, not consumed")
    input_bits: int = attribute(minimum=1, maximum=16, unit="bit")
    dac_bits: int = attribute(default=1, minimum=1, maximum=8, unit="bit")
    adc_bits: int = attribute(minimum=1, maximum=32, unit="bit")
    adc_step: float = attribute(minimum=0.0, doc="in units of one level times one input step")
    converts: Literal["column", "pair"] = attribute(default="column")
    stream: str = attribute(doc="name of its random draws, unique in the module")
    y: Value = result(doc="[..., K], floats: f32 if exact, else f64")

    @property
    def digits(self) -> int:
        """Reads that one input takes for each slice: ``ceil(input_bits / dac_bits)``."""
        return -(-self.input_bits // self.dac_bits)

    def infer(self) -> Type:
        """The shape of the product; f32 if its integers are below 2^24, else f64."""
        x, kind = tensor(self.x), self.kind
        if not x.rank or x.shape[-1] != kind.columns:
            raise self.fail(f"{x} and {kind.columns} columns do not fit")
        largest = largest_product_sum(x.quant, kind.element, kind.columns)
        return TensorType((*x.shape[:-1], kind.rows), "f32" if largest < EXACT_FLOAT32 else "f64")

    def verify(self) -> None:
        """Symmetric codes that the digits hold, one scale, one group without groups of scales."""
        quant = tensor(self.x).quant
        if quant.bits != self.input_bits or not quant.symmetric or quant.axis is not None:
            raise self.fail(f"input codes {quant} are not symmetric ones of {self.input_bits} bits")
        if self.kind.groups > 1 or self.kind.split:
            raise self.fail("a matrix with groups has no transposed read")
        if self.converts == "pair" and not self.kind.paired:
            raise self.fail('converts = "pair" needs weights in pairs of cells')
        if not 0.0 < self.adc_step < float("inf"):
            raise self.fail("adc_step must be positive and finite")


def largest_driven(kind: MatrixType) -> int:
    """The most columns of one crossbar that a transposed read drives at once."""
    beside = 2 if kind.paired and kind.encoding != "sign_arrays" else 1
    return min(kind.columns, -(-kind.usable_columns // (kind.slices * beside)))


MATRIX_OPS = (Program, Mvm, Update, ReadCodes, TransposedMvm)
"""Ops that occupy crossbars."""


def matrix_of(op: Op) -> Value:
    """The matrix that one of :data:`MATRIX_OPS` programs, reads or writes."""
    made: Value = op.__dict__["held" if isinstance(op, _Held) else "matrix"]
    return made


def adapts(op: Program) -> bool:
    """Whether the matrix that an op programs is updated by some entry point."""
    module = op.parent.module if op.parent is not None else None
    if module is None or op.parent is None:
        return False
    state = op.parent.value_states().get(op.matrix)
    return any(
        isinstance(user, Update) and function.value_states().get(user.held) == state
        for function in module.functions.values()
        for user in function.ops
    )
