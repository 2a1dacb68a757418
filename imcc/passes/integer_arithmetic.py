"""Pass ``integer-arithmetic``: products of dequantised codes become integer products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from imcc.ir.dialects import core, nn, quant
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Module
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.passes.infrastructure import Approximate, Pass, PassContext

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class IntegerArithmetic(Pass):
    """``nn.linear(dequantize(x), dequantize(w))`` to ``rescale(quant.linear(x, w))``.

    Convolutions and products of two activations (``nn.matmul``) too.
    With ``x = sx (qx - zx)`` and ``w[n] = sw[n] (qw[n] - zw[n])``:
    ``y[n] = sx sw[n] * sum_k (qx - zx) (qw - zw) + bias[n]``, the sum in exact integers. Weights in
    groups give a sum for each group, which ``quant.rescale_groups`` scales and adds up. A product
    whose codes have no integer meaning (an input with several scales) stays as it is, with the
    reason in the journal.

    A product by itself changes by float rounding alone (about 1e-7). In a network that rounding can
    carry a value across a tie of a later quantiser, which then gives the neighbouring code: hence
    the promise of one step of an 8-bit code, 1/255, for the relative error of the outputs.
    """

    name: ClassVar[str] = "integer-arithmetic"
    contract: ClassVar[Approximate] = Approximate(bound=1 / 255)
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite every product of two dequantised operands."""
        rewriter = context.rewriter(module, self.name)
        for op in list(module.walk()):
            if isinstance(op, (nn.Linear, nn.Conv)):
                self._rewrite(op, rewriter, context)
            elif isinstance(op, nn.Matmul):
                self._rewrite_matmul(op, rewriter, context)
        for op in reversed(list(module.walk())):
            if isinstance(op, quant.Dequantize) and not op.y.users:
                rewriter.erase(op, "its only readers are integer products now")

    def _rewrite(self, op: nn.Linear | nn.Conv, rewriter: Rewriter, context: PassContext) -> None:
        x, weight = op.x.owner, op.weight.owner
        if not isinstance(x, quant.Dequantize) or not isinstance(weight, quant.Dequantize):
            rewriter.refuse(op, "an operand is not quantised")
            return
        coded = tensor(weight.x).quant
        if coded.axis not in (None, 0) or (coded.group is not None and isinstance(op, nn.Conv)):
            rewriter.refuse(op, f"weights {weight.x.type} have no scales per output channel")
            return
        if tensor(x.x).quant.axis is not None:
            rewriter.refuse(op, "the input has more than one scale")
            return
        scale = self._scale(x.scale, weight.scale, rewriter, context)
        if scale is None:
            rewriter.refuse(op, "a scale is not a constant")
            return
        product: quant.Linear | quant.Conv
        if isinstance(op, nn.Linear):
            product = quant.Linear(
                x=x.x,
                weight=weight.x,
                x_zero_point=x.zero_point,
                weight_zero_point=weight.zero_point,
            )
            axis = -1
        else:
            product = quant.Conv(
                x=x.x,
                weight=weight.x,
                x_zero_point=x.zero_point,
                weight_zero_point=weight.zero_point,
                stride=op.stride,
                padding=op.padding,
                dilation=op.dilation,
                groups=op.groups,
            )
            axis = -1 - len(op.stride)
        rescale: quant.Rescale | quant.RescaleGroups
        if coded.group is not None:
            rescale = quant.RescaleGroups(acc=product.y, scale=scale.y, bias=op.bias)
        else:
            rescale = quant.Rescale(acc=product.y, scale=scale.y, bias=op.bias, axis=axis)
        new: list[Op] = [scale, product, rescale]
        rewriter.replace(op, new, rescale.y)

    def _rewrite_matmul(self, op: nn.Matmul, rewriter: Rewriter, context: PassContext) -> None:
        a, b = op.a.owner, op.b.owner
        if not isinstance(a, quant.Dequantize) or not isinstance(b, quant.Dequantize):
            rewriter.refuse(op, "an operand is not quantised")
            return
        for operand in (a, b):
            coded = tensor(operand.x).quant
            if coded.axis is not None or coded.group is not None:
                rewriter.refuse(op, f"{operand.x.type} has more than one scale")
                return
        scale = self._scale(a.scale, b.scale, rewriter, context)
        if scale is None:
            rewriter.refuse(op, "a scale is not a constant")
            return
        product = quant.Matmul(a=a.x, b=b.x, a_zero_point=a.zero_point, b_zero_point=b.zero_point)
        rescale = quant.Rescale(acc=product.y, scale=scale.y)
        rewriter.replace(op, [scale, product, rescale], rescale.y)

    def _scale(
        self, x: Value, weight: Value, rewriter: Rewriter, context: PassContext
    ) -> core.Constant | None:
        left, right = x.owner, weight.owner
        if not isinstance(left, core.Constant) or not isinstance(right, core.Constant):
            return None
        store = context.weights()
        factor = store.get(left.value).double() * store.get(right.value).double()
        base = str(right.value).removesuffix(".scale")
        held = store.put(f"{base}.rescale", factor.to(store.get(right.value).dtype))
        store.derive((left.value, right.value), (held.name,), _product)
        rewriter.add_resource(held)
        return core.Constant.of(held.name, held.type)


def _product(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """The scale of a product of codes, from those of its operands."""
    return ((x.double() * weight.double()).to(weight.dtype),)
