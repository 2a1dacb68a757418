"""Pass ``compress-spikes``: integer products become joins of compressed fibers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imcc.backends.sparse_snn import BACKEND
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticCollector, error
from imcc.ir.module import Module
from imcc.ir.rules import LOWER
from imcc.ir.verifier import with_window
from imcc.passes.infrastructure import Approximate, Contract, Exact, Pass, PassContext, option


@dataclass(frozen=True)
class CompressSpikes(Pass):
    """Lower ``quant.linear`` and ``quant.conv`` to ``sparse.product`` of compressed operands.

    The T spikes of a neuron become one word of T bits, and a neuron that never spikes a zero of
    its fiber's bitmask: exact. Codes of several bits (what a first layer makes of an image) are
    words of their bits. Weights become fibers of the codes that are not 0, one for each output. A
    convolution keeps its window: its rows are put together from the fibers of pixels.

    ``silence`` n also drops neurons with at most n spikes, as the accelerator's preprocessing does
    with n = 1. The network then computes something else; fine-tuning recovers the accuracy.
    Everything that is no product stays with the neuron units.
    """

    name: ClassVar[str] = "compress-spikes"
    needs: ClassVar[frozenset[str]] = frozenset({"target"})
    ensures_phase: ClassVar[str | None] = "mapped"

    silence: int = option(default=0, minimum=0, doc="drop neurons that spike so few times")

    def promise(self) -> Contract:
        """Exact, unless neurons are silenced: then outputs may differ as much as they are large."""
        return Approximate(bound=1.0) if self.silence else Exact()

    def run(self, module: Module, context: PassContext) -> None:
        """Check every op, then lower; raises a diagnostic for each op the target cannot run."""
        from imcc.backends.sparse_snn.legality import QUANTISE_FIRST
        from imcc.backends.sparse_snn.lowering import Compression
        from imcc.backends.sparse_snn.passes_support import sparse_target

        target = sparse_target(self.name, context)
        if module.phase not in ("captured", "optimized"):
            raise error(
                codes.PASS_REQUIRES,
                f"pass {self.name} needs phase 'captured' or 'optimized', the module is "
                f"{module.phase!r}",
                help="run the passes that lead there first; `imcc targets NAME` shows the pipeline",
            )
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
        shared = Compression(self.silence)
        for function in module.functions.values():
            for op in list(function.ops):
                rule = LOWER.find(op.name, BACKEND.name)
                if rule is not None:
                    rule(op, rewriter, shared)
            rewriter.set_target(function, target.name)
