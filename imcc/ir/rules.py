"""Open tables of rules keyed by (op, backend).

``EVAL`` falls back from (op, backend) to the neutral rule (op, None): a digital op in a mapped
module computes what it always computes. ``LEGAL``, ``COST`` and ``LOWER`` never fall back: no rule
means illegal, or unknown cost. ``ADJOINT`` is neutral.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from imcc.ir.ops import Op

Rule = TypeVar("Rule", bound=Callable[..., Any])


class RuleTable(Generic[Rule]):
    """Rules of one purpose, by op name and backend name (None: neutral)."""

    def __init__(self, purpose: str, *, falls_back: bool) -> None:
        self.purpose = purpose
        self.falls_back = falls_back
        self._rules: dict[tuple[str, str | None], Rule] = {}

    def register(self, *ops: str | type[Op], backend: str | None = None) -> Callable[[Rule], Rule]:
        """Decorator: the function is the rule for these ops under the backend."""

        def add(rule: Rule) -> Rule:
            for op in ops:
                key = (op if isinstance(op, str) else op.name, backend)
                if key in self._rules and self._rules[key] is not rule:
                    raise ValueError(f"{self.purpose} rule for {key} is registered twice")
                self._rules[key] = rule
            return rule

        return add

    def find(self, op: str, backend: str | None = None) -> Rule | None:
        """The rule for the op, or None."""
        rule = self._rules.get((op, backend))
        if rule is None and self.falls_back and backend is not None:
            rule = self._rules.get((op, None))
        return rule

    def ops(self, backend: str | None = None) -> Iterator[str]:
        """Names of ops with a rule registered under exactly this backend."""
        return (op for op, name in self._rules if name == backend)


EVAL: RuleTable[Callable[..., Any]] = RuleTable("eval", falls_back=True)
"""``rule(op, arguments, context) -> value or tuple of values``; see ``imcc.ir.semantics``."""

LEGAL: RuleTable[Callable[..., Any]] = RuleTable("legal", falls_back=False)
"""``rule(op, target) -> Refusal | None``: may the backend take this neutral op?"""

COST: RuleTable[Callable[..., Any]] = RuleTable("cost", falls_back=False)
"""``rule(op, target, activity) -> OpCost``: events of one call, per inference."""

LOWER: RuleTable[Callable[..., Any]] = RuleTable("lower", falls_back=False)
"""``rule(op, rewriter, context) -> None``: replaces the op by ops of the backend's dialect."""

ADJOINT: RuleTable[Callable[..., Any]] = RuleTable("adjoint", falls_back=False)
"""``rule(op, rewriter, gradients) -> gradients of operands``: emits the vector-Jacobian product."""
