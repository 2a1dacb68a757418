"""``xbar``: matrices held in crossbars, programming them, and reading them.

A weight code becomes digits of ``cell_bits`` bits, least significant first; each digit is the level
of one cell, and ``slices`` cells hold a code. How a sign is held is the ``encoding``:

- ``differential``: digits of the magnitude; the sign says which of two neighbouring columns holds
  the digit, the other holds level 0.
- ``sign_arrays``: the same, with positive and negative columns in crossbars of their own.
- ``offset``: digits of ``w + 2^(bits-1)``; ``2^(bits-1)`` times the sum of the inputs is taken off
  digitally.
- ``bias_column``: the same, but a column of every crossbar holds ``2^(bits-1)`` in each row, is
  converted like the others, and its reading is taken off.

Unsigned codes need no sign: one column for each slice, whatever the encoding.

Logical rows are cut into *runs*, rows that are driven together and whose column sums are converted:
runs of up to ``array_rows``, which do not cross a multiple of ``row_block``. A block is a group of
weights with a scale of its own (the sums of blocks leave separately), or, with ``row_order =
"position"``, the channels under one position of a kernel (the sums of blocks are added up).

With ``groups`` (grouped convolution) every group has rows and columns of its own. ``packing`` says
where they lie: ``separate`` crossbars, ``diagonal`` (several groups in one crossbar, on rows and
columns of their own, driven at once), or ``stacked`` (on top of one another and side by side,
driven in turn). Blocks of weights that share a crossbar are driven in turn as well.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from imcc.ir.attributes import declare_annotation
from imcc.ir.dialects.attention import product_shape
from imcc.ir.dialects.core import tensor
from imcc.ir.dialects.quant import largest_product_sum
from imcc.ir.dialects.windows import windowed_shape
from imcc.ir.dims import Dim
from imcc.ir.ops import Op, Value, attribute, operand, result
from imcc.ir.phases import at_least, phase_rule
from imcc.ir.types import DialectType, QuantType, TensorType, Type

SEMANTICS = "imcc.backends.crossbar.run_time"

Encoding = Literal["differential", "sign_arrays", "offset", "bias_column"]
Packing = Literal["separate", "diagonal", "stacked"]

EXACT_FLOAT32 = 2**24
"""Integers below this are exact in float32."""

START = declare_annotation("xbar.start_ns", float, unit="ns", doc="when the op starts")
END = declare_annotation("xbar.end_ns", float, unit="ns", doc="when its result is complete")
FIRST_CROSSBAR = declare_annotation("xbar.first_crossbar", int, doc="id of its first crossbar")
CROSSBARS = declare_annotation("xbar.crossbars", int, doc="how many crossbars, ids in a row")
FIRST_TILE = declare_annotation("xbar.first_tile", int, doc="id of its first tile")
TILES = declare_annotation("xbar.tiles", int, doc="how many tiles, ids in a row")
COPIES = declare_annotation("xbar.copies", int, doc="copies of its matrix that share positions")
HOPS = declare_annotation("xbar.hops", float, doc="mean hops from the mesh's middle to its tiles")
UNIT = declare_annotation("xbar.unit", int, doc="first tile of the vector units that it runs on")
UNITS = declare_annotation("xbar.units", int, doc="vector units that it runs on, one a tile")
INPUT_DENSITY = declare_annotation(
    "xbar.input_density",
    tuple[float, ...],
    doc="share of rows that each input digit drives, least significant first, over samples",
)
STEP_DENSITY = declare_annotation(
    "xbar.step_density", tuple[float, ...], doc="the same for each time step of spikes"
)
DRIVEN_RUNS = declare_annotation(
    "xbar.driven_runs", float, doc="share of reads of a run of rows that drive at least one"
)
PROFILED = declare_annotation("xbar.profiled_samples", int, doc="samples that were counted")
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
    encoding: Encoding
    array_rows: int
    array_columns: int
    row_block: int = 0
    row_order: Literal["channel", "position"] = "channel"
    packing: Packing = "separate"

    @property
    def group_rows(self) -> int:
        """Logical rows of one group."""
        return self.rows // self.groups

    @property
    def group_columns(self) -> int:
        """Logical columns of one group."""
        return self.columns // self.groups

    @property
    def paired(self) -> bool:
        """Whether a positive and a negative cell hold a digit."""
        return self.signed and self.encoding in ("differential", "sign_arrays")

    @property
    def code_offset(self) -> int:
        """What is added to a code before it is cut into digits."""
        return 2 ** (self.weight_bits - 1) if self.signed and not self.paired else 0

    @property
    def biased(self) -> bool:
        """Whether crossbars have a column that holds the offset of the codes."""
        return self.signed and self.encoding == "bias_column"

    @property
    def split(self) -> bool:
        """Whether sums of row blocks leave separately."""
        return self.row_block > 0 and self.row_order == "channel"

    @property
    def cells_per_weight(self) -> int:
        """Cells that hold one weight."""
        return self.slices * (2 if self.paired else 1)

    @property
    def block_rows(self) -> int:
        """Logical rows of a block."""
        return self.row_block or self.group_rows

    @property
    def blocks(self) -> int:
        """Blocks of rows of one group."""
        return -(-self.group_rows // self.block_rows)

    @property
    def runs_per_block(self) -> int:
        """Runs that a block is cut into."""
        return -(-self.block_rows // self.array_rows)

    @property
    def run_rows(self) -> int:
        """Rows of a run; the last run of a block may use fewer."""
        return min(self.block_rows, self.array_rows)

    @property
    def row_tiles(self) -> int:
        """Runs of one group: partial sums of each column that are converted."""
        return self.blocks * self.runs_per_block

    @property
    def physical_columns(self) -> int:
        """Columns of cells of one group, without bias columns."""
        return self.group_columns * self.cells_per_weight

    @property
    def usable_columns(self) -> int:
        """Columns of a crossbar that can hold weights."""
        if self.biased:
            return self.array_columns - 1
        whole = self.encoding == "differential" and self.paired
        return self.array_columns - (self.array_columns % 2 if whole else 0)

    @property
    def column_tiles(self) -> int:
        """Crossbars side by side for one group."""
        if self.encoding == "sign_arrays" and self.paired:
            return 2 * -(-(self.physical_columns // 2) // self.usable_columns)
        return -(-self.physical_columns // self.usable_columns)

    @property
    def bias_columns(self) -> int:
        """Bias columns beside the columns of one group."""
        return self.column_tiles if self.biased else 0

    @property
    def runs_in_turn(self) -> int:
        """Runs that share a crossbar and are driven one after another."""
        turns = self.groups * self.row_tiles if self.packing == "stacked" else self.row_tiles
        stacks = self.packing == "stacked" or (self.split and self.runs_per_block == 1)
        return min(turns, self.array_rows // self.run_rows) if stacks else 1

    @property
    def groups_abreast(self) -> int:
        """Groups that share a crossbar and have columns of their own."""
        if self.packing == "separate" or self.column_tiles > 1:
            return 1
        abreast = self.array_columns // (self.physical_columns + self.bias_columns)
        if self.packing == "diagonal":
            abreast = min(abreast, self.array_rows // (self.row_tiles * self.run_rows))
        return max(1, min(self.groups, abreast))

    @property
    def crossbars(self) -> int:
        """Crossbars of the whole matrix."""
        if self.packing == "stacked":
            wide = -(-self.groups // self.groups_abreast) * self.row_tiles
            return -(-wide // self.runs_in_turn) * self.column_tiles
        if self.packing == "diagonal" and self.groups_abreast > 1:
            return -(-self.groups // self.groups_abreast)
        return self.groups * -(-self.row_tiles // self.runs_in_turn) * self.column_tiles

    @property
    def cells(self) -> int:
        """Cells that hold weights."""
        return self.groups * self.group_rows * (self.physical_columns + self.bias_columns)

    @property
    def element(self) -> QuantType:
        """Type of a weight code."""
        return QuantType(self.weight_bits, self.signed)


def slices_of(weight_bits: int, signed: bool, cell_bits: int, encoding: Encoding) -> int:
    """Cells that one code needs for its digits; pairs hold the sign beside them."""
    paired = signed and encoding in ("differential", "sign_arrays")
    return -(-(weight_bits - int(paired)) // cell_bits)


class Program(Op, name="xbar.program"):
    """Write weight codes ``[N, ...]`` into crossbars: level of cell s = digit s of the code.

    The code is ``|w|`` in pairs of cells, else ``w`` plus its offset (see ``encoding``). The result
    is a handle of a matrix with ``N`` columns and ``groups * prod(shape[1:])`` rows, in the order
    of the codes' axes or, with ``row_order = "position"``, channels last. Devices that are not
    ideal hold other levels, drawn once for each trial from ``stream``.
    """

    draws = True
    writes = True
    example = (
        "%w: tensor<3x4xq<s8, axis=0>> => "
        '%m = xbar.program %w {cell_bits = 2, array_rows = 128, array_columns = 128, stream = "w"}'
        " : !xbar.matrix<rows=4, columns=3, groups=1, weight_bits=8, signed=true, cell_bits=2, "
        'slices=4, encoding="differential", array_rows=128, array_columns=128, row_block=0, '
        'row_order="channel", packing="separate">'
    )

    codes: Value = operand(TensorType, quantised=True, doc="[N, ...]")
    groups: int = attribute(default=1, minimum=1)
    cell_bits: int = attribute(minimum=1, maximum=8, unit="bit")
    encoding: Encoding = attribute(default="differential")
    array_rows: int = attribute(minimum=1)
    array_columns: int = attribute(minimum=2)
    row_order: Literal["channel", "position"] = attribute(default="channel")
    packing: Packing = attribute(default="separate")
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
            slices_of(quant.bits, quant.signed, self.cell_bits, self.encoding),
            self.encoding,
            self.array_rows,
            self.array_columns,
            sizes[1] if self.row_order == "position" else quant.group or 0,
            self.row_order,
            self.packing,
        )

    def verify(self) -> None:
        """Codes with a sign and a magnitude; groups of scales run along the rows."""
        quant = tensor(self.codes).quant
        if quant.signed and quant.bits < 2:
            raise self.fail("signed codes need at least 2 bits")
        if quant.group is None:
            return
        if tensor(self.codes).rank != 2 or self.groups > 1 or self.row_order != "channel":
            raise self.fail(f"codes {quant} with groups of scales need the shape [N, K]")


class Mvm(Op, name="xbar.mvm"):
    """Read a matrix with input codes: ``y[..., n] = sum_k (x[..., k] - zx) * w[n, k]``.

    Exactly that, when nothing is noisy and the converter loses nothing. The input is applied in
    digits of ``dac_bits``, least significant first. Signed input applied bit by bit is in two's
    complement (the top bit counts ``-2^(input_bits-1)``); with more bits in a digit
    ``2^(input_bits-1)`` is added to it and taken off like a zero point. Each physical column sum
    ``v`` of each run of rows is converted by
    ``adc_step * clamp(round(v / adc_step), 0, 2^adc_bits - 1)``, in units of one level times one
    input step; with ``converts = "pair"`` it is the difference of a pair, clamped to
    ``[-2^(adc_bits-1), 2^(adc_bits-1) - 1]``. Shift and add over digits and slices, the difference
    of a pair, the sum over runs of rows, and the corrections by sums of weights (``-zx sum_k w``)
    and of inputs (``-zw sum_k (x - zx)`` and offset codes) are digital and exact.

    A matrix with groups of scales gives the sum of each group: ``y[..., n, j]``, with
    ``w = q - zw[n, j]`` where ``weight_zero_point`` is given.

    With ``kernel`` the product slides over ``x [..., C, spatial]`` as a convolution; padding
    applies the code ``zx``, which stands for 0.
    """

    draws = True
    example = (
        "%x: tensor<Bx4xq<u8>>, %m: !xbar.matrix<rows=4, columns=3, groups=1, weight_bits=8, "
        'signed=true, cell_bits=2, slices=4, encoding="differential", array_rows=128, '
        'array_columns=128, row_block=0, row_order="channel", packing="separate"> => '
        "%y = xbar.mvm %x, %m {input_bits = 8, adc_bits = 8, "
        'adc_step = 1.0, stream = "fc"} : tensor<Bx3xf32>'
    )

    x: Value = operand(TensorType, quantised=True, doc="codes, [..., K] or [..., C, spatial]")
    matrix: Value = operand(MatrixType, doc="read, not consumed")
    x_zero_point: Value | None = operand(
        TensorType, elements={"i32"}, default=None, doc="scalar; absent means 0"
    )
    weight_zero_point: Value | None = operand(
        TensorType, elements={"i32"}, default=None, doc="[N], with groups [N, groups]"
    )
    kernel: tuple[int, ...] = attribute(default=(), minimum=1, doc="empty: a plain product")
    stride: tuple[int, ...] = attribute(default=(), minimum=1)
    padding: tuple[int, ...] = attribute(default=(), minimum=0)
    dilation: tuple[int, ...] = attribute(default=(), minimum=1)
    input_bits: int = attribute(minimum=1, maximum=16, unit="bit")
    dac_bits: int = attribute(default=1, minimum=1, maximum=8, unit="bit")
    adc_bits: int = attribute(minimum=1, maximum=32, unit="bit")
    adc_step: float = attribute(minimum=0.0, doc="in units of one level times one input step")
    converts: Literal["column", "pair"] = attribute(default="column")
    stream: str = attribute(doc="name of its random draws, unique in the module")
    y: Value = result(
        doc="[..., N], [..., N, groups] or [..., N, spatial], as floats: f32 if exact, else f64"
    )

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
        if self.weight_zero_point is not None:
            largest *= 2
        element = "f32" if largest < EXACT_FLOAT32 else "f64"
        if not self.kernel:
            if not x.rank or x.shape[-1] != held.rows:
                raise self.fail(f"{x} and {held.rows} rows do not fit")
            last = (held.columns, held.blocks) if held.split else (held.columns,)
            return TensorType((*x.shape[:-1], *last), element)
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
        if not quant.symmetric and self.x_zero_point is None:
            raise self.fail("asymmetric input codes need x_zero_point")
        held = self.held
        if not self.kernel and held.groups > 1:
            raise self.fail("a plain product has no groups")
        if self.kernel and held.split:
            raise self.fail("a convolution has no groups of scales")
        if self.converts == "pair" and not held.paired:
            raise self.fail('converts = "pair" needs weights in pairs of cells')
        if self.weight_zero_point is not None:
            shape = (held.columns, held.blocks) if held.split else (held.columns,)
            if tensor(self.weight_zero_point).shape != shape:
                raise self.fail(f"weight_zero_point is not shaped {list(shape)}")
        if not 0.0 < self.adc_step < float("inf"):
            raise self.fail("adc_step must be positive and finite")


@dataclasses.dataclass(frozen=True, eq=False)
class RunTimeMatrixType(DialectType):
    """Handle of matrices written at run time; linear, as that of programmed ones.

    ``shape`` is ``[..., K, N]``: a matrix of K rows and N columns for each index of the leading
    axes, in crossbars of its own. Sizes may be symbolic; :meth:`layout` says how one sample's
    matrices lie in crossbars once they are known.
    """

    name: ClassVar[str] = "xbar.run_time_matrix"
    linear: ClassVar[bool] = True

    shape: tuple[Dim, ...]
    weight_bits: int
    signed: bool
    cell_bits: int
    slices: int
    encoding: Encoding
    array_rows: int
    array_columns: int

    @property
    def element(self) -> QuantType:
        """Type of a code."""
        return QuantType(self.weight_bits, self.signed)

    @property
    def paired(self) -> bool:
        """Whether a positive and a negative cell hold a digit."""
        return self.signed and self.encoding in ("differential", "sign_arrays")

    def layout(self, instances: int, rows: int, columns: int) -> MatrixType:
        """How ``instances`` matrices of ``rows`` x ``columns`` lie in crossbars: one group each."""
        return MatrixType(
            rows * instances,
            columns * instances,
            instances,
            self.weight_bits,
            self.signed,
            self.cell_bits,
            self.slices,
            self.encoding,
            self.array_rows,
            self.array_columns,
        )


class Write(Op, name="xbar.write"):
    """Write codes ``[..., K, N]``, known at run time only, into crossbars that held others before.

    Levels are those of ``xbar.program`` with rows K and columns N. Devices that are not ideal hold
    other levels, drawn anew for each trial and sample from ``stream``; what belongs to a cell and
    not to a write (its device, a fault, the wires) is drawn once for each trial.

    Each conductance asked for is ``min(max(g - alpha g_min, g_min), beta g_max)``, with g that of
    the level: the transform of ClipFormer (arXiv 2402.02586) on cells, which a read does not undo.
    """

    draws = True
    writes = True
    example = (
        "%k: tensor<Bx2x4x3xq<s8>> => "
        '%m = xbar.write %k {cell_bits = 2, array_rows = 64, array_columns = 64, stream = "k"}'
        " : !xbar.run_time_matrix<shape=[B, 2, 4, 3], weight_bits=8, signed=true, cell_bits=2, "
        'slices=4, encoding="differential", array_rows=64, array_columns=64>'
    )

    codes: Value = operand(TensorType, quantised=True, doc="[..., K, N], the batch among the first")
    cell_bits: int = attribute(minimum=1, maximum=8, unit="bit")
    encoding: Encoding = attribute(default="differential")
    array_rows: int = attribute(minimum=1)
    array_columns: int = attribute(minimum=2)
    alpha: float = attribute(default=0.0, minimum=0.0, doc="g_min taken off each conductance")
    beta: float = attribute(
        default=1.0, minimum=0.0, maximum=1.0, doc="largest conductance, as a fraction of g_max"
    )
    stream: str = attribute(doc="name of its random draws, unique in the module")
    matrix: Value = result()

    @property
    def clips(self) -> bool:
        """Whether conductances are others than those of the levels."""
        return self.alpha > 0.0 or self.beta < 1.0

    def infer(self) -> Type:
        """The matrix type that holds the codes."""
        kind = tensor(self.codes)
        quant = kind.quant
        if kind.rank < 3:
            raise self.fail(f"{kind} needs a batch axis before its rows and columns")
        return RunTimeMatrixType(
            kind.shape,
            quant.bits,
            quant.signed,
            self.cell_bits,
            slices_of(quant.bits, quant.signed, self.cell_bits, self.encoding),
            self.encoding,
            self.array_rows,
            self.array_columns,
        )

    def verify(self) -> None:
        """One scale per tensor, a sign and a magnitude, a matrix for each sample."""
        kind = tensor(self.codes)
        if kind.quant.axis is not None or kind.quant.group is not None:
            raise self.fail(f"{kind} needs one scale per tensor")
        if kind.quant.signed and kind.quant.bits < 2:
            raise self.fail("signed codes need at least 2 bits")


class ReadMatrix(Op, name="xbar.matmul"):
    """Read run-time matrices: ``y[..., m, n] = sum_k (x[..., m, k] - zx) * (b[..., k, n] - zb)``.

    ``b`` are the codes that the matrix was written with; leading axes broadcast as in
    ``nn.matmul``, so that rows of heads that share a matrix are read from it one after another.
    Digits, column sums, converters and their attributes are those of ``xbar.mvm``.
    """

    draws = True
    example = (
        "%x: tensor<Bx2x5x4xq<s8>>, %m: !xbar.run_time_matrix<shape=[B, 2, 4, 3], weight_bits=8, "
        'signed=true, cell_bits=2, slices=4, encoding="differential", array_rows=64, '
        "array_columns=64> => %y = xbar.matmul %x, %m {input_bits = 8, adc_bits = 8, "
        'adc_step = 1.0, stream = "qk"} : tensor<Bx2x5x3xf32>'
    )

    x: Value = operand(TensorType, quantised=True, doc="codes, [..., M, K]")
    matrix: Value = operand(RunTimeMatrixType, doc="read, not consumed")
    x_zero_point: Value | None = operand(
        TensorType, elements={"i32"}, default=None, doc="scalar; absent means 0"
    )
    matrix_zero_point: Value | None = operand(
        TensorType, elements={"i32"}, default=None, doc="scalar; absent means 0"
    )
    input_bits: int = attribute(minimum=1, maximum=16, unit="bit")
    dac_bits: int = attribute(default=1, minimum=1, maximum=8, unit="bit")
    adc_bits: int = attribute(minimum=1, maximum=32, unit="bit")
    adc_step: float = attribute(minimum=0.0, doc="in units of one level times one input step")
    converts: Literal["column", "pair"] = attribute(default="column")
    stream: str = attribute(doc="name of its random draws, unique in the module")
    y: Value = result(doc="[..., M, N], as floats: f32 if exact, else f64")

    @property
    def kernel(self) -> tuple[int, ...]:
        """No window slides over the input."""
        return ()

    @property
    def held(self) -> RunTimeMatrixType:
        """The type of the matrix operand."""
        if not isinstance(self.matrix.type, RunTimeMatrixType):
            raise TypeError(f"{self.matrix!r} is not a run-time matrix")
        return self.matrix.type

    @property
    def digits(self) -> int:
        """Reads that one input takes: ``ceil(input_bits / dac_bits)``."""
        return -(-self.input_bits // self.dac_bits)

    def infer(self) -> Type:
        """The shape of the product; f32 if its integers are below 2^24, else f64."""
        x, held = tensor(self.x), self.held
        shape = product_shape(self, x, TensorType(held.shape, held.element))
        terms = x.shape[-1]
        largest = largest_product_sum(
            x.quant, held.element, terms if isinstance(terms, int) else EXACT_FLOAT32
        )
        if self.matrix_zero_point is not None:
            largest *= 2
        return TensorType(shape, "f32" if largest < EXACT_FLOAT32 else "f64")

    def verify(self) -> None:
        """Input codes that the digits hold, one scale, and a zero point where there must be one."""
        quant = tensor(self.x).quant
        if quant.bits != self.input_bits:
            raise self.fail(f"input_bits is {self.input_bits}, the codes have {quant.bits} bits")
        if quant.axis is not None or quant.group is not None:
            raise self.fail("the input needs one scale per tensor")
        if not quant.symmetric and self.x_zero_point is None:
            raise self.fail("asymmetric input codes need x_zero_point")
        if self.converts == "pair" and not self.held.paired:
            raise self.fail('converts = "pair" needs codes in pairs of cells')
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


# Ops for weights that adapt have a file of their own, which needs the types above.
import imcc.backends.crossbar.learning_ops  # noqa: E402, F401
