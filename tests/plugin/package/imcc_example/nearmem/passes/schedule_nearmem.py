"""Pass ``schedule-nearmem``: check every op, then give it its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticCollector, error
from imcc.ir.module import Module
from imcc.ir.verifier import with_window
from imcc.passes.infrastructure import Exact, Pass, PassContext


@dataclass(frozen=True)
class ScheduleNearmem(Pass):
    """One op after another; each takes the ``busy_ns`` of its cost rule."""

    name: ClassVar[str] = "schedule-nearmem"
    contract: ClassVar[Exact] = Exact()
    needs: ClassVar[frozenset[str]] = frozenset({"target"})
    ensures_phase: ClassVar[str | None] = "scheduled"

    def run(self, module: Module, context: PassContext) -> None:
        """Raise a diagnostic for each op that the lanes do not take; annotate the others."""
        from imcc_example.nearmem import BACKEND
        from imcc_example.nearmem.target import NearMemoryTarget

        target = context.target
        if not isinstance(target, NearMemoryTarget):
            raise error(codes.PASS_REQUIRES, f"pass {self.name} needs a target of nearmem")
        found = DiagnosticCollector()
        for op in module.walk():
            reason = BACKEND.legal(op, target)
            if reason is not None:
                refused = f"the target {target.name!r} cannot run this op"
                found.add(with_window(op.diagnostic(codes.ILLEGAL, refused, reason=reason), op))
        found.raise_errors()
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            rewriter.set_target(function, target.name)
            now = 0.0
            for op in function.ops:
                if not op.terminator:
                    end = now + BACKEND.op_cost(op, target).busy_ns
                    rewriter.annotate(op, nearmem__start_ns=now, nearmem__end_ns=end)
                    now = end
