"""Pass ``timestep-sequential``: the loop order of engines that do one timestep after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.module import Module
from imcc.passes.infrastructure import Exact, Pass, PassContext

LOOPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sequential": (("m", "n", "k", "t"), ()),
    "outer-product": (("k", "t", "n", "m"), ("m",)),
    "gustavson": (("m", "t", "k", "n"), ()),
    "systolic": (("m", "n", "k", "t"), ("n", "t")),
}
"""Loops from the outermost in, and those that are spatial, by engine."""


@dataclass(frozen=True)
class TimestepSequential(Pass):
    """Order the loops of each ``sparse.product`` as the target's engine runs them.

    Inner product: m, n, k, t. Outer product: k, t, n, m with m over the elements. Gustavson: m, t,
    k, n. The dense array has n and t in space.
    """

    name: ClassVar[str] = "timestep-sequential"
    contract: ClassVar[Exact] = Exact()
    needs: ClassVar[frozenset[str]] = frozenset({"target"})
    requires_phase: ClassVar[str | None] = "mapped"
    ensures_phase: ClassVar[str | None] = "placed"

    def run(self, module: Module, context: PassContext) -> None:
        """Annotate every product; refuses the engine that unrolls time."""
        from imcc.backends.sparse_snn.dialect import Product
        from imcc.backends.sparse_snn.passes_support import sparse_target

        target = sparse_target(self.name, context)
        order = LOOPS.get(target.keys.engine)
        if order is None:
            raise error(
                codes.PASS_REQUIRES,
                f"the engine {target.keys.engine!r} of target {target.name!r} does all timesteps "
                "at once",
                help="use timestep-parallel",
            )
        rewriter = context.rewriter(module, self.name)
        for op in module.walk():
            if isinstance(op, Product):
                rewriter.annotate(op, sparse__loops=order[0], sparse__spatial=order[1])
