"""Pass ``dead-code``: drop what no result depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imcc.ir.module import Module
from imcc.passes.infrastructure import Exact, Pass, PassContext


@dataclass(frozen=True)
class DeadCode(Pass):
    """Erase ops whose results nothing uses, then resources that nothing refers to.

    Ops that write physical state or draw noise stay: they act, or move what later draws give.
    """

    name: ClassVar[str] = "dead-code"
    contract: ClassVar[Exact] = Exact()

    def run(self, module: Module, context: PassContext) -> None:
        """Walk each function from its end, so that one walk finds whole chains."""
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            for op in reversed(list(function.ops)):
                if op.terminator or op.writes or op.draws:
                    continue
                if not any(value.users for value in op.results):
                    rewriter.erase(op, note="unused")
        for name in sorted(set(module.resources) - module.used_resources()):
            rewriter.remove_resource(name)
