"""Matrices that grow: keys and values of past tokens that stay in the cells between calls.

A step of decoding takes the keys and values of past tokens as arguments and joins those of its own
token to them. With ``dynamic.cache = "keep"`` the past ones are in the cells already: what is
coded, moved and written is the new part alone, and the arguments do not cross the pins. With
``"rewrite"`` each call writes its matrices whole. Noise is the same in both: each cell was written
once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from imcc.backends.crossbar.cost import stated
from imcc.backends.crossbar.dialect import Write
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.cost import OpCost
from imcc.ir.dialects import core, nn, quant
from imcc.ir.dialects.core import tensor
from imcc.ir.ops import Op, Value

MOVES = (core.Reshape, core.Slice, core.Permute)
ELEMENTWISE = (quant.Quantize, nn.Clamp)


@dataclass(frozen=True)
class Growth:
    """Of ``total`` entries along ``axis``, counted from the last one, ``new`` are of this call."""

    new: int
    total: int
    axis: int

    @property
    def share(self) -> float:
        """Share of the elements that are new."""
        return self.new / self.total


def growth(value: Value) -> Growth | None:
    """How much of a value joins a cache that is an argument; None where nothing shows that."""
    op = value.owner
    if isinstance(op, ELEMENTWISE):
        return growth(op.operands[0])
    if isinstance(op, core.Reshape):
        found = growth(op.x)
        same = found is not None and (
            tensor(op.x).shape[found.axis :] == tensor(value).shape[found.axis :]
        )
        return found if same else None
    if isinstance(op, core.Permute):
        found = growth(op.x)
        if found is None:
            return None
        rank = len(op.axes)
        place = op.axes.index(found.axis % rank)
        return dataclasses.replace(found, axis=place - rank)
    if not isinstance(op, core.Concat):
        return None
    sizes = [(item, stated(tensor(item).shape[op.axis], item)) for item in op.inputs]
    new = sum(size for item, size in sizes if not _given(item))
    total = sum(size for _, size in sizes)
    if new in (0, total):
        return None
    return Growth(new, total, op.axis - tensor(op.result).rank)


def written_growth(op: Write, target: CrossbarTarget) -> Growth | None:
    """What a write adds to cells that keep the rest; None where it writes all of them."""
    if target.keys.dynamic.cache != "keep":
        return None
    found = growth(op.codes)
    return found if found is not None and found.axis in (-1, -2) else None


def kept_in_cells(value: Value, target: CrossbarTarget) -> bool:
    """Whether an argument is a cache that only joins matrices whose cells hold it already."""
    if target.keys.dynamic.cache != "keep" or value.owner is not None or not value.users:
        return False
    return _only_joins(value)


def with_growth(op: Op, cost: OpCost, target: CrossbarTarget) -> OpCost:
    """The cost of an op in front of a write that adds to a cache: of the new part alone."""
    if target.keys.dynamic.cache != "keep" or not isinstance(op, ELEMENTWISE):
        return cost
    found = growth(op.result)
    if found is None or not _only_written(op.result):
        return cost
    events = {name: count * found.share for name, count in cost.events.items()}
    note = f"{cost.note}; {found.new} of {found.total} are new"
    return dataclasses.replace(cost, events=events, busy_ns=cost.busy_ns * found.share, note=note)


def _given(value: Value) -> bool:
    """Whether a value is an argument, or a part of one."""
    while isinstance(value.owner, MOVES):
        value = value.owner.operands[0]
    return value.owner is None


def _only_joins(value: Value) -> bool:
    for user in value.users:
        if isinstance(user, core.Concat):
            if growth(user.result) is None or not _only_written(user.result):
                return False
        elif not isinstance(user, MOVES) or not _only_joins(user.result):
            return False
    return True


def _only_written(value: Value) -> bool:
    """Whether all uses of a value are writes of run-time matrices that grow with it."""
    for user in value.users:
        if isinstance(user, Write):
            found = growth(user.codes)
            if found is None or found.axis not in (-1, -2):
                return False
            continue
        moved = isinstance(user, (*ELEMENTWISE, core.Permute, core.Reshape))
        if not moved or not _only_written(user.result):
            return False
    return True
