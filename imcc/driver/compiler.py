"""Compilation: capture, passes, cost, evaluation, report."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from imcc.backends.api import find_backend
from imcc.backends.targets import find_target
from imcc.driver.compiled import CompiledModel
from imcc.driver.data import CallInputs, as_inputs, calibration_batches, evaluation_set
from imcc.driver.options import CompileOptions
from imcc.driver.phase_folder import Dump
from imcc.driver.signature import Signature, in_order, input_names
from imcc.driver.stages import Start, finish, start_of
from imcc.driver.test_set import MetricTestSet, TestSet
from imcc.frontend.capture import capture, capture_exported
from imcc.frontend.exported import call_inputs
from imcc.frontend.model_file import LINES, ModelFile, load_model_file
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.passes.infrastructure import (
    NO_CALIBRATION,
    Pass,
    Progress,
    Timing,
    known_phase,
    no_progress,
    parse_pipeline,
    passes_after,
)


def compile(
    model: nn.Module | ExportedProgram | Callable[..., Any],
    example_inputs: Any = None,
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
    to: str | None = None,
    dump_phases: str | Path | None = None,
    start: str | None = None,
    check: bool = False,
    dynamic: bool = True,
    progress: Progress = no_progress,
) -> CompiledModel:
    """Compile a PyTorch model for a target.

    ``model`` is a module, a function of tensors, or what ``torch.export.export`` gave.
    ``example_inputs`` is a tensor or a tuple of them, batch first, or a dict of keyword inputs; an
    exported program needs none. ``calibration`` is a list of such inputs from the training set
    (see :func:`imcc.driver.data.calibration_batches`). ``evaluation`` is ``(inputs, targets)``;
    with ``metric(outputs, targets)`` the report gets an accuracy section, with ``trials`` noisy
    trials. :class:`CompileOptions` explains ``to``, ``dump_phases``, ``start``, ``check``
    and ``dynamic``.
    Raises :class:`DiagnosticError` for whatever is wrong with the model, the data, the target or
    the passes.
    """
    held = _as_model(model)
    if example_inputs is None and isinstance(held, ExportedProgram):
        example_inputs = call_inputs(held, held.example_inputs)
    options = CompileOptions(
        target,
        tuple(overrides),
        passes,
        trials,
        seed,
        sweep,
        calibrate_on_example,
        to,
        Path(dump_phases) if dump_phases is not None else None,
        start,
        check,
        dynamic=dynamic,
    )
    return _compile(
        held,
        as_inputs(example_inputs),
        options,
        calibration=calibration,
        test_set=_test_set(evaluation, metric),
        name=name,
        source=None,
        progress=progress,
    )


def _as_model(model: Any) -> nn.Module | ExportedProgram:
    """A module or an exported program; a function becomes a module that calls it."""
    if isinstance(model, (nn.Module, ExportedProgram)):
        return model
    if isinstance(model, type) or not callable(model):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise error(
            codes.MODEL_FILE,
            f"the model is {given}, not a torch.nn.Module",
            help=f"make one of it: {model.__name__}(...)"
            if isinstance(model, type)
            else "give a module, a function of tensors or an exported program",
        )
    made = nn.Module()
    try:
        inspect.signature(model)
    except (TypeError, ValueError):
        # A built-in function does not say what it takes.
        made.forward = lambda *inputs: model(*inputs)
    else:
        made.forward = model
    return made


def compile_file(
    spec: str | ModelFile,
    options: CompileOptions,
    progress: Progress = no_progress,
    *,
    data: str | Path | None = None,
    test_set: TestSet | None = None,
) -> CompiledModel:
    """Compile a user's model file: ``path.py``, ``path.py:name``, or an exported ``path.pt2``.

    ``data`` is a file whose ``calibration_data()``, ``evaluation_data()``, ``metric()`` and
    ``example_inputs()`` replace those of the model file; an exported program has none.
    ``test_set`` is evaluated in place of the file's ``evaluation_data()``.
    """
    held = spec if isinstance(spec, ModelFile) else load_model_file(spec, data)
    if options.check and test_set is None:
        held.require("evaluation_data", "measuring what each pass costs in accuracy")
    calibration = held.calibration_data() if held.calibration_data is not None else None
    if test_set is None and held.evaluation_data is not None:
        test_set = _test_set(held.evaluation_data(), held.require("metric", "evaluation"))
    return _compile(
        held.module,
        () if held.example_inputs is None else held.example_inputs,
        options,
        calibration=calibration,
        test_set=test_set,
        name=held.path.resolve().parent.name if held.path.stem == "model" else held.path.stem,
        source=held,
        progress=progress,
    )


def _compile(
    model: nn.Module | ExportedProgram,
    example_inputs: CallInputs,
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
    timing = options.timing or Timing()
    with timing.span("capture"):
        progress(0, 3, "capture")
        start = start_from(model, example_inputs, options, name, source)
    needed = passes_after(passes, start.module.phase)
    ranging = [item for item in needed if "calibration" in item.requires()]
    if ranging and calibration is None and not options.calibrate_on_example:
        raise _no_calibration(ranging, source)
    if options.check and test_set is None:
        raise error(
            codes.BAD_DATA,
            "there is nothing to check passes on",
            help="give evaluation=(inputs, targets) and metric=...",
        )
    batches = calibration_tensors(calibration, example_inputs, options, start.signature)
    return finish(start, target, passes, batches, options, test_set, timing, progress)


def _no_calibration(ranging: Sequence[Pass], source: ModelFile | None) -> DiagnosticError:
    names = ", ".join(str(item).partition("{")[0] for item in ranging)
    lines = LINES["calibration_data"]
    if source is None:
        help_line = (
            "pass calibration=[(inputs,), ...] from the training set, or try it with "
            "calibrate_on_example=True"
        )
    elif source.path.suffix in (".pt2", ".nir"):
        help_line = f"give a file with --data that holds:\n{lines}"
    else:
        help_line = f"add to the model file, or to a file for --data:\n{lines}"
    return error(
        codes.PASS_REQUIRES,
        NO_CALIBRATION,
        reason=f"ranges of inputs and converters are set by what data show: {names}",
        help=help_line,
    )


def start_from(
    model: nn.Module | ExportedProgram,
    example_inputs: CallInputs,
    options: CompileOptions,
    name: str,
    source: ModelFile | None,
) -> Start:
    """The captured program, or the dump of the phase to resume from."""
    dump: Dump | None = None
    if options.start is not None:
        dump = _resumed(options.start, options.dump_phases)
    file = Path(str(source.path)).name if source is not None else None
    if dump is not None and dump.captured().module.phase == "captured":
        return start_of(dump, name, file)
    if isinstance(model, nn.Module):
        example_inputs = in_order(model, example_inputs)
        captured = capture(
            model,
            example_inputs,
            name=_identifier(name),
            dynamic_batch=options.dynamic,
            dynamic_sequence=options.dynamic,
        )
        names = captured.input_names or input_names(model, len(example_inputs))
    else:
        captured = capture_exported(model, name=_identifier(name))
        names = captured.input_names
    signature = Signature.of(captured, names)
    return Start(
        dump.module if dump is not None else captured.module,
        dump.resources if dump is not None else captured.resources,
        signature,
        captured.module,
        captured.resources,
        name,
        file,
        captured.warnings,
        dump,
    )


def _resumed(phase: str, folder: Path | None) -> Dump:
    known_phase(phase)
    if folder is None:
        raise error(
            codes.USAGE,
            f"there is no folder to resume the phase {phase!r} from",
            help="name the folder of an earlier run with --dump-phases DIR (in Python "
            "dump_phases=...)",
        )
    dump = Dump.read(folder / f"{phase}.imc")
    if dump.module.phase != phase:
        raise error(
            codes.USAGE,
            f"{dump.path} holds a program of phase {dump.module.phase!r}, not {phase!r}",
            help="rename the file to the phase that it holds",
        )
    return dump


def _test_set(evaluation: Any, metric: Callable[[Any, Any], Any] | None) -> TestSet | None:
    if evaluation is None or metric is None:
        return None
    inputs, targets = evaluation_set(evaluation)
    return MetricTestSet(inputs, targets, metric)


def calibration_tensors(
    calibration: Any,
    example_inputs: CallInputs,
    options: CompileOptions,
    signature: Signature,
) -> list[tuple[Any, ...]] | None:
    """Calibration data as tuples of tensors; the example inputs if the options allow it."""
    if calibration is None:
        if not options.calibrate_on_example:
            return None
        calibration = [example_inputs]
    return [tuple(signature.tensors(batch)) for batch in calibration_batches(calibration)]


def _identifier(name: str) -> str:
    made = "".join(char if char.isalnum() or char in "_.-" else "_" for char in name)
    return made if made and made.isascii() and made[0].isalnum() else "model"
