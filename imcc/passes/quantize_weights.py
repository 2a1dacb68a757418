"""Pass ``quantize-weights``: weights of matrix ops to integer codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from imcc.ir.dialects import core, nn, quant
from imcc.ir.module import Module
from imcc.ir.ops import Op
from imcc.ir.types import QuantType
from imcc.passes.infrastructure import Approximate, Pass, PassContext, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Replace each constant weight of ``nn.linear`` and ``nn.conv`` by dequantised codes.

    Symmetric codes: ``scale = max|w| / (2^(bits-1) - 1)`` for each output channel (or the whole
    tensor), ``code = round(w / scale)``, ties to even. A channel of zeros gets scale 1. Weights
    become ``core.constant`` codes of type ``q<s8, axis=0>`` followed by ``quant.dequantize``; the
    codes are the stored truth.
    """

    name: ClassVar[str] = "quantize-weights"
    contract: ClassVar[Approximate] = Approximate(bound=0.1)
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    bits: int = option(default=8, minimum=2, maximum=8, unit="bit", doc="bits of a code")
    granularity: Literal["channel", "tensor"] = option(
        default="channel", doc="one scale for each output channel, or one for the tensor"
    )

    def promise(self) -> Approximate:
        """The bound grows as the step does: 0.1 at 8 bits, twice that for each bit less."""
        return Approximate(bound=0.1 * 2.0 ** max(0, 8 - self.bits))

    def run(self, module: Module, context: PassContext) -> None:
        """Quantise every weight once, however many ops read it."""
        rewriter = context.rewriter(module, self.name)
        done: dict[tuple[str, str], Op] = {}
        for function in module.functions.values():
            for op in function.ops:
                if not isinstance(op, (nn.Linear, nn.Conv)):
                    continue
                source = op.weight.owner
                if not isinstance(source, core.Constant):
                    rewriter.refuse(op, "the weight is computed at run time")
                    continue
                key = (function.name, str(source.value))
                if key not in done:
                    weight = context.weights().get(source.value)
                    codes, scale, element = self.quantise(weight)
                    store = context.weights()
                    held = store.put(f"{source.value}.codes", codes, element)
                    factor = store.put(f"{source.value}.scale", scale.to(weight.dtype))
                    rewriter.add_resource(held)
                    rewriter.add_resource(factor)
                    coded = rewriter.insert_before(op, core.Constant.of(held.name, held.type))
                    factors = rewriter.insert_before(op, core.Constant.of(factor.name, factor.type))
                    done[key] = rewriter.insert_before(
                        op, quant.Dequantize(x=coded.y, scale=factors.y)
                    )
                rewriter.set_operand(op, "weight", done[key].result)

    def quantise(self, weight: Tensor) -> tuple[Tensor, Tensor, QuantType]:
        """Codes, scale and element type of ``weight`` ``[N, ...]``; scale is ``[N]`` or ``[]``."""
        import torch

        per_channel = self.granularity == "channel"
        element = QuantType(self.bits, True, 0 if per_channel else None)
        flat = weight.double().flatten(1) if per_channel else weight.double().flatten()
        largest = flat.abs().amax(dim=-1)
        scale = torch.where(largest > 0, largest / element.maximum, torch.ones_like(largest))
        # The stored scale is float32: divide by what will be multiplied back.
        scale = scale.to(weight.dtype).double()
        shape = [-1] + [1] * (weight.dim() - 1) if per_channel else []
        made = torch.round(weight.double() / scale.reshape(shape))
        return made.clamp(element.minimum, element.maximum), scale, element
