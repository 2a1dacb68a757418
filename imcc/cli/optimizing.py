"""``imcc optimize``: reuse attention until a delay is met, train, compile, report."""

from __future__ import annotations

import math
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from imcc.cli.progress import progress
from imcc.driver.optimization import Optimized, OptimizeOptions, optimize_file
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.text import print_module
from imcc.runtime.artifact import check_output

_UNITS = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}

FLOAT_PROGRAM, FLOAT_WEIGHTS = "float.imc", "float.safetensors"
"""In the artifact: the program before quantisation. Its structure is not that of the user's model,
so that its weights cannot go back to a ``state_dict``."""


def microseconds(text: str) -> float:
    """``500us``, ``0.5 ms``, ``2e6ns``; a diagnostic for anything else."""
    found = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(ns|us|ms|s)\s*", text)
    try:
        if found is not None:
            made = float(found[1]) * _UNITS[found[2]]
            if math.isfinite(made):
                return made
    except ValueError:
        pass
    raise error(
        codes.USAGE,
        f"{text!r} is no time",
        help="write a positive number and a unit: 500us, 2.5ms, 80ns",
    )


def optimise_model(
    model: str, options: OptimizeOptions, output: Path | None, force: bool
) -> dict[str, Any]:
    """Run the command; returns the report."""
    if output is not None:
        check_output(output, force=force)
    with progress() as report_progress:
        made = optimize_file(model, options, report_progress)
    if output is not None:
        _save(made, output, force)
    return made.report


def _save(made: Optimized, output: Path, force: bool) -> None:
    """The compiled artifact, and in it the trained program in float."""
    module = made.float_module.clone()
    module.resource_file = FLOAT_WEIGHTS
    names = set(module.resources) & set(made.float_resources.names())
    with TemporaryDirectory(prefix="imcc-") as folder:
        beside = Path(folder) / FLOAT_WEIGHTS
        made.float_resources.save(beside, names)
        extra = {FLOAT_PROGRAM: print_module(module).encode(), FLOAT_WEIGHTS: beside.read_bytes()}
    made.model.save(output, force=force, extra=extra)
