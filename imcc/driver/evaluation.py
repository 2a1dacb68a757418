"""The accuracy section of a report: float, noise-free, noisy, and over write noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imcc.backends.api import Backend
from imcc.driver.compiled import CompiledModel
from imcc.driver.signature import Signature
from imcc.driver.test_set import Measured, TestSet
from imcc.ir.module import Module
from imcc.passes.infrastructure import (
    Approximate,
    Instrument,
    Pass,
    PassContext,
    PassRecord,
    Progress,
)
from imcc.runtime.executor import Executor
from imcc.runtime.trials import TrialStatistics

SWEEP_TRIALS = 5
"""Trials of each level of the sweep, if the evaluation has as many."""


@dataclass(frozen=True)
class Evaluated:
    """A number on the captured model, on the compiled program without noise, and under noise.

    ``metric`` is its name. ``sweep`` maps levels of write noise to statistics over the same trials
    and seed.
    """

    metric: str
    samples: int
    in_float: Measured
    noise_free: Measured
    noisy: TrialStatistics | None
    sweep: tuple[tuple[float, TrialStatistics], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "metric": self.metric,
            "samples": self.samples,
            "float": self.in_float.statistics.mean,
            "float_ci95": _pair(self.in_float.over_samples),
            "noise_free": self.noise_free.statistics.mean,
            "noise_free_ci95": _pair(self.noise_free.over_samples),
            "noisy": self.noisy.to_json() if self.noisy is not None else None,
            "write_noise_sweep": [
                {"sigma_fraction": level, **statistics.to_json()}
                for level, statistics in self.sweep
            ],
        }


def evaluate_accuracy(
    reference: Executor,
    made: CompiledModel,
    backend: Backend,
    test_set: TestSet,
    *,
    trials: int,
    seed: int,
    sweep: bool,
    progress: Progress,
) -> Evaluated:
    """Evaluate on one test set; ``reference`` runs the program as captured.

    Noisy trials share the test set, so their interval is over devices alone.
    """

    def run(executor: Executor, signature: Signature, count: int, noisy: bool) -> Measured:
        return test_set.measure(
            executor, signature, trials=count, seed=seed, noisy=noisy, progress=progress
        )

    in_float = run(reference, made.signature, 1, False)
    exact = run(made.executor, made.signature, 1, False)
    noisy: TrialStatistics | None = None
    levels: list[tuple[float, TrialStatistics]] = []
    if trials > 0:
        noisy = run(made.executor, made.signature, trials, True).statistics
        for level, target in backend.write_noise_sweep(made.target) if sweep else ():
            count = min(trials, SWEEP_TRIALS)
            if target.sha256 == made.target.sha256:
                levels.append((level, TrialStatistics(noisy.per_trial[:count])))
                continue
            executor = Executor(made.module, made.resources, target, backend)
            levels.append((level, run(executor, made.signature, count, True).statistics))
    return Evaluated(test_set.name, test_set.samples, in_float, exact, noisy, tuple(levels))


@dataclass(frozen=True)
class CheckedPass:
    """The metric on the program before and after one approximate pass, without noise."""

    text: str
    promise: str
    before: float
    after: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "pass": self.text,
            "promise": self.promise,
            "before": self.before,
            "after": self.after,
            "change": self.after - self.before,
        }


class CheckAccuracy(Instrument):
    """Measures what each approximate pass does to the metric; ``steps`` holds the results."""

    def __init__(self, test_set: TestSet, signature: Signature, seed: int) -> None:
        self.test_set, self.signature, self.seed = test_set, signature, seed
        self.steps: list[CheckedPass] = []
        self._value: float | None = None

    def before(self, item: Pass, module: Module, context: PassContext) -> None:
        """Measure in front of an approximate pass, unless that number is known."""
        if not isinstance(item.promise(), Approximate):
            return
        if self._value is None or item.ideal_before:
            self._value = self._measure(module, context, item.ideal_before)

    def after(self, item: Pass, record: PassRecord, module: Module, context: PassContext) -> None:
        """Measure behind it."""
        before = self._value
        if record.changed:
            self._value = None
        if before is None or not isinstance(item.promise(), Approximate):
            return
        after = before
        if record.changed:
            after = self._measure(module, context, item.ideal_after)
        self._value = None if item.ideal_after else after
        self.steps.append(CheckedPass(record.text, str(item.promise()), before, after))

    def _measure(self, module: Module, context: PassContext, ideal: bool) -> float:
        if ideal:
            module = context.backend.idealised(module, context.target)
        executor = Executor(module, context.weights(), context.target, context.backend)
        with context.timing.span("check accuracy"):
            measured = self.test_set.measure(
                executor,
                self.signature,
                trials=1,
                seed=self.seed,
                noisy=False,
                progress=context.progress,
            )
        return measured.statistics.mean


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return list(interval) if interval is not None else None
