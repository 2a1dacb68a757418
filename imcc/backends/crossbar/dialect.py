"""``xbar``: matrices held in crossbars, programming them, and reading them.

A weight code is stored as sign and magnitude. The magnitude is cut into ``slices`` digits of
``cell_bits`` bits, least significant first; each digit is the level of one cell. The sign says
which column of a differential pair holds it, the other column of the pair holds level 0. One
logical column is ``slices * 2`` neighbouring physical columns (positive, negative, slice by slice).
Logical rows are cut into runs of ``array_rows``. With ``groups`` (grouped convolution) every group
has rows and columns, and so crossbars, of its own.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from imcc.ir.attributes import declare_annotation
from imcc.ir.dialects.core import tensor
from imcc.ir.dialects.quant import largest_product_sum
from imcc.ir.dialects.windows import windowed_shape
from imcc.ir.ops import Op, Value, attribute, operand, result
from imcc.ir.phases import at_least, phase_rule
from imcc.ir.types import DialectType, QuantType, TensorType, Type

SEMANTICS = "imcc.backends.crossbar.simulate"

EXACT_FLOAT32 = 2**24
"""Integers below this are exact in float32."""

START = declare_annotation("xbar.start_ns", float, unit="ns", doc="when the op starts")
END = declare_annotation("xbar.end_ns", float, unit="ns", doc="when its result is complete")
FIRST_CROSSBAR = declare_annotation("xbar.first_crossbar", int, doc="id of its first crossbar")
CROSSBARS = declare_annotation("xbar.crossbars", int, doc="how many crossbars, ids in a row")
FIRST_TILE = declare_annotation("xbar.first_tile", int, doc="id of its first tile")
TILES = declare_annotation("xbar.tiles", int, doc="how many tiles, ids in a row")
PLACE = (FIRST_CROSSBAR, CROSSBARS, FIRST_TILE, TILES)
TIME = (START, END)


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixType(DialectType):
    """Handle of a weight matrix in crossbars; linear, since it stands for physical cells.

    ``rows`` are all K logical rows and ``columns`` all N logical columns over all groups.
    ``weight_bits`` counts the sign when ``signed``.
    """

    name: ClassVar[str] = "xbar.matrix"
    linear: ClassVar[bool] = True

    rows: int
    columns: int
    groups: int
    weight_bits: int
    signed: bool
    cell_bits: int
    slices: int
    encoding: Literal["differential"]
    array_rows: int
    array_columns: int

    @property
    def group_rows(self) -> int:
        """Logical rows of one group."""
        return self.rows // self.groups

    @property
    def group_columns(self) -> int:
        """Logical columns of one group."""
        return self.columns // self.groups

    @property
    def cells_per_weight(self) -> int:
        """Cells that hold one weight: a pair for each slice."""
        return 2 * self.slices

    @property
    def row_tiles(self) -> int:
        """Crossbars on top of one another for one group."""
        return -(-self.group_rows // self.array_rows)

    @property
    def physical_columns(self) -> int:
        """Columns of cells of one group."""
        return self.group_columns * self.cells_per_weight

    @property
    def column_tiles(self) -> int:
        """Crossbars side by side for one group."""
        return -(-self.physical_columns // self.array_columns)

    @property
    def crossbars(self) -> int:
        """Crossbars of the whole matrix."""
        return self.groups * self.row_tiles * self.column_tiles

    @property
    def cells(self) -> int:
        """Cells that hold weights."""
        return self.groups * self.group_rows * self.physical_columns

    @property
    def element(self) -> QuantType:
        """Type of a weight code."""
        return QuantType(self.weight_bits, self.signed)


def slices_of(weight_bits: int, signed: bool, cell_bits: int) -> int:
    """Cells that one magnitude needs: ``ceil((weight_bits - signed) / cell_bits)``."""
    return -(-(weight_bits - int(signed)) // cell_bits)


class Program(Op, name="xbar.program"):
    """Write weight codes ``[N, ...]`` into crossbars: level of slice s = digit s of ``|code|``.

    The result is a handle of a matrix with ``N`` columns and ``groups * prod(shape[1:])`` rows.
    With write noise, each cell holds its level plus an error drawn once for each trial from
    ``stream``.
    """

    draws = True
    writes = True
    example = (
        "%w: tensor<3x4xq<s8, axis=0>> => "
        '%m = xbar.program %w {cell_bits = 2, array_rows = 128, array_columns = 128, stream = "w"}'
        " : !xbar.matrix<rows=4, columns=3, groups=1, weight_bits=8, signed=true, cell_bits=2, "
        'slices=4, encoding="differential", array_rows=128, array_columns=128>'
    )

    codes: Value = operand(TensorType, quantised=True, doc="[N, ...], zero point 0")
    groups: int = attribute(default=1, minimum=1)
    cell_bits: int = attribute(minimum=1, maximum=8, unit="bit")
    encoding: Literal["differential"] = attribute(default="differential")
    array_rows: int = attribute(minimum=1)
    array_columns: int = attribute(minimum=2)
    stream: str = attribute(doc="name of its random draws, unique in the module")
    matrix: Value = result()

    def infer(self) -> Type:
        """The matrix type that holds the codes."""
        kind = tensor(self.codes)
        sizes = [size for size in kind.shape if isinstance(size, int)]
        if kind.rank < 2 or len(sizes) < kind.rank:
            raise self.fail(f"codes need two or more axes of known size, found {kind}")
        columns, rows = sizes[0], 1
        for size in sizes[1:]:
            rows *= size
        if columns % self.groups:
            raise self.fail(f"{columns} columns do not divide into {self.groups} groups")
        quant = kind.quant
        return MatrixType(
            rows * self.groups,
            columns,
            self.groups,
            quant.bits,
            quant.signed,
            self.cell_bits,
            slices_of(quant.bits, quant.signed, self.cell_bits),
            self.encoding,
            self.array_rows,
            self.array_columns,
        )

    def verify(self) -> None:
        """Codes with a sign and a magnitude, in arrays that do not tear pairs apart."""
        quant = tensor(self.codes).quant
        if not quant.symmetric or quant.group is not None:
            raise self.fail(f"codes {quant} need zero point 0 and no groups of scales")
        if quant.signed and quant.bits < 2:
            raise self.fail("signed codes need at least 2 bits")
        if self.array_columns % 2:
            raise self.fail("a differential pair needs an even number of array columns")


class Mvm(Op, name="xbar.mvm"):
    """Read a matrix with input codes: ``y[..., n] = sum_k (x[..., k] - zx) * w[n, k]``.

    Exactly that, when nothing is noisy and the converter loses nothing. The input is applied in
    digits of ``dac_bits``, least significant first (the top bit of signed one-bit input counts
    ``-2^(input_bits-1)``). Each physical column sum ``v`` of each run of rows is converted by
    ``adc_step * clamp(round((v - adc_offset) / adc_step), 0, 2^adc_bits - 1) + adc_offset``, in
    units of one level times one input step. Shift and add over digits and slices, the difference
    of a pair, the sum over runs of rows, and the correction ``-zx * sum_k w[n, k]`` are digital
    and exact.

    With ``kernel`` the product slides over ``x [..., C, spatial]`` as a convolution; padding
    applies the code ``zx``, which stands for 0.
    """

    draws = True
    example = (
        "%x: tensor<Bx4xq<u8>>, %m: !xbar.matrix<rows=4, columns=3, groups=1, weight_bits=8, "
        'signed=true, cell_bits=2, slices=4, encoding="differential", array_rows=128, '
        "array_columns=128> => %y = xbar.mvm %x, %m {input_bits = 8, adc_bits = 8, "
        'adc_step = 1.0, stream = "fc"} : tensor<Bx3xf32>'
    )

    x: Value = operand(TensorType, quantised=True, doc="codes, [..., K] or [..., C, spatial]")
    matrix: Value = operand(MatrixType, doc="read, not consumed")
    x_zero_point: Value | None = operand(
        TensorType, elements={"i32"}, default=None, doc="scalar; absent means 0"
    )
    kernel: tuple[int, ...] = attribute(default=(), minimum=1, doc="empty: a plain product")
    stride: tuple[int, ...] = attribute(default=(), minimum=1)
    padding: tuple[int, ...] = attribute(default=(), minimum=0)
    dilation: tuple[int, ...] = attribute(default=(), minimum=1)
    input_bits: int = attribute(minimum=1, maximum=16, unit="bit")
    dac_bits: int = attribute(default=1, minimum=1, maximum=8, unit="bit")
    adc_bits: int = attribute(minimum=1, maximum=16, unit="bit")
    adc_step: float = attribute(minimum=0.0, doc="in units of one level times one input step")
    adc_offset: float = attribute(default=0.0, doc="lower end of the converter's range")
    stream: str = attribute(doc="name of its random draws, unique in the module")
    y: Value = result(doc="[..., N] or [..., N, spatial], as floats: f32 if exact, else f64")

    @property
    def held(self) -> MatrixType:
        """The type of the matrix operand."""
        if not isinstance(self.matrix.type, MatrixType):
            raise TypeError(f"{self.matrix!r} is not a matrix")
        return self.matrix.type

    @property
    def digits(self) -> int:
        """Reads that one input takes: ``ceil(input_bits / dac_bits)``."""
        return -(-self.input_bits // self.dac_bits)

    def infer(self) -> Type:
        """The shape of the product or convolution; f32 if its integers are below 2^24, else f64."""
        x, held = tensor(self.x), self.held
        largest = largest_product_sum(x.quant, held.element, held.group_rows)
        element = "f32" if largest < EXACT_FLOAT32 else "f64"
        if not self.kernel:
            if not x.rank or x.shape[-1] != held.rows:
                raise self.fail(f"{x} and {held.rows} rows do not fit")
            return TensorType((*x.shape[:-1], held.columns), element)
        terms = 1
        for size in self.kernel:
            terms *= size
        channel = x.shape[-len(self.kernel) - 1] if x.rank > len(self.kernel) else None
        if channel is None or channel != held.rows / terms:
            raise self.fail(f"{x} under a window {list(self.kernel)} and {held.rows} rows differ")
        shape = windowed_shape(
            self, x, self.kernel, self.stride, self.padding, self.dilation, held.columns
        )
        return TensorType(shape, element)

    def verify(self) -> None:
        """Input codes that the digits hold, one scale, and a zero point where there must be one."""
        quant = tensor(self.x).quant
        if quant.bits != self.input_bits:
            raise self.fail(f"input_bits is {self.input_bits}, the codes have {quant.bits} bits")
        if quant.axis is not None or quant.group is not None:
            raise self.fail("the input needs one scale per tensor")
        if quant.signed and self.dac_bits > 1:
            raise self.fail("signed input codes need dac_bits = 1 (two's complement, bit by bit)")
        if not quant.symmetric and self.x_zero_point is None:
            raise self.fail("asymmetric input codes need x_zero_point")
        if not self.kernel and self.held.groups > 1:
            raise self.fail("a plain product has no groups")
        if not 0.0 < self.adc_step < float("inf"):
            raise self.fail("adc_step must be positive and finite")


@phase_rule("xbar")
def _phase(op: Op, phase: str) -> str | None:
    """Placed ops say where they are, scheduled ones also when they run."""
    needed = PLACE if phase == "placed" else (*PLACE, *TIME) if phase == "scheduled" else ()
    if not at_least(phase, "placed"):
        return None
    missing = [name for name in needed if name not in op.annotations]
    return f"{op.name} lacks {', '.join(missing)}" if missing else None
