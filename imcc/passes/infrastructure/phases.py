"""Which passes of a pipeline lead to which phase: where compilation can stop and resume.

A pipeline's passes belong to the phase that they end up in. The first pass that ensures a phase
opens it, those after it still belong to it. Passes before any of that make the phase
``optimized``; nothing belongs to ``captured``, which capture itself gives.
"""

from __future__ import annotations

from collections.abc import Sequence

from imcc.ir import codes
from imcc.ir.diagnostics import error, nearest
from imcc.ir.module import PHASES, Module
from imcc.passes.infrastructure.base import Pass
from imcc.passes.infrastructure.context import PassContext


def by_phase(passes: Sequence[Pass]) -> dict[str, tuple[Pass, ...]]:
    """The passes by the phase that they lead to, in order; ``captured`` is always first."""
    made: dict[str, list[Pass]] = {"captured": [], "optimized": []}
    phase = "optimized"
    for item in passes:
        phase = item.ensures_phase or phase
        made.setdefault(phase, []).append(item)
    return {name: tuple(held) for name, held in made.items()}


def passes_after(passes: Sequence[Pass], phase: str) -> tuple[Pass, ...]:
    """The passes that a module at the end of ``phase`` still needs."""
    known_phase(phase)
    rank = PHASES.index(phase)
    return tuple(
        item
        for name, held in by_phase(passes).items()
        if PHASES.index(name) > rank
        for item in held
    )


def passes_until(passes: Sequence[Pass], phase: str) -> tuple[Pass, ...]:
    """The passes up to the end of ``phase``; a diagnostic if the pipeline never gets there."""
    known_phase(phase)
    parts = by_phase(passes)
    if phase not in parts:
        raise error(
            codes.PASS_REQUIRES,
            f"this pipeline never reaches the phase {phase!r}",
            help=f"it reaches {', '.join(parts)}",
        )
    made: list[Pass] = []
    for name, held in parts.items():
        made.extend(held)
        if name == phase:
            break
    return tuple(made)


def begin(module: Module, context: PassContext) -> None:
    """Move a captured module on to ``optimized``: from here on passes may change what it holds."""
    if module.phase == "captured":
        context.rewriter(module, "phases").set_phase("optimized")


def known_phase(phase: str) -> None:
    """Raise a diagnostic with the nearest names if there is no such phase."""
    if phase not in PHASES:
        raise error(
            codes.USAGE,
            f"there is no phase {phase!r}",
            suggestions=nearest(phase, PHASES),
            help=f"phases in order: {', '.join(PHASES)}",
        )
