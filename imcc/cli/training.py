"""``imcc train``: fine-tuning under noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from imcc.cli.progress import progress
from imcc.driver import CompileOptions, train_file
from imcc.runtime.output import check_new_file
from imcc.training import Recipe


def train_model(
    model: str,
    output: Path,
    *,
    force: bool,
    data: Path | None,
    target: str,
    overrides: tuple[str, ...],
    passes: str | None,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    constant_rate: bool,
    noise: bool,
    reads: Any,
    seed: int,
    trials: int,
    checkpoint: Path | None,
    calibrate_on_example: bool,
) -> dict[str, Any]:
    """Train, write the weights, and return the report."""
    check_new_file(output, force=force)
    options = CompileOptions(target, overrides, passes, trials, seed, False, calibrate_on_example)
    recipe = Recipe(
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        schedule="constant" if constant_rate else "cosine",
        noise=noise,
        reads=reads,
        seed=seed,
    )
    with progress() as report_progress:
        made = train_file(model, options, recipe, report_progress, data=data, checkpoint=checkpoint)
    made.save(output, force=force)
    return made.report()


def show_training(report: dict[str, Any]) -> None:
    """Print the report for people."""
    recipe, loss = report["recipe"], report["loss"]
    click.echo(
        f"{recipe['steps']} steps over {report['batches']} batches on {report['target']['name']}, "
        f"reads {recipe['reads']}, noise {'on' if recipe['noise'] else 'off'}"
    )
    click.echo(
        f"loss: {loss['first']:.4f} at first, {loss['last']:.4f} at last (means of "
        f"{loss['averaged_steps']} steps)"
    )
    click.echo(f"trained: {len(report['trained'])} tensors")
    if report["untouched"]:
        click.echo(f"not trained: {', '.join(report['untouched'])}")
    for note in report["notes"]:
        click.echo(f"note: {note}")
    if report["accuracy"] is not None:
        for when in ("before", "after"):
            held = report["accuracy"][when]
            noisy = held["noisy"]
            spread = f" +- {noisy['std']:.4f}" if noisy["trials"] > 1 else ""
            click.echo(
                f"{when}: float {held['float']:.4f}, noise-free {held['noise_free']:.4f}, noisy "
                f"{noisy['mean']:.4f}{spread} over {noisy['trials']} trials"
            )
