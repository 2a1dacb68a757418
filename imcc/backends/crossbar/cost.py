"""Cost rules: what each op makes the hardware do, per inference (B = 1), in closed form.

An event is ``component.action``; its energy is the figure of ``components.<component>``. Counts
that depend on data take what the pass ``profile-inputs`` counted, or what the target assumes
(``activity.py``).

What ops move over the chip and its pins is added by ``traffic.py``. Not modelled, and said so in
every record: control and the clock tree.
"""

from __future__ import annotations

import dataclasses
import math

from imcc.backends.crossbar.activity import driven_rows, driven_runs
from imcc.backends.crossbar.dialect import COPIES, UNITS, MatrixType, Mvm, Program, ReadMatrix
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.cost import OpCost
from imcc.ir.dialects import core, nn, quant, snn
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim, evaluate, product
from imcc.ir.ops import Op, Value
from imcc.ir.rules import COST
from imcc.ir.types import SpikesType, TensorType

NOT_MODELLED = ("control and clock tree",)


def elements(value: Value) -> int:
    """Elements of a tensor for one inference: one sample, other symbols as the module states."""
    return 0 if not isinstance(value.type, TensorType) else stated(value.type.elements, value)


def stated(count: Dim, value: Value) -> int:
    """A dimension of a value with B = 1 and the module's sizes (1 where it states none)."""
    if isinstance(count, int):
        return count
    op = value.owner or next(iter(value.users), None)
    module = op.parent.module if op is not None and op.parent is not None else None
    sizes = module.sizes if module is not None else {}
    return evaluate(count, {symbol: sizes.get(symbol, 1) for symbol in count.symbols})


def element_bits(value: Value) -> int:
    """Bits of one element in a buffer."""
    kind = value.type
    if not isinstance(kind, TensorType):
        return 0
    if isinstance(kind, SpikesType):
        return 1
    if kind.is_quantised:
        return kind.quant.bits
    return int("".join(char for char in str(kind.element) if char.isdigit()))


def words(value: Value, target: CrossbarTarget) -> int:
    """Buffer words that a tensor takes."""
    bits = elements(value) * element_bits(value)
    return math.ceil(bits / target.keys.digital.buffer_word_bits)


def positions_of(op: Mvm) -> int:
    """Input vectors that a read takes: positions of a window, tokens, time steps."""
    return elements(op.y) // (op.held.columns * (op.held.blocks if op.held.split else 1))


def rows_read(op: Mvm | ReadMatrix) -> float:
    """Logical rows that an op's reads cover: rows times positions times input digits."""
    if isinstance(op, Mvm):
        return float(positions_of(op) * op.digits * op.held.rows)
    terms = stated(tensor(op.x).shape[-1], op.x)
    return float(elements(op.x) // terms * op.digits * terms)


def operations_of(op: Op) -> int:
    """Two for each multiply-accumulate of a product of matrices; 0 for any other op."""
    if isinstance(op, Mvm):
        return 2 * positions_of(op) * op.held.group_rows * op.held.columns
    if isinstance(op, (ReadMatrix, quant.Matmul, nn.Matmul)):
        a = op.x if isinstance(op, ReadMatrix) else op.a
        return 2 * elements(op.y) * stated(tensor(a).shape[-1], a)
    return 0


def digit_ns(target: CrossbarTarget) -> float:
    """Time of one input digit on one run of rows.

    Columns that share a converter are read and converted in turn; with ``adc.sample_and_hold`` all
    are sampled by one read, and conversions overlap the next one.
    """
    timing = target.keys.timing
    if target.keys.adc.sample_and_hold:
        return max(timing.read_ns, target.mux_steps * timing.conversion_ns)
    return target.mux_steps * (timing.read_ns + timing.conversion_ns)


@COST.register(Mvm, backend="crossbar")
def _mvm(op: Mvm, target: CrossbarTarget, activity: str) -> OpCost:
    """Read, convert, add.

    For each position and input digit: the drivers of driven rows fire once for each run of
    columns, every cell of a driven row passes current, every column of every run of rows is
    converted once (half as many conversions where pairs are), and every conversion is added.
    ``columns_per_adc`` columns take turns at one converter (:func:`digit_ns`), once for each run of
    rows that shares a crossbar; all crossbars of the matrix work at once, and copies of it share
    the positions. Input codes come from the buffer once for
    each position. The digital correction of offset codes adds up the inputs.
    """
    held = op.held
    keys = target.keys
    positions = positions_of(op)
    reads = positions * op.digits
    density = driven_rows(op, op.dac_bits, target)
    pair = 2 if op.converts == "pair" else 1
    columns = held.groups * held.row_tiles * (held.physical_columns + held.bias_columns)
    selected = reads * columns * driven_runs(op, target)
    conversions = selected / pair
    input_bits = positions * held.rows * op.input_bits
    turns = held.runs_in_turn
    copies = int(op.annotations.get(COPIES, 1))
    busy = math.ceil(positions / copies) * op.digits * turns * digit_ns(target)
    sums = held.code_offset and not held.biased
    corrections = positions * held.rows if sums or op.weight_zero_point is not None else 0
    return OpCost(
        {
            "row_driver.drive": reads * density * held.rows * held.column_tiles,
            "cell_read.read": reads * density * held.cells,
            "column_driver.select": selected,
            "adc.convert": conversions,
            "shift_add.add": conversions + corrections,
            "buffer_read.word": math.ceil(input_bits / keys.digital.buffer_word_bits),
            "buffer_write.word": words(op.y, target),
        },
        busy,
        note=f"{positions} positions "
        + (f"/ {copies} copies " if copies > 1 else "")
        + f"x {op.digits} input digits x "
        + (f"{turns} runs of rows in turn x " if turns > 1 else "")
        + digit_note(target),
    )


def digit_note(target: CrossbarTarget) -> str:
    """How the time of one input digit comes about."""
    timing, steps = target.keys.timing, target.mux_steps
    if target.keys.adc.sample_and_hold:
        return (
            f"the longer of {timing.read_ns:g} ns read and {steps} conversions of "
            f"{timing.conversion_ns:g} ns"
        )
    return (
        f"{steps} conversions of a converter x "
        f"({timing.read_ns:g} ns read + {timing.conversion_ns:g} ns conversion)"
    )


@COST.register(Program, backend="crossbar")
def _program(op: Program, target: CrossbarTarget, activity: str) -> OpCost:
    """Every cell of the matrix is written with the expected pulses of its write-noise model.

    All cells of a row at once, row by row, all crossbars (and copies) at the same time.
    """
    held = op.matrix.type
    if not isinstance(held, MatrixType):
        raise TypeError(f"{op.matrix!r} is no matrix")
    pulses = target.write_noise.pulses
    rows = held.run_rows * held.runs_in_turn
    copies = int(op.annotations.get(COPIES, 1))
    return OpCost(
        {
            "cell_write.pulse": held.cells * pulses * copies,
            "row_driver.drive": held.rows * held.column_tiles * pulses * copies,
            "buffer_read.word": words(op.codes, target),
        },
        rows * pulses * target.keys.timing.write_ns,
        note=f"{rows} rows x {pulses:g} pulses x {target.keys.timing.write_ns:g} ns",
    )


@COST.register(core.Constant, backend="crossbar")
def _constant(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    return OpCost(free="constants lie in the buffer; their reads count with the op that reads")


@COST.register(core.Return, core.Reshape, backend="crossbar")
def _structure(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    return OpCost(free="renames data, moves none")


@COST.register(
    core.Permute, core.Expand, core.Slice, core.Concat, core.Pad, core.Gather, backend="crossbar"
)
def _addressing(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    return OpCost(free="done by the addresses that the next op reads from")


def _vector(op: Op, target: CrossbarTarget, adds: int, multiplies: int) -> OpCost:
    """A vector op: operands from the buffer, lanes at work, the result to the buffer."""
    keys = target.keys
    events: dict[str, float] = {
        "buffer_read.word": sum(words(value, target) for value in op.operands),
        "buffer_write.word": sum(words(value, target) for value in op.results),
    }
    if adds:
        events["alu_add.add"] = adds
    if multiplies:
        events["alu_multiply.multiply"] = multiplies
    lanes = keys.digital.lanes * int(op.annotations.get(UNITS, 1))
    steps = math.ceil((adds + multiplies) / lanes)
    return OpCost(
        events,
        steps * keys.timing.clock_ns,
        note=f"{adds + multiplies} operations on {lanes} lanes, {keys.timing.clock_ns:g} ns a step",
    )


@COST.register(snn.LeakyIntegrator, snn.LeakyIntegrateAndFire, backend="crossbar")
def _neuron(
    op: snn.LeakyIntegrator | snn.LeakyIntegrateAndFire, target: CrossbarTarget, activity: str
) -> OpCost:
    """A digital neuron: its membrane lies in a memory and is read and written in each step.

    A constant leak is one multiplication, a factor of 1 none; a division by a constant time
    constant is a multiplication by its inverse. A comparison is an addition, and so is a reset by
    subtraction; a reset to a constant gates.
    """
    adds, multiplies = 1, 0
    if op.leak_as != "factor":
        # The distance from rest, and the input.
        adds += 1 + (op.rest != 0.0 or op.rests is not None)
    multiplies += op.leaks is not None or op.leak not in (0.0, 1.0)
    multiplies += op.gains is not None or op.gain != 1.0
    if isinstance(op, snn.LeakyIntegrateAndFire):
        if op.max_spikes != 1:
            return OpCost(unknown="the target has no figure for the division that counts spikes")
        adds += 1 + (op.reset == "subtract") * (2 if op.reset_at == "both" else 1)
        adds += op.minimum is not None
    count = elements(op.x)
    made = _vector(op, target, adds * count, int(multiplies) * count)
    events = dict(made.events)
    # The states of all steps are a result, which _vector counts as written to the buffer.
    states = words(op.v, target)
    events["buffer_write.word"] -= states
    events["membrane.word"] = 2 * states
    return dataclasses.replace(made, events=events)


@COST.register(core.Iota, backend="crossbar")
def _counter(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    return OpCost(free="the counter that steps through a sequence")


@COST.register(core.Add, core.Subtract, core.Compare, core.Where, nn.Relu, backend="crossbar")
def _one_add(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    return _vector(op, target, elements(op.result), 0)


@COST.register(nn.Clamp, backend="crossbar")
def _two_adds(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    return _vector(op, target, 2 * elements(op.result), 0)


@COST.register(core.Multiply, backend="crossbar")
def _one_multiply(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    return _vector(op, target, 0, elements(op.result))


@COST.register(nn.LeakyRelu, quant.Dequantize, nn.BatchNorm, backend="crossbar")
def _multiply_add(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    count = elements(op.result)
    return _vector(op, target, count, count)


@COST.register(quant.Rescale, backend="crossbar")
def _rescale(op: quant.Rescale, target: CrossbarTarget, activity: str) -> OpCost:
    count = elements(op.y)
    return _vector(op, target, count if op.bias is not None else 0, count)


@COST.register(quant.RescaleGroups, backend="crossbar")
def _rescale_groups(op: quant.RescaleGroups, target: CrossbarTarget, activity: str) -> OpCost:
    """A multiplication for each sum of a group, and their additions."""
    sums, count = elements(op.acc), elements(op.y)
    return _vector(op, target, sums - (0 if op.bias is not None else count), sums)


@COST.register(quant.Quantize, backend="crossbar")
def _quantize(op: quant.Quantize, target: CrossbarTarget, activity: str) -> OpCost:
    """A multiplication by 1 / scale, the zero point, two comparisons; rounding is wiring."""
    count = elements(op.y)
    adds = 3 if op.zero_point is not None else 2
    return _vector(op, target, adds * count, count)


@COST.register(nn.Hardsigmoid, nn.Hardswish, backend="crossbar")
def _hard(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    count = elements(op.result)
    multiplies = 2 if op.name == nn.Hardswish.name else 1
    return _vector(op, target, 3 * count, multiplies * count)


@COST.register(nn.MaxPool, nn.AvgPool, backend="crossbar")
def _pool(op: nn.MaxPool | nn.AvgPool, target: CrossbarTarget, activity: str) -> OpCost:
    count = elements(op.result)
    multiplies = count if isinstance(op, nn.AvgPool) else 0
    return _vector(op, target, count * (math.prod(op.kernel) - 1), multiplies)


@COST.register(nn.Matmul, backend="crossbar")
def _matmul(op: nn.Matmul, target: CrossbarTarget, activity: str) -> OpCost:
    """Both factors change from call to call: a multiplication and an addition for each term."""
    return multiply_accumulate(op, op.a, op.y, target)


def multiply_accumulate(op: Op, a: Value, y: Value, target: CrossbarTarget) -> OpCost:
    """A product by the vector unit: a multiplication and an addition for each term."""
    depth = tensor(a).shape[-1]
    terms = stated(product([tensor(y).elements, depth]), y)
    return _vector(op, target, terms, terms)


@COST.register(nn.Sum, nn.Max, core.CumulativeSum, backend="crossbar")
def _running(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    return _vector(op, target, elements(op.operands[0]), 0)


@COST.register(nn.AdaptiveAvgPool, nn.Mean, backend="crossbar")
def _mean(op: nn.AdaptiveAvgPool | nn.Mean, target: CrossbarTarget, activity: str) -> OpCost:
    return _vector(op, target, elements(op.x), elements(op.result))


def _looked_up(
    op: Op, target: CrossbarTarget, lookups: int, adds: int = 0, multiplies: int = 0
) -> OpCost:
    """A vector op that also looks values of a function up, one in each lane and cycle."""
    made = _vector(op, target, adds, multiplies)
    keys = target.keys
    lanes = keys.digital.lanes * int(op.annotations.get(UNITS, 1))
    steps = math.ceil((lookups + adds + multiplies) / lanes)
    return dataclasses.replace(
        made,
        events={**made.events, "lookup.read": lookups},
        busy_ns=steps * keys.timing.clock_ns,
        note=f"{lookups} lookups and {adds + multiplies} operations on {lanes} lanes, "
        f"{keys.timing.clock_ns:g} ns a step",
    )


@COST.register(nn.Sigmoid, nn.Tanh, core.Unary, backend="crossbar")
def _function(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    """One lookup for each element."""
    return _looked_up(op, target, elements(op.result))


@COST.register(nn.Gelu, nn.Silu, core.Divide, backend="crossbar")
def _function_times(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    """A lookup (a distribution function, a sigmoid, an inverse) and a multiplication."""
    count = elements(op.result)
    return _looked_up(op, target, count, multiplies=count)


@COST.register(core.Power, backend="crossbar")
def _power(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    """A logarithm, a multiplication, an exponential function."""
    count = elements(op.result)
    return _looked_up(op, target, 2 * count, multiplies=count)


@COST.register(nn.Softmax, backend="crossbar")
def _softmax(op: nn.Softmax, target: CrossbarTarget, activity: str) -> OpCost:
    """Largest element, difference, exponential function, sum; an inverse for each row; products."""
    count = elements(op.y)
    rows = count // max(1, stated(tensor(op.y).shape[op.axis], op.y))
    return _looked_up(op, target, count + rows, 3 * count, count)


@COST.register(nn.LayerNorm, nn.RmsNorm, backend="crossbar")
def _norm(op: nn.LayerNorm | nn.RmsNorm, target: CrossbarTarget, activity: str) -> OpCost:
    """Squares and their sum, an inverse root for each row, scale; a mean and shift if centred."""
    count = elements(op.result)
    rows = count // math.prod(op.normalized_shape)
    adds = 4 * count if isinstance(op, nn.LayerNorm) else count
    return _looked_up(op, target, rows, adds, 3 * count)


@COST.register(core.Cast, backend="crossbar")
def _cast(op: core.Cast, target: CrossbarTarget, activity: str) -> OpCost:
    """Shifts a significand by its exponent or back, as an addition does."""
    return _vector(op, target, elements(op.result), 0)
