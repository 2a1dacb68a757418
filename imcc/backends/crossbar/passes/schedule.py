"""Pass ``schedule``: when each op starts and ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imcc.backends.crossbar import BACKEND
from imcc.ir.module import Module
from imcc.passes.infrastructure import Exact, Pass, PassContext


@dataclass(frozen=True)
class Schedule(Pass):
    """One op after another, in program order, for one inference (B = 1).

    An op starts when the one before has ended and takes the ``busy_ns`` of its cost rule. Inside
    an op all crossbars of its matrix, and all lanes of the vector unit, work at once. Programming
    works on all matrices at the same time. Ops that are free or of unknown cost take no time.

    A step of adaptation runs, with ``learning.schedule = "layer_parallel"``, each op as soon as its
    operands and its unit are there.
    """

    name: ClassVar[str] = "schedule"
    contract: ClassVar[Exact] = Exact()
    needs: ClassVar[frozenset[str]] = frozenset({"target"})
    requires_phase: ClassVar[str | None] = "placed"
    ensures_phase: ClassVar[str | None] = "scheduled"

    def run(self, module: Module, context: PassContext) -> None:
        """Annotate every op but the return."""
        from imcc.backends.crossbar.dialect import Program
        from imcc.backends.crossbar.learning_schedule import adapts
        from imcc.backends.crossbar.learning_schedule import schedule as learning_schedule
        from imcc.backends.crossbar.passes_support import crossbar_target

        target = crossbar_target(self.name, context)
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            if adapts(function) and target.keys.learning.schedule == "layer_parallel":
                for op, start, end in learning_schedule(function, target):
                    rewriter.annotate(op, xbar__start_ns=start, xbar__end_ns=end)
                continue
            now = 0.0
            for op in function.ops:
                if op.terminator:
                    continue
                busy = BACKEND.op_cost(op, target).busy_ns
                start = 0.0 if isinstance(op, Program) else now
                rewriter.annotate(op, xbar__start_ns=start, xbar__end_ns=start + busy)
                now = max(now, start + busy)
