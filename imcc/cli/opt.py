"""``imcc opt``: read IR, verify, run passes, print. Loads torch only for passes that need data."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from imcc.ir.module import Module
from imcc.ir.text import print_module
from imcc.ir.text.mlir import export_mlir
from imcc.ir.verifier import verify
from imcc.passes.infrastructure import PassContext, PassRecord, parse_pipeline, run_pipeline


def optimise(
    module: Module,
    name: str,
    passes: str,
    weights: Path | None,
    target: str | None,
    overrides: Sequence[str],
    seed: int,
    print_after_change: bool,
    timing: bool,
    emit: str,
    as_json: bool,
) -> None:
    """Run the command; the resulting IR goes to stdout."""
    verify(module)
    pipeline = parse_pipeline(passes)
    context = PassContext(seed=seed)
    needed = any("weights" in item.requires() for item in pipeline)
    if weights is None and needed and module.resource_file is not None and name != "-":
        beside = Path(name).parent / Path(module.resource_file).name
        weights = beside if beside.is_file() else None
    if weights is not None:
        from imcc.ir.semantics.resources import ResourceStore

        context.resources = ResourceStore.load(weights, module)
    if target is not None:
        from imcc.backends.api import find_backend
        from imcc.backends.targets import find_target

        context.target = find_target(target, overrides)
        context.backend = find_backend(context.target.backend)
        context.legality = context.backend.legal

    def after(record: PassRecord, changed: Module) -> None:
        if print_after_change and record.changed:
            click.echo(f"// after {record.text}\n{print_module(changed)}", err=True)

    records = run_pipeline(module, pipeline, context, after=(after,))
    for warning in context.warnings:
        click.echo(warning.render(), err=True)
    made = export_mlir(module) if emit == "mlir" else print_module(module)
    if as_json:
        data: dict[str, Any] = {
            "module": made,
            "passes": [
                {"pass": item.text, "seconds": item.seconds, "changes": len(item.journal.changes)}
                for item in records
            ],
        }
        click.echo(json.dumps(data, indent=2))
    else:
        sys.stdout.write(made)
    if timing:
        total = sum(item.seconds for item in records)
        for item in records:
            share = 100 * item.seconds / total if total else 0.0
            click.echo(f"{item.seconds * 1e3:10.2f} ms {share:5.1f} %  {item.text}", err=True)
