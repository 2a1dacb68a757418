"""``imcc opt``: read IR, verify, run passes, print. Loads torch only for passes that need data."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.ir.module import Module
from imcc.ir.text import print_module
from imcc.ir.text.mlir import export_mlir
from imcc.ir.verifier import verify
from imcc.passes.infrastructure import (
    CrashReproducer,
    Instrument,
    NumberedDumps,
    Pass,
    PassContext,
    PassRecord,
    PrintAfterChange,
    Timing,
    VerifyEach,
    parse_pipeline,
    passes_after,
    passes_until,
    run_pipeline,
)
from imcc.runtime.output import write_file


@dataclass(frozen=True)
class OptOptions:
    """The command's options by the names of ``imcc opt --help``."""

    passes: str | None
    to: str | None
    weights: Path | None
    target: str | None
    overrides: tuple[str, ...]
    calibration: Path | None
    seed: int
    bisect: Path | None
    reproducer: Path | None
    verify_each: bool
    dump_passes: Path | None
    print_after_change: bool
    timing: bool
    timing_tree: bool
    timing_json: Path | None
    emit: str
    as_json: bool


def optimise(module: Module, name: str, options: OptOptions) -> None:
    """Run the command; the resulting IR, or the result of a bisection, goes to stdout."""
    verify(module)
    context = PassContext(seed=options.seed)
    if options.target is not None:
        from imcc.backends.api import find_backend
        from imcc.backends.targets import find_target

        context.target = find_target(options.target, options.overrides)
        context.backend = find_backend(context.target.backend)
        context.legality = context.backend.legal
    pipeline = _pipeline(module, options, context)
    _data(module, name, options, context, pipeline)
    if options.bisect is not None:
        _bisect(module, options, context, pipeline)
        return
    records = run_pipeline(
        module, pipeline, context, instruments=instruments(options, options.reproducer)
    )
    for warning in context.warnings:
        click.echo(warning.render(), err=True)
    show_timing(context.timing, options)
    made = export_mlir(module) if options.emit == "mlir" else print_module(module)
    if options.as_json:
        click.echo(json.dumps({"module": made, "passes": passes_json(records)}, indent=2))
    else:
        sys.stdout.write(made)


def _pipeline(module: Module, options: OptOptions, context: PassContext) -> tuple[Pass, ...]:
    """The given passes, or what the target's own pipeline still has to do from this phase on."""
    if options.passes is not None:
        passes = parse_pipeline(options.passes)
        return passes if options.to is None else passes_until(passes, options.to)
    if options.to is None and options.bisect is None:
        return ()
    if context.target is None:
        raise error(
            codes.USAGE,
            "without --passes, the passes to run come from a target",
            help="give --target NAME, or --passes 'NAME, NAME'",
        )
    passes = parse_pipeline(context.backend.pipeline(context.target))
    until = passes if options.to is None else passes_until(passes, options.to)
    left = set(map(id, passes_after(passes, module.phase)))
    return tuple(item for item in until if id(item) in left)


def _data(
    module: Module,
    name: str,
    options: OptOptions,
    context: PassContext,
    pipeline: tuple[Pass, ...],
) -> None:
    """Weights from the file given or beside the module, calibration data; where they are needed."""
    weights = options.weights
    needed = options.bisect is not None or options.dump_passes is not None
    needed = needed or any("weights" in item.requires() for item in pipeline)
    if weights is None and needed and module.resource_file is not None and name != "-":
        place = Path(name) if Path(name).is_dir() else Path(name).parent
        beside = place / Path(module.resource_file).name
        weights = beside if beside.is_file() else None
    if weights is not None:
        from imcc.ir.semantics.resources import ResourceStore

        context.resources = ResourceStore.load(weights, module)
    if options.calibration is not None:
        from imcc.ir.semantics.tensor_files import read_batches

        context.calibration = read_batches(options.calibration, _input_names(module))


def _input_names(module: Module) -> list[str]:
    function = module.functions.get("inference")
    return [value.name for value in function.inputs] if function is not None else []


def _bisect(
    module: Module, options: OptOptions, context: PassContext, pipeline: tuple[Pass, ...]
) -> None:
    from imcc.driver.bisection import bisect
    from imcc.ir.semantics.tensor_files import read_inputs

    inputs = read_inputs(Path(str(options.bisect)), _input_names(module))
    found = bisect(module, pipeline, context, inputs, reproducer=options.reproducer)
    if options.as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        for item in found.passes:
            if item.measured is None:
                shown = item.failure
            else:
                shown = f"{item.measured.metric} {item.measured.value:.6g}"
            verdict = "kept  " if item.holds else "BROKEN"
            click.echo(f"{verdict}  {item.text}  ({item.promise}): {shown}")
    wrong = found.diagnostic()
    if wrong is not None:
        raise DiagnosticError(wrong)
    click.echo(f"all {len(found.passes)} passes kept their promises", err=True)


# -- shared with other commands that run passes ----------------------------------------------------


def instruments(options: Any, reproducer: Path | None) -> list[Instrument]:
    """The instruments that a command's options ask for."""
    made: list[Instrument] = []
    if options.print_after_change:
        made.append(PrintAfterChange(lambda text: click.echo(text, err=True)))
    if options.dump_passes is not None:
        made.append(NumberedDumps(options.dump_passes))
    if options.verify_each:
        made.append(VerifyEach())
    if reproducer is not None:
        made.append(CrashReproducer(reproducer))
    return made


def passes_json(records: list[PassRecord]) -> list[dict[str, Any]]:
    """What ran, for JSON output."""
    return [
        {"pass": item.text, "seconds": item.seconds, "changes": len(item.journal.changes)}
        for item in records
    ]


def show_timing(timing: Timing, options: Any) -> None:
    """Print or write where the time went, as the options ask."""
    if options.timing:
        click.echo(timing.as_list(), err=True)
    if options.timing_tree:
        click.echo(timing.as_tree(), err=True)
    if options.timing_json is not None:
        write_file(options.timing_json, json.dumps(timing.to_json(), indent=2) + "\n")
