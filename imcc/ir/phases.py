"""Phases and what each may hold.

========== =====================================================================
captured   neutral ops only, weights in floating point
optimized  neutral ops only, quantised where passes quantised
mapped     neutral digital ops and ops of the function's backend; matrices exist as handles
placed     as mapped, and every op that occupies hardware carries its place
scheduled  as placed, and every op of an entry point carries its start and end
========== =====================================================================

A backend adds a :class:`PhaseRule` for ops of its dialect; the dialect module registers it, so that
checking a phase never imports a simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from imcc.ir.module import PHASES, Module
from imcc.ir.ops import Op
from imcc.ir.registry import load_dialect

PhaseRule = Callable[[Op, str], "str | None"]
"""``rule(op, phase)``: why the op may not stand in this phase as it is, or None."""

_RULES: dict[str, PhaseRule] = {}


def phase_rule(dialect: str) -> Callable[[PhaseRule], PhaseRule]:
    """Decorator: register the phase rule of a dialect."""

    def add(rule: PhaseRule) -> PhaseRule:
        _RULES[dialect] = rule
        return rule

    return add


def is_neutral(dialect: str) -> bool:
    """Whether the ops of a dialect stand for no hardware and may appear in every phase.

    Dialects in ``imcc.ir.dialects`` do; another package's dialect says so by ``NEUTRAL = True``.
    """
    module = load_dialect(dialect)
    if module is None:
        return False
    return module.__name__.startswith("imcc.ir.dialects.") or getattr(module, "NEUTRAL", False)


def at_least(phase: str, reference: str) -> bool:
    """Whether ``phase`` is ``reference`` or later."""
    return PHASES.index(phase) >= PHASES.index(reference)


def refuse(op: Op, phase: str) -> str | None:
    """Why ``op`` may not stand in ``phase``, or None."""
    dialect = op.name.split(".", 1)[0]
    if not at_least(phase, "mapped") and not is_neutral(dialect):
        return f"ops of {dialect!r} appear with the phase 'mapped', this module is {phase!r}"
    rule = _RULES.get(dialect)
    return rule(op, phase) if rule is not None else None


def violations(module: Module) -> Iterator[tuple[Op, str]]:
    """All ops that may not stand in the module's phase, with the reason."""
    for op in module.walk():
        reason = refuse(op, module.phase)
        if reason is not None:
            yield op, reason
