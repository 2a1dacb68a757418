"""Pass ``map-crossbars``: integer products become reads of crossbars that ``@deploy`` programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imcc.backends.crossbar import BACKEND
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticCollector
from imcc.ir.module import Function, Module
from imcc.ir.rules import LOWER
from imcc.ir.verifier import with_window
from imcc.passes.infrastructure import Exact, Pass, PassContext


@dataclass(frozen=True)
class MapCrossbars(Pass):
    """Lower ``quant.linear`` and ``quant.conv`` to ``xbar.mvm``; refuse what crossbars cannot do.

    Each constant weight becomes a state ``@<weight>.cells``; the new entry point ``@deploy``
    programs all of them with ``xbar.program``, the other functions take their handles as state
    arguments. Ops that read the same weight share its crossbars. A convolution maps its kernel to
    rows (im2col order: channel, then kernel position); with groups, each group has crossbars of
    its own. A weight that adapts is programmed with the codes that it starts from; the function
    that makes a new weight writes it with ``xbar.update``. Everything else stays digital. The
    converters' step is set to lose nothing to clipping; ``calibrate-adc`` improves on it.

    The promise is that of ideal devices and converters wide enough: equal integers.
    """

    name: ClassVar[str] = "map-crossbars"
    contract: ClassVar[Exact] = Exact()
    needs: ClassVar[frozenset[str]] = frozenset({"target"})
    ensures_phase: ClassVar[str | None] = "mapped"
    ideal_before: ClassVar[bool] = True
    ideal_after: ClassVar[bool] = True

    def run(self, module: Module, context: PassContext) -> None:
        """Check every op, then lower; raises a diagnostic for each op the target cannot run."""
        from imcc.backends.crossbar.learning import write_back
        from imcc.backends.crossbar.legality import QUANTISE_FIRST
        from imcc.backends.crossbar.lowering import Mapping, erase_states, erase_unused
        from imcc.backends.crossbar.passes_support import crossbar_target, require_phase

        target = crossbar_target(self.name, context)
        require_phase(self.name, module, "captured", "optimized")
        BACKEND.load_rules()
        found = DiagnosticCollector()
        for op in module.walk():
            reason = BACKEND.legal(op, target)
            if reason is not None:
                made = op.diagnostic(
                    codes.ILLEGAL,
                    f"the target {target.name!r} cannot run this op",
                    reason=reason,
                    help=QUANTISE_FIRST if op.name in ("nn.linear", "nn.conv") else "",
                )
                found.add(with_window(made, op))
        found.raise_errors()
        rewriter = context.rewriter(module, self.name)
        functions = list(module.functions.values())
        deploy = rewriter.add_function(Function("deploy", target=target.name))
        mapping = Mapping(target, deploy)
        for function in functions:
            for op in list(function.ops):
                rule = LOWER.find(op.name, BACKEND.name)
                if rule is not None:
                    rule(op, rewriter, mapping)
            rewriter.set_target(function, target.name)
        for function in functions:
            write_back(function, rewriter, mapping)
            erase_unused(function, rewriter)
        mapping.finish(rewriter)
        erase_states(rewriter)
