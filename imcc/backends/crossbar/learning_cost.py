"""Cost rules of adapting: gradients, coding of errors, transposed reads, updates of cells.

Gradient ops run on the gradient unit of their layer, or on the chip's vector unit
(``learning.units``); both add and multiply with the components ``alu_add`` and ``alu_multiply``.
"""

from __future__ import annotations

import math

from imcc.backends.crossbar.activity import driven_rows
from imcc.backends.crossbar.cost import elements, words
from imcc.backends.crossbar.learning_ops import ReadCodes, TransposedMvm, Update
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.cost import OpCost
from imcc.ir.dialects import learn
from imcc.ir.dialects.core import tensor
from imcc.ir.ops import Op, Value
from imcc.ir.rules import COST
from imcc.ir.types import SpikesType


def lanes(target: CrossbarTarget) -> int:
    """Lanes that gradient ops of one layer run on."""
    keys = target.keys
    return keys.learning.lanes if keys.learning.units == "layer" else keys.digital.lanes


def _work(
    target: CrossbarTarget,
    adds: float,
    multiplies: float,
    reads: float,
    writes: float,
    lookups: float = 0,
) -> OpCost:
    """Operations and look-ups on the lanes; operands and results in the buffer, in words."""
    events: dict[str, float] = {}
    for event, count in (
        ("buffer_read.word", reads),
        ("buffer_write.word", writes),
        ("alu_add.add", adds),
        ("alu_multiply.multiply", multiplies),
        ("lookup.read", lookups),
    ):
        if count:
            events[event] = count
    if not events:
        return OpCost(free="renames data, moves none")
    clock, width = target.keys.timing.clock_ns, lanes(target)
    steps = adds + multiplies + lookups
    return OpCost(
        events,
        math.ceil(steps / width) * clock,
        note=f"{steps:g} operations and look-ups on {width} lanes, {clock:g} ns a step",
    )


def _elementwise(
    op: Op, target: CrossbarTarget, adds: float, multiplies: float, lookups: float = 0
) -> OpCost:
    """So many operations for each element of the result; all operands are read."""
    count = elements(op.results[0])
    reads = sum(words(value, target) for value in op.operands)
    writes = sum(words(value, target) for value in op.results)
    return _work(target, adds * count, multiplies * count, reads, writes, lookups * count)


@COST.register(learn.OutputError, backend="crossbar")
def _error(op: learn.OutputError, target: CrossbarTarget, activity: str) -> OpCost:
    """The difference to the label; for cross-entropy a softmax first, as ``nn.softmax`` costs."""
    if op.loss == "squared":
        return _elementwise(op, target, 1, 1)
    count = elements(op.y)
    reads = words(op.y, target) + words(op.labels, target)
    return _work(target, 4 * count, count, reads, words(op.e, target), count + 1)


def outer_product(
    op: Op, x: Value, dy: Value, target: CrossbarTarget, positions: int, rows: int, columns: int
) -> OpCost:
    """``dW[n, k] = sum_p dy[p, n] x[p, k]`` over positions p: N columns, K rows.

    The lanes keep a square block of sums and stream the positions, so that x is read once for each
    block along n and dy once for each along k. Spikes gate additions and are not multiplied; the
    share of ones is ``activity.input_bit_density``.
    """
    side = max(1, math.isqrt(lanes(target)))
    terms: float = positions * rows * columns
    multiplies = terms
    bits = words(x, target) / max(1, elements(x))
    if isinstance(x.type, SpikesType):
        terms, multiplies = terms * target.keys.activity.input_bit_density, 0.0
    reads = math.ceil(positions * rows * bits) * math.ceil(columns / side)
    reads += words(dy, target) * math.ceil(rows / side)
    return _work(target, terms, multiplies, reads, words(op.results[0], target))


@COST.register(learn.LinearWeightGradient, backend="crossbar")
def _linear(op: learn.LinearWeightGradient, target: CrossbarTarget, activity: str) -> OpCost:
    columns, rows = (int(str(size)) for size in tensor(op.dw).shape)
    return outer_product(op, op.x, op.dy, target, elements(op.dy) // columns, rows, columns)


@COST.register(learn.ConvWeightGradient, backend="crossbar")
def _conv(op: learn.ConvWeightGradient, target: CrossbarTarget, activity: str) -> OpCost:
    sizes = [int(str(size)) for size in tensor(op.dw).shape]
    columns, rows = sizes[0], math.prod(sizes[1:])
    return outer_product(op, op.x, op.dy, target, elements(op.dy) // columns, rows, columns)


@COST.register(learn.SumTo, backend="crossbar")
def _sum_to(op: learn.SumTo, target: CrossbarTarget, activity: str) -> OpCost:
    made = elements(op.db)
    multiplies = made if op.factor not in (1.0, -1.0) else 0
    return _work(
        target, elements(op.dy) - made, multiplies, words(op.dy, target), words(op.db, target)
    )


@COST.register(learn.Spread, backend="crossbar")
def _spread(op: learn.Spread, target: CrossbarTarget, activity: str) -> OpCost:
    """A factor is applied before repeating; repeating is done by the addresses that are read."""
    if op.factor == 1.0:
        return OpCost(free="done by the addresses that the next op reads from")
    held = words(op.dy, target)
    return _work(target, 0, elements(op.dy), held, held)


@COST.register(learn.ReluGradient, backend="crossbar")
def _relu(op: learn.ReluGradient, target: CrossbarTarget, activity: str) -> OpCost:
    return _elementwise(op, target, 1, float(op.negative_slope != 0.0))


@COST.register(learn.MaxPoolGradient, learn.AvgPoolGradient, backend="crossbar")
def _pool(
    op: learn.MaxPoolGradient | learn.AvgPoolGradient, target: CrossbarTarget, activity: str
) -> OpCost:
    """The largest is found again; windows that overlap add up."""
    windows, size = elements(op.dy), math.prod(op.kernel)
    overlap = windows * size if op.stride != op.kernel else 0
    largest = isinstance(op, learn.MaxPoolGradient)
    adds = windows * (size - 1) * largest + overlap
    multiplies = 0 if largest else windows
    reads = words(op.dy, target) + (words(op.x, target) if largest else 0)
    return _work(target, adds, multiplies, reads, words(op.dx, target))


PIECEWISE = {"triangle": 3, "rectangle": 1, "straight_through": 0, "none": 0}
"""Additions and comparisons of surrogates that are piecewise linear."""


@COST.register(learn.NeuronGradient, backend="crossbar")
def _neuron(op: learn.NeuronGradient, target: CrossbarTarget, activity: str) -> OpCost:
    """The membrane is computed again from x, then the surrogate, then the sum over time.

    Forward: an addition and a multiplication by the leak, two additions to fire and reset. The
    surrogate of the distance from the threshold: operations where it is piecewise linear, else a
    look-up. Backward: a multiplication by the surrogate;
    through time an addition and a multiplication for the leak, and the same for the reset where it
    passes gradients.
    """
    leaks = float(op.leaks is not None or op.leak not in (0.0, 1.0))
    adds, multiplies = 3.0 + (op.reset != "none"), leaks
    adds += PIECEWISE.get(op.surrogate, 0)
    multiplies += (op.surrogate_slope != 1.0) + (op.surrogate_scale != 1.0) + 1.0
    if op.through_time:
        resets = op.reset != "none" and not op.detach_reset
        adds, multiplies = adds + 1 + resets, multiplies + leaks + resets
    return _elementwise(op, target, adds, multiplies, op.surrogate not in PIECEWISE)


@COST.register(learn.Update, backend="crossbar")
def _step(op: learn.Update, target: CrossbarTarget, activity: str) -> OpCost:
    return _elementwise(op, target, 1, 1)


@COST.register(learn.QuantizeError, backend="crossbar")
def _code(op: learn.QuantizeError, target: CrossbarTarget, activity: str) -> OpCost:
    """A comparison for the largest; a power of two shifts."""
    return _elementwise(op, target, 1, 0)


@COST.register(learn.StochasticQuantize, backend="crossbar")
def _round(op: learn.StochasticQuantize, target: CrossbarTarget, activity: str) -> OpCost:
    """A multiplication by 1 / scale, the random number, two comparisons."""
    return _elementwise(op, target, 3, 1)


@COST.register(learn.Fold, backend="crossbar")
def _fold(op: learn.Fold, target: CrossbarTarget, activity: str) -> OpCost:
    """Every element of a window is added to its place."""
    count = elements(op.x)
    return _work(target, count, 0, words(op.x, target), words(op.y, target))


@COST.register(learn.NormGradient, backend="crossbar")
def _norm(op: learn.NormGradient, target: CrossbarTarget, activity: str) -> OpCost:
    """Statistics again, an inverse root for each row, two means of products, a scale."""
    count = elements(op.x)
    rows = count // math.prod(op.normalized_shape)
    adds = 6 * count if op.centred else 3 * count
    reads = sum(words(value, target) for value in op.operands)
    return _work(target, adds, 7 * count, reads, words(op.dx, target), rows)


@COST.register(learn.BatchNormGradient, backend="crossbar")
def _batch_norm(op: learn.BatchNormGradient, target: CrossbarTarget, activity: str) -> OpCost:
    """A multiplication by a factor that is known beforehand."""
    return _elementwise(op, target, 0, 1)


@COST.register(learn.ActivationGradient, backend="crossbar")
def _activation(op: learn.ActivationGradient, target: CrossbarTarget, activity: str) -> OpCost:
    """Piecewise ones compare and multiply; others look their derivative up, as surrogates do."""
    if op.function in ("hardsigmoid", "hardswish"):
        return _elementwise(op, target, 3, 2)
    return _elementwise(op, target, 0, 1, 1)


@COST.register(learn.ClampGradient, backend="crossbar")
def _clamp(op: learn.ClampGradient, target: CrossbarTarget, activity: str) -> OpCost:
    return _elementwise(op, target, (op.minimum is not None) + (op.maximum is not None), 0)


@COST.register(learn.SoftmaxGradient, backend="crossbar")
def _softmax(op: learn.SoftmaxGradient, target: CrossbarTarget, activity: str) -> OpCost:
    """The sum of products along the axis, a difference and a product for each element."""
    return _elementwise(op, target, 2, 2)


@COST.register(learn.SliceGradient, backend="crossbar")
def _slice(op: learn.SliceGradient, target: CrossbarTarget, activity: str) -> OpCost:
    return OpCost(free="done by the addresses that the next op reads from")


@COST.register(learn.IntegratorGradient, backend="crossbar")
def _integrator(op: learn.IntegratorGradient, target: CrossbarTarget, activity: str) -> OpCost:
    """Backwards in time: what comes from later, times the leak, plus the gradient of the step."""
    if op.leak_as == "time_constant" and op.leaks is not None:
        return OpCost(unknown="the target has no figure for a division by a time constant")
    return _elementwise(op, target, 1 + (op.dv is not None), 1 + (op.gain != 1.0))


# -- crossbars ------------------------------------------------------------------------------------


@COST.register(TransposedMvm, backend="crossbar")
def _transposed(op: TransposedMvm, target: CrossbarTarget, activity: str) -> OpCost:
    """Drive columns, convert rows, one slice (and sign) after the other.

    For each position, input digit, slice and sign: drivers of active columns fire once for each run
    of rows, their cells pass current, and every row of every crossbar side by side is converted.
    """
    kind, keys = op.kind, target.keys
    positions = elements(op.y) // kind.rows
    reads = positions * op.digits
    density = driven_rows(op, op.dac_bits, target)
    turns = kind.slices * (2 if kind.paired and op.converts == "column" else 1)
    # Crossbars of one sign alone hold nothing of the other.
    abreast = kind.column_tiles
    if kind.encoding == "sign_arrays" and kind.paired:
        abreast //= 2
    conversions = reads * turns * abreast * kind.rows
    step = keys.timing.read_ns + keys.timing.conversion_ns
    rows = -(-keys.array.rows // target.adcs_per_crossbar)
    corrections = positions * kind.columns if kind.code_offset else 0
    return OpCost(
        {
            "row_driver.drive": reads * density * kind.physical_columns * kind.row_tiles,
            "cell_read.read": reads * density * kind.cells,
            "column_driver.select": conversions,
            "adc.convert": conversions,
            "shift_add.add": conversions + corrections,
            "buffer_read.word": words(op.x, target),
            "buffer_write.word": words(op.y, target),
        },
        reads * turns * rows * step,
        note=f"{positions} positions x {op.digits} input digits x {turns} slices and signs x "
        f"{rows} conversions of a converter x {step:g} ns",
    )


@COST.register(Update, backend="crossbar")
def _update(op: Update, target: CrossbarTarget, activity: str) -> OpCost:
    """Cells whose level changes are written, a row at a time, all crossbars at the same time.

    A share ``learning.update_density`` of the cells changes; rows without a change are skipped.
    """
    kind, keys = op.kind, target.keys
    density, pulses = keys.learning.update_density, target.write_noise.pulses
    rows = kind.run_rows * kind.runs_in_turn
    wide = min(kind.physical_columns, kind.usable_columns)
    touched = 1.0 - (1.0 - density) ** wide
    return OpCost(
        {
            "cell_write.pulse": kind.cells * density * pulses,
            "row_driver.drive": kind.rows * kind.column_tiles * touched * pulses,
            "alu_add.add": elements(op.codes),
            "buffer_read.word": words(op.codes, target),
        },
        rows * touched * pulses * keys.timing.write_ns,
        note=f"{rows * touched:g} rows x {pulses:g} pulses x {keys.timing.write_ns:g} ns",
    )


@COST.register(ReadCodes, backend="crossbar")
def _read_codes(op: ReadCodes, target: CrossbarTarget, activity: str) -> OpCost:
    """Row by row, every cell is converted."""
    kind, keys = op.kind, target.keys
    rows = kind.run_rows * kind.runs_in_turn
    step = keys.timing.read_ns + keys.timing.conversion_ns
    return OpCost(
        {
            "row_driver.drive": kind.rows * kind.column_tiles,
            "cell_read.read": kind.cells,
            "column_driver.select": kind.cells,
            "adc.convert": kind.cells,
            "shift_add.add": kind.cells,
            "buffer_write.word": words(op.codes, target),
        },
        rows * target.mux_steps * step,
        note=f"{rows} rows x {target.mux_steps} conversions of a converter x {step:g} ns",
    )
