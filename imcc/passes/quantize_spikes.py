"""Pass ``quantize-spikes``: spikes that feed matrix ops are their own codes of one bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imcc.ir.dialects import nn, quant
from imcc.ir.dialects.core import Constant
from imcc.ir.module import Module
from imcc.ir.ops import Value
from imcc.ir.types import SpikesType
from imcc.passes.infrastructure import Exact, Pass, PassContext
from imcc.passes.learning.adapting import is_held


@dataclass(frozen=True)
class QuantizeSpikes(Pass):
    """Insert ``quant.quantize{bits = 1}`` and its inverse, scale 1, in front of each matrix op.

    Only where the input is spikes, or the largest of a window of spikes, so that it holds nothing
    but 0 and 1: the codes are the spikes and nothing changes. ``integer-arithmetic`` then makes
    integer products of them.
    """

    name: ClassVar[str] = "quantize-spikes"
    contract: ClassVar[Exact] = Exact()
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite every input once, however many ops read it."""
        import torch

        rewriter = context.rewriter(module, self.name)
        made: dict[Value, Value] = {}
        one: str | None = None
        for op in list(module.walk()):
            if not isinstance(op, (nn.Linear, nn.Conv)) or not is_binary(op.x):
                continue
            if not is_held(op, op.weight):
                rewriter.refuse(op, "the weight is computed at run time")
                continue
            if op.x not in made:
                if one is None:
                    held = context.weights().put("spikes.scale", torch.tensor(1.0))
                    one = rewriter.add_resource(held).name
                scale = rewriter.insert_before(op, Constant.of(one, module.resources[one].type)).y
                coded = quant.Quantize(x=op.x, scale=scale, bits=1, signed=False)
                rewriter.insert_before(op, coded)
                made[op.x] = rewriter.insert_before(op, quant.Dequantize(x=coded.y, scale=scale)).y
            rewriter.set_operand(op, "x", made[op.x])


def is_binary(value: Value) -> bool:
    """Whether a value can hold nothing but 0 and 1: spikes, and the largest of some of them."""
    if isinstance(value.type, SpikesType):
        return value.type.element == "f32"
    owner = value.owner
    if isinstance(owner, nn.MaxPool):
        return is_binary(owner.x)
    return False
