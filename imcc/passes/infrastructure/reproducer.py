"""Folders that rerun one pass: IR before it, weights, inputs, calibration data, target, seed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imcc._version import __version__
from imcc.ir.module import Module
from imcc.passes.infrastructure.base import Pass
from imcc.passes.infrastructure.context import PassContext
from imcc.passes.infrastructure.dumps import DumpFolder, unwritable

if TYPE_CHECKING:
    from imcc.ir.semantics.resources import ResourceStore


def write_reproducer(
    folder: Path,
    module: Module,
    resources: ResourceStore | None,
    item: Pass,
    context: PassContext,
    *,
    inputs: Sequence[Any] | None = None,
    reason: str = "",
) -> str:
    """Write everything that ``item`` needs to run again on ``module``; returns the command.

    ``inputs`` are tensors by position of ``@inference``; with them the command is a bisection.
    Raises ``OUTPUT`` if the folder is not empty or cannot be written.
    """
    held = DumpFolder(folder)
    words = ["imcc", "opt", str(held.write("before", module, resources))]
    words += ["--passes", str(item), "--seed", str(context.seed)]
    if context.target is not None:
        file = held.write_text(f"{context.target.name}.toml", context.target.text)
        words += ["--target", str(file)]
    names = [value.name for value in module.function().inputs] if _runs(module) else []
    try:
        if "calibration" in item.requires() and context.calibration:
            from imcc.ir.semantics.tensor_files import write_batches

            file = folder / "calibration.safetensors"
            write_batches(file, names, context.calibration)
            words += ["--calibration", str(file)]
        if inputs is not None:
            from imcc.ir.semantics.tensor_files import write_tensors

            file = folder / "inputs.safetensors"
            write_tensors(file, dict(zip(names, inputs, strict=True)))
            words += ["--bisect", str(file)]
    except OSError as wrong:
        raise unwritable(folder, wrong) from None
    command = shlex.join(words)
    facts = {
        "imcc_version": __version__,
        "pass": str(item),
        "promise": str(item.promise()),
        "seed": context.seed,
        "target": context.target.name if context.target is not None else None,
        "reason": reason,
        "command": command,
    }
    held.write_text("reproducer.json", json.dumps(facts, indent=2) + "\n")
    return command


def free_folder(stem: str) -> Path:
    """``stem``, or ``stem-2``, ``stem-3`` ..., whichever does not exist yet."""
    made, number = Path(stem), 1
    while made.exists():
        number += 1
        made = Path(f"{stem}-{number}")
    return made


def _runs(module: Module) -> bool:
    return "inference" in module.functions
