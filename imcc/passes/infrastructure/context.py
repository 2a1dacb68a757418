"""What the driver hands to passes: data, target knowledge, random seed, journal, progress.

Passes never name a backend; what they need of one they ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.module import Function, Module
from imcc.ir.ops import Op
from imcc.ir.rewriting import Journal, Rewriter
from imcc.passes.infrastructure.timing import Timing

if TYPE_CHECKING:
    from imcc.ir.cost import CostRecord
    from imcc.ir.semantics.resources import ResourceStore

Estimator = Callable[[Function, Any, str], "CostRecord"]
Legality = Callable[[Op, Any], "str | None"]
Simulator = Callable[[Module, "ResourceStore", Sequence[tuple[Any, ...]], int], list[Any]]


NO_CALIBRATION = "this run has no calibration data"

Progress = Callable[[int, int, str], None]
"""``progress(done, total, what)``: how long work reports how far it is."""


def no_progress(done: int, total: int, what: str) -> None:
    """Reports nothing."""


@dataclass
class PassContext:
    """Everything a pass may use besides the module.

    ``resources`` holds weights (None: structure only). ``target`` and ``backend`` are the chosen
    hardware. ``calibration`` is a list of input tuples. ``estimator``, ``legality`` and
    ``simulator`` answer :meth:`estimate`, :meth:`legal` and :meth:`simulate`.
    ``progress(done, total, what)`` reports long work.
    ``measurements`` collects what passes measured, as rows by pass name, for reports.
    ``timing`` takes spans of a pass's own steps. A pass that draws at random starts from ``seed``
    anew, so that its draws do not depend on which passes ran before it.
    """

    resources: ResourceStore | None = None
    target: Any = None
    backend: Any = None
    calibration: Sequence[tuple[Any, ...]] | None = None
    seed: int = 0
    journal: Journal = field(default_factory=Journal)
    progress: Progress = no_progress
    estimator: Estimator | None = None
    legality: Legality | None = None
    simulator: Simulator | None = None
    warnings: list[Any] = field(default_factory=list)
    measurements: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)

    def rewriter(self, module: Module, rule: str = "") -> Rewriter:
        """A Rewriter that writes to this context's journal."""
        return Rewriter(module, self.journal, rule)

    def weights(self) -> ResourceStore:
        """The resources; raises a diagnostic if this run has none."""
        if self.resources is None:
            raise error(
                codes.PASS_REQUIRES,
                "this run has no weights",
                help="give the weights (`imcc opt --weights FILE`) or compile from the model",
            )
        return self.resources

    def calibration_batches(self) -> Sequence[tuple[Any, ...]]:
        """Calibration inputs; raises a diagnostic if this run has none."""
        if not self.calibration:
            raise error(
                codes.PASS_REQUIRES,
                NO_CALIBRATION,
                help="add to the model file:\n"
                "def calibration_data():\n"
                "    return [(inputs,), ...]  # input tuples from the training set",
            )
        return self.calibration

    def calibration_samples(self, function: Function, count: int) -> list[tuple[Any, ...]]:
        """The first ``count`` samples of the calibration batches, each with a batch of 1.

        Whole batches for a function of fixed batch size. Raises as :meth:`calibration_batches`.
        """
        batches = self.calibration_batches()
        if function.fixed_batch is not None:
            return [tuple(batch) for batch in batches[:count]]
        axes = [getattr(value.type, "batch_axis", None) for value in function.inputs]
        made: list[tuple[Any, ...]] = []
        for batch in batches:
            sizes = [x.shape[i] for x, i in zip(batch, axes, strict=True) if i is not None]
            for index in range(min(sizes, default=1)):
                made.append(
                    tuple(
                        x if i is None else x.narrow(i, index, 1)
                        for x, i in zip(batch, axes, strict=True)
                    )
                )
                if len(made) >= count:
                    return made
        return made

    def estimate(self, function: Function, target: Any = None, activity: str = "assumed") -> Any:
        """Cost of a function on a target: cloned, mapped by the target's default pipeline."""
        if self.estimator is None:
            raise error(codes.PASS_REQUIRES, "this run has no target to estimate cost on")
        return self.estimator(function, target if target is not None else self.target, activity)

    def legal(self, op: Op, target: Any = None) -> str | None:
        """Why the target cannot run ``op``, or None."""
        if self.legality is None:
            raise error(codes.PASS_REQUIRES, "this run has no target to ask for legality")
        return self.legality(op, target if target is not None else self.target)

    def simulate(
        self,
        module: Module,
        resources: ResourceStore,
        batches: Sequence[tuple[Any, ...]],
        trials: int,
    ) -> list[Any]:
        """Noisy outputs of a program of phase ``optimized``: a list ``[R, ...]`` for each batch.

        The module is cloned and mapped by the target's default pipeline, calibrated on ``batches``.
        """
        if self.simulator is None:
            raise error(
                codes.PASS_REQUIRES,
                "this run has no target to simulate",
                help="give one with --target",
            )
        return self.simulator(module, resources, batches, trials)
