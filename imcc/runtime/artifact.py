"""Artifacts: a folder with IR text, safetensors, the target, the report and a manifest.

Nothing in an artifact is executed or unpickled. Loading checks every file against the manifest's
hash and refuses names and links that leave the folder. Saving writes beside the destination and
renames, so that a crash leaves the old artifact or none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imcc._version import __version__
from imcc.backends.api import Target
from imcc.backends.targets import find_target
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.ir.module import Module
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.text import parse_module, print_module
from imcc.ir.verifier import verify

ARTIFACT_VERSION = 1
MANIFEST = "manifest.json"
PROGRAM, WEIGHTS, TARGET, REPORT = (
    "program.imc",
    "weights.safetensors",
    "target.toml",
    "report.json",
)
REQUIRED = (PROGRAM, WEIGHTS, TARGET, REPORT)
MAX_TEXT_BYTES = 1 << 30


@dataclass
class Artifact:
    """A compiled program at rest. ``extra`` are further files by name (``program.dot``...)."""

    module: Module
    resources: ResourceStore
    target: Target
    report: dict[str, Any]
    extra: Mapping[str, bytes] = field(default_factory=dict)


def check_output(path: Path, *, force: bool) -> None:
    """Refuse early if ``path`` exists and may not be replaced."""
    if path.exists() and not force:
        raise error(
            codes.OUTPUT, f"{path} exists already", help="pass --force to replace it, or choose -o"
        )
    if path.exists() and not path.is_dir():
        raise error(codes.OUTPUT, f"{path} is a file, not a folder")
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).exists():
        raise error(
            codes.OUTPUT,
            f"{path} is a folder that imcc did not write; it will not be replaced",
            help="choose another folder with -o",
        )


def save_artifact(artifact: Artifact, path: Path, *, force: bool = False) -> None:
    """Write the artifact; raises ``OUTPUT`` diagnostics for existing or unwritable places."""
    check_output(path, force=force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as wrong:
        raise _unwritable(path, wrong) from None
    try:
        _write(artifact, beside)
        beside.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.rename(path, old / "old")
            os.rename(beside, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(beside, path)
    except OSError as wrong:
        raise _unwritable(path, wrong) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write(artifact: Artifact, folder: Path) -> None:
    names = set(artifact.module.resources) & set(artifact.resources.names())
    artifact.resources.save(folder / WEIGHTS, names)
    (folder / PROGRAM).write_text(print_module(artifact.module), encoding="utf-8")
    (folder / TARGET).write_text(artifact.target.text, encoding="utf-8")
    (folder / REPORT).write_text(json.dumps(artifact.report, indent=2) + "\n", encoding="utf-8")
    for name, content in artifact.extra.items():
        (folder / name).write_bytes(content)
    manifest = {
        "artifact_version": ARTIFACT_VERSION,
        "imcc_version": __version__,
        "target": artifact.target.name,
        "files": {
            item.name: {"sha256": _sha256(item), "bytes": item.stat().st_size}
            for item in sorted(folder.iterdir())
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def load_artifact(path: Path) -> Artifact:
    """Read an artifact; raises ``ARTIFACT`` or ``ARTIFACT_UNSAFE`` diagnostics."""
    if not path.is_dir():
        raise _broken(f"{path} is not an artifact folder", "give the folder that `-o` named")
    manifest = _json(path, MANIFEST)
    version = manifest.get("artifact_version")
    if version != ARTIFACT_VERSION:
        raise _broken(f"{path} has artifact version {version!r}, this release reads 1")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise _broken(f"{path / MANIFEST} lists no files")
    for name, entry in files.items():
        _check(path, name, entry)
    for name in REQUIRED:
        if name not in files:
            raise _broken(f"{path / MANIFEST} does not list {name}")
    try:
        text = (path / PROGRAM).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise _broken(f"{path / PROGRAM} is not UTF-8 text") from None
    module = parse_module(text, str(path / PROGRAM))
    verify(module)
    if "inference" not in module.functions:
        raise _broken(f"{path / PROGRAM} has no entry point @inference")
    resources = ResourceStore.load(path / WEIGHTS, module)
    report = _json(path, REPORT)
    target = find_target(path / TARGET)
    name = manifest.get("target")
    if isinstance(name, str):
        target = _renamed(target, name)
    return Artifact(module, resources, target, report)


def _renamed(target: Target, name: str) -> Target:
    import dataclasses

    return dataclasses.replace(target, name=name)


def _check(path: Path, name: Any, entry: Any) -> None:
    plain = isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..")
    if not plain:
        raise error(
            codes.ARTIFACT_UNSAFE,
            f"{path / MANIFEST} names {name!r}, which is not a plain file name",
            help="do not use this artifact; compile the model again",
        )
    file = path / name
    if file.is_symlink() or not file.resolve().is_relative_to(path.resolve()):
        raise error(
            codes.ARTIFACT_UNSAFE,
            f"{file} is a link",
            help="an artifact holds plain files; copy it without links",
        )
    if not file.is_file():
        raise _broken(f"{file} is missing")
    if not isinstance(entry, dict) or file.stat().st_size != entry.get("bytes"):
        raise _broken(f"{file} has {file.stat().st_size} bytes, not what the manifest says")
    if _sha256(file) != entry.get("sha256"):
        raise _broken(f"{file} does not match its hash in the manifest")


def _json(path: Path, name: str) -> dict[str, Any]:
    file = path / name
    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise _broken(f"{file} is larger than {MAX_TEXT_BYTES} bytes")
        made = json.loads(file.read_text(encoding="utf-8"))
    except DiagnosticError:
        raise
    except FileNotFoundError:
        raise _broken(f"{file} is missing") from None
    except (OSError, ValueError, RecursionError) as wrong:
        raise _broken(f"{file} cannot be read as JSON: {wrong}") from None
    if not isinstance(made, dict):
        raise _broken(f"{file} is not a JSON object")
    return made


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _broken(message: str, help: str = "compile the model again") -> DiagnosticError:
    return error(codes.ARTIFACT, message, help=help)


def _unwritable(path: Path, wrong: OSError) -> DiagnosticError:
    full = wrong.errno in (errno.ENOSPC, errno.EDQUOT)
    return error(
        codes.OUTPUT,
        f"cannot write {path}: {wrong.strerror or wrong}",
        help="free some space" if full else "choose a folder that you may write with -o",
    )
