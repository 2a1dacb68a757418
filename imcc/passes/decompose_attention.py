"""Pass ``decompose-attention``: attention as products of two activations and a softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

from imcc.ir.dialects import core, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Module
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.ir.types import FLOATS
from imcc.passes.infrastructure import Pass, PassContext, WithinTolerance
from imcc.passes.infrastructure.scalars import scalar_constant

AnyOp = TypeVar("AnyOp", bound=Op)
_LOWEST = {"f64": -1.7976931348623157e308, "f32": -3.4028234663852886e38}
_LOWEST |= {"f16": -65504.0, "bf16": -3.3895313892515355e38}


@dataclass(frozen=True)
class DecomposeAttention(Pass):
    """Replace ``nn.attention`` by ``nn.matmul``, ``nn.softmax`` and ``nn.matmul``.

    Queries are scaled first: ``s = (scale * query) @ key^T``. Query heads that share a key head
    become an axis of their own, so that keys are not repeated. Hidden keys (``i1`` mask, causal)
    get the lowest number as score; with an ``i1`` mask also 0 after the softmax, so that a query
    that sees no key gives 0. Differs from the fused op by the rounding of sums alone.
    """

    name: ClassVar[str] = "decompose-attention"
    contract: ClassVar[WithinTolerance] = WithinTolerance(relative=1e-5)

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite every attention op."""
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            for op in list(function.ops):
                if isinstance(op, nn.Attention):
                    _Rewrite(op, rewriter, context).run()


class _Rewrite:
    def __init__(self, op: nn.Attention, rewriter: Rewriter, context: PassContext) -> None:
        self.op = op
        self.rewriter = rewriter
        self.context = context
        self.new: list[Op] = []

    def run(self) -> None:
        op, shape = self.op, tensor(self.op.y).shape
        query = self.emit(core.Multiply(a=op.query, b=self.number(op.scale))).result
        key, value, mask = op.key, op.value, op.mask
        if op.groups > 1:
            query, key, value = self.grouped(query), self.spread(key), self.spread(value)
            mask = self.grouped(mask) if mask is not None and tensor(mask).rank > 2 else mask
        axes = tuple(range(tensor(key).rank))
        turned = self.emit(core.Permute(x=key, axes=(*axes[:-2], axes[-1], axes[-2]))).result
        scores = self.emit(nn.Matmul(a=query, b=turned)).y
        weights = self.weights(scores, mask)
        made = self.emit(nn.Matmul(a=weights, b=value)).y
        if op.groups > 1:
            made = self.emit(core.Reshape(x=made, shape=shape)).y
        self.rewriter.replace(op, self.new, made)

    def weights(self, scores: Value, mask: Value | None) -> Value:
        op, seen = self.op, None
        if mask is not None and tensor(mask).element in FLOATS:
            kind = core.Add if op.normalise == "softmax" else core.Multiply
            scores = self.emit(kind(a=scores, b=mask)).result
        elif mask is not None:
            seen = mask
        if op.causal:
            earlier = self.causal()
            seen = earlier if seen is None else self.both(seen, earlier)
        if op.normalise == "none":
            return scores if seen is None else self.where(seen, scores, self.number(0.0))
        if seen is None:
            return self.emit(nn.Softmax(x=scores)).y
        lowest = self.number(_LOWEST[str(tensor(scores).element)])
        made = self.emit(nn.Softmax(x=self.where(seen, scores, lowest))).y
        if mask is None or tensor(mask).element in FLOATS:
            # Causal alone: a query sees itself, so that nothing is left of the others.
            return made
        return self.where(seen, made, self.number(0.0))

    def causal(self) -> Value:
        """Whether query i sees key j: ``j <= i``, ``[L, S]``."""
        length, keys = (tensor(item).shape[-2] for item in (self.op.query, self.op.key))
        rows = self.emit(core.Iota(size=length)).y
        column = self.emit(core.Reshape(x=rows, shape=(length, 1))).y
        row = rows if keys == length else self.emit(core.Iota(size=keys)).y
        return self.emit(core.Compare(a=row, b=column, relation="less_equal")).y

    def both(self, left: Value, right: Value) -> Value:
        no = self.constant(0.0, "i1")
        return self.where(left, right, no)

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        return self.emit(core.Where(condition=condition, a=a, b=b)).y

    def grouped(self, x: Value) -> Value:
        """``[..., H, L, E]`` to ``[..., G, H / G, L, E]``; an axis of heads of size 1 stays so."""
        shape = tensor(x).shape
        heads = shape[-3]
        split = (1, 1) if heads == 1 else (tensor(self.op.key).shape[-3], self.op.groups)
        return self.emit(core.Reshape(x=x, shape=(*shape[:-3], *split, *shape[-2:]))).y

    def spread(self, x: Value) -> Value:
        """``[..., G, S, E]`` to ``[..., G, 1, S, E]``."""
        shape = tensor(x).shape
        return self.emit(core.Reshape(x=x, shape=(*shape[:-2], 1, *shape[-2:]))).y

    def number(self, value: float) -> Value:
        return self.constant(value, str(tensor(self.op.query).element))

    def constant(self, value: float, element: str) -> Value:
        return self.emit(scalar_constant(self.rewriter, self.context.resources, value, element)).y

    def emit(self, op: AnyOp) -> AnyOp:
        self.new.append(op)
        return op
