"""Golden files: a command, its input and its whole output in one file, run in one process.

The first line is ``// RUN: opt --passes "dead-code"``; the command reads the rest of the input
section from standard input. Sections follow, each opened by a line of its own::

    // RUN: opt --passes "dead-code"
    // imc 1
    module @m ...
    // ==== output ====
    ...everything the command wrote to standard output...
    // ==== diagnostics ====
    ...everything it wrote to standard error; the section is absent when that is nothing...
    // ==== exit 1 ====

``// WEIGHTS: random SEED`` as second line makes standard-normal data for every resource and passes
it with ``--weights``. Unknown directives are errors: a golden that is not checked must not pass.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_DIRECTIVE = re.compile(r"// ([A-Z-]+):\s*(.*)$")
_SECTION = re.compile(r"// ==== (output|diagnostics|exit [0-9]+) ====$")


@dataclass(frozen=True)
class Golden:
    """A golden file taken apart."""

    arguments: tuple[str, ...]
    weights_seed: int | None
    head: str
    input: str
    expected: str


class GoldenError(Exception):
    """The golden file itself is malformed."""


def read_golden(path: Path) -> Golden:
    """Take a golden file apart; raises :class:`GoldenError` for anything it does not know."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    arguments: tuple[str, ...] | None = None
    seed: int | None = None
    start = 0
    for line in lines:
        found = _DIRECTIVE.match(line.rstrip("\n"))
        if found is None:
            break
        start += 1
        name, value = found.groups()
        if name == "RUN" and arguments is None:
            arguments = tuple(shlex.split(value))
        elif name == "WEIGHTS" and value.split()[:1] == ["random"]:
            seed = int(value.split()[1])
        else:
            raise GoldenError(f"{path}: unknown or repeated directive {line.strip()!r}")
    if arguments is None:
        raise GoldenError(f"{path}: the first line must be `// RUN: command`")
    cut = next((i for i, line in enumerate(lines) if line.startswith("// ====")), len(lines))
    for line in lines[cut:]:
        if line.startswith("// ====") and not _SECTION.match(line.rstrip("\n")):
            raise GoldenError(f"{path}: unknown section {line.strip()!r}")
    for line in lines[start:cut]:
        if re.match(r"//\s*(RUN|WEIGHTS|CHECK|EXPECT)\b", line):
            raise GoldenError(f"{path}: directive {line.strip()!r} must stand at the top")
    return Golden(
        arguments, seed, "".join(lines[:start]), "".join(lines[start:cut]), "".join(lines[cut:])
    )


def run_golden(golden: Golden) -> str:
    """Run the command in this process; returns the sections as a golden file writes them."""
    from imcc.cli.main import main

    # A model file of the same name that something read before would show its lines here.
    linecache.clearcache()
    out, err = io.StringIO(), io.StringIO()
    arguments = list(golden.arguments)
    with tempfile.TemporaryDirectory() as folder:
        if golden.weights_seed is not None:
            file = Path(folder) / "weights.safetensors"
            _random_weights(golden.input, golden.weights_seed, file)
            arguments += ["--weights", str(file)]
        held, sys.stdin = sys.stdin, io.StringIO(golden.input)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main([*arguments, "-"] if arguments[0] == "opt" else arguments)
        finally:
            sys.stdin = held
    made = f"// ==== output ====\n{out.getvalue()}"
    if err.getvalue():
        made += f"// ==== diagnostics ====\n{err.getvalue()}"
    if status:
        made += f"// ==== exit {status} ====\n"
    return made


def update_golden(path: Path) -> None:
    """Write what the command gives now into the file."""
    golden = read_golden(path)
    path.write_text(golden.head + golden.input + run_golden(golden), encoding="utf-8")


def _random_weights(text: str, seed: int, path: Path) -> None:
    import torch

    from imcc.ir.semantics.resources import ResourceStore, storage_dtype
    from imcc.ir.text import parse_module

    generator = torch.Generator().manual_seed(seed)
    module = parse_module(text)
    tensors = {}
    for resource in module.resources.values():
        shape = tuple(dim for dim in resource.type.shape if isinstance(dim, int))
        values = torch.randn(shape, generator=generator)
        if resource.name.endswith(("var", "scale")):
            values = values.abs() + 0.5
        if resource.type.is_quantised:
            element = resource.type.quant
            values = (values * element.maximum / 3).round()
            values = values.clamp(element.minimum, element.maximum)
        tensors[resource.name] = values.to(storage_dtype(resource.type.element))
    ResourceStore(tensors).save(path, tensors)
