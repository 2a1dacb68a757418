"""What the crossbar passes share."""

from __future__ import annotations

from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.module import Module
from imcc.passes.infrastructure import PassContext


def crossbar_target(name: str, context: PassContext) -> CrossbarTarget:
    """The context's target; raises a diagnostic if it is none of crossbars."""
    if not isinstance(context.target, CrossbarTarget):
        found = getattr(context.target, "backend", None)
        raise error(
            codes.PASS_REQUIRES,
            f"pass {name} needs a target of the backend 'crossbar', found {found!r}",
            help="give one with --target, for instance --target rram",
        )
    return context.target


def require_phase(name: str, module: Module, *phases: str) -> None:
    """Raise a diagnostic if the module is in none of the phases."""
    if module.phase not in phases:
        raise error(
            codes.PASS_REQUIRES,
            f"pass {name} needs phase {' or '.join(map(repr, phases))}, the module is "
            f"{module.phase!r}",
            help="run the passes that lead there first; `imcc targets NAME` shows the pipeline",
        )
