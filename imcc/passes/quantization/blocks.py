"""Blocks of a function: consecutive ops that are optimised together, in program order.

Program order is a topological order, so a run of consecutive ops is always convex: what a block
needs was computed before it, and nothing outside lies between its ops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from imcc.ir.dialects import core, nn, quant
from imcc.ir.module import Function
from imcc.ir.ops import Op, Value
from imcc.ir.regions import static_ops
from imcc.ir.semantics.interpreter import EvalContext, Observer, evaluate_ops
from imcc.ir.semantics.resources import ResourceStore

Layer = nn.Linear | nn.Conv
"""Ops with a weight that is quantised."""


@dataclass(frozen=True)
class Block:
    """A run of ops. ``inputs`` enter from earlier blocks, ``outputs`` are read later.

    Static ops (:func:`static_ops`) belong to no block; each block computes those that it reads.
    """

    name: str
    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The matrix ops whose weight is a constant."""
        return tuple(
            op
            for op in self.ops
            if isinstance(op, (nn.Linear, nn.Conv)) and constant_weight(op) is not None
        )

    def run(
        self,
        inputs: Mapping[Value, Any],
        resources: ResourceStore,
        symbols: Mapping[str, int],
        *,
        weights: Mapping[Value, Tensor] | None = None,
        observer: Observer | None = None,
        unrounded: bool = False,
    ) -> dict[Value, Any]:
        """Values of the outputs. ``weights`` stands in for values that are constants otherwise.

        ``unrounded`` leaves quantised activations as they are, for targets in float.
        """
        values: dict[Value, Any] = {**{value: inputs[value] for value in self.inputs}}
        values.update(weights or {})
        ops = (*_entering(self.ops, values), *self.ops)
        context = EvalContext(dict(symbols), resources, unrounded=unrounded)
        evaluate_ops(ops, values, context, keep=set(self.outputs), observer=observer)
        return {value: values[value] for value in self.outputs}

    def static_weights(self, resources: ResourceStore) -> dict[Value, Tensor]:
        """The layers' weights as the program computes them now, for :meth:`run` to take."""
        wanted = [op.weight for op in self.ops if isinstance(op, (nn.Linear, nn.Conv))]
        values: dict[Value, Any] = {}
        ops = [
            op
            for op in _entering(self.ops, dict.fromkeys(self.inputs))
            if isinstance(op, (core.Constant, quant.Dequantize))
        ]
        evaluate_ops(ops, values, EvalContext({}, resources), keep=set(wanted))
        return {value: values[value] for value in wanted if value in values}


def constant_weight(op: Op) -> core.Constant | None:
    """The constant that a matrix op takes as its weight, or None."""
    if isinstance(op, (nn.Linear, nn.Conv)) and isinstance(op.weight.owner, core.Constant):
        return op.weight.owner
    return None


def split_blocks(function: Function, by: str = "auto") -> list[Block]:
    """The function's ops as blocks, in order; blocks without a layer join the next one.

    ``by="auto"`` cuts at repeated modules: the outermost scopes ``prefix.N`` of a list of modules
    (``model.layers.3``, ``layer1.0``), each other layer for itself. ``"layer"`` cuts at each layer,
    ``"model"`` not at all.
    """
    static = static_ops(function)
    moving = [op for op in function.ops if not op.terminator and op not in static]
    repeated = _repeated_scopes(op.scope for op in moving if constant_weight(op) is not None)
    runs: list[tuple[str, list[Op]]] = []
    pending: list[Op] = []
    for op in moving:
        pending.append(op)
        name = _block_of(op, by, repeated)
        if not name:
            continue
        if runs and runs[-1][0] == name:
            runs[-1][1].extend(pending)
        else:
            runs.append((name, pending))
        pending = []
    if pending and runs:
        runs[-1][1].extend(pending)
    return [_make(name, ops, static) for name, ops in runs]


def _block_of(op: Op, by: str, repeated: Sequence[str]) -> str:
    if by == "model":
        return op.parent.name if op.parent is not None else ""
    if by == "auto":
        for scope in repeated:
            if _within(op.scope, scope):
                return scope
    layer = constant_weight(op)
    return str(layer.value) if layer is not None else ""


def _within(scope: str, outer: str) -> bool:
    return scope == outer or scope.startswith(outer + ".")


def _repeated_scopes(scopes: Iterable[str]) -> list[str]:
    found: dict[str, set[str]] = {}
    for scope in dict.fromkeys(scopes):
        parts = scope.split(".")
        for index, part in enumerate(parts):
            if part.isdigit():
                found.setdefault(".".join(parts[:index]), set()).add(part)
                break
    return [
        f"{prefix}.{number}" if prefix else number
        for prefix, numbers in found.items()
        if len(numbers) > 1
        for number in numbers
    ]


def _make(name: str, ops: list[Op], static: Set[Op]) -> Block:
    inside = set(ops)
    inputs: dict[Value, None] = {}
    for op in ops:
        for value in op.operands:
            if value.owner is None or (value.owner not in inside and value.owner not in static):
                inputs[value] = None
    outputs = tuple(
        value
        for op in ops
        for value in op.results
        if any(user not in inside for user in value.users)
    )
    return Block(name, tuple(ops), tuple(inputs), outputs)


def _entering(ops: Sequence[Op], known: Mapping[Value, Any]) -> list[Op]:
    """Ops outside of ``ops`` that compute what they read and ``known`` lacks, in order."""
    inside, made = set(ops), dict[Op, None]()

    def visit(op: Op) -> None:
        for value in op.operands:
            owner = value.owner
            if owner is None or value in known or owner in inside or owner in made:
                continue
            visit(owner)
            made[owner] = None

    for op in ops:
        visit(op)
    return list(made)
