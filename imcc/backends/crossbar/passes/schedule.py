"""Pass ``schedule``: when each op starts and ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imcc.backends.crossbar import BACKEND
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.module import Function, Module
from imcc.ir.ops import Op, Value
from imcc.passes.infrastructure import Exact, Pass, PassContext


@dataclass(frozen=True)
class Schedule(Pass):
    """Times of one inference (B = 1) by ``scheduling.mode``; an op takes its cost rule's time.

    ``sequential``: one op after another, in program order. Inside an op all crossbars of its
    matrix, and all lanes of a vector unit, work at once.

    ``pipelined``: ops of one inference run as soon as operands and hardware are there, while the
    next inputs follow at the interval that the busiest hardware allows (the report's
    ``interval_ns``). With ``handover = "rows"`` an op starts with the first part of its operands
    that it can use: the first rows under a window, a token, a sample of a time step; matrices that
    are written and softmax rows wait for what they need. It ends no earlier than its operands and
    the work on their last part. With ``whole`` it waits for complete operands. Ops on one vector
    unit, or on one matrix, share it.

    Programming works on all matrices at the same time. Ops that are free or of unknown cost take
    no time.

    A step of adaptation is never pipelined, for the next one reads what it writes. With
    ``learning.schedule = "layer_parallel"`` each op of it starts as soon as its operands and its
    unit are there.
    """

    name: ClassVar[str] = "schedule"
    contract: ClassVar[Exact] = Exact()
    needs: ClassVar[frozenset[str]] = frozenset({"target"})
    requires_phase: ClassVar[str | None] = "placed"
    ensures_phase: ClassVar[str | None] = "scheduled"

    def run(self, module: Module, context: PassContext) -> None:
        """Annotate every op but the return."""
        from imcc.backends.crossbar.learning_schedule import adapts
        from imcc.backends.crossbar.learning_schedule import schedule as learning_schedule
        from imcc.backends.crossbar.passes_support import crossbar_target

        target = crossbar_target(self.name, context)
        rewriter = context.rewriter(module, self.name)
        pipelined = target.keys.scheduling.mode == "pipelined"
        for function in module.functions.values():
            if adapts(function) and target.keys.learning.schedule == "layer_parallel":
                times = learning_schedule(function, target)
            elif pipelined and not adapts(function):
                times = _pipelined(function, target)
            else:
                times = _sequential(function, target)
            for op, start, end in times:
                rewriter.annotate(op, xbar__start_ns=start, xbar__end_ns=end)


def _sequential(function: Function, target: CrossbarTarget) -> list[tuple[Op, float, float]]:
    from imcc.backends.crossbar.dialect import Program

    made: list[tuple[Op, float, float]] = []
    now = 0.0
    for op in function.ops:
        if op.terminator:
            continue
        busy = BACKEND.op_cost(op, target).busy_ns
        start = 0.0 if isinstance(op, Program) else now
        made.append((op, start, start + busy))
        now = max(now, start + busy)
    return made


def _pipelined(function: Function, target: CrossbarTarget) -> list[tuple[Op, float, float]]:
    from imcc.backends.crossbar.streaming import hardware_of, parts_of

    rows = target.keys.scheduling.handover == "rows"
    backlog: dict[str, float] = {}
    times: dict[Value, tuple[float, float]] = {}
    made: list[tuple[Op, float, float]] = []
    for op in function.ops:
        if op.terminator:
            continue
        busy = BACKEND.op_cost(op, target).busy_ns
        start = end = 0.0
        for value in op.operands:
            if value not in times:
                continue
            begun, done = times[value]
            parts = parts_of(op, value) if rows else None
            if parts is None:
                start = max(start, done)
            else:
                first, last = parts
                start = max(start, begun + first * (done - begun))
                end = max(end, done + last * busy)
        hardware = hardware_of(op) if busy else None
        end = max(end, start + busy)
        if hardware is not None:
            # Ops of one unit alternate while their operands arrive: together they take no less
            # than the sum of their times.
            backlog[hardware] = max(backlog.get(hardware, 0.0), start) + busy
            end = max(end, backlog[hardware])
        times.update(dict.fromkeys(op.results, (start, end)))
        made.append((op, start, end))
    return made
