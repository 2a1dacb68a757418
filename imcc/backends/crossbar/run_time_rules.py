"""Products of two activations on crossbars: may they be, how they are lowered, what they cost."""

from __future__ import annotations

import math

from imcc.backends.crossbar.activity import driven_rows, driven_runs
from imcc.backends.crossbar.cache import written_growth
from imcc.backends.crossbar.cost import (
    digit_note,
    digit_ns,
    elements,
    multiply_accumulate,
    stated,
    words,
)
from imcc.backends.crossbar.dialect import MatrixType, ReadMatrix, Write, slices_of
from imcc.backends.crossbar.lowering import Mapping
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.cost import OpCost
from imcc.ir.dialects import core, quant
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim, Monomial, product
from imcc.ir.ops import Value
from imcc.ir.rewriting import Rewriter
from imcc.ir.rules import COST, LEGAL, LOWER


@LEGAL.register(quant.Matmul, backend="crossbar")
def _legal(op: quant.Matmul, target: CrossbarTarget) -> str | None:
    if target.keys.dynamic.matrices == "digital":
        return None
    b, y = tensor(op.b), tensor(op.y)
    if isinstance(op.b.owner, core.Constant):
        return "the matrix is a constant; a linear layer holds it in programmed crossbars"
    fixed = op.parent.fixed_batch if op.parent is not None else None
    axis = y.batch_axis if fixed is None else 0
    size = y.shape[axis] if axis is not None else None
    behind = y.rank - (axis or 0)
    whole = size == fixed if fixed is not None else _batch(size)
    if not whole or behind < 3 or b.rank < behind or b.shape[-behind] != size:
        return (
            f"the matrix {b} has no batch axis of its own before its rows and columns, and each "
            "sample and trial draws its own noise; quantise it with calibrate-activations"
            '{matmul = "float"} or set dynamic.matrices = "digital" in the target'
        )
    if tensor(op.a).quant.bits > 16:
        return f"inputs of {tensor(op.a).quant.bits} bits: at most 16"
    coded, array = b.quant, target.dynamic.keys.array
    if coded.signed and coded.bits < 2:
        return "a matrix of signed codes needs at least 2 bits"
    cells = slices_of(coded.bits, coded.signed, array.cell_bits, array.encoding)
    if array.encoding == "differential" and coded.signed:
        cells *= 2
    if cells > array.columns - (array.encoding == "bias_column"):
        return (
            f"one number takes {cells} columns, an array has {array.columns}; use fewer bits for "
            "activations or more bits in a cell"
        )
    return None


def _batch(size: Dim | None) -> bool:
    return isinstance(size, Monomial) and size.symbols == ("B",)


@LOWER.register(quant.Matmul, backend="crossbar")
def _lower(op: quant.Matmul, rewriter: Rewriter, mapping: Mapping) -> None:
    """Write the right operand once for all its products, and read it; or leave it digital."""
    if mapping.target.keys.dynamic.matrices == "digital":
        return
    target = mapping.target.dynamic
    keys, array = target.keys, target.keys.array
    scope = op.scope or "matmul"
    written = next((user for user in op.b.users if isinstance(user, Write)), None)
    if written is None:
        written = rewriter.insert_before(
            op,
            Write(
                codes=op.b,
                cell_bits=array.cell_bits,
                encoding=array.encoding,
                array_rows=array.rows,
                array_columns=array.columns,
                stream=mapping.stream(f"{scope}.matrix"),
                scope=op.scope,
                loc=op.loc,
            ),
        )
    rows = tensor(op.b).shape[-2]
    deepest = min(rows, array.rows) if isinstance(rows, int) else array.rows
    paired = tensor(op.b).quant.signed and array.encoding in ("differential", "sign_arrays")
    made = ReadMatrix(
        x=op.a,
        matrix=written.matrix,
        x_zero_point=op.a_zero_point,
        matrix_zero_point=op.b_zero_point,
        input_bits=tensor(op.a).quant.bits,
        dac_bits=keys.dac.bits,
        adc_bits=keys.adc.bits,
        adc_step=target.initial_step(deepest),
        converts=keys.adc.converts if paired else "column",
        stream=mapping.stream(f"{scope}.product"),
    )
    rewriter.replace(op, [made], made.y)


def unstated(value: Value, shape: tuple[Dim, ...]) -> str:
    """Symbols of a shape, besides the batch, whose size the module does not state."""
    op = value.owner or next(iter(value.users), None)
    module = op.parent.module if op is not None and op.parent is not None else None
    known = {"B", *(module.sizes if module is not None else {})}
    found = {s for size in shape if isinstance(size, Monomial) for s in size.symbols} - known
    return ", ".join(sorted(found))


def layout(op: Write) -> MatrixType:
    """The matrices that an op writes for one sample, at the sizes that the module states."""
    *leading, rows, columns = op.matrix.type.shape  # type: ignore[attr-defined]
    sizes = [stated(size, op.matrix) for size in (product(leading), rows, columns)]
    made: MatrixType = op.matrix.type.layout(*sizes)  # type: ignore[attr-defined]
    return made


@COST.register(quant.Matmul, backend="crossbar")
def _digital(op: quant.Matmul, target: CrossbarTarget, activity: str) -> OpCost:
    """As the product of floats: a multiplication and an addition for each term."""
    return multiply_accumulate(op, op.a, op.y, target)


@COST.register(Write, backend="crossbar")
def _write(op: Write, target: CrossbarTarget, activity: str) -> OpCost:
    """Every cell gets the pulses of one write; rows, columns and arrays wait as the target says.

    ``busy = pulses_per_row * pulse width * row steps * column steps * array steps``: row steps are
    the rows in use over ``rows_at_once``, column steps the columns in use over ``columns_at_once``,
    array steps the crossbars over ``arrays_at_once``. A driver of a row fires at each pulse. Where
    cells keep a cache, only what is new is written (``cache.py``).
    """
    missing = unstated(op.matrix, op.matrix.type.shape)  # type: ignore[attr-defined]
    if missing:
        return OpCost(unknown=f"the size of {missing} is not stated")
    held, keys = layout(op), target.keys.dynamic
    own = target.dynamic
    tries = own.write_noise.pulses
    pulses = (keys.pulses_per_row or keys.pulses_per_cell) * tries
    rows, run, arrays = held.rows, held.run_rows, held.crossbars
    across = held.column_tiles
    wide = min(held.physical_columns + held.bias_columns, own.keys.array.columns)
    found = written_growth(op, target)
    share = 1.0 if found is None else found.share
    if found is not None and found.axis == -2:
        # New rows lie in the last run of each matrix.
        rows, run = held.groups * found.new, min(found.new, run)
        arrays = held.groups * across * math.ceil(found.new / held.run_rows)
    elif found is not None:
        wide = min(math.ceil(wide * share * across), wide)
        across = math.ceil(across * share)
        arrays = held.groups * held.row_tiles * across
    row_steps = math.ceil(run / keys.rows_at_once)
    column_steps = math.ceil(wide / (keys.columns_at_once or wide))
    array_steps = math.ceil(arrays / (keys.arrays_at_once or arrays))
    width = own.keys.timing.write_ns
    steps = row_steps * column_steps * array_steps
    return OpCost(
        {
            f"{target.run_time('cell_write')}.pulse": held.cells
            * share
            * keys.pulses_per_cell
            * tries,
            f"{target.run_time('row_driver')}.drive": rows * across * column_steps * pulses,
            "buffer_read.word": math.ceil(words(op.codes, target) * share),
        },
        steps * pulses * width,
        note=f"{row_steps} steps of rows x {column_steps} of columns x {array_steps} of "
        f"{arrays} crossbars x {pulses:g} pulses x {width:g} ns"
        + (f"; {found.new} of {found.total} are new" if found is not None else ""),
    )


@COST.register(ReadMatrix, backend="crossbar")
def _read(op: ReadMatrix, target: CrossbarTarget, activity: str) -> OpCost:
    """As ``xbar.mvm``, for the positions that each matrix is read for; matrices work at once.

    A zero point of the input needs the sums over the columns of the matrix, once for each write.
    """
    missing = unstated(op.y, tensor(op.y).shape)
    if missing:
        return OpCost(unknown=f"the size of {missing} is not stated")
    write = op.matrix.owner
    if not isinstance(write, Write):
        return OpCost(unknown="what wrote the matrix is not in this function")
    held, own = layout(write), target.dynamic
    keys = own.keys
    positions = elements(op.y) // held.columns
    reads = positions * op.digits
    density = driven_rows(op, op.dac_bits, own)
    columns = held.groups * held.row_tiles * (held.physical_columns + held.bias_columns)
    selected = reads * columns * driven_runs(op, own)
    conversions = selected / (2 if op.converts == "pair" else 1)
    offset = held.code_offset and not held.biased
    corrections = positions * held.rows if offset or op.matrix_zero_point is not None else 0
    lifted = tensor(op.x).quant.signed and op.dac_bits > 1
    if op.x_zero_point is not None or lifted:
        corrections += held.rows * held.group_columns
    input_words = positions * held.rows * op.input_bits / keys.digital.buffer_word_bits
    return OpCost(
        {
            f"{target.run_time('row_driver')}.drive": reads
            * density
            * held.rows
            * held.column_tiles,
            f"{target.run_time('cell_read')}.read": reads * density * held.cells,
            f"{target.run_time('column_driver')}.select": selected,
            f"{target.run_time('adc')}.convert": conversions,
            f"{target.run_time('shift_add')}.add": conversions + corrections,
            "buffer_read.word": math.ceil(input_words),
            "buffer_write.word": words(op.y, target),
        },
        reads * digit_ns(own),
        note=f"{positions} positions x {op.digits} input digits x {digit_note(own)}",
    )
