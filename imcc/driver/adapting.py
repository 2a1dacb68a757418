"""On-line adaptation of compiled programs: data in, adapted states and a record out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from imcc.backends.api import find_backend
from imcc.driver.compiled import CompiledModel, load_artifact_model
from imcc.driver.data import CallInputs, as_inputs, evaluation_set
from imcc.frontend.model_file import load_data_file
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.semantics.tensor_files import read_tensors
from imcc.passes.infrastructure import Progress, no_progress
from imcc.runtime.adaptation import (
    FIRST_EVALUATED,
    Adaptation,
    AdaptationOptions,
    AdaptationRecord,
    AdaptationRun,
    StepCost,
    data_sha256,
)
from imcc.runtime.adapted import Adapted
from imcc.runtime.artifact import store_adapted
from imcc.runtime.executor import Device
from imcc.runtime.trials import metric_value

Start = Literal["initial", "adapted"]
Metric = Callable[[Any, Any], Any]


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The share of samples whose largest output is at the label."""
    return float((outputs.argmax(-1) == targets).double().mean())


def adapt(
    model: CompiledModel | str | Path,
    data: tuple[Any, Tensor],
    *,
    evaluation: tuple[Any, Any] | None = None,
    metric: Metric = accuracy,
    options: AdaptationOptions | None = None,
    start: Start | None = None,
    device: Device | None = None,
    progress: Progress = no_progress,
) -> AdaptationRecord:
    """Adapt a compiled model to labelled samples ``(inputs, labels)``.

    ``model`` is a :class:`CompiledModel`, whose ``adapted`` states this sets, or the path of an
    artifact, in which they are stored every ``options.every`` samples and at the end.
    ``evaluation`` are held-out ``(inputs, targets)`` on which ``metric(outputs, targets)`` is taken
    before, during and after; nothing is decided by it.

    A run that was interrupted goes on where it was last stored, given the same data and options,
    with the same result. An adaptation that ended needs ``start``: ``"initial"`` begins again from
    the state as deployed, ``"adapted"`` learns on. ``device`` defaults to the one that adapted, or
    to the noisy trial 0 of the program's seed. Raises :class:`DiagnosticError` for data that do not
    fit; a run that diverged or wore cells out returns with that ``status``.
    """
    path = None if isinstance(model, CompiledModel) else Path(model)
    made = model if isinstance(model, CompiledModel) else load_artifact_model(Path(model))
    chosen = options or AdaptationOptions()
    given, labels = data
    inputs = made.signature.tensors(as_inputs(given))
    held = made.adapted
    device = device or (held.device if held is not None else Device(made.seed, made.trial))
    record = _record(held, start, chosen, device, data_sha256(inputs, labels))
    went_on = record is not None or start == "adapted"
    states = held.states if held is not None and went_on else None
    adaptation = Adaptation(made.executor, device, states)

    def evaluate() -> float:
        return _evaluate(made, device, evaluation, metric)

    def save(states: Mapping[str, Any], good: Mapping[str, Any], now: AdaptationRecord) -> None:
        made.adapted = Adapted(states, good, now)
        made.seed, made.trial, made.noisy = device.seed, device.trial, device.noisy
        if path is not None:
            store_adapted(path, made.adapted, made.target)

    run = AdaptationRun(
        adaptation,
        inputs,
        labels,
        chosen,
        record=record,
        good=held.good if held is not None and record is not None else None,
        cost=step_cost(made),
        evaluate=evaluate if evaluation is not None else None,
        save=save,
        progress=progress,
    )
    return run.run()


def _record(
    held: Adapted | None,
    start: Start | None,
    options: AdaptationOptions,
    device: Device,
    sha256: str,
) -> AdaptationRecord | None:
    """The record to go on from, or None to begin one."""
    if start == "adapted" and held is None:
        raise error(
            codes.USAGE,
            "there is no adapted state to start from",
            help="leave start away, or say start initial",
        )
    if held is None or start is not None:
        if held is not None and start == "adapted" and held.device != device:
            raise error(
                codes.USAGE,
                f"another device adapted: {held.device}",
                help="learn on with the same seed, trial and noise, or start from initial",
            )
        return None
    record = held.record
    choice = "--start initial begins again, --start adapted learns on (in Python start=...)"
    if record.status != "running":
        raise error(
            codes.USAGE,
            f"the program is adapted already ({record.status} after {record.samples} samples)",
            help=choice,
        )
    changed = [
        name for name, value in asdict(options).items() if record.settings.get(name) != value
    ]
    if record.data_sha256 != sha256:
        changed.append("data")
    if record.device != asdict(device):
        changed.append("device")
    if changed:
        raise error(
            codes.USAGE,
            f"an adaptation was interrupted after {record.samples} samples, and this one differs "
            f"in {', '.join(changed)}",
            help=f"give what it had, to go on; {choice}",
        )
    return record


def _evaluate(
    made: CompiledModel, device: Device, evaluation: tuple[Any, Any] | None, metric: Metric
) -> float:
    inputs, targets = evaluation_set(evaluation)
    outputs = made.executor.run(
        made.signature.tensors(inputs),
        trials=(device.trial,),
        seed=device.seed,
        noisy=device.noisy,
        first_sample=FIRST_EVALUATED,
    )
    return metric_value(metric, made.signature.rebuild([value[0] for value in outputs]), targets)


def step_cost(made: CompiledModel) -> StepCost | None:
    """What a step costs by the report's entry point ``adapt``; None where that is not known."""
    point = made.report_data.get("entry_points", {}).get("adapt")
    if point is None or not point["energy_pj"]:
        return None
    writing = find_backend(made.target.backend).write_energy(made.target)
    if writing is None:
        return StepCost(float(point["energy_pj"]), float(point["latency_ns"]))
    component, write_pj = writing
    assumed = point["components"].get(component, {}).get("energy_pj") or 0.0
    return StepCost(float(point["energy_pj"] - assumed), float(point["latency_ns"]), write_pj)


def labelled_data(path: Path, names: list[str]) -> tuple[CallInputs, Tensor]:
    """Labelled samples from a Python file with ``adaptation_data()``, an .npz or .safetensors file.

    The array of labels is called ``labels``, the others like the program's inputs.
    """
    if path.suffix == ".py":
        held = load_data_file(path).require("adaptation_data", "adaptation")()
        if not isinstance(held, (tuple, list)) or len(held) != 2:
            raise error(
                codes.BAD_DATA,
                f"adaptation_data() returns a pair (inputs, labels), not {type(held).__name__}",
            )
        return as_inputs(held[0]), _labels(held[1], str(path))
    tensors = read_tensors(path)
    if "labels" not in tensors:
        raise error(
            codes.BAD_DATA,
            f"{path} holds no array 'labels': {', '.join(sorted(tensors)) or 'it is empty'}",
            help=f"numpy.savez(file, {', '.join(f'{name}=...' for name in names)}, labels=...)",
        )
    labels = tensors.pop("labels")
    absent = [name for name in names if name not in tensors]
    if absent and len(tensors) != len(names):
        raise error(
            codes.BAD_DATA,
            f"{path} lacks the input {absent[0]!r}",
            help=f"the program takes {', '.join(names)}",
        )
    values = list(tensors.values()) if absent else [tensors[name] for name in names]
    return tuple(values), _labels(labels, str(path))


def _labels(given: Any, where: str) -> Tensor:
    if not isinstance(given, Tensor) or given.is_floating_point() or given.dim() != 1:
        shown = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given)
        raise error(
            codes.BAD_DATA,
            f"labels of {where} are {shown}, expected one integer for each sample",
            help="give the number of the class of each sample",
        )
    return given.long()
