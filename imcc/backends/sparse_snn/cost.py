"""Cost rules: what each op makes the accelerator do, per inference (B = 1).

What a product does depends on its operands, so its events are those that ``profile-activity``
counted on real samples. Neuron units work beside the products whose sums they take in: their
events count, their time does not.

Not modelled, and said so in every record: control and clock tree, leakage.
"""

from __future__ import annotations

import math

from imcc.backends.sparse_snn import dialect
from imcc.backends.sparse_snn.dialect import CYCLES, EVENT_NAMES, EVENTS
from imcc.backends.sparse_snn.target import SparseTarget
from imcc.ir.cost import OpCost
from imcc.ir.dialects import core, nn, quant, snn
from imcc.ir.dims import evaluate
from imcc.ir.ops import Op, Value
from imcc.ir.rules import COST
from imcc.ir.types import TensorType

NOT_MODELLED = ("control and clock tree", "leakage")
MEMBRANE_BITS = 16
"""Width that neuron units are charged with."""


def elements(value: Value) -> int:
    """Elements of a tensor for one inference: every symbol (batch, sequence) is 1."""
    if not isinstance(value.type, TensorType):
        return 0
    count = value.type.elements
    symbols = {} if isinstance(count, int) else dict.fromkeys(count.symbols, 1)
    return evaluate(count, symbols)


@COST.register(dialect.Product, backend="sparse_snn")
def _product(op: dialect.Product, target: SparseTarget, activity: str) -> OpCost:
    """What the engine counted on profiled samples."""
    if EVENTS not in op.annotations or CYCLES not in op.annotations:
        return OpCost(unknown="profile-activity has not counted its events")
    counted = op.annotations[EVENTS]
    if len(counted) != len(EVENT_NAMES):
        return OpCost(unknown=f"{EVENTS} has {len(counted)} numbers, expected {len(EVENT_NAMES)}")
    events = {name: float(count) for name, count in zip(EVENT_NAMES, counted, strict=True) if count}
    if not events:
        return OpCost(free="nothing was to be done")
    return OpCost(events, float(op.annotations[CYCLES]) * target.cycle_ns)


@COST.register(dialect.PackSpikes, dialect.PackCodes, backend="sparse_snn")
def _pack(op: Op, target: SparseTarget, activity: str) -> OpCost:
    return OpCost(free="the output compressor of the layer before counts with that layer's product")


@COST.register(dialect.CompressWeights, backend="sparse_snn")
def _compress(op: Op, target: SparseTarget, activity: str) -> OpCost:
    return OpCost(free="weights are compressed before the program runs")


@COST.register(core.Constant, backend="sparse_snn")
def _constant(op: Op, target: SparseTarget, activity: str) -> OpCost:
    return OpCost(free="constants are read by the op that uses them")


@COST.register(core.Return, core.Reshape, backend="sparse_snn")
def _structure(op: Op, target: SparseTarget, activity: str) -> OpCost:
    return OpCost(free="renames data, moves none")


@COST.register(core.Permute, core.Expand, core.Slice, core.Concat, core.Pad, backend="sparse_snn")
def _addressing(op: Op, target: SparseTarget, activity: str) -> OpCost:
    return OpCost(free="done by the addresses that the next op reads from")


def _neurons(adds: float, multiplies: float) -> OpCost:
    events = {}
    if adds:
        events["adder.bit"] = adds * MEMBRANE_BITS
    if multiplies:
        # Multipliers take 8 bits; a membrane takes as many products as it has halves.
        events["neuron_multiply.multiply"] = multiplies * math.ceil(MEMBRANE_BITS / 8)
    return OpCost(events) if events else OpCost(free="nothing to compute")


@COST.register(snn.LeakyIntegrateAndFire, backend="sparse_snn")
def _lif(op: snn.LeakyIntegrateAndFire, target: SparseTarget, activity: str) -> OpCost:
    """For each neuron and step: a decay, the input, the comparison, the reset."""
    count = elements(op.v)
    return _neurons(3 * count, count if op.leak != 1.0 or op.leaks is not None else 0)


@COST.register(snn.LeakyIntegrator, backend="sparse_snn")
def _li(op: snn.LeakyIntegrator, target: SparseTarget, activity: str) -> OpCost:
    count = elements(op.v)
    return _neurons(count, count)


@COST.register(core.Add, core.Subtract, backend="sparse_snn")
def _add(op: Op, target: SparseTarget, activity: str) -> OpCost:
    return _neurons(elements(op.result), 0)


@COST.register(core.Multiply, quant.Dequantize, backend="sparse_snn")
def _multiply(op: Op, target: SparseTarget, activity: str) -> OpCost:
    return _neurons(0, elements(op.result))


@COST.register(quant.Rescale, nn.BatchNorm, backend="sparse_snn")
def _rescale(op: Op, target: SparseTarget, activity: str) -> OpCost:
    return _neurons(elements(op.result), elements(op.result))


@COST.register(quant.Quantize, backend="sparse_snn")
def _quantize(op: quant.Quantize, target: SparseTarget, activity: str) -> OpCost:
    """A multiplication and two comparisons; spikes are their own codes."""
    if op.bits == 1:
        return OpCost(free="spikes are their own codes")
    return _neurons(2 * elements(op.y), elements(op.y))


@COST.register(nn.MaxPool, backend="sparse_snn")
def _max_pool(op: nn.MaxPool, target: SparseTarget, activity: str) -> OpCost:
    """Of spikes, an OR of bits: one bit of an adder for each."""
    return OpCost({"adder.bit": elements(op.y) * max(1.0, math.prod(op.kernel) - 1.0)})


@COST.register(nn.AvgPool, backend="sparse_snn")
def _avg_pool(op: nn.AvgPool, target: SparseTarget, activity: str) -> OpCost:
    return _neurons(elements(op.y) * (math.prod(op.kernel) - 1), elements(op.y))


@COST.register(nn.Sum, backend="sparse_snn")
def _sum(op: nn.Sum, target: SparseTarget, activity: str) -> OpCost:
    return _neurons(elements(op.x), 0)


@COST.register(nn.AdaptiveAvgPool, nn.Mean, backend="sparse_snn")
def _mean(op: nn.AdaptiveAvgPool | nn.Mean, target: SparseTarget, activity: str) -> OpCost:
    return _neurons(elements(op.x), elements(op.result))
