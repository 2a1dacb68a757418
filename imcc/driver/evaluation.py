"""The accuracy section of a report: float, noise-free, noisy, and over write noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imcc.backends.api import Backend
from imcc.driver.compiled import CompiledModel
from imcc.driver.signature import Signature
from imcc.frontend.capture import Captured
from imcc.passes.infrastructure import Progress
from imcc.runtime.executor import Executor
from imcc.runtime.trials import TrialStatistics, run_trials

if TYPE_CHECKING:
    from torch import Tensor

Metric = Callable[[Any, Any], Any]
SWEEP_TRIALS = 5
"""Trials of each level of the sweep, if the evaluation has as many."""


@dataclass(frozen=True)
class Evaluated:
    """A metric on the captured model, on the compiled program without noise, and under noise.

    ``metric`` is the name of the function. ``sweep`` maps levels of write noise to statistics over
    the same trials and seed.
    """

    metric: str
    samples: int
    float_value: float
    noise_free: float
    noisy: TrialStatistics | None
    sweep: tuple[tuple[float, TrialStatistics], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "metric": self.metric,
            "samples": self.samples,
            "float": self.float_value,
            "noise_free": self.noise_free,
            "noisy": self.noisy.to_json() if self.noisy is not None else None,
            "write_noise_sweep": [
                {"sigma_fraction": level, **statistics.to_json()}
                for level, statistics in self.sweep
            ],
        }


def evaluate_accuracy(
    captured: Captured,
    made: CompiledModel,
    backend: Backend,
    inputs: list[Tensor],
    targets: Any,
    metric: Metric,
    *,
    trials: int,
    seed: int,
    sweep: bool,
    progress: Progress,
) -> Evaluated:
    """Evaluate on one test set; noisy trials share it, so intervals are over devices alone."""
    signature = Signature.of(captured)

    def run(executor: Executor, count: int, noisy: bool) -> TrialStatistics:
        return run_trials(
            executor,
            inputs,
            targets,
            metric,
            trials=count,
            seed=seed,
            noisy=noisy,
            rebuild=signature.rebuild,
            progress=progress,
        )

    reference = run(Executor(captured.module, captured.resources), 1, False)
    exact = run(made.executor, 1, False)
    noisy: TrialStatistics | None = None
    levels: list[tuple[float, TrialStatistics]] = []
    if trials > 0:
        noisy = run(made.executor, trials, True)
        for level, target in backend.write_noise_sweep(made.target) if sweep else ():
            count = min(trials, SWEEP_TRIALS)
            if target.sha256 == made.target.sha256:
                levels.append((level, TrialStatistics(noisy.per_trial[:count])))
                continue
            executor = Executor(made.module, made.resources, target, backend)
            levels.append((level, run(executor, count, True)))
    samples = int(inputs[0].shape[0])
    name = getattr(metric, "__name__", type(metric).__name__)
    return Evaluated(name, samples, reference.mean, exact.mean, noisy, tuple(levels))
