"""The reuse block: layer norm, a full layer, GELU, in place of an encoder's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from imcc.ir.dialects import core, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Resource
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.ir.types import TensorType
from imcc.passes.reuse.sites import AttentionSite, feeding

if TYPE_CHECKING:
    import torch

    from imcc.ir.semantics.resources import ResourceStore

Start = Literal["identity", "random", "least_squares"]

AnyOp = TypeVar("AnyOp", bound=Op)


@dataclass(frozen=True)
class ReuseBlock:
    """A block that took the place of ``site``: its ops, and what reads its output."""

    site: AttentionSite
    norm: nn.LayerNorm
    layer: nn.Linear
    activation: nn.Gelu
    projection: nn.Linear | None
    removed: tuple[str, ...]


class Inserter:
    """Inserts reuse blocks into one function.

    ``store`` None, or a module whose weights are absent, leaves the new weights absent too.
    """

    def __init__(
        self, rewriter: Rewriter, store: ResourceStore | None, start: Start, seed: int
    ) -> None:
        self.rewriter, self.start, self.seed = rewriter, start, seed
        known = all(item.sha256 is not None for item in rewriter.module.resources.values())
        self.store = store if known else None

    def insert(self, site: AttentionSite, source: Value, own_projection: bool) -> ReuseBlock:
        """Replace the attention of ``site`` by a block on ``source``; erase what fed it alone."""
        projection = site.projection
        if own_projection or projection is None:
            old: Op | None = site.merged.owner
        else:
            old = projection
        if old is None:
            raise site.op.fail("its output is an argument")
        base = f"{site.op.scope}.reuse" if site.op.scope else f"reuse.{site.index}"
        before, after = tensor(source), tensor(old.results[0])
        narrow, wide = before.shape[-1], after.shape[-1]
        if not isinstance(narrow, int) or not isinstance(wide, int):
            raise site.op.fail("the width of the heads is symbolic")
        new: list[Op] = []

        def emit(op: AnyOp) -> AnyOp:
            new.append(op)
            return op

        def parameter(scope: str, name: str, shape: tuple[int, ...]) -> Value:
            made = self._parameter(f"{scope}.{name}", shape, str(before.element))
            return emit(core.Constant.of(made.name, made.type, made.name, scope)).y

        norm = emit(
            nn.LayerNorm(
                x=source,
                weight=parameter(f"{base}.norm", "weight", (narrow,)),
                bias=parameter(f"{base}.norm", "bias", (narrow,)),
                normalized_shape=(narrow,),
                scope=f"{base}.norm",
            )
        )
        layer = emit(
            nn.Linear(
                x=norm.y,
                weight=parameter(f"{base}.fc", "weight", (wide, narrow)),
                bias=parameter(f"{base}.fc", "bias", (wide,)),
                scope=f"{base}.fc",
            )
        )
        activation = emit(nn.Gelu(x=layer.y, scope=base))
        gone = feeding(site.op)
        self.rewriter.replace(old, new, activation.y)
        removed = self._erase_unused(site, gone)
        return ReuseBlock(
            site, norm, layer, activation, projection if own_projection else None, removed
        )

    def _erase_unused(self, site: AttentionSite, gone: set[Op]) -> tuple[str, ...]:
        """Erase from the merged heads back to what is used elsewhere."""
        function = site.op.parent
        if function is None:
            return ()
        removed: list[str] = []
        merging = self._merging(site)
        for op in reversed(list(function.ops)):
            if (op in gone or op in merging) and not any(value.users for value in op.results):
                removed.append(op.name)
                self.rewriter.erase(op, note="fed the attention that is reused")
        return tuple(reversed(removed))

    @staticmethod
    def _merging(site: AttentionSite) -> set[Op]:
        """The reshapes and permutations that put the heads side by side."""
        made: set[Op] = set()
        value = site.merged
        while value.owner is not None and value.owner is not site.op:
            made.add(value.owner)
            value = value.owner.operands[0]
        return made

    def _parameter(self, name: str, shape: tuple[int, ...], element: str) -> Resource:
        if self.store is None:
            resource = Resource(name, TensorType(shape, element))
        else:
            from imcc.ir.semantics.resources import TORCH_DTYPES

            made = self._start_value(name, shape).to(TORCH_DTYPES[element])
            resource = self.store.put(name, made)
        if self.rewriter.module.resources.get(resource.name) != resource:
            self.rewriter.add_resource(resource)
        return resource

    def _start_value(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        import torch

        if name.endswith(".norm.weight"):
            return torch.ones(shape)
        if len(shape) == 1 and (name.endswith(".norm.bias") or self.start != "random"):
            return torch.zeros(shape)
        if len(shape) == 2 and self.start != "random":
            return torch.eye(*shape)
        # torch.nn.Linear's own start: uniform in +- 1 / sqrt(inputs).
        import hashlib

        key = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        bound = float(shape[-1]) ** -0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
