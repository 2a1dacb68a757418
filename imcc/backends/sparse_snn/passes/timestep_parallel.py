"""Pass ``timestep-parallel``: the loop order of each product, with time unrolled in space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.module import Module
from imcc.passes.infrastructure import Exact, Pass, PassContext


@dataclass(frozen=True)
class TimestepParallel(Pass):
    """Order the loops of each ``sparse.product`` as m, n, k, t, with t innermost and spatial.

    Rows m go to elements in groups, every column n is broadcast to a group, k is the join of two
    fibers, and all timesteps t of a match are added in the same cycle: a column is read once, not
    T times.
    """

    name: ClassVar[str] = "timestep-parallel"
    contract: ClassVar[Exact] = Exact()
    needs: ClassVar[frozenset[str]] = frozenset({"target"})
    requires_phase: ClassVar[str | None] = "mapped"
    ensures_phase: ClassVar[str | None] = "placed"

    def run(self, module: Module, context: PassContext) -> None:
        """Annotate every product; refuses engines that do timesteps one after another."""
        from imcc.backends.sparse_snn.dialect import Product
        from imcc.backends.sparse_snn.passes_support import sparse_target

        target = sparse_target(self.name, context)
        if target.keys.engine != "temporal-parallel":
            raise error(
                codes.PASS_REQUIRES,
                f"the engine {target.keys.engine!r} of target {target.name!r} does not unroll time",
                help="use timestep-sequential",
            )
        rewriter = context.rewriter(module, self.name)
        for op in module.walk():
            if isinstance(op, Product):
                rewriter.annotate(op, sparse__loops=("m", "n", "k", "t"), sparse__spatial=("t",))
