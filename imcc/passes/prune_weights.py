"""Pass ``prune-weights``: set the smallest weights to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from imcc.ir.dialects import core, nn
from imcc.ir.module import Module
from imcc.ir.ops import Op
from imcc.passes.infrastructure import Approximate, Pass, PassContext, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PruneWeights(Pass):
    """Magnitude pruning: of n weights, the ``floor(sparsity n)`` smallest in |w| become 0.

    ``scope`` ``layer`` prunes every constant weight of ``nn.linear`` and ``nn.conv`` to the same
    sparsity, ``global`` ranks the weights of all layers together (Han et al., NeurIPS 2015). Ties
    go to the earlier weight. Weights that are 0 already count; biases stay. ``skip`` leaves layers
    out by the start of their weight's dotted name.

    Accuracy falls with sparsity; prune before the last epochs of training, or fine-tune after.
    """

    name: ClassVar[str] = "prune-weights"
    contract: ClassVar[Approximate] = Approximate(bound=1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    sparsity: float = option(minimum=0.0, maximum=1.0, doc="share of weights that become 0")
    scope: Literal["layer", "global"] = option(default="layer", doc="what weights compete with")
    skip: tuple[str, ...] = option(default=(), doc='layers to leave alone, as ["head"]')

    def run(self, module: Module, context: PassContext) -> None:
        """Prune every weight once, however many ops read it."""
        import torch

        store = context.weights()
        held: dict[str, list[Op]] = {}
        rewriter = context.rewriter(module, self.name)
        for op in module.walk():
            if not isinstance(op, (nn.Linear, nn.Conv)):
                continue
            source = op.weight.owner
            if not isinstance(source, core.Constant):
                rewriter.refuse(op, "the weight is computed at run time")
            elif any(
                source.value == name or source.value.startswith(f"{name}.") for name in self.skip
            ):
                rewriter.refuse(op, "skipped")
            elif source not in held.setdefault(str(source.value), []):
                held[str(source.value)].append(source)
        weights = {name: store.get(name) for name in held}
        if not weights:
            return
        if self.scope == "global":
            flat = torch.cat([value.flatten() for value in weights.values()])
            kept = list(
                torch.split(_kept(flat, self.sparsity), [w.numel() for w in weights.values()])
            )
        else:
            kept = [_kept(value.flatten(), self.sparsity) for value in weights.values()]
        for (name, value), mask in zip(weights.items(), kept, strict=True):
            pruned = torch.where(mask.reshape(value.shape), value, torch.zeros_like(value))
            resource = rewriter.add_resource(store.put(f"{name}.pruned", pruned))
            for source in held[name]:
                constant = core.Constant.of(resource.name, resource.type)
                rewriter.replace(source, [constant], constant.y)

    def _skipped(self, weight: str) -> bool:
        return any(weight == name or weight.startswith(f"{name}.") for name in self.skip)


def _kept(flat: Tensor, sparsity: float) -> Tensor:
    """Which weights stay, as booleans."""
    import torch

    gone = int(sparsity * flat.numel() + 1e-9)
    kept = torch.ones(flat.numel(), dtype=torch.bool)
    order = torch.argsort(flat.abs(), stable=True)
    kept[order[:gone]] = False
    return kept
