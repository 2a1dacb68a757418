"""Pass ``assume-codes``: integer products without numbers, to cost a model by its shapes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from imcc.ir.dialects import core, nn, quant
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Module, Resource
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.ir.types import Element, QuantType, TensorType
from imcc.passes.infrastructure import Approximate, Pass, PassContext, option


@dataclass(frozen=True)
class AssumeCodes(Pass):
    """Make the integer products that quantisation would make, with all numbers left absent.

    Each ``nn.linear`` and ``nn.conv`` with a constant weight becomes ``quant.quantize``, an integer
    product with signed codes per output channel, and ``quant.rescale``; codes, scales and zero
    points are resources without data. With ``matmul="symmetric"`` so do products of two activations
    (``calibrate-activations{matmul="symmetric"}``): their operands get codes of one scale, unsigned
    for what a softmax gives, signed for all else. The program can be mapped and costed, since costs
    rest on shapes and assumed activity, but not run. It stands in for ``calibrate-activations``,
    ``quantize-weights`` and ``integer-arithmetic`` where a model has no weights (meta device).
    """

    name: ClassVar[str] = "assume-codes"
    # There is nothing to run before or after it.
    contract: ClassVar[Approximate] = Approximate(bound=float("inf"))

    weight_bits: int = option(default=8, minimum=2, maximum=8, unit="bit", doc="bits of a weight")
    input_bits: int = option(default=8, minimum=2, maximum=16, unit="bit", doc="bits of an input")
    matmul: Literal["float", "symmetric"] = option(
        default="float", doc="products of two activations: left as they are, or of codes"
    )

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite every product; inputs read by several are quantised once."""
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            coded: dict[Value, tuple[Value, Value]] = {}
            for op in list(function.ops):
                if isinstance(op, nn.Linear | nn.Conv):
                    self._rewrite(op, rewriter, coded)
                elif isinstance(op, nn.Matmul) and self.matmul != "float":
                    self._rewrite_matmul(op, rewriter)

    def _rewrite(
        self,
        op: nn.Linear | nn.Conv,
        rewriter: Rewriter,
        coded: dict[Value, tuple[Value, Value]],
    ) -> None:
        source = op.weight.owner
        new: list[Op] = []
        absent = partial(_absent, rewriter, new)
        if not isinstance(source, core.Constant):
            rewriter.refuse(op, "the weight is computed at run time")
            return
        kind = tensor(op.weight)
        if op.x not in coded:
            base = f"{op.scope or op.x.name}.input"
            scale = absent(f"{base}.scale", (), kind.element)
            zero_point = absent(f"{base}.zero_point", (), "i32")
            quantised = quant.Quantize(
                x=op.x, scale=scale, zero_point=zero_point, bits=self.input_bits, signed=False
            )
            new.append(quantised)
            coded[op.x] = (quantised.y, zero_point)
        codes, zero = coded[op.x]
        shape = tuple(size for size in kind.shape if isinstance(size, int))
        weight = absent(
            f"{source.value}.codes", shape, QuantType(self.weight_bits, signed=True, axis=0)
        )
        factors = absent(f"{source.value}.rescale", (shape[0],), kind.element)
        product: quant.Linear | quant.Conv
        if isinstance(op, nn.Linear):
            product, axis = quant.Linear(x=codes, weight=weight, x_zero_point=zero), -1
        else:
            product = quant.Conv(
                x=codes,
                weight=weight,
                x_zero_point=zero,
                stride=op.stride,
                padding=op.padding,
                dilation=op.dilation,
                groups=op.groups,
            )
            axis = -1 - len(op.stride)
        rescale = quant.Rescale(acc=product.y, scale=factors, bias=op.bias, axis=axis)
        rewriter.replace(op, [*new, product, rescale], rescale.y)

    def _rewrite_matmul(self, op: nn.Matmul, rewriter: Rewriter) -> None:
        if tensor(op.b).batch_axis is None:
            rewriter.refuse(op, "the right operand is the same for all samples")
            return
        new: list[Op] = []
        made: list[Value] = []
        for name, value in (("a", op.a), ("b", op.b)):
            scale = _absent(
                rewriter,
                new,
                f"{op.scope or 'matmul'}.{value.name}.scale",
                (),
                tensor(value).element,
            )
            signed = not (name == "a" and _never_negative(value))
            coded = quant.Quantize(x=value, scale=scale, bits=self.input_bits, signed=signed)
            new.append(coded)
            made.append(coded.y)
        factor = _absent(
            rewriter, new, f"{op.scope or 'matmul'}.{op.y.name}.rescale", (), tensor(op.y).element
        )
        product = quant.Matmul(a=made[0], b=made[1])
        rescale = quant.Rescale(acc=product.y, scale=factor)
        rewriter.replace(op, [*new, product, rescale], rescale.y)


def _absent(
    rewriter: Rewriter, new: list[Op], name: str, shape: tuple[int, ...], element: Element
) -> Value:
    """A constant without data, appended to ``new``."""
    resource = Resource(name, TensorType(shape, element))
    if name not in rewriter.module.resources:
        rewriter.add_resource(resource)
    made = core.Constant.of(resource.name, resource.type)
    new.append(made)
    return made.y


def _never_negative(value: Value) -> bool:
    """Whether a softmax gives ``value``, moved and masked at most."""
    op = value.owner
    while isinstance(op, core.Reshape | core.Permute | core.Where):
        op = op.a.owner if isinstance(op, core.Where) else op.x.owner
    return isinstance(op, nn.Softmax)
