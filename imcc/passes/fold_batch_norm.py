"""Pass ``fold-batch-norm``: batch normalisation into the layer in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from imcc.ir.dialects import core, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Module, Resource
from imcc.ir.ops import Value
from imcc.ir.rewriting import Rewriter
from imcc.ir.types import TensorType
from imcc.passes.infrastructure import Pass, PassContext, WithinTolerance

if TYPE_CHECKING:
    from torch import Tensor

    from imcc.ir.semantics.resources import ResourceStore


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold ``nn.batch_norm`` into the ``nn.conv`` or ``nn.linear`` whose result it normalises.

    With ``f = weight / sqrt(var + eps)`` of the normalisation, per output channel n:
    ``weight'[n] = weight[n] * f[n]`` and ``bias'[n] = (bias[n] - mean[n]) * f[n] + beta[n]``,
    computed in float64 and rounded once. New resources are called ``<name>.folded``. A layer whose
    result or weight is used elsewhere, or whose parameters are not constant, is left as it is and
    the reason is recorded. Resources without data fold to resources without data.
    """

    name: ClassVar[str] = "fold-batch-norm"
    contract: ClassVar[WithinTolerance] = WithinTolerance(1e-4)
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    def run(self, module: Module, context: PassContext) -> None:
        """Fold every normalisation that can be."""
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            for op in function.ops:
                if isinstance(op, nn.BatchNorm):
                    reason = _fold(op, rewriter, context.weights())
                    if reason is not None:
                        rewriter.refuse(op, reason)


def _fold(op: nn.BatchNorm, rewriter: Rewriter, store: ResourceStore) -> str | None:
    """Fold one normalisation; returns why not, or None when it is done."""
    layer = op.x.owner
    if not isinstance(layer, (nn.Conv, nn.Linear)):
        made_by = layer.name if layer is not None else "an input"
        return f"its input comes from {made_by}, not from nn.conv or nn.linear"
    if sum(layer.y.users.values()) != 1:
        return f"the result %{layer.y.name} of {layer.name} is used by other ops too"
    channels = -1 if isinstance(layer, nn.Linear) else -len(layer.stride) - 1
    if op.axis != channels:
        return f"it normalises axis {op.axis}, the outputs of {layer.name} lie along {channels}"
    named: dict[str, Value | None] = {
        "weight": layer.weight,
        "bias": layer.bias,
        "mean": op.mean,
        "var": op.var,
        "gamma": op.weight,
        "beta": op.bias,
    }
    names: dict[str, str] = {}
    for what, value in named.items():
        if value is None:
            continue
        if not isinstance(value.owner, core.Constant):
            return f"{what} %{value.name} is not a constant"
        names[what] = value.owner.value
    if sum(layer.weight.users.values()) != 1:
        return f"the weight @{names['weight']} is used by other ops too"

    weight_name = f"{names['weight']}.folded"
    bias_name = f"{_bias_name(names)}.folded"
    if all(name in store for name in names.values()):
        folded = _folded({what: store.get(name) for what, name in names.items()}, op.eps)
        if folded is None:
            return f"variance plus eps is not positive in @{names['var']}, or the result overflows"
        weight, bias = store.put(weight_name, folded[0]), store.put(bias_name, folded[1])
        _derive(store, names, (weight.name, bias.name), op.eps)
    else:
        kind = tensor(layer.weight)
        weight = Resource(weight_name, kind)
        bias = Resource(bias_name, TensorType((kind.shape[0],), kind.element))
    rewriter.add_resource(weight)
    rewriter.add_resource(bias)
    # The folded layer is the user's layer with other numbers: it keeps the layer's own scope, so
    # that reports name it as the model does.
    new_weight = core.Constant.of(weight.name, weight.type, weight.name, layer.scope)
    new_bias = core.Constant.of(bias.name, bias.type, bias.name, layer.scope)
    made: nn.Conv | nn.Linear
    if isinstance(layer, nn.Conv):
        made = nn.Conv(
            x=layer.x,
            weight=new_weight.y,
            bias=new_bias.y,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            scope=layer.scope,
        )
    else:
        made = nn.Linear(x=layer.x, weight=new_weight.y, bias=new_bias.y, scope=layer.scope)
    rewriter.replace([layer, op], [new_weight, new_bias, made], made.y)
    return None


def _derive(store: ResourceStore, names: dict[str, str], made: tuple[str, str], eps: float) -> None:
    """Say how the folded numbers follow from those of the layer and of the normalisation."""
    parts = tuple(names)

    def compute(*tensors: Tensor) -> tuple[Tensor, ...]:
        return _scaled(dict(zip(parts, tensors, strict=True)), eps)

    store.derive(tuple(names.values()), made, compute)


def _bias_name(names: dict[str, str]) -> str:
    if "bias" in names:
        return names["bias"]
    head, dot, last = names["weight"].rpartition(".")
    return f"{head}{dot}bias" if last == "weight" else f"{names['weight']}.bias"


def _folded(held: dict[str, Tensor], eps: float) -> tuple[Tensor, Tensor] | None:
    """Folded weight and bias in the weight's dtype, or None if they are not finite."""
    import torch

    if not bool((held["var"].to(torch.float64) + eps > 0).all()):
        return None
    made = _scaled(held, eps)
    return made if all(bool(torch.isfinite(item).all()) for item in made) else None


def _scaled(held: dict[str, Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """Weight and bias times the factor of each channel, in the weight's dtype."""
    import torch

    weight = held["weight"]
    wide = {what: value.to(torch.float64) for what, value in held.items()}
    factor = torch.rsqrt(wide["var"] + eps)
    if "gamma" in wide:
        factor = factor * wide["gamma"]
    shift = -wide["mean"] * factor
    if "bias" in wide:
        shift = shift + wide["bias"] * factor
    if "beta" in wide:
        shift = shift + wide["beta"]
    scaled = wide["weight"] * factor.reshape([-1] + [1] * (weight.dim() - 1))
    return scaled.to(weight.dtype), shift.to(weight.dtype)
