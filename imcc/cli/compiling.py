"""``imcc compile``: a model file, or the program of a phase, to an artifact and a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from imcc.cli.opt import instruments, show_timing
from imcc.cli.progress import progress
from imcc.driver import CompiledModel, CompileOptions, compile_file, resume
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.passes.infrastructure import Instrument, Progress, Timing
from imcc.report.dot import program_dot, render_svg
from imcc.runtime.artifact import check_output


@dataclass(frozen=True)
class CompileCommand:
    """The command's options by the names of ``imcc compile --help``."""

    data: Path | None
    target: str | None
    output: Path | None
    overrides: tuple[str, ...]
    passes: str | None
    trials: int
    seed: int | None
    sweep: bool
    calibrate_on_example: bool
    check: bool
    to: str | None
    start: str | None
    dump_phases: Path | None
    reproducer: Path | None
    verify_each: bool
    dump_passes: Path | None
    print_after_change: bool
    timing: bool
    timing_tree: bool
    timing_json: Path | None
    force: bool
    as_json: bool


def compile_program(model: str, given: CompileCommand) -> tuple[dict[str, Any], Path | None]:
    """Run the command; returns the report, and what was written."""
    if given.output is not None:
        check_output(given.output, force=given.force)
    timing = Timing()
    watching = tuple(instruments(given, given.reproducer))
    with progress() as report_progress:
        if Path(model).suffix == ".imc":
            made = _resume(model, given, watching, timing, report_progress)
        else:
            options = _options(given, watching, timing)
            made = compile_file(model, options, report_progress, data=given.data)
    report = made.report()
    if given.output is not None:
        _save(made, report, given.output, given.force)
    show_timing(timing, given)
    return report, given.output


def _options(
    given: CompileCommand, watching: tuple[Instrument, ...], timing: Timing
) -> CompileOptions:
    return CompileOptions(
        given.target or "rram",
        given.overrides,
        given.passes,
        given.trials,
        given.seed or 0,
        given.sweep,
        given.calibrate_on_example,
        given.to,
        given.dump_phases,
        given.start,
        given.check,
        watching,
        timing,
    )


def _resume(
    model: str,
    given: CompileCommand,
    watching: tuple[Instrument, ...],
    timing: Timing,
    report_progress: Progress,
) -> CompiledModel:
    for name, value in (
        ("--data", given.data),
        ("--from", given.start),
        ("--trials", given.trials),
        ("--check", given.check),
        ("--calibrate-on-example", given.calibrate_on_example),
    ):
        if value:
            raise error(
                codes.USAGE,
                f"{name} needs the model file; {model} has no data for it",
                help="give MODEL.py with --dump-phases DIR --from PHASE",
            )
    return resume(
        model,
        target=given.target,
        overrides=given.overrides,
        passes=given.passes,
        seed=given.seed,
        to=given.to,
        dump_phases=given.dump_phases,
        instruments=watching,
        timing=timing,
        progress=report_progress,
    )


def _save(made: CompiledModel, report: dict[str, Any], output: Path, force: bool) -> None:
    dot = program_dot(made.module, report)
    extra = {"program.dot": dot.encode()}
    svg, reason = render_svg(dot)
    if svg is None:
        click.echo(f"note: {reason}; wrote program.dot without program.svg", err=True)
    else:
        extra["program.svg"] = svg
    made.save(output, force=force, extra=extra)
