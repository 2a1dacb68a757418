"""Attention as two products: finding them, and a program of them alone to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imcc.ir.dialects import core, nn, quant
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Function, FunctionResult, Module, clone_op
from imcc.ir.ops import Op, Value

BETWEEN: tuple[type[Op], ...] = (
    nn.Softmax,
    nn.Clamp,
    core.Where,
    core.Add,
    core.Subtract,
    core.Multiply,
    core.Divide,
    core.Reshape,
    core.Permute,
    core.Expand,
    core.Cast,
    quant.FakeQuantize,
)
"""What may stand between the two products of attention: scale, mask, softmax, change of shape."""


@dataclass(frozen=True)
class AttentionProducts:
    """``mixed = p(scores) @ V`` with ``scores = Q @ K^T``; both right operands change per call.

    ``path`` are the ops that lead from the one product to the other, in program order.
    """

    scores: nn.Matmul
    mixed: nn.Matmul
    path: tuple[Op, ...]

    @property
    def products(self) -> tuple[tuple[str, nn.Matmul], ...]:
        """What each product's right operand holds, and the product."""
        return ("key", self.scores), ("value", self.mixed)


def attention_products(function: Function) -> list[AttentionProducts]:
    """Every pair of products with nothing but :data:`BETWEEN` from one to the left of the other."""
    found: list[AttentionProducts] = []
    reached: dict[Op, nn.Matmul] = {}
    for op in function.ops:
        sources = [reached[value.owner] for value in op.operands if value.owner in reached]
        if isinstance(op, nn.Matmul):
            scores = reached.get(op.a.owner) if op.a.owner is not None else None
            if scores is not None and at_run_time(op.b):
                found.append(AttentionProducts(scores, op, _path(scores, op)))
            elif at_run_time(op.b):
                reached[op] = op
        elif sources and isinstance(op, BETWEEN):
            reached[op] = sources[0]
    return found


def _path(scores: nn.Matmul, mixed: nn.Matmul) -> tuple[Op, ...]:
    """The ops that depend on ``scores`` and that the left operand of ``mixed`` depends on."""
    if scores.parent is None:
        raise ValueError("the product is in no function")
    behind: set[Op] = {scores}
    for op in scores.parent.ops:
        if any(value.owner in behind for value in op.operands):
            behind.add(op)
    needed: set[Op] = set()
    work = [mixed.a.owner]
    while work:
        source = work.pop()
        if source is None or source in needed or source not in behind or source is scores:
            continue
        needed.add(source)
        work.extend(value.owner for value in source.operands)
    return tuple(op for op in scores.parent.ops if op in needed)


def at_run_time(value: Value) -> bool:
    """Whether a value depends on an argument of its function."""
    seen: set[Value] = set()
    work = [value]
    while work:
        item = work.pop()
        if item in seen:
            continue
        seen.add(item)
        if item.owner is None:
            return True
        work.extend(item.owner.operands)
    return False


@dataclass(frozen=True)
class Probe:
    """A program of attention alone: ``inference`` maps ``inputs`` of the network to outputs.

    ``inputs`` are values of the function that the attention was taken from, ``outputs`` those that
    the probe's results stand for, one for each attention.
    """

    module: Module
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def probe(module: Module, attention: Sequence[AttentionProducts]) -> Probe:
    """Cut attention out of a network; what enters it becomes an argument.

    Queries, keys and values as they are before the products, and masks where they are computed.
    """
    made = Module(f"{module.name}.attention", phase=module.phase)
    made.sizes = dict(module.sizes)
    function = Function("inference")
    made.add_function(function)
    arguments: dict[Value, Value] = {}
    constants: dict[Op, Op] = {}
    # The batch is read off the first argument: queries come before masks, which may lack it.
    entering = [item.scores.a for item in attention]
    for item in attention:
        inside = {item.scores, *item.path}
        for op in (item.scores, *item.path, item.mixed):
            entering += [value for value in op.operands if value.owner not in inside]
    for value in dict.fromkeys(entering):
        if not isinstance(value.owner, core.Constant):
            arguments[value] = function.add_argument(value.type, value.name)
        elif value.owner not in constants:
            constants[value.owner] = function.append(clone_op(value.owner, {}))
            made.resources.setdefault(
                str(value.owner.value), module.resources[str(value.owner.value)]
            )
    values: list[Value] = []
    for item in attention:
        # What enters is cut even where the attention before gives it.
        mapped = dict(arguments)
        for held, copy in constants.items():
            mapped.update(zip(held.results, copy.results, strict=True))
        for op in (item.scores, *item.path, item.mixed):
            copy = function.append(clone_op(op, mapped))
            mapped.update(zip(op.results, copy.results, strict=True))
        values.append(mapped[item.mixed.y])
    outputs = tuple(item.mixed.y for item in attention)
    function.append(core.Return(values=tuple(values)))
    function.results = [FunctionResult(tensor(value), None) for value in values]
    return Probe(made, tuple(arguments), outputs)
