"""The time axis of captured spiking networks: loops rolled back, time and batch kept apart."""

from __future__ import annotations

from imcc.ir.diagnostics import Diagnostic
from imcc.ir.module import Module
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.canonicalize import Canonicalize
from imcc.passes.infrastructure import PassContext
from imcc.passes.leading_axes import LeadingAxes
from imcc.passes.roll_time_loops import RollTimeLoops


def give_time_axis(module: Module, resources: ResourceStore) -> list[Diagnostic]:
    """Give a module with spiking neurons its time axis; returns warnings."""
    if not any(op.name.startswith("snn.") for op in module.walk()):
        return []
    context = PassContext(resources=resources)
    for step in (RollTimeLoops(), LeadingAxes(), Canonicalize()):
        step.run(module, context)
    return list(context.warnings)
