"""Recognition of attention: ``softmax(scale * q @ k^T + mask) @ v``, however it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from imcc.frontend.convert import MaskParts
from imcc.frontend.patterns import Numbers, same_or_one, single_use, swapped
from imcc.ir.dialects import core, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim, product
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter, RewriteRule, rewrite_rule
from imcc.passes.infrastructure.scalars import scalar_constant

AnyOp = TypeVar("AnyOp", bound=Op)

LOW = -1e6
"""Added to a score, a number this low or lower leaves nothing of it beside any other."""


@dataclass(frozen=True)
class _Hidden:
    """Scores that get ``low`` where ``condition`` does not hold (``inverted``: where it holds)."""

    condition: Value
    low: float
    inverted: bool = False


@dataclass
class _Scores:
    """``scale * factors * query @ key^T + masks``."""

    query: Value
    transposed_key: Value
    scale: float
    factors: list[Value]
    masks: list[Value | _Hidden]


def recognise_attention(numbers: Numbers, masks: dict[Value, MaskParts]) -> RewriteRule:
    """The rule; ``masks`` says what truth values that depend on positions consist of."""

    @rewrite_rule(nn.Matmul)
    def attention(op: Op, rewriter: Rewriter) -> bool:
        """``softmax(q k^T) v`` is ``nn.attention``."""
        if not isinstance(op, nn.Matmul):
            return False
        weights = op.a.owner
        normalise: Literal["softmax", "none"] = "none"
        inner = op.a
        if isinstance(weights, nn.Softmax):
            if weights.axis != -1 or not single_use(weights):
                return False
            normalise, inner = "softmax", weights.x
        found = _scores(inner, numbers, softmax=normalise == "softmax")
        if isinstance(found, str):
            rewriter.refuse(op, found)
            return False
        made = _Build(op, found, normalise, rewriter, masks, numbers)
        reason = made.build()
        if reason is not None:
            rewriter.discard(made.new)
            rewriter.refuse(op, reason)
            return False
        rewriter.replace(op, made.new, made.new[-1].result)
        return True

    return attention


def _scores(value: Value, numbers: Numbers, *, softmax: bool) -> _Scores | str:
    """Follow scores from the softmax back to the product of queries and keys."""
    scale, factors, masks = 1.0, list[Value](), list[Value | _Hidden]()
    while True:
        op = value.owner
        if op is None or not single_use(op):
            return "the scores are used elsewhere"
        if isinstance(op, nn.Matmul):
            query, number = _unscaled(op.a, numbers)
            return _Scores(query, op.b, scale * number, factors, masks)
        if isinstance(op, core.Multiply | core.Divide):
            split = numbers.split(op.a, op.b)
            if split is not None and split[1] and (split[0] is op.a or op.name != "core.divide"):
                value, number = split
                scale = scale / number if isinstance(op, core.Divide) else scale * number
                continue
            sides = _sides(op.a, op.b)
            if isinstance(op, core.Divide) or sides is None:
                return "the scores are combined with a tensor"
            if tensor(sides[1]).shape[-1:] not in ((1,), ()):
                return "the scores have a factor for each key"
            value = sides[0]
            factors.append(sides[1])
        elif isinstance(op, core.Add) and softmax and scale == 1.0 and not factors:
            sides = _sides(op.a, op.b)
            if sides is None:
                return "no operand of the sum is a product"
            value = sides[0]
            masks.append(sides[1])
        elif isinstance(op, core.Where) and softmax and scale == 1.0 and not factors:
            low, high = numbers.of(op.b), numbers.of(op.a)
            if low is not None and low <= LOW:
                masks.append(_Hidden(op.condition, low))
                value = op.a
            elif high is not None and high <= LOW:
                masks.append(_Hidden(op.condition, high, inverted=True))
                value = op.b
            else:
                return "scores are chosen between two tensors"
        else:
            return f"{op.name} stands between the product and the softmax"


def _unscaled(x: Value, numbers: Numbers) -> tuple[Value, float]:
    """``x`` in front of its multiplication with a number, and the number."""
    op = x.owner
    split = numbers.split(op.a, op.b) if isinstance(op, core.Multiply) else None
    return split if split is not None and tensor(split[0]).shape == tensor(x).shape else (x, 1.0)


def _sides(a: Value, b: Value) -> tuple[Value, Value] | None:
    """The operand that comes from a product of two activations, and the other one."""
    found = [_reaches_product(item) for item in (a, b)]
    if found == [True, False]:
        return a, b
    return (b, a) if found == [False, True] else None


def _reaches_product(value: Value, depth: int = 8) -> bool:
    op = value.owner
    if isinstance(op, nn.Matmul) or op is None or not depth:
        return isinstance(op, nn.Matmul)
    if isinstance(op, core.Multiply | core.Divide | core.Add | core.Where):
        return any(_reaches_product(item, depth - 1) for item in (op.a, op.b))
    return False


class _Build:
    """Builds the op that takes the place of the second product."""

    def __init__(
        self,
        op: nn.Matmul,
        scores: _Scores,
        normalise: Literal["softmax", "none"],
        rewriter: Rewriter,
        masks: dict[Value, MaskParts],
        numbers: Numbers,
    ) -> None:
        self.op = op
        self.scores = scores
        self.normalise = normalise
        self.rewriter = rewriter
        self.parts = masks
        self.numbers = numbers
        self.new: list[Op] = []

    def build(self) -> str | None:
        """Fill ``new``; returns why it cannot be, or None."""
        query, key, value = self.scores.query, self.scores.transposed_key, self.op.b
        if self.normalise == "none" and any(_is_constant(item) for item in (query, key, value)):
            return "a factor is a constant"
        ranks = {tensor(item).rank for item in (query, key, value)}
        if len(ranks) > 1:
            return "factors of different ranks"
        for factor in self.scores.factors:
            if not same_or_one(tensor(factor).shape, tensor(query).shape):
                return "a factor of the scores does not fit the queries"
        key_shape = tensor(key).shape
        heads = [tensor(item).shape[-3:-2] for item in (query, key, value)]
        single = ranks == {2} or not all(isinstance(item[0], int) for item in heads)
        if not single:
            (many,), (few,), (same,) = heads
            leads = {tensor(item).shape[:-3] for item in (query, key, value)}
            whole = isinstance(many, int) and isinstance(few, int) and many % few == 0
            if len(leads) > 1 or few != same or not whole:
                return f"heads {heads} do not form groups"
        elif any(tensor(item).shape[:-2] != key_shape[:-2] for item in (query, value)):
            return "leading axes of queries, keys and values differ"
        lines = (*tensor(query).shape[:-1], key_shape[-1])
        made = self.mask(lines)
        if isinstance(made, str):
            return made
        causal, mask = made
        key = self.emit(swapped(key)).result
        for factor in self.scores.factors:
            query = self.emit(core.Multiply(a=query, b=factor)).y
        if single:
            query, key, value = (self.with_one_head(item) for item in (query, key, value))
            if mask is not None and tensor(mask).rank > 2:
                mask = self.with_one_head(mask)
        attended = nn.Attention(
            query=query,
            key=key,
            value=value,
            mask=mask,
            scale=self.scores.scale,
            causal=causal,
            normalise=self.normalise,
        )
        self.emit(attended).verify()
        shape = tensor(self.op.y).shape
        if tensor(attended.y).shape != shape:
            self.emit(core.Reshape(x=attended.y, shape=shape))
        return None

    def mask(self, lines: tuple[Dim, ...]) -> tuple[bool, Value | None] | str:
        """Whether the scores are causal, and what else is added to them or hides them."""
        causal, added, seen = False, list[Value](), list[Value]()
        square = lines[-1] == lines[-2]
        for item in self.scores.masks:
            if isinstance(item, _Hidden):
                condition, low, inverted = item.condition, item.low, item.inverted
            else:
                choice = _behind_expansion(item).owner
                number = self.numbers.of(choice.b) if isinstance(choice, core.Where) else None
                usual = isinstance(choice, core.Where) and self.numbers.of(choice.a) == 0
                if not isinstance(choice, core.Where) or not usual or not (number or 0) <= LOW:
                    kind = self.numbers.mask(item)
                    if kind == "causal" and square:
                        causal = True
                    elif kind != "all":
                        added.append(_behind_expansion(item))
                    continue
                condition, low, inverted = choice.condition, number or 0.0, False
            known = self.kind(condition, inverted=inverted)
            if known == "all":
                continue
            if known == "causal" and square:
                # A query sees itself, so that nothing is left of later keys.
                causal = True
                continue
            held = _behind_expansion(condition)
            if low == float("-inf"):
                seen.append(self.inverse(held) if inverted else held)
                continue
            if not isinstance(item, _Hidden):
                added.append(_behind_expansion(item))
                continue
            zero, lowest = self.number(0.0), self.number(low)
            a, b = (lowest, zero) if inverted else (zero, lowest)
            added.append(self.emit(core.Where(condition=held, a=a, b=b)).y)
        if added and seen:
            return "scores are both hidden and shifted"
        whole: Value | None = None
        for value in (*added, *seen):
            if not same_or_one(tensor(value).shape, lines):
                return "the mask does not broadcast to the scores"
            if whole is None:
                whole = value
            elif added:
                whole = self.emit(core.Add(a=whole, b=value)).y
            else:
                no = self.number(0.0, "i1")
                whole = self.emit(core.Where(condition=whole, a=value, b=no)).y
        return causal, whole

    def kind(self, condition: Value, *, inverted: bool) -> str:
        """What a condition lets through, as :func:`~imcc.frontend.patterns.mask_kind` says it."""
        held = condition
        while isinstance(held.owner, core.Expand) and held not in self.parts:
            held = held.owner.x
        parts = self.parts.get(held)
        if parts is None:
            return self.numbers.mask(held, inverted=inverted)
        relations = parts.relations.inverse() if inverted else parts.relations
        if relations is None or parts.rest is not None:
            return "other"
        causal, rest = relations.without_causal()
        if rest.rows:
            return "other"
        return "causal" if causal else "all"

    def inverse(self, condition: Value) -> Value:
        no = self.number(0.0, "i1")
        return self.emit(core.Compare(a=condition, b=no, relation="equal")).y

    def number(self, value: float, element: str = "") -> Value:
        kind = element or str(tensor(self.op.y).element)
        return self.emit(scalar_constant(self.rewriter, self.numbers.resources, value, kind)).y

    def with_one_head(self, x: Value) -> Value:
        shape = tensor(x).shape
        return self.emit(core.Reshape(x=x, shape=(*shape[:-2], 1, *shape[-2:]))).y

    def emit(self, op: AnyOp) -> AnyOp:
        self.new.append(op)
        return op


def _behind_expansion(value: Value) -> Value:
    while isinstance(value.owner, core.Expand):
        value = value.owner.x
    return value


def _is_constant(value: Value) -> bool:
    op = value.owner
    while isinstance(op, core.Reshape | core.Permute | core.Expand | core.Slice):
        op = op.x.owner
    return isinstance(op, core.Constant)


@rewrite_rule(nn.Attention)
def repeated_heads(op: Op, rewriter: Rewriter) -> bool:
    """Keys and values repeated for every query head of a group are read by the group itself."""
    if not isinstance(op, nn.Attention):
        return False
    key, value = _unrepeated(op.key), _unrepeated(op.value)
    if key is None or value is None or tensor(key).shape[-3] != tensor(value).shape[-3]:
        return False
    rewriter.set_operand(op, "key", key)
    rewriter.set_operand(op, "value", value)
    return True


def _unrepeated(value: Value) -> Value | None:
    """``[..., G, S, E]`` in front of its repetition to ``[..., G * n, S, E]``."""
    merge = value.owner
    spread = merge.x.owner if isinstance(merge, core.Reshape) else None
    apart = spread.x.owner if isinstance(spread, core.Expand) else None
    if not isinstance(spread, core.Expand) or not isinstance(apart, core.Reshape):
        return None
    shape, wide, source = tensor(value).shape, spread.shape, tensor(apart.x).shape
    split = tensor(apart.y).shape
    same = source == (*wide[:-3], *wide[-2:]) and split == (*wide[:-3], 1, *wide[-2:])
    merged = shape == (*wide[:-4], product(wide[-4:-2]), *wide[-2:])
    return apart.x if same and merged else None
