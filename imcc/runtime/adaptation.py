"""On-line adaptation: streams labelled samples through ``@adapt`` and keeps what it learns.

One device adapts (a seed and the number of a trial), since each has noise and wear of its own. What
adapts, by which rule and how fast is compiled in by ``insert-feedback``. Nothing here looks at
held-out data but to report on it: when to stop, and which state was good, is decided by the loss of
the labelled samples as they come, each measured before the network learns from it.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from imcc.backends.api import Wear
from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError, error
from imcc.ir.semantics.draws import Draws
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.resources import tensor_sha256
from imcc.passes.infrastructure import Progress, no_progress
from imcc.runtime.executor import Device, Executor

FIRST_EVALUATED = 1 << 40
"""Number of the first sample of an evaluation: its reads draw other noise than adaptation's."""

Status = Literal["running", "finished", "stopped", "diverged", "worn"]


@dataclass(frozen=True)
class AdaptationOptions:
    """How a stream of labelled samples is used.

    ``batch`` samples make one update, in the order of the stream or ``shuffled`` by the seed, at
    most ``samples`` of them (None: all) in ``passes`` over the stream. Every ``every`` samples
    the state is stored and held-out data are evaluated. The running loss and accuracy are means
    over the last ``window`` samples. The run stops when the running accuracy reaches
    ``stop_accuracy``, or when the running loss was not lower than before for ``patience`` samples.
    It has diverged when a weight's update is not finite or the running loss exceeds
    ``divergence * max(ln classes, mean loss of the first window)``: ln classes is the loss of a
    network that knows nothing. It ends when more than ``worn`` (a fraction) of the cells that
    adapt have been written as often as they endure.
    """

    batch: int = 1
    samples: int | None = None
    passes: int = 1
    shuffled: bool = False
    every: int = 32
    window: int = 32
    stop_accuracy: float | None = None
    patience: int | None = None
    divergence: float = 2.0
    worn: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        counts = ("batch", "passes", "every", "window")
        for name in (*counts, *(key for key in ("samples", "patience") if getattr(self, key))):
            if getattr(self, name) < 1:
                raise error(codes.USAGE, f"{name} is {getattr(self, name)}, it must be 1 or more")
        if self.divergence <= 1.0:
            raise error(codes.USAGE, f"divergence is {self.divergence}, it must be above 1")


@dataclass
class AdaptationRecord:
    """What an adaptation did so far: enough to go on from, and to report.

    ``during`` are (samples, held-out accuracy) and ``running`` (samples, running accuracy, running
    loss). ``recent`` holds (loss, right or wrong) of the last samples. Energy is in pJ, time in ns;
    None where the target has no cost model.
    """

    settings: dict[str, Any]
    data_sha256: str
    device: dict[str, Any]
    status: Status = "running"
    reason: str = ""
    samples: int = 0
    steps: int = 0
    before: float | None = None
    after: float | None = None
    during: list[tuple[int, float]] = field(default_factory=list)
    running: list[tuple[int, float, float]] = field(default_factory=list)
    recent: list[tuple[float, bool]] = field(default_factory=list)
    first_loss: float | None = None
    good_loss: float | None = None
    good_samples: int = 0
    writes: dict[str, int] | None = None
    energy_pj: float | None = None
    latency_ns: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class StepCost:
    """What adaptation costs: pJ and ns of a sample without its writes, pJ of one write to a cell.

    In a batch, each sample is charged a step of its own but for the writes, which are counted.
    """

    sample_pj: float
    sample_ns: float
    write_pj: float = 0.0


class Adaptation:
    """A device that adapts, sample by sample: ``step(inputs, labels)``.

    ``states`` are the values of what adapts, by name; :attr:`executor` infers with them.
    """

    def __init__(
        self, executor: Executor, device: Device, states: Mapping[str, Any] | None = None
    ) -> None:
        self.function = executor.module.functions.get("adapt")
        if self.function is None:
            raise error(
                codes.USAGE,
                "the program has no entry point @adapt",
                help="compile it with --passes 'fold-batch-norm, insert-feedback, ...'; "
                "docs/how-to/adapt-on-line.md shows the pipelines",
            )
        self.executor, self.device = executor, device
        self.names = tuple(item.state for item in self.function.results if item.state is not None)
        deployed = executor.deployed(device)
        found = {name: deployed[name] for name in self.names if name in deployed}
        self.states: dict[str, Any] = {**found, **(states or {})}
        self._show()

    def _show(self) -> None:
        self.executor.adapted = (self.device, self.states)

    def check(self, inputs: Sequence[Tensor], labels: Tensor) -> None:
        """Refuse samples that cannot be learned from; raises ``BAD_INPUT`` or ``BAD_DATA``."""
        function = self.function
        if function is None:
            return
        size = self.executor.batch_size(inputs)
        classes = _classes(self.executor)
        if labels.dtype != torch.int64 or tuple(labels.shape) != (size,):
            raise error(
                codes.BAD_DATA,
                f"labels are {labels.dtype} {list(labels.shape)}, expected int64 [{size}]",
                help="give the number of the class of each sample",
            )
        wrong = torch.nonzero((labels < 0) | (labels >= classes))
        if len(wrong):
            place = int(wrong[0])
            raise error(
                codes.BAD_DATA,
                f"sample {place} has the label {int(labels[place])}, "
                f"the model has {classes} outputs",
                help=f"labels are classes 0 to {classes - 1}",
            )

    def step(self, inputs: Sequence[Tensor], labels: Tensor, first_sample: int = 0) -> Tensor:
        """Learn from a batch; returns the outputs as they were before the update.

        States change together, when all of the step is done. Raises a diagnostic for samples that
        do not fit (``BAD_INPUT``, ``BAD_DATA``) or an update that is not finite (``NUMERIC``); then
        states are as before.
        """
        self.check(inputs, labels)
        if self.function is None:
            return torch.empty(0)
        executor, device = self.executor, self.device
        samples = tuple(range(first_sample, first_sample + len(labels)))
        with torch.no_grad():
            made = evaluate_function(
                self.function,
                (*inputs, labels),
                resources=executor.resources,
                states={**executor.deployed(device), **self.states},
                backend=executor.backend.name if executor.backend is not None else None,
                target=executor.target,
                draws=Draws(device.seed, (device.trial,), samples) if device.noisy else None,
            )
        self.states = {name: made.states[name] for name in self.names}
        self._show()
        outputs: Tensor = made.outputs[0]
        return outputs

    def restore(self, states: Mapping[str, Any]) -> None:
        """Go back to other states."""
        self.states = dict(states)
        self._show()

    def wear(self) -> Wear | None:
        """Writes to the cells that adapt, or None where the hardware counts none."""
        backend = self.executor.backend
        if backend is None:
            return None
        found = [backend.wear(value, self.executor.target) for value in self.states.values()]
        held = [item for item in found if item is not None]
        return sum(held[1:], held[0]) if held else None


def _classes(executor: Executor) -> int:
    (output, *_) = executor.module.function("adapt").results
    return int(str(output.type.shape[1]))  # type: ignore[attr-defined]


def data_sha256(inputs: Sequence[Tensor], labels: Tensor) -> str:
    """One hash over all labelled samples: what a run that goes on must have in common."""
    digest = hashlib.sha256()
    for value in (*inputs, labels):
        digest.update(tensor_sha256(value).encode())
    return digest.hexdigest()


class AdaptationRun:
    """A whole adaptation over a set of labelled samples, from its start or from a record.

    ``evaluate`` gives the accuracy on held-out data; ``save(states, good, record)`` stores what
    there is after every ``options.every`` samples and at the end. What comes after a stored point
    is the same whether the run was interrupted there or not.
    """

    def __init__(
        self,
        adaptation: Adaptation,
        inputs: Sequence[Tensor],
        labels: Tensor,
        options: AdaptationOptions,
        *,
        record: AdaptationRecord | None = None,
        good: Mapping[str, Any] | None = None,
        cost: StepCost | None = None,
        evaluate: Callable[[], float] | None = None,
        save: Callable[[Mapping[str, Any], Mapping[str, Any], AdaptationRecord], None]
        | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self.adaptation, self.inputs, self.labels = adaptation, tuple(inputs), labels
        self.options, self.cost = options, cost
        self.evaluate, self.save, self.progress = evaluate, save, progress
        device = adaptation.device
        self.record = record or AdaptationRecord(
            asdict(options), data_sha256(inputs, labels), asdict(device)
        )
        self.good: Mapping[str, Any] = good if good is not None else adaptation.states
        adaptation.check(inputs, labels)
        fixed = adaptation.function.fixed_batch if adaptation.function is not None else None
        if fixed is not None and fixed != options.batch:
            raise error(
                codes.BAD_DATA,
                f"the program takes batches of {fixed} samples, batch is {options.batch}",
                help=f"adapt with batches of {fixed}, or compile it with a batch of another size",
            )

    @property
    def total(self) -> int:
        """Samples that the run takes at most."""
        most = self.options.passes * len(self.labels)
        wanted = most if self.options.samples is None else min(most, self.options.samples)
        return wanted - wanted % self.options.batch if wanted >= self.options.batch else 0

    def run(self) -> AdaptationRecord:
        """Adapt until the stream ends or a criterion stops it; returns the record."""
        record, options = self.record, self.options
        if record.samples == 0 and record.before is None and self.evaluate is not None:
            record.before = self.evaluate()
        while record.status == "running":
            if record.samples >= self.total:
                record.status, record.reason = "finished", f"{record.samples} samples"
                break
            self.progress(record.samples, self.total, "adapt")
            rows = self._rows(record.samples)
            self._learn(rows)
            crossed = record.samples // options.every > (
                (record.samples - len(rows)) // options.every
            )
            if record.status == "running" and crossed:
                self._checkpoint()
        if record.status == "diverged":
            self.adaptation.restore(self.good)
        if self.evaluate is not None:
            record.after = self.evaluate()
        self._count()
        self._store()
        self.progress(self.total, self.total, "adapt")
        return record

    def _rows(self, position: int) -> Tensor:
        """Which samples the step at this place of the stream takes."""
        count = len(self.labels)
        places = range(position, position + self.options.batch)
        if not self.options.shuffled:
            return torch.tensor([place % count for place in places])
        rows = []
        for place in places:
            turn, index = divmod(place, count)
            seed = self.adaptation.device.seed * 1_000_003 + turn
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            rows.append(int(order[index]))
        return torch.tensor(rows)

    def _learn(self, rows: Tensor) -> None:
        record, options = self.record, self.options
        before = self.adaptation.states
        labels = self.labels[rows]
        try:
            outputs = self.adaptation.step(
                [value[rows] for value in self.inputs], labels, record.samples
            )
        except DiagnosticError as wrong:
            if any(item.code != codes.NUMERIC for item in wrong.diagnostics):
                raise
            record.status, record.reason = "diverged", wrong.diagnostics[0].message
            return
        losses = torch.nn.functional.cross_entropy(outputs.double(), labels, reduction="none")
        right = outputs.argmax(-1) == labels
        recent = deque(record.recent, maxlen=options.window)
        recent.extend((float(value), bool(hit)) for value, hit in zip(losses, right, strict=True))
        record.recent = list(recent)
        record.samples += len(rows)
        record.steps += 1
        self._judge(before, _classes(self.adaptation.executor))

    def _judge(self, before: Mapping[str, Any], classes: int) -> None:
        """Whether to stop after a step; ``before`` is the state that its losses speak of."""
        record, options = self.record, self.options
        loss = math.fsum(item[0] for item in record.recent) / len(record.recent)
        if not math.isfinite(loss):
            record.status, record.reason = "diverged", "a loss is not finite"
            return
        if len(record.recent) < options.window:
            return
        if record.first_loss is None:
            record.first_loss = loss
        if record.good_loss is None or loss < record.good_loss:
            record.good_loss, record.good_samples = loss, record.samples
            self.good = before
        limit = options.divergence * max(math.log(classes), record.first_loss)
        accuracy = sum(item[1] for item in record.recent) / len(record.recent)
        if loss > limit:
            record.status = "diverged"
            record.reason = f"the running loss is {loss:.4g}, the limit {limit:.4g}"
        elif options.stop_accuracy is not None and accuracy >= options.stop_accuracy:
            record.status = "stopped"
            record.reason = f"the running accuracy is {accuracy:.4g}"
        elif (
            options.patience is not None
            and record.samples - record.good_samples >= options.patience
        ):
            record.status = "stopped"
            record.reason = f"no lower loss in {record.samples - record.good_samples} samples"

    def _checkpoint(self) -> None:
        record = self.record
        recent = record.recent
        record.running.append(
            (
                record.samples,
                sum(item[1] for item in recent) / len(recent),
                math.fsum(item[0] for item in recent) / len(recent),
            )
        )
        if self.evaluate is not None:
            record.during.append((record.samples, self.evaluate()))
        self._count()
        self._store()

    def _count(self) -> None:
        """Writes and energy so far; a device that is worn out ends the run."""
        record, cost = self.record, self.cost
        wear = self.adaptation.wear()
        if wear is not None:
            record.writes = asdict(wear)
            if wear.worn > self.options.worn * wear.cells and record.status == "running":
                record.status = "worn"
                record.reason = f"{wear.worn} of {wear.cells} cells took all writes they endure"
        if cost is not None:
            writes = wear.writes if wear is not None else 0
            record.energy_pj = record.samples * cost.sample_pj + writes * cost.write_pj
            record.latency_ns = record.samples * cost.sample_ns

    def _store(self) -> None:
        if self.save is not None:
            self.save(self.adaptation.states, self.good, self.record)


def verdict(record: AdaptationRecord) -> Diagnostic | None:
    """What to tell the user about how a run ended, if it did not end well."""
    if record.status == "diverged":
        return Diagnostic(
            codes.DIVERGED,
            f"adaptation diverged after {record.samples} samples",
            reason=record.reason,
            help="the state of the lowest loss was kept; compile with a smaller learning_rate of "
            "insert-feedback, or look at the labels",
        )
    if record.status == "worn":
        return Diagnostic(
            codes.WORN,
            f"cells wore out after {record.samples} samples",
            reason=record.reason,
            help="adapt fewer layers, in larger batches or for fewer samples, or allow a share of "
            "worn cells with --worn",
        )
    return None
