"""Pass ``quantize-activations``: inputs of matrix ops rounded to codes with a scale per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from imcc.ir.dialects import core, nn, quant
from imcc.ir.module import Module
from imcc.ir.ops import Op, Value
from imcc.passes.infrastructure import Approximate, Pass, PassContext, option


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """Insert ``quant.fake_quantize`` in front of each matrix op with a constant weight.

    Each token (what shares all but the last axis) gets its own scale at run time, so no calibration
    is needed; W4A4 and W3A3 of language models are measured so. For hardware, which needs scales
    before it runs, use ``calibrate-activations`` instead. A convolution is left alone: its last
    axis is no token.
    """

    name: ClassVar[str] = "quantize-activations"
    contract: ClassVar[Approximate] = Approximate(bound=0.1)

    bits: int = option(default=8, minimum=2, maximum=16, unit="bit", doc="bits of a code")
    scheme: Literal["asymmetric", "symmetric"] = option(
        default="asymmetric", doc="codes with a zero point, or around 0"
    )

    def promise(self) -> Approximate:
        """The bound grows as the step does: 0.1 at 8 bits, twice that for each bit less."""
        return Approximate(bound=0.1 * 2.0 ** max(0, 8 - self.bits))

    def run(self, module: Module, context: PassContext) -> None:
        """Round every input once, however many ops read it."""
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            done: dict[Value, Op] = {}
            for op in function.ops:
                if isinstance(op, nn.Conv):
                    rewriter.refuse(op, "a convolution has no token axis")
                    continue
                if not isinstance(op, nn.Linear):
                    continue
                if not isinstance(op.weight.owner, (core.Constant, quant.Dequantize)):
                    rewriter.refuse(op, "the weight is computed at run time")
                    continue
                if isinstance(op.x.owner, quant.Dequantize):
                    rewriter.refuse(op, "the input is quantised already")
                    continue
                if op.x not in done:
                    done[op.x] = rewriter.insert_before(
                        op,
                        quant.FakeQuantize(
                            x=op.x, bits=self.bits, symmetric=self.scheme == "symmetric"
                        ),
                    )
                rewriter.set_operand(op, "x", done[op.x].result)
