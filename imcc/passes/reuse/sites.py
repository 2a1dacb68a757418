"""Where a function attends to itself: found by the op and what flows into it, not by names."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from imcc.ir.dialects import core, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Function
from imcc.ir.ops import Op, Value
from imcc.ir.regions import static_ops


@dataclass(frozen=True)
class AttentionSite:
    """Self-attention of one encoder.

    ``merged`` is the output of all heads side by side, ``[..., d]``, and ``projection`` the layer
    that alone reads it, if one does. ``previous`` is the index of the nearest earlier site whose
    output this one depends on and could take, shaped alike but for its width.
    """

    index: int
    op: nn.Attention
    merged: Value
    projection: nn.Linear | None
    previous: int | None


@dataclass(frozen=True)
class Sites:
    """The encoders of a function in program order, and other attention ops with the reason."""

    encoders: tuple[AttentionSite, ...]
    refused: tuple[tuple[nn.Attention, str], ...]


def attention_sites(function: Function) -> Sites:
    """All encoders of a function that has not been through ``decompose-attention``."""
    static = static_ops(function)
    found: list[AttentionSite] = []
    refused: list[tuple[nn.Attention, str]] = []
    merges: dict[Op, int] = {}
    reads: dict[Value, int] = {}
    for op in function.ops:
        held = 0
        for value in op.operands:
            held |= reads.get(value, 0)
        if isinstance(op, nn.Attention):
            site = _site(len(found), op, static, [item for item in found if held >> item.index & 1])
            if isinstance(site, str):
                refused.append((op, site))
            else:
                found.append(site)
                owner = site.merged.owner
                if owner is not None:
                    merges[owner] = site.index
        if op in merges:
            held |= 1 << merges[op]
        if held:
            reads.update(dict.fromkeys(op.results, held))
    return Sites(tuple(found), tuple(refused))


def _site(
    index: int, op: nn.Attention, static: Set[Op], earlier: list[AttentionSite]
) -> AttentionSite | str:
    only = feeding(op)
    sources = [_entering(value, only, static) for value in (op.query, op.key, op.value)]
    if not sources[0] & sources[1] & sources[2]:
        return "queries, keys and values do not come from one tensor: this is no self-attention"
    merged = _merged(op)
    if merged is None:
        return "its heads are not put side by side by reshapes and permutations alone"
    users = list(merged.users)
    reader = users[0] if len(users) == 1 else None
    projection = (
        reader
        if isinstance(reader, nn.Linear)
        and reader.x is merged
        and isinstance(reader.weight.owner, core.Constant)
        else None
    )
    leading = tensor(merged).shape[:-1]
    previous = next(
        (item.index for item in reversed(earlier) if tensor(item.merged).shape[:-1] == leading),
        None,
    )
    return AttentionSite(index, op, merged, projection, previous)


def feeding(op: Op) -> set[Op]:
    """``op`` and the ops that nothing else needs: what goes when ``op`` goes."""
    made = {op}
    before = op.prev
    while before is not None:
        if (
            before.results
            and not (before.draws or before.writes)
            and any(value.users for value in before.results)
            and all(user in made for value in before.results for user in value.users)
        ):
            made.add(before)
        before = before.prev
    return made


def _entering(value: Value, inside: Set[Op], static: Set[Op]) -> set[Value]:
    """Values that change from call to call and from which ``inside`` computes ``value``."""
    found: set[Value] = set()
    stack, seen = [value], set[Value]()
    while stack:
        held = stack.pop()
        if held in seen:
            continue
        seen.add(held)
        if held.owner is None or (held.owner not in inside and held.owner not in static):
            found.add(held)
        elif held.owner in inside:
            stack.extend(held.owner.operands)
    return found


def _merged(op: nn.Attention) -> Value | None:
    value, kind = op.y, tensor(op.y)
    heads, width = kind.shape[-3], kind.shape[-1]
    if not isinstance(heads, int) or not isinstance(width, int):
        return None
    while tensor(value).rank >= kind.rank or tensor(value).shape[-1] != heads * width:
        users: Iterable[Op] = list(value.users)
        following = next(iter(users), None)
        if len(value.users) != 1 or not isinstance(following, core.Reshape | core.Permute):
            return None
        value = following.result
    return value
