"""Pass ``quantize-learning``: integer codes for weights that adapt and for errors that are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError
from imcc.ir.dialects import core, learn, nn, quant
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Function, Module
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.passes.infrastructure import Approximate, Pass, PassContext, option
from imcc.passes.learning.adapting import error_values


@dataclass(frozen=True)
class QuantizeLearning(Pass):
    """Make what ``insert-feedback`` added computable by hardware that multiplies integers.

    - A weight that is state keeps its floating-point value; layers read it through
      ``quant.quantize`` with a fixed scale for each output channel,
      ``headroom * max|w| / (2^(weight_bits-1) - 1)`` of the weight that it starts from.
    - An error that is multiplied with a feedback matrix, or with a transposed weight, becomes codes
      with a scale of its own found at run time (``learn.quantize_error``): one for each vector of a
      linear layer, one for each sample and time step of a convolution. With channel scales s the
      transposed product is ``dx_k = sum_n (dy_n s_n) q[n, k]``, so that s enters before.

    With ``headroom = 2`` and 9 bits a weight starts with the resolution of 8 bits and may double.
    Where cells hold two bits, or four, nine bits take the cells that eight do. A module without
    such states and products is left as it is.
    """

    name: ClassVar[str] = "quantize-learning"
    contract: ClassVar[Approximate] = Approximate(bound=0.1)
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    weight_bits: int = option(
        default=9, minimum=2, maximum=16, unit="bit", doc="bits of a weight that adapts"
    )
    headroom: float = option(
        default=2.0, minimum=1.0, doc="largest code relative to the largest weight at the start"
    )
    error_bits: int = option(default=8, minimum=2, maximum=16, unit="bit", doc="bits of an error")

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite every function."""
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            self._weights(function, rewriter, context)
            self._errors(function, rewriter, context)

    # -- weights ----------------------------------------------------------------------------------

    def _weights(self, function: Function, rewriter: Rewriter, context: PassContext) -> None:
        for value, state in zip(function.arguments, function.argument_states, strict=True):
            layers = [
                op
                for op in value.users
                if isinstance(op, (nn.Linear, nn.Conv)) and op.weight is value
            ]
            if state is None or not layers:
                continue
            first = min(layers, key=list(function.ops).index)
            scale = rewriter.insert_before(first, self._scale(state, rewriter, context)).y
            coded = quant.Quantize(x=value, scale=scale, bits=self.weight_bits, signed=True, axis=0)
            rewriter.insert_before(first, coded)
            real = rewriter.insert_before(first, quant.Dequantize(x=coded.y, scale=scale)).y
            for op in list(value.users):
                gradient = isinstance(op, (learn.LinearInputGradient, learn.ConvInputGradient))
                if op in layers or gradient:
                    rewriter.set_operand(op, "weight", real)

    def _scale(self, state: str, rewriter: Rewriter, context: PassContext) -> core.Constant:
        import torch

        declared = rewriter.module.states[state]
        if declared.init is None:
            raise DiagnosticError(
                Diagnostic(
                    codes.UNSUPPORTED_FORM,
                    f"state @{state} is the weight of a layer and starts from nothing",
                    help="weights that adapt start from trained ones: init(@resource)",
                )
            )
        start = context.weights().get(declared.init)
        top = 2 ** (self.weight_bits - 1) - 1
        largest = start.abs().flatten(1).amax(1) * (self.headroom / top)
        # A channel of zeros may learn: it gets the scale of the others.
        usual = largest.max() if bool((largest > 0).any()) else torch.tensor(1.0 / top)
        made = torch.where(largest > 0, largest, usual.to(largest.dtype))
        held = rewriter.add_resource(context.weights().put(f"{state}.scale", made))
        return core.Constant.of(held.name, held.type)

    # -- errors -----------------------------------------------------------------------------------

    def _errors(self, function: Function, rewriter: Rewriter, context: PassContext) -> None:
        reached = error_values(function)
        coded: dict[Value, learn.QuantizeError] = {}
        for op in list(function.ops):
            if isinstance(op, nn.Linear) and op.x in reached:
                self._project(op, rewriter, coded)
            elif isinstance(op, (learn.LinearInputGradient, learn.ConvInputGradient)):
                self._transpose(op, rewriter, context)

    def _project(
        self,
        op: nn.Linear,
        rewriter: Rewriter,
        coded: dict[Value, learn.QuantizeError],
    ) -> None:
        """``B e``: an integer product, rescaled by B's scale and the error's."""
        weight = self._codes(op, op.weight)
        if op.x not in coded:
            # One error feeds many layers: it is coded once.
            coded[op.x] = learn.QuantizeError(x=op.x, bits=self.error_bits, axes=1)
            rewriter.insert_before(op, coded[op.x])
        error = coded[op.x]
        product = quant.Linear(x=error.codes, weight=weight.x)
        rescaled = quant.Rescale(acc=product.y, scale=weight.scale)
        scaled = core.Multiply(a=rescaled.y, b=error.scale)
        rewriter.replace(op, [product, rescaled, scaled], scaled.y)

    def _transpose(
        self,
        op: learn.LinearInputGradient | learn.ConvInputGradient,
        rewriter: Rewriter,
        context: PassContext,
    ) -> None:
        import torch

        weight = self._codes(op, op.weight)
        window: dict[str, Any] = {}
        spatial = 0
        if isinstance(op, learn.ConvInputGradient):
            spatial = len(op.stride)
            window = {
                "size": tuple(int(str(size)) for size in tensor(op.x).shape[-spatial:]),
                "stride": op.stride,
                "padding": op.padding,
                "dilation": op.dilation,
                "groups": op.groups,
            }
        new: list[Op] = []
        scale = weight.scale
        if tensor(scale).rank and spatial:
            broad = (tensor(scale).shape[0], *(1 for _ in range(spatial)))
            shaped = core.Reshape(x=scale, shape=broad)
            new.append(shaped)
            scale = shaped.y
        scaled = core.Multiply(a=op.dy, b=scale)
        new.append(scaled)
        error = learn.QuantizeError(x=scaled.y, bits=self.error_bits, axes=1 + spatial)
        new.append(error)
        product = learn.TransposedProduct(x=error.codes, weight=weight.x, **window)
        one = rewriter.add_resource(
            context.weights().put(
                "error.scale", torch.ones((), dtype=context.weights().get(_name(weight)).dtype)
            )
        )
        unit = core.Constant.of(one.name, one.type)
        real = quant.Rescale(acc=product.y, scale=unit.y)
        made = core.Multiply(a=real.y, b=error.scale)
        rewriter.replace(op, [*new, product, unit, real, made], made.y)

    def _codes(self, op: Op, weight: Value) -> quant.Dequantize:
        """The codes that a product with an error reads; refuses weights that have none."""
        found = weight.owner
        if not isinstance(found, quant.Dequantize):
            raise DiagnosticError(
                op.diagnostic(
                    codes.PASS_REQUIRES,
                    "its weight is in floating point",
                    help="run quantize-weights before quantize-learning",
                )
            )
        coded = tensor(found.x).quant
        if coded.group is not None or not coded.symmetric:
            raise DiagnosticError(
                op.diagnostic(
                    codes.UNSUPPORTED_FORM,
                    f"errors are multiplied with symmetric codes, the weight is {found.x.type}",
                    help='quantise it with scheme="symmetric" and no group',
                )
            )
        return found


def _name(weight: quant.Dequantize) -> str:
    source = weight.scale.owner
    if not isinstance(source, core.Constant):
        raise weight.fail("its scale is not a constant")
    return str(source.value)
