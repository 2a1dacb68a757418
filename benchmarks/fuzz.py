"""Hostile inputs: mutants of valid IR text, target files and artifacts, and what becomes of them.

Every mutant ends in success, a diagnostic, or a finding: an exception that is no diagnostic, more
than 10 s, or output that is only half there. Mutant N depends on the seed and N alone.

    python -m benchmarks.fuzz --json
    python -m benchmarks.fuzz --seed 3 --only 4711    # one mutant, with its traceback
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fuzz_mutations import (
    mutate_bytes,
    mutate_ir,
    mutate_json,
    mutate_target,
    write_zip,
)
from benchmarks.output import Row, main

HANG_S = 10
MEMORY_BYTES = 16 << 30
"""Address space of the process: an input that makes imcc ask for more is a finding."""
MAX_ELEMENTS = 1 << 20
GOLDENS = Path(__file__).parents[1] / "tests" / "golden"
KINDS = ("ir", "ir", "ir", "target", "target", "folder", "zip")
SYNTAX = {"IMC101", "IMC102", "IMC109"}
LOADING = {"IMC601", "IMC602"}
NEUTRAL = "canonicalize, fold-batch-norm, dead-code"
MAP = "map-crossbars, place, schedule"


class Hang(BaseException):
    """Too long; not an Exception, so that no handler of imcc swallows it."""


@dataclass
class Outcome:
    """What one mutant led to. ``parsed`` says whether the reader of its format accepted it."""

    kind: str
    result: str
    parsed: bool
    detail: str = ""


@dataclass
class Corpus:
    """Valid inputs to start from, made once."""

    folder: Path
    programs: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    mappable: str = ""

    def make(self) -> Corpus:
        """Goldens, examples of all ops, presets, and a compiled model."""
        import torch
        from torch import nn

        import imcc
        from imcc.backends.targets import list_targets
        from imcc.frontend.capture import capture
        from imcc.ir.ops import OPS
        from imcc.ir.registry import load_all_dialects
        from imcc.ir.text import print_module
        from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline
        from imcc.testing.conformance import SmallNetwork, small_inputs
        from imcc.testing.examples import example_text
        from imcc.testing.golden import read_golden

        load_all_dialects()
        self.programs += [example_text(OPS[name]) for name in sorted(OPS)]
        for file in sorted(GOLDENS.rglob("*.imc")):
            self.programs.append(read_golden(file).input)
        self.targets += [item.path.read_text() for item in list_targets()]
        network, data = SmallNetwork().eval(), small_inputs(16)
        torch.manual_seed(0)
        made = imcc.compile(network, small_inputs(1), calibration=[data])
        made.save(self.folder / "artifact")
        captured = capture(network, small_inputs(1))
        module, resources = captured.module.clone(), captured.resources.copy()
        quantise = (
            "canonicalize, fold-batch-norm, dead-code, calibrate-activations, quantize-weights, "
            "integer-arithmetic, dead-code"
        )
        context = PassContext(resources=resources, calibration=[data])
        run_pipeline(module, parse_pipeline(quantise), context)
        self.mappable = print_module(module)
        plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
        small = capture(plain, (torch.zeros(1, 4),)).module
        self.programs += [self.mappable, print_module(made.module), print_module(small)] * 4
        return self


# -- what is done with a mutant --------------------------------------------------------------------


def exercise_program(text: str) -> None:
    """Parse, verify, print and read back, export, run passes, cost nothing, evaluate."""
    import torch

    from imcc.ir.diagnostics import DiagnosticError
    from imcc.ir.module import Module, structural_difference
    from imcc.ir.semantics.interpreter import evaluate_function
    from imcc.ir.semantics.resources import ResourceStore
    from imcc.ir.text import parse_module, print_module
    from imcc.ir.text.mlir import export_mlir
    from imcc.ir.verifier import verify
    from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline

    module: Module = parse_module(text, "mutant.imc")
    verify(module)
    again = parse_module(print_module(module))
    difference = structural_difference(module, again)
    if difference is not None:
        raise RuntimeError(f"printed text reads back as another module: {difference}")
    export_mlir(module)
    resources = ResourceStore(random_tensors(module))
    first: DiagnosticError | None = None
    try:
        copy = module.clone()
        run_pipeline(copy, parse_pipeline(NEUTRAL), PassContext(resources=resources.copy()))
    except DiagnosticError as refused:
        first = refused
    function = module.functions.get("inference")
    if function is not None and len(module.resources) == len(resources.names()):
        inputs = [random_tensor(value.type) for value in function.inputs]
        if all(value is not None for value in inputs) and small(function):
            with torch.no_grad():
                evaluate_function(function, inputs, resources=resources)
    if first is not None:
        raise first


def random_tensors(module: Any) -> dict[str, Any]:
    found = {name: random_tensor(item.type) for name, item in module.resources.items()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def random_tensor(kind: Any) -> Any:
    """Data of a type with B = S = 2, or None if it is too large or no tensor."""
    import torch

    from imcc.ir.dims import evaluate
    from imcc.ir.semantics.resources import storage_dtype
    from imcc.ir.types import TensorType

    if not isinstance(kind, TensorType):
        return None
    sizes = dict.fromkeys("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 2)
    shape = [evaluate(dim, sizes) for dim in kind.shape]
    count = 1
    for size in shape:
        count *= size
    if count > MAX_ELEMENTS or any(size >= 2**31 for size in shape):
        return None
    dtype = storage_dtype(kind.element)
    if dtype.is_floating_point:
        return torch.rand(shape).to(dtype)
    top = min(3, kind.quant.maximum) if kind.is_quantised else 1
    return torch.randint(0, top + 1, shape).to(dtype)


def small(function: Any) -> bool:
    return all(random_tensor(value.type) is not None for op in function.ops for value in op.results)


def exercise_target(text: str, folder: Path, mappable: str) -> None:
    """Validate, print and read back; map a program on it and cost it."""
    from imcc.backends.api import find_backend
    from imcc.backends.targets import find_target
    from imcc.ir.text import parse_module
    from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline

    file = folder / "mutant.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    target = find_target(file)
    copy = folder / "copy.toml"
    copy.write_text(target.text)
    if find_target(copy).sha256 != target.sha256:
        raise RuntimeError("the canonical text reads back as another target")
    backend = find_backend(target.backend)
    if target.backend != "crossbar":
        return
    module = parse_module(mappable)
    run_pipeline(module, parse_pipeline(MAP), PassContext(target=target, backend=backend))
    for name in module.functions:
        json.dumps(backend.cost(module, name, target).to_json(), allow_nan=False)


def exercise_artifact(path: Path, folder: Path) -> None:
    """Load as a user would, run it, and save it again; nothing half-written may stay."""
    import numpy as np

    from imcc.cli.main import main as imcc

    np.savez(folder / "inputs.npz", x=np.ones((2, 2, 6, 6), np.float32))
    out = folder / "out.npz"
    for arguments in (
        ["report", str(path)],
        ["run", str(path), "--data", str(folder / "inputs.npz"), "-o", str(out)],
    ):
        imcc_call(imcc, arguments)
    with np.load(out) as held:
        list(held.values())


def imcc_call(imcc: Any, arguments: list[str]) -> None:
    """Run the command line in this process; raises what went wrong."""
    from imcc.ir import codes
    from imcc.ir.diagnostics import Diagnostic, DiagnosticError

    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        status = imcc(["--traceback", *arguments])
    if status == 0:
        return
    if shown.getvalue():
        raise RuntimeError(f"failed with {status} after printing {shown.getvalue()[:80]!r}")
    code = said.getvalue().partition("[")[2].partition("]")[0]
    if status != 1 or code not in codes.CODES:
        raise RuntimeError(f"exit code {status}: {said.getvalue()[:300]}")
    raise DiagnosticError(Diagnostic(codes.CODES[code], said.getvalue()[:300]))


def mutate_artifact(corpus: Corpus, folder: Path, kind: str, rng: random.Random) -> Path:
    """A copy of the artifact with one file changed; most copies are sealed, as by a forger."""
    made = folder / "artifact"
    shutil.copytree(corpus.folder / "artifact", made)
    file = made / rng.choice(sorted(item.name for item in made.iterdir()))
    content, choice = file.read_bytes(), rng.random()
    if choice < 0.06:
        file.unlink()
    elif choice < 0.1:
        file.unlink()
        file.symlink_to("/etc/hostname")
    elif choice < 0.25:
        file.write_bytes(mutate_bytes(content, rng))
    elif file.suffix == ".imc":
        file.write_text(mutate_ir(content.decode(), corpus.programs, rng))
    elif file.suffix == ".toml":
        file.write_text(mutate_target(content.decode(), rng))
    elif file.suffix == ".json":
        file.write_bytes(mutate_json(content, rng))
    else:
        file.write_bytes(mutate_bytes(content, rng))
    if rng.random() < 0.85 and file.name != "manifest.json":
        # What cannot be read any more stays unsealed.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            seal(made, retarget=rng.random() < 0.7)
    if kind == "folder":
        return made
    packed = folder / "artifact.zip"
    with contextlib.suppress(OSError, ValueError):
        write_zip(made, packed, rng)
    if rng.random() < 0.1 and packed.exists():
        packed.write_bytes(mutate_bytes(packed.read_bytes(), rng))
    return packed


def seal(folder: Path, *, retarget: bool) -> None:
    """Make the manifest agree with the files, and the report with the target."""
    if retarget:
        from imcc.backends.targets import find_target
        from imcc.ir.diagnostics import DiagnosticError

        report = json.loads((folder / "report.json").read_text())
        with contextlib.suppress(DiagnosticError, KeyError, IndexError, TypeError):
            report["targets"][0]["sha256"] = find_target(folder / "target.toml").sha256
            (folder / "report.json").write_text(json.dumps(report))
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"][name] = {"sha256": digest, "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


# -- the loop --------------------------------------------------------------------------------------


@contextlib.contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise :class:`Hang` after some seconds, at the next byte code."""

    def stop(*_: Any) -> None:
        raise Hang

    held = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, held)


def try_one(corpus: Corpus, seed: int, number: int, *, show: bool = False) -> Outcome:
    """Make mutant ``number`` and see what becomes of it."""
    from imcc.ir.diagnostics import DiagnosticError

    rng = random.Random(f"{seed}/{number}")
    kind = rng.choice(KINDS)
    with tempfile.TemporaryDirectory(prefix="imcc-fuzz-") as made:
        folder = Path(made)
        start = time.perf_counter()
        code = ""
        try:
            with limit(HANG_S):
                if kind == "ir":
                    mutant = mutate_ir(rng.choice(corpus.programs), corpus.programs, rng)
                    if show:
                        sys.stderr.write(mutant + "\n")
                    exercise_program(mutant)
                elif kind == "target":
                    mutant = mutate_target(rng.choice(corpus.targets), rng)
                    if show:
                        sys.stderr.write(mutant + "\n")
                    exercise_target(mutant, folder, corpus.mappable)
                else:
                    path = mutate_artifact(corpus, folder, kind, rng)
                    before = {item.name for item in folder.iterdir()}
                    exercise_artifact(path, folder)
            result = "ok"
        except DiagnosticError as refused:
            code = result = refused.diagnostics[0].code.id
            message = refused.diagnostics[0].message
            if kind in ("folder", "zip"):
                left = {item.name for item in folder.iterdir()} - before - {"inputs.npz"}
                if left:
                    return Outcome(kind, "half written", True, f"left {sorted(left)}")
        except Hang:
            return Outcome(kind, "hang", True, f"more than {HANG_S} s")
        except Exception as unforeseen:
            if show:
                traceback.print_exc()
            places = traceback.extract_tb(unforeseen.__traceback__)
            ours = [item for item in places if "/imcc/" in item.filename] or list(places)
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
            text = f"{where} {type(unforeseen).__name__}: {unforeseen}"
            return Outcome(kind, "traceback", True, text[:300])
        if time.perf_counter() - start > HANG_S:
            return Outcome(kind, "hang", True, f"{time.perf_counter() - start:.1f} s")
    if kind == "target":
        parsed = code != "IMC502" or not ("is not TOML" in message or "cannot be read" in message)
    else:
        parsed = code not in (SYNTAX if kind == "ir" else LOADING | SYNTAX)
    return Outcome(kind, result, parsed)


def measure(options: argparse.Namespace) -> list[Row]:
    warnings.filterwarnings("ignore", "Duplicate name")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, limits[1]))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="imcc-fuzz-") as made:
        corpus = Corpus(Path(made)).make()
        if options.only is not None:
            found = try_one(corpus, options.seed, options.only, show=True)
            return [{"mutant": options.only, "kind": found.kind, "result": found.result,
                     "detail": found.detail}]  # fmt: skip
        count = options.count if not options.quick else min(options.count, 1000)
        outcomes = [try_one(corpus, options.seed, number) for number in range(count)]
    rows = summary(outcomes)
    rows[0]["seconds"] = round(time.perf_counter() - start, 1)
    for number, item in enumerate(outcomes):
        if item.detail:
            rows.append({"kind": item.kind, "mutant": number, "finding": item.detail})
    return rows


def summary(outcomes: list[Outcome]) -> list[Row]:
    """Counts over all mutants, then by kind."""
    rows: list[Row] = []
    for kind in ("all", *dict.fromkeys(KINDS)):
        mine = [item for item in outcomes if kind in ("all", item.kind)]
        results = Counter(item.result for item in mine)
        rows.append(
            {
                "kind": kind,
                "mutants": len(mine),
                "parsed": sum(item.parsed for item in mine),
                "ok": results.pop("ok", 0),
                "traceback": results.pop("traceback", 0),
                "hang": results.pop("hang", 0),
                "half_written": results.pop("half written", 0),
                "diagnostics": dict(sorted(results.items())),
            }
        )
    return rows


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=10_000, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="show mutant N and what happens")


if __name__ == "__main__":
    main("Mutants of IR text, targets and artifacts", measure, extend)
