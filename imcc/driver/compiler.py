"""Compilation: capture, passes, cost, evaluation, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imcc._version import __version__
from imcc.backends.api import Backend, Target, find_backend
from imcc.backends.targets import find_target
from imcc.driver.compiled import CompiledModel
from imcc.driver.data import as_inputs, calibration_batches, evaluation_set, fit_batches
from imcc.driver.evaluation import Evaluated, evaluate_accuracy
from imcc.driver.signature import Signature, input_names
from imcc.driver.test_set import MetricTestSet, TestSet
from imcc.frontend.capture import capture
from imcc.frontend.model_file import ModelFile, load_model_file
from imcc.ir import codes
from imcc.ir.cost import SCHEMA_VERSION, CostRecord
from imcc.ir.diagnostics import Diagnostic, error
from imcc.ir.module import Module, clone_function
from imcc.ir.verifier import verify
from imcc.passes.infrastructure import (
    PassContext,
    PassRecord,
    Progress,
    no_progress,
    parse_pipeline,
    print_pipeline,
    run_pipeline,
)
from imcc.runtime.artifact import WEIGHTS
from imcc.runtime.history import HistoryRecorder

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CompileOptions:
    """Options of a compilation.

    ``target`` is a preset's name or a TOML file, ``overrides`` are ``"key.path=value"`` strings.
    ``passes`` is a pipeline as text; None takes the target's own. ``trials`` noisy trials are
    evaluated when there is evaluation data; ``sweep`` adds the sweep over write noise.
    ``calibrate_on_example`` allows the example inputs to serve as calibration data.
    """

    target: str = "rram"
    overrides: tuple[str, ...] = ()
    passes: str | None = None
    trials: int = 0
    seed: int = 0
    sweep: bool = True
    calibrate_on_example: bool = False


def compile(
    model: nn.Module,
    example_inputs: Any,
    target: str = "rram",
    *,
    passes: str | None = None,
    overrides: Sequence[str] = (),
    calibration: Any = None,
    evaluation: Any = None,
    metric: Callable[[Any, Any], Any] | None = None,
    trials: int = 0,
    seed: int = 0,
    sweep: bool = True,
    calibrate_on_example: bool = False,
    name: str = "model",
    progress: Progress = no_progress,
) -> CompiledModel:
    """Compile a PyTorch model for a target.

    ``example_inputs`` is a tensor or a tuple of them, batch first. ``calibration`` is a list of
    input tuples from the training set (see :func:`imcc.driver.data.calibration_batches`).
    ``evaluation`` is ``(inputs, targets)``; with ``metric(outputs, targets)`` the report gets an
    accuracy section, with ``trials`` noisy trials. Raises :class:`DiagnosticError` for whatever is
    wrong with the model, the data, the target or the passes.
    """
    from torch import nn

    if not isinstance(model, nn.Module):
        raise error(
            codes.MODEL_FILE,
            f"the model is {type(model).__name__}, not a torch.nn.Module",
            help="wrap a function into a module with a forward method",
        )
    options = CompileOptions(
        target, tuple(overrides), passes, trials, seed, sweep, calibrate_on_example
    )
    return _compile(
        model,
        as_inputs(example_inputs),
        options,
        calibration=calibration,
        test_set=_test_set(evaluation, metric),
        name=name,
        source=None,
        progress=progress,
    )


def compile_file(
    spec: str | ModelFile,
    options: CompileOptions,
    progress: Progress = no_progress,
    *,
    test_set: TestSet | None = None,
) -> CompiledModel:
    """Compile a user's model file, ``path.py`` or ``path.py:name`` of the model function.

    ``test_set`` is evaluated in place of the file's ``evaluation_data()``.
    """
    held = spec if isinstance(spec, ModelFile) else load_model_file(spec)
    calibration = held.calibration_data() if held.calibration_data is not None else None
    if test_set is None and held.evaluation_data is not None:
        test_set = _test_set(held.evaluation_data(), held.require("metric", "evaluation"))
    return _compile(
        held.module,
        held.example_inputs,
        options,
        calibration=calibration,
        test_set=test_set,
        name=held.path.parent.name if held.path.stem == "model" else held.path.stem,
        source=held,
        progress=progress,
    )


def _compile(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    options: CompileOptions,
    *,
    calibration: Any,
    test_set: TestSet | None,
    name: str,
    source: ModelFile | None,
    progress: Progress,
) -> CompiledModel:
    target = find_target(options.target, options.overrides)
    backend = find_backend(target.backend)
    text = options.passes if options.passes is not None else backend.pipeline(target)
    passes = parse_pipeline(text)
    progress(0, 3, "capture")
    captured = capture(model, example_inputs, name=_identifier(name))
    signature = Signature.of(captured, input_names(model, len(example_inputs)))
    needed = any("calibration" in item.requires() for item in passes)
    if needed and calibration is None and not options.calibrate_on_example and source is not None:
        source.require("calibration_data", "calibration of input and converter ranges")
    batches = _calibration(calibration, example_inputs, options, signature)
    if batches is not None:
        batches = fit_batches(batches, captured.module.function())
    module = captured.module.clone()
    verify(module)
    for function in module.functions.values():
        function.target = target.name
    resources = captured.resources.copy()
    context = PassContext(
        resources=resources,
        target=target,
        backend=backend,
        calibration=batches,
        seed=options.seed,
        progress=progress,
        estimator=lambda function, other, activity: estimate(
            captured.module, function.name, other or target, context, activity
        ),
        legality=backend.legal,
    )
    recorder = HistoryRecorder(module)
    records = run_pipeline(module, passes, context, instruments=(recorder,))
    context.rewriter(module, "driver").set_resource_file(WEIGHTS)
    made = CompiledModel(
        module,
        resources,
        target,
        signature,
        {},
        tuple(records),
        seed=options.seed,
        history=recorder.history(),
    )
    accuracy: Evaluated | None = None
    if test_set is not None:
        accuracy = evaluate_accuracy(
            captured,
            made,
            backend,
            test_set,
            trials=options.trials,
            seed=options.seed,
            sweep=options.sweep,
            progress=progress,
        )
    warnings = [*captured.warnings, *context.warnings]
    made.report_data = _report(
        made, backend, name, source, print_pipeline(passes), records, accuracy, warnings
    )
    return made


def estimate(
    module: Module, function: str, target: Target, context: PassContext, activity: str = "assumed"
) -> CostRecord:
    """Cost of a function of a captured module on a target, through its default pipeline.

    The module is cloned; ``context`` provides weights and calibration data.
    """
    backend = find_backend(target.backend)
    copy = Module(module.name, phase=module.phase)
    copy.resources = dict(module.resources)
    copy.states = dict(module.states)
    copy.add_function(clone_function(module.function(function)))
    inner = dataclasses.replace(
        context,
        target=target,
        backend=backend,
        resources=context.weights().copy(),
        legality=backend.legal,
        warnings=[],
    )
    run_pipeline(copy, parse_pipeline(backend.pipeline(target)), inner)
    return backend.cost(copy, function, target, activity)  # type: ignore[arg-type]


def _test_set(evaluation: Any, metric: Callable[[Any, Any], Any] | None) -> TestSet | None:
    if evaluation is None or metric is None:
        return None
    inputs, targets = evaluation_set(evaluation)
    return MetricTestSet(inputs, targets, metric)


def _calibration(
    calibration: Any,
    example_inputs: tuple[Any, ...],
    options: CompileOptions,
    signature: Signature,
) -> list[tuple[Any, ...]] | None:
    if calibration is None:
        if not options.calibrate_on_example:
            return None
        calibration = [example_inputs]
    return [tuple(signature.flatten(batch)) for batch in calibration_batches(calibration)]


def _identifier(name: str) -> str:
    made = "".join(char if char.isalnum() or char in "_.-" else "_" for char in name)
    return made if made and made.isascii() and made[0].isalnum() else "model"


def _report(
    made: CompiledModel,
    backend: Backend,
    name: str,
    source: ModelFile | None,
    pipeline: str,
    records: Sequence[PassRecord],
    accuracy: Evaluated | None,
    warnings: Sequence[Diagnostic],
) -> dict[str, Any]:
    points: dict[str, Any] = {}
    for function in made.module.functions:
        points[function] = backend.cost(made.module, function, made.target).to_json()
    main = points["inference"]
    file = str(source.path) if source is not None else None
    return {
        "schema_version": SCHEMA_VERSION,
        "imcc_version": __version__,
        "model": {"name": name, "file": Path(file).name if file else None},
        "targets": [
            {
                "name": made.target.name,
                "backend": made.target.backend,
                "sha256": made.target.sha256,
            }
        ],
        "seed": made.seed,
        "phase": made.module.phase,
        "pipeline": pipeline,
        "passes": [
            {"pass": item.text, "seconds": item.seconds, "changes": len(item.journal.changes)}
            for item in records
        ],
        "energy_pj": main["energy_pj"],
        "latency_ns": main["latency_ns"],
        "area_um2": main["area_um2"],
        "resources": main["resources"],
        "entry_points": points,
        "accuracy": accuracy.to_json() if accuracy is not None else None,
        "warnings": [item.to_json() for item in warnings],
        "signature": made.signature.to_json(),
    }
