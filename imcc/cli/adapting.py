"""``imcc adapt``: an artifact learns from labelled samples."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from imcc.cli.progress import progress
from imcc.driver import adapt, load
from imcc.driver.adapting import Metric, accuracy, labelled_data
from imcc.frontend.model_file import load_data_file
from imcc.ir.diagnostics import DiagnosticError
from imcc.report.adaptation import curve_svg, print_adaptation
from imcc.runtime.adaptation import AdaptationOptions, verdict
from imcc.runtime.executor import Device
from imcc.runtime.output import check_new_file, write_file


@dataclass(frozen=True)
class AdaptCommand:
    """The options of ``imcc adapt``."""

    data: Path
    evaluation: Path | None
    seed: int | None
    trial: int
    noise_off: bool
    start: Any
    plot: Path | None
    force: bool
    as_json: bool
    batch: int
    samples: int | None
    passes: int
    shuffled: bool
    every: int
    window: int
    stop_accuracy: float | None
    patience: int | None
    divergence: float
    worn: float

    def options(self) -> AdaptationOptions:
        """How the stream is used."""
        return AdaptationOptions(
            self.batch,
            self.samples,
            self.passes,
            self.shuffled,
            self.every,
            self.window,
            self.stop_accuracy,
            self.patience,
            self.divergence,
            self.worn,
        )


def adapt_artifact(artifact: Path, command: AdaptCommand) -> None:
    """Adapt, store, and print what happened; raises a diagnostic if it ended badly."""
    if command.plot is not None:
        check_new_file(command.plot, force=command.force)
    made = load(artifact)
    names = [value.name for value in made.module.function().inputs]
    data = labelled_data(command.data, names)
    evaluation: tuple[Any, Any] | None = None
    metric: Metric = accuracy
    if command.evaluation is not None and command.evaluation.suffix != ".py":
        evaluation = labelled_data(command.evaluation, names)
    else:
        held = load_data_file(command.evaluation or command.data) if _python(command) else None
        if held is not None and held.evaluation_data is not None:
            evaluation = held.evaluation_data()
            metric = held.metric or accuracy
    seeded = command.seed is not None or command.trial or command.noise_off
    device = Device(
        made.seed if command.seed is None else command.seed, command.trial, not command.noise_off
    )
    with progress() as report_progress:
        record = adapt(
            artifact,
            data,
            evaluation=evaluation,
            metric=metric,
            options=command.options(),
            start=command.start,
            device=device if seeded else None,
            progress=report_progress,
        )
    if command.as_json:
        click.echo(json.dumps(record.to_json(), indent=2))
    else:
        print_adaptation(record, sys.stdout)
    if command.plot is not None:
        write_file(command.plot, curve_svg(record))
        click.echo(f"wrote {command.plot}", err=True)
    wrong = verdict(record)
    if wrong is not None:
        raise DiagnosticError(wrong)


def _python(command: AdaptCommand) -> bool:
    return (command.evaluation or command.data).suffix == ".py"
