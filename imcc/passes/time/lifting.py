"""Ops with one axis more in front: what an op becomes when its data gains a leading axis.

Layers accept any number of leading axes and count their axes from the back, so they stay as they
are; ops that count from the front shift their axes by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from imcc.ir.dialects import core
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim
from imcc.ir.ops import Op, Value

Shape: TypeAlias = tuple[Dim, ...]

ELEMENTWISE = frozenset({"a", "b", "condition"})
"""Operands that broadcast against each other, trailing axes aligned."""

DATA = frozenset({"x", "q", "k", "v", "query", "key", "value", "inputs", "mask", *ELEMENTWISE})
"""Operands that may gain the axis; all others are parameters and do not."""


class NotLiftedError(Exception):
    """Why an op cannot take the axis; the text completes "the op ..."."""


@dataclass(frozen=True)
class Axis:
    """How the axis comes in: a new axis 0, or axis 0 split in two.

    ``shape`` gives the shape of a value with the axis, ``index`` where an axis goes.
    """

    shape: Callable[[Shape], Shape]
    index: Callable[[int], int]
    splits: bool


def new_axis(size: Dim) -> Axis:
    """A new axis of ``size`` in front of all others."""
    return Axis(lambda shape: (size, *shape), lambda axis: axis + 1, splits=False)


def split_axis(merged: Dim, outer: Dim, inner: Dim) -> Axis:
    """Axis 0 of size ``merged`` written as two, ``outer`` and ``inner``."""

    def shape(given: Shape) -> Shape:
        if not given or given[0] != merged:
            raise NotLiftedError(f"changes the axis of size {merged}")
        return (outer, inner, *given[1:])

    def index(axis: int) -> int:
        if axis == 0:
            raise NotLiftedError("works along the axis that is split")
        return axis + 1

    return Axis(shape, index, splits=True)


Operands: TypeAlias = Mapping[str, "Value | tuple[Value, ...] | None"]


def lift(op: Op, operands: Operands, lifted: frozenset[Value], axis: Axis) -> list[Op]:
    """Detached ops that compute ``op`` with the axis; the last one gives the results.

    ``operands`` are the op's operands by name, those in ``lifted`` with the axis. Raises
    :class:`NotLiftedError`.
    """
    before: list[Op] = []
    given = dict(operands)
    for name, value in operands.items():
        for item in value if isinstance(value, tuple) else (value,):
            if item in lifted and name not in DATA:
                raise NotLiftedError(f"takes another {name} in each step")
    attributes = dict(op.attributes)
    rank = max((tensor(result).rank for result in op.results), default=0)
    match op:
        case core.Reshape():
            attributes["shape"] = axis.shape(op.shape)
        case core.Permute() if axis.splits and op.axes[0] != 0:
            raise NotLiftedError("moves the axis that is split")
        case core.Permute():
            kept = (0, 1) if axis.splits else (0,)
            rest = op.axes[1:] if axis.splits else op.axes
            attributes["axes"] = (*kept, *(item + 1 for item in rest))
        case core.Slice() | core.Concat():
            attributes["axis"] = axis.index(op.axis % rank)
        case core.Pad():
            # Nothing is padded along a new axis, nor along one of symbolic size.
            attributes["before"] = (0, *op.before)
            attributes["after"] = (0, *op.after)
        case _ if "shape" in attributes:
            attributes["shape"] = axis.shape(attributes["shape"])
        case _ if any(_from_front(attributes.get(name)) for name in ("axis", "axes", "dim")):
            raise NotLiftedError("counts an axis from the front")
    several = sum(name in DATA for name in given) > 1 or isinstance(given.get("inputs"), tuple)
    if several or isinstance(op, core.Pad) or op.name == "core.expand":
        given = {
            name: _aligned(name, value, lifted, rank, op, axis, before)
            for name, value in given.items()
        }
    made_op = type(op)(**given, **attributes, scope=op.scope, loc=op.loc)
    for old, new in zip(op.results, made_op.results, strict=True):
        if tensor(new).shape != axis.shape(tensor(old).shape):
            raise NotLiftedError(f"would become {new.type}")
    return [*before, made_op]


def _from_front(given: Any) -> bool:
    numbers = given if isinstance(given, tuple) else (given,)
    return any(isinstance(item, int) and item >= 0 for item in numbers)


def _aligned(
    name: str,
    value: Any,
    lifted: frozenset[Value],
    rank: int,
    op: Op,
    axis: Axis,
    before: list[Op],
) -> Any:
    if isinstance(value, tuple):
        return tuple(_aligned(name, item, lifted, rank, op, axis, before) for item in value)
    if value is None or name not in DATA:
        return value
    kind = tensor(value)
    if value not in lifted:
        if name in ELEMENTWISE:
            return value
        shape = axis.shape(kind.shape)
        made: Op = core.Expand(x=value, shape=shape)
    else:
        missing = rank + 1 - kind.rank
        if not missing or not (name in ELEMENTWISE or op.name == "core.expand"):
            return value
        # The step's value had fewer axes: the new one goes in front, ones behind it.
        ones = (1,) * missing
        made = core.Reshape(x=value, shape=(kind.shape[0], *ones, *kind.shape[1:]))
    before.append(made)
    return made.results[0]
