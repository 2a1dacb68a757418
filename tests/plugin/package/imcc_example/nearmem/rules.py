"""Which ops the lanes take, and what they cost for one inference (B = 1)."""

from __future__ import annotations

import math

from imcc.ir.cost import OpCost
from imcc.ir.dialects import core, nn, quant
from imcc.ir.dims import evaluate
from imcc.ir.ops import Op, Value
from imcc.ir.rules import COST, LEGAL
from imcc.ir.semantics.resources import storage_dtype
from imcc_example.nearmem.target import NearMemoryTarget

STRUCTURE = (core.Constant, core.Return, core.Reshape, core.Permute, core.Slice, core.Concat)
PRODUCTS = (quant.Linear, quant.Conv)
SIMPLE = (core.Add, core.Subtract, nn.Relu, nn.Clamp, nn.MaxPool)
SCALES = (quant.Quantize, quant.Dequantize, quant.Rescale)


@LEGAL.register(*STRUCTURE, *PRODUCTS, *SIMPLE, *SCALES, backend="nearmem")
def _legal(op: Op, target: NearMemoryTarget) -> str | None:
    return None


@LEGAL.register(nn.Linear, nn.Conv, backend="nearmem")
def _float(op: Op, target: NearMemoryTarget) -> str | None:
    return "the lanes multiply 8-bit integers, this product is in floating point"


def _elements(value: Value) -> int:
    count = core.tensor(value).elements
    return evaluate(count, {} if isinstance(count, int) else dict.fromkeys(count.symbols, 1))


def _words(value: Value, target: NearMemoryTarget) -> int:
    bits = 8 * storage_dtype(core.tensor(value).element).itemsize
    return math.ceil(_elements(value) * bits / target.keys.buffer.word_bits)


def _cost(op: Op, target: NearMemoryTarget, steps: dict[str, float]) -> OpCost:
    """``steps`` of the lanes; every operand is read from the buffer, every result written."""
    moved = sum(_words(value, target) for value in (*op.operands, *op.results))
    lanes = target.keys.lanes
    busy = math.ceil(sum(steps.values()) / lanes.count) * lanes.clock_ns
    return OpCost({**steps, "buffer.access": moved}, busy)


@COST.register(*STRUCTURE, backend="nearmem")
def _structure(op: Op, target: NearMemoryTarget, activity: str) -> OpCost:
    return OpCost(free="done by the addresses that the next op reads from")


@COST.register(*PRODUCTS, backend="nearmem")
def _product(op: quant.Linear | quant.Conv, target: NearMemoryTarget, activity: str) -> OpCost:
    """One step for each output and each weight that contributes to it."""
    outputs = core.tensor(op.weight).shape[0]
    terms = _elements(op.weight) // (outputs if isinstance(outputs, int) else 1)
    return _cost(op, target, {"mac.step": _elements(op.result) * terms})


@COST.register(core.Add, core.Subtract, nn.Relu, backend="nearmem")
def _one(op: Op, target: NearMemoryTarget, activity: str) -> OpCost:
    return _cost(op, target, {"alu.step": _elements(op.result)})


@COST.register(nn.Clamp, backend="nearmem")
def _two(op: Op, target: NearMemoryTarget, activity: str) -> OpCost:
    return _cost(op, target, {"alu.step": 2 * _elements(op.result)})


@COST.register(nn.MaxPool, backend="nearmem")
def _pool(op: nn.MaxPool, target: NearMemoryTarget, activity: str) -> OpCost:
    return _cost(op, target, {"alu.step": _elements(op.result) * (math.prod(op.kernel) - 1)})


@COST.register(*SCALES, backend="nearmem")
def _scale(op: Op, target: NearMemoryTarget, activity: str) -> OpCost:
    """A multiplication and an addition (a bias, a zero point) for each element."""
    count = _elements(op.result)
    return _cost(op, target, {"multiply.step": count, "alu.step": count})
