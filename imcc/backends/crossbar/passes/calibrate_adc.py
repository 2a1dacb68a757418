"""Pass ``calibrate-adc``: give each layer's converters the range that its column sums use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from imcc.backends.crossbar.dialect import Mvm, ReadMatrix
from imcc.ir.module import Module
from imcc.ir.ops import Op
from imcc.passes.infrastructure import Approximate, Pass, PassContext, option
from imcc.passes.learning.adapting import error_values


@dataclass(frozen=True)
class CalibrateAdc(Pass):
    """Set ``adc_step`` of every ``xbar.mvm`` from column sums seen in calibration.

    Calibration inputs run on ideal devices with converters bypassed. With ``top`` the largest
    column sum seen (or a percentile of all sums, above which converters clip), the step is
    ``max(1, top / (2^adc_bits - 1))``: a step below 1 would resolve nothing, since ideal sums are
    integers. The range starts at 0, as column sums are not negative; where the difference of a pair
    is converted, its size counts and half of the codes are negative. Reads that come behind an
    output error are not seen, for calibration data has no labels: their range stays the full one.

    The promise compares with converters that lose nothing.
    """

    name: ClassVar[str] = "calibrate-adc"
    contract: ClassVar[Approximate] = Approximate(bound=0.1)
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "calibration", "target"})
    requires_phase: ClassVar[str | None] = "mapped"
    ideal_before: ClassVar[bool] = True
    converters_only: ClassVar[bool] = True

    range: Literal["max", "percentile"] = option(
        default="max", doc="the largest column sum, or a percentile of them"
    )
    percentile: float = option(
        default=99.99, minimum=50.0, maximum=100.0, doc="share of sums that must not clip, in %"
    )

    def run(self, module: Module, context: PassContext) -> None:
        """Observe column sums of every read, then set the steps."""
        import torch

        from imcc.backends.crossbar.passes_support import crossbar_target
        from imcc.backends.crossbar.run_time import WrittenMatrices
        from imcc.backends.crossbar.simulate import ColumnMonitor, Matrix
        from imcc.ir.semantics.interpreter import evaluate_function

        target = crossbar_target(self.name, context)
        store = context.weights()
        rewriter = context.rewriter(module, self.name)
        batches = context.calibration_batches()
        programmed = evaluate_function(
            module.function("deploy"), (), resources=store, backend="crossbar", target=target
        ).states
        for function in module.functions.values():
            reads = [op for op in function.ops if isinstance(op, (Mvm, ReadMatrix))]
            monitors = {op.stream: ColumnMonitor() for op in reads}
            for held in programmed.values():
                if isinstance(held, Matrix):
                    held.monitors = monitors
            if not reads:
                continue

            def watch(
                op: Op,
                results: tuple[Any, ...],
                monitors: dict[str, ColumnMonitor] = monitors,
            ) -> None:
                for held in results:
                    if isinstance(held, WrittenMatrices):
                        held.monitors = monitors

            with torch.no_grad():
                for index, batch in enumerate(batches):
                    context.progress(index, len(batches), "calibrate converters")
                    evaluate_function(
                        function,
                        batch,
                        resources=store,
                        states=programmed,
                        backend="crossbar",
                        target=target,
                        observer=watch,
                        partial=bool(error_values(function)),
                    )
            share = 1.0 if self.range == "max" else self.percentile / 100
            for op in reads:
                if op.x in error_values(function):
                    continue
                top = monitors[op.stream].quantile(share)
                codes = 2 ** (op.adc_bits - (op.converts == "pair")) - 1
                rewriter.set_attributes(op, adc_step=max(1.0, top / codes))
