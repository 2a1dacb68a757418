"""Monte Carlo trials: a metric over a fixed test set, once for each seeded trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.passes.infrastructure import Progress, no_progress
from imcc.runtime.executor import Executor

Metric = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class TrialStatistics:
    """A metric over trials: mean, sample deviation, and a 95 % interval of the mean.

    The interval is ``mean +- t(0.975, R-1) * std / sqrt(R)`` (Student), over trials on a fixed test
    set: it says how sure the mean over devices is, not how the metric would vary on other data.
    With one trial there is no interval.
    """

    per_trial: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over trials."""
        return math.fsum(self.per_trial) / len(self.per_trial)

    @property
    def std(self) -> float | None:
        """The sample standard deviation, None for one trial."""
        count = len(self.per_trial)
        if count < 2:
            return None
        centre = self.mean
        return math.sqrt(math.fsum((v - centre) ** 2 for v in self.per_trial) / (count - 1))

    @property
    def ci95(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean, None for one trial."""
        std = self.std
        if std is None:
            return None
        from scipy.stats import t

        count = len(self.per_trial)
        half = float(t.ppf(0.975, count - 1)) * std / math.sqrt(count)
        return self.mean - half, self.mean + half

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        interval = self.ci95
        return {
            "mean": self.mean,
            "std": self.std,
            "ci95": list(interval) if interval is not None else None,
            "trials": len(self.per_trial),
            "per_trial": list(self.per_trial),
        }


def run_trials(
    executor: Executor,
    inputs: Sequence[Tensor],
    targets: Any,
    metric: Metric,
    *,
    trials: int,
    seed: int,
    noisy: bool = True,
    rebuild: Callable[[list[Tensor]], Any] | None = None,
    progress: Progress = no_progress,
) -> TrialStatistics:
    """Run trials 0 .. R-1 and apply ``metric(outputs, targets)`` to each.

    ``rebuild`` turns the list of output tensors of one trial into what the user's model returns.
    """
    outputs = executor.run(inputs, trials=range(trials), seed=seed, noisy=noisy, progress=progress)
    values: list[float] = []
    for trial in range(outputs[0].shape[0]):
        held = [output[trial] for output in outputs]
        made = rebuild(held) if rebuild is not None else held[0] if len(held) == 1 else held
        values.append(metric_value(metric, made, targets))
    return TrialStatistics(tuple(values))


def metric_value(metric: Metric, outputs: Any, targets: Any) -> float:
    """The metric as a finite float; a diagnostic if the user's function fails or gives none."""
    try:
        value = float(metric(outputs, targets))
    except DiagnosticError:
        raise
    except Exception as wrong:
        raise error(
            codes.BAD_DATA,
            f"metric(outputs, targets) failed: {type(wrong).__name__}: {wrong}",
            help="it gets the outputs and targets of the whole test set and returns one number",
        ) from wrong
    if not math.isfinite(value):
        raise error(codes.BAD_DATA, f"metric(outputs, targets) returned {value}")
    return value
