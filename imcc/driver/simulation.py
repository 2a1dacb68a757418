"""What a program gives on noisy hardware before it is mapped: for passes that search settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imcc.backends.api import find_backend
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.module import Module
from imcc.passes.infrastructure import PassContext, begin, by_phase, parse_pipeline, run_pipeline
from imcc.runtime.executor import Executor

if TYPE_CHECKING:
    from torch import Tensor

    from imcc.ir.semantics.resources import ResourceStore


@dataclass(frozen=True)
class Simulations:
    """The simulator of a run: a copy is mapped by the target's default pipeline and run.

    Ranges and converters are calibrated on the batches that are run. Draws start from the
    context's seed and are the same for programs that name their ops alike, so that candidates are
    compared on the same devices.
    """

    context: PassContext

    def __call__(
        self,
        module: Module,
        resources: ResourceStore,
        batches: Sequence[tuple[Any, ...]],
        trials: int,
    ) -> list[list[Tensor]]:
        """Outputs ``[R, ...]`` of ``@inference`` for each batch."""
        target, seed = self.context.target, self.context.seed
        if target is None:
            raise error(codes.PASS_REQUIRES, "this run has no target to simulate")
        backend = find_backend(target.backend)
        copy = module.clone()
        inner = PassContext(
            resources=resources.copy(),
            target=target,
            backend=backend,
            calibration=batches,
            seed=seed,
            legality=backend.legal,
        )
        begin(copy, inner)
        parts = by_phase(parse_pipeline(backend.pipeline(target)))
        run_pipeline(copy, [*parts.get("optimized", ()), *parts.get("mapped", ())], inner)
        executor = Executor(copy, inner.weights(), target, backend)
        return [executor.run(batch, trials=range(trials), seed=seed) for batch in batches]
