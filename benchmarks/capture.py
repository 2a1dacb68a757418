"""Capture of models from other people's libraries: ops, time, difference to torch.

``python -m benchmarks.capture --json`` measures all of them; ``--only LLaMA`` one;
``--write docs/reference/captured-models.md`` writes the table of the documentation.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks import capture_models
from benchmarks.capture_models import Case
from benchmarks.output import Row, main
from imcc.frontend.capture import Captured, capture
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.regions import region
from imcc.ir.semantics.interpreter import evaluate_function

PROVIDERS: list[Callable[[], Iterable[Case]]] = [capture_models.cases]
"""Each gives models to measure; other modules of benchmarks add theirs here."""

COLUMNS = ("model", "library", "version", "ops", "distinct_ops", "seconds", "regions", "attentions")


def measure_case(case: Case) -> Row:
    """Capture in float32 (and float64), and compare with eager torch on the example inputs."""
    torch.manual_seed(0)
    model, inputs = case.build()
    start = time.perf_counter()
    captured = capture(model, inputs)
    seconds = time.perf_counter() - start
    ops = [op for op in captured.module.function().ops if not op.terminator]
    worst, relative = difference(captured, model, inputs)
    row: Row = {
        "model": case.model,
        "library": case.library,
        "version": importlib.metadata.version(case.library),
        "ops": len(ops),
        "distinct_ops": len({op.name for op in ops}),
        "seconds": round(seconds, 2),
        "max_abs_diff": worst,
        "relative_diff_f32": relative,
        "relative_diff_f64": None,
        "regions": len(regions(captured)),
        "attentions": sum(op.name == "nn.attention" for op in ops),
        "pretrained": case.pretrained,
        "op_names": sorted({op.name for op in ops}),
        "warnings": [item.message for item in captured.warnings],
    }
    if case.float64:
        wide = model.double()
        data = pytree.tree_map(
            lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs
        )
        row["relative_diff_f64"] = difference(capture(wide, data), wide, data)[1]
    return row


def difference(captured: Captured, model: torch.nn.Module, inputs: Any) -> tuple[float, float]:
    """Largest difference to eager: absolute, and relative to the largest output."""
    given = [item for item in pytree.tree_leaves(inputs) if isinstance(item, Tensor)]
    with torch.no_grad():
        made = evaluate_function(
            captured.module.function(), given, resources=captured.resources
        ).outputs
        held = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    wanted = [item for item in pytree.tree_leaves(held) if isinstance(item, Tensor)]
    worst = [
        float((a.double() - b.double()).abs().max()) for a, b in zip(made, wanted, strict=True)
    ]
    largest = [float(item.double().abs().max()) or 1.0 for item in wanted]
    return max(worst), max(a / b for a, b in zip(worst, largest, strict=True))


def regions(captured: Captured) -> list[str]:
    """Scopes such as ``blocks.3``: numbered modules whose ops form a convex subgraph."""
    function = captured.module.function()
    found: dict[str, None] = {}
    for op in function.ops:
        parts = op.scope.split(".")
        for place, part in enumerate(parts):
            if part.isdigit():
                found[".".join(parts[: place + 1])] = None
                break
    kept: list[str] = []
    for scope in found:
        try:
            region(function, scope)
        except DiagnosticError:
            continue
        kept.append(scope)
    return kept


def measure(options: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    for provider in PROVIDERS:
        for case in provider():
            if options.only and case.model not in options.only:
                continue
            if options.quick and case.pretrained:
                continue
            try:
                importlib.metadata.version(case.library)
                if case.pretrained:
                    importlib.metadata.version(case.pretrained)
            except importlib.metadata.PackageNotFoundError as absent:
                print(f"{case.model}: skipped, {absent.name} is not installed", file=sys.stderr)
                continue
            print(case.model, file=sys.stderr)
            rows.append(measure_case(case))
    if not options.only:
        from benchmarks import capture_spiking

        rows += capture_spiking.rows(options.quick)
    if options.write is not None:
        options.write.write_text(table(rows), encoding="utf-8")
    return rows


def table(rows: list[Row]) -> str:
    """The page of the documentation."""
    names = sorted({name for row in rows for name in row["op_names"]})
    lines = [
        "# Captured models",
        "",
        "Made by `python -m benchmarks.capture --write docs/reference/captured-models.md`; do not "
        "edit.",
        "Differences are to eager torch on the same inputs, relative to the largest output. "
        "Regions are",
        "numbered modules (`layers.3`) whose ops form a convex subgraph. Seconds are of the",
        "machine that made the table.",
        "",
        "| model | library | ops | distinct | seconds | float32 | float64 | regions | attentions |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "flips" in row:
            continue
        name = row["model"] + (f" ({row['pretrained']})" if row["pretrained"] else "")
        wide = row["relative_diff_f64"]
        lines.append(
            f"| {name} | {row['library']} {row['version']} | {row['ops']} | {row['distinct_ops']} "
            f"| {row['seconds']:.1f} | {row['relative_diff_f32']:.0e} "
            f"| {'-' if wide is None else f'{wide:.0e}'} | {row['regions']} | {row['attentions']} |"
        )
    lines += [
        "",
        "Spiking networks, against the library's own run. Flips are output spikes that differ; the",
        "step form stays where steps truly mix, with a warning.",
        "",
        "| model | library | ops | distinct | seconds | neurons over time | output spikes "
        "| flips float32 | flips float64 | largest difference |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "flips" in row:
            lines.append(
                f"| {row['model']} | {row['library']} {row['version']} | {row['ops']} "
                f"| {row['distinct_ops']} | {row['seconds']:.1f} | {row['neurons_over_time']} "
                f"| {row['spikes']} | {row['flips']} | {row['flips_f64']} "
                f"| {row['max_abs_diff']:.0e} |"
            )
    lines += [
        "",
        f"Together they use {len(names)} ops: " + ", ".join(f"`{n}`" for n in names) + ".",
    ]
    return "\n".join(lines) + "\n"


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", action="append", default=[], metavar="MODEL")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as Markdown")


if __name__ == "__main__":
    main(__doc__.splitlines()[0], measure, extend)
