"""Cost rules: what each op makes the hardware do, per inference (B = 1), in closed form.

An event is ``component.action``; its energy is the figure of ``components.<component>``. Counts
that depend on data use the assumed density of ones in input digits, ``activity.input_bit_density``.

Not modelled, and said so in every record: the network between tiles, control, clock tree, DRAM.
"""

from __future__ import annotations

import dataclasses
import math

from imcc.backends.crossbar.dialect import MatrixType, Mvm, Program
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.cost import OpCost
from imcc.ir.dialects import core, nn, quant, snn
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim, evaluate, product
from imcc.ir.ops import Op, Value
from imcc.ir.rules import COST
from imcc.ir.types import SpikesType, TensorType

NOT_MODELLED = ("network between tiles", "control and clock tree", "off-chip memory")


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


@COST.register(Mvm, backend="crossbar")
def _mvm(op: Mvm, target: CrossbarTarget, activity: str) -> OpCost:
    """Read, convert, add.

    For each position and input digit: the drivers of active rows fire once for each run of
    columns, every cell of an active row passes current, every column of every run of rows is
    converted once (half as many conversions where pairs are), and every conversion is added.
    ``columns_per_adc`` columns take turns at one converter, so a digit takes
    ``columns_per_adc * (read_ns + conversion_ns)``, once for each run of rows that shares a
    crossbar; all crossbars of the matrix work at once. Input codes come from the buffer once for
    each position. The digital correction of offset codes adds up the inputs.
    """
    held = op.held
    keys = target.keys
    positions = elements(op.y) // (held.columns * (held.blocks if held.split else 1))
    reads = positions * op.digits
    density = keys.activity.input_bit_density if op.dac_bits == 1 else 1.0
    pair = 2 if op.converts == "pair" else 1
    columns = held.groups * held.row_tiles * (held.physical_columns + held.bias_columns)
    conversions = reads * columns // pair
    input_bits = positions * held.rows * op.input_bits
    turns = held.runs_in_turn
    step = keys.timing.read_ns + keys.timing.conversion_ns
    busy = reads * turns * target.mux_steps * step
    sums = held.code_offset and not held.biased
    corrections = positions * held.rows if sums or op.weight_zero_point is not None else 0
    return OpCost(
        {
            "row_driver.drive": reads * density * held.rows * held.column_tiles,
            "cell_read.read": reads * density * held.cells,
            "column_driver.select": reads * columns,
            "adc.convert": conversions,
            "shift_add.add": conversions + corrections,
            "buffer_read.word": math.ceil(input_bits / keys.digital.buffer_word_bits),
            "buffer_write.word": words(op.y, target),
        },
        busy,
        note=f"{positions} positions x {op.digits} input digits x "
        + (f"{turns} runs of rows in turn x " if turns > 1 else "")
        + f"{target.mux_steps} conversions of a converter x "
        f"({keys.timing.read_ns:g} ns read + {keys.timing.conversion_ns:g} ns conversion)",
    )


@COST.register(Program, backend="crossbar")
def _program(op: Program, target: CrossbarTarget, activity: str) -> OpCost:
    """Every cell of the matrix is written with the expected pulses of its write-noise model.

    All cells of a row at once, row by row, all crossbars at the same time.
    """
    held = op.matrix.type
    if not isinstance(held, MatrixType):
        raise TypeError(f"{op.matrix!r} is no matrix")
    pulses = target.write_noise.pulses
    rows = held.run_rows * held.runs_in_turn
    return OpCost(
        {
            "cell_write.pulse": held.cells * pulses,
            "row_driver.drive": held.rows * held.column_tiles * pulses,
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
    steps = math.ceil((adds + multiplies) / keys.digital.lanes)
    return OpCost(
        events,
        steps * keys.timing.clock_ns,
        note=f"{adds + multiplies} operations on {keys.digital.lanes} lanes, "
        f"{keys.timing.clock_ns:g} ns a step",
    )


@COST.register(snn.LeakyIntegrator, snn.LeakyIntegrateAndFire, backend="crossbar")
def _neuron(
    op: snn.LeakyIntegrator | snn.LeakyIntegrateAndFire, target: CrossbarTarget, activity: str
) -> OpCost:
    """A digital neuron: its membrane lies in the buffer and is read and written in each step.

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
    events["buffer_read.word"] += words(op.v, target)
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


@COST.register(
    nn.Sigmoid,
    nn.Tanh,
    nn.Gelu,
    nn.Silu,
    nn.Softmax,
    nn.LayerNorm,
    nn.RmsNorm,
    core.Divide,
    core.Power,
    core.Unary,
    core.Cast,
    backend="crossbar",
)
def _no_figure(op: Op, target: CrossbarTarget, activity: str) -> OpCost:
    return OpCost(unknown="the target has no figures for division, roots, powers and conversion")
