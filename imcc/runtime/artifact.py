"""Artifacts: a folder or zip with IR text, safetensors, the target, the report and a manifest.

Nothing in an artifact is executed, imported or unpickled. Loading checks every file against the
manifest's hash and refuses links, names that leave the folder, and archives that expand beyond
their limits. Saving writes beside the destination and renames, so that a crash leaves the old
artifact or none.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imcc._version import __version__
from imcc.backends.api import Target, find_backend
from imcc.backends.targets import find_target
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.ir.module import Module
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.text import parse_module, print_module
from imcc.ir.verifier import verify
from imcc.runtime.adapted import Adapted, read_adapted, update_zip, write_adapted
from imcc.runtime.history import History, parse_history
from imcc.runtime.report_schema import check_report

ARTIFACT_VERSION = 1
MANIFEST = "manifest.json"
PROGRAM, WEIGHTS, TARGET, REPORT, HISTORY = (
    "program.imc",
    "weights.safetensors",
    "target.toml",
    "report.json",
    "history.json",
)
REQUIRED = (PROGRAM, WEIGHTS, TARGET, REPORT)
MAX_TEXT_BYTES = 1 << 30
MAX_ZIP_BYTES = 32 << 30
"""What an archive may expand to: 8-bit weights of a model of some 30 billion parameters."""
MAX_ZIP_RATIO, FREE_ZIP_BYTES = 100, 64 << 20
"""Beyond ``FREE_ZIP_BYTES``, how many times its size an archive may expand to. Deflate reaches
1032; text compresses some 10 times, and weights are stored as they are."""
_COPY_BYTES = 1 << 20


@dataclass
class Artifact:
    """A compiled program at rest. ``extra`` are further files by name (``program.dot``...).

    ``history`` tells how it came about; artifacts of other origin may have none. ``adapted`` are
    states that on-line adaptation left; the initial ones stay beside them.
    """

    module: Module
    resources: ResourceStore
    target: Target
    report: dict[str, Any]
    extra: Mapping[str, bytes] = field(default_factory=dict)
    history: History | None = None
    adapted: Adapted | None = None


def check_output(path: Path, *, force: bool) -> None:
    """Refuse early if ``path`` exists and may not be replaced."""
    if path.exists() and not force:
        raise error(
            codes.OUTPUT,
            f"{path} exists already",
            help="replace it with --force (in Python force=True), or choose another name",
        )
    if path.suffix == ".zip":
        if path.exists() and not _is_our_zip(path):
            raise _foreign(path)
        return
    if path.exists() and not path.is_dir():
        raise error(
            codes.OUTPUT,
            f"{path} is a file, not a folder",
            help="choose a folder, or a name that ends in .zip",
        )
    if path.is_dir() and any(path.iterdir()) and not _is_our_folder(path):
        raise _foreign(path)


# Other programs write a manifest.json too; ours says which artifact version it is.
_VERSION_KEY = b'"artifact_version"'


def _is_our_folder(path: Path) -> bool:
    try:
        with (path / MANIFEST).open("rb") as file:
            return _VERSION_KEY in file.read(_COPY_BYTES)
    except OSError:
        return False


def _is_our_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(MANIFEST) as file:
            return _VERSION_KEY in file.read(_COPY_BYTES)
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False


def _foreign(path: Path) -> DiagnosticError:
    return error(
        codes.OUTPUT,
        f"imcc did not write {path}; it will not be replaced",
        help="choose another name with -o",
    )


def save_artifact(artifact: Artifact, path: Path, *, force: bool = False) -> None:
    """Write the artifact, as an archive if ``path`` ends in ``.zip``, else as a folder.

    Raises ``OUTPUT`` diagnostics for existing or unwritable places.
    """
    check_output(path, force=force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as wrong:
        raise _unwritable(path, wrong) from None
    try:
        made = work / "new"
        made.mkdir()
        _write(artifact, made)
        if path.suffix == ".zip":
            packed = work / "new.zip"
            _pack(made, packed)
            os.replace(packed, path)
        else:
            _replace_folder(path, made, work / "old")
    except OSError as wrong:
        raise _unwritable(path, wrong) from None
    finally:
        _put_back(path, work / "old")
        # An old artifact that cannot be put back is the only copy: it stays where it is.
        if path.exists() or not (work / "old").exists():
            shutil.rmtree(work, ignore_errors=True)


def _replace_folder(path: Path, made: Path, old: Path) -> None:
    if path.exists():
        os.rename(path, old)
    os.rename(made, path)


def _put_back(path: Path, old: Path) -> None:
    if old.exists() and not path.exists():
        with contextlib.suppress(OSError):
            os.rename(old, path)


def _pack(folder: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for item in sorted(folder.iterdir()):
            kind = zipfile.ZIP_STORED if item.name == WEIGHTS else zipfile.ZIP_DEFLATED
            archive.write(item, item.name, compress_type=kind)


def _write(artifact: Artifact, folder: Path) -> None:
    names = set(artifact.module.resources) & set(artifact.resources.names())
    artifact.resources.save(folder / WEIGHTS, names)
    (folder / PROGRAM).write_text(print_module(artifact.module), encoding="utf-8")
    (folder / TARGET).write_text(artifact.target.text, encoding="utf-8")
    (folder / REPORT).write_text(json.dumps(artifact.report, indent=2) + "\n", encoding="utf-8")
    if artifact.history is not None:
        (folder / HISTORY).write_text(artifact.history.to_json(), encoding="utf-8")
    # safetensors makes its file private; it is as public as the text beside it.
    (folder / WEIGHTS).chmod(stat.S_IMODE((folder / PROGRAM).stat().st_mode))
    for name, content in artifact.extra.items():
        (folder / name).write_bytes(content)
    named: dict[str, str] = {}
    if artifact.adapted is not None:
        backend = find_backend(artifact.target.backend)
        named["adapted"] = write_adapted(folder, artifact.adapted, backend)
    manifest = {
        "artifact_version": ARTIFACT_VERSION,
        "imcc_version": __version__,
        "target": artifact.target.name,
        **named,
        "files": {
            item.name: {"sha256": _sha256(item), "bytes": item.stat().st_size}
            for item in sorted(folder.iterdir())
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def store_adapted(path: Path, adapted: Adapted, target: Target) -> None:
    """Put adapted states into an artifact, in place of those that it holds; all else stays.

    Whatever interrupts this, the artifact holds the states before or those after.
    """
    backend = find_backend(target.backend)
    try:
        if path.is_dir():
            _store_adapted(path, write_adapted(path, adapted, backend))
            return
        with tempfile.TemporaryDirectory(prefix="imcc-") as made:
            folder = Path(made)
            _unpack(path, folder)
            _store_adapted(folder, write_adapted(folder, adapted, backend))
            update_zip(path, folder, _pack)
    except OSError as wrong:
        raise _unwritable(path, wrong) from None


def _store_adapted(folder: Path, name: str) -> None:
    """Let the manifest name the new file, then remove those that nothing names any more."""
    manifest = _json(folder, MANIFEST)
    files = dict(manifest["files"])
    files.pop(manifest.get("adapted"), None)
    files[name] = {"sha256": _sha256(folder / name), "bytes": (folder / name).stat().st_size}
    manifest = {**manifest, "adapted": name, "files": dict(sorted(files.items()))}
    work = folder / f".{MANIFEST}.new"
    with work.open("w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(work, folder / MANIFEST)
    for item in folder.glob("adapted-*.safetensors"):
        if item.name != name:
            item.unlink(missing_ok=True)


def load_artifact(path: Path) -> Artifact:
    """Read an artifact folder or zip; raises ``ARTIFACT`` or ``ARTIFACT_UNSAFE`` diagnostics."""
    if path.is_dir():
        return _load(path)
    if not path.is_file():
        raise _broken(f"there is no artifact {path}", "give the folder or zip that `-o` named")
    with tempfile.TemporaryDirectory(prefix="imcc-") as made:
        folder = Path(made) / path.stem
        folder.mkdir()
        _unpack(path, folder)
        return _load(folder)


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            items = archive.infolist()
            _check_archive(path, items)
            for item in items:
                with archive.open(item) as packed, (folder / item.filename).open("xb") as file:
                    # Reading stops at the size that was checked, and compares the CRC.
                    shutil.copyfileobj(packed, file, _COPY_BYTES)
    except OSError as wrong:
        raise _broken(f"{path} cannot be unpacked: {wrong.strerror or wrong}") from None
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, zlib.error) as wrong:
        raise _broken(f"{path} is not a sound zip archive: {wrong}") from None


def _check_archive(path: Path, items: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for item in items:
        if not _is_plain(item.filename) or "\\" in item.filename or item.filename in seen:
            raise _unsafe(f"{path} holds {item.filename!r}, not a plain file name that occurs once")
        if stat.S_ISLNK(item.external_attr >> 16):
            raise _unsafe(f"{path} holds the link {item.filename!r}")
        seen.add(item.filename)
    total = sum(item.file_size for item in items)
    allowed = min(MAX_ZIP_BYTES, max(FREE_ZIP_BYTES, MAX_ZIP_RATIO * path.stat().st_size))
    if total > allowed:
        raise _unsafe(f"{path} expands to {total} bytes; {allowed} are allowed for its size")


def _load(path: Path) -> Artifact:
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
    module = parse_module(_text(path / PROGRAM), str(path / PROGRAM))
    verify(module)
    if "inference" not in module.functions:
        raise _broken(f"{path / PROGRAM} has no entry point @inference")
    resources = ResourceStore.load(path / WEIGHTS, module)
    report = _json(path, REPORT)
    check_report(report, path / REPORT)
    target = find_target(path / TARGET)
    name = manifest.get("target")
    if isinstance(name, str):
        target = _renamed(target, name)
    if target.sha256 != report["targets"][0]["sha256"]:
        raise _broken(f"{path / TARGET} is not the target that the report is about")
    history = parse_history(_text(path / HISTORY), path / HISTORY) if HISTORY in files else None
    adapted: Adapted | None = None
    kept = manifest.get("adapted")
    if kept is not None:
        if kept not in files:
            raise _broken(f"{path / MANIFEST} does not list {kept!r}")
        adapted = read_adapted(path / kept, module, find_backend(target.backend), target)
    return Artifact(module, resources, target, report, history=history, adapted=adapted)


def _renamed(target: Target, name: str) -> Target:
    import dataclasses

    return dataclasses.replace(target, name=name)


def _check(path: Path, name: Any, entry: Any) -> None:
    if not _is_plain(name):
        raise _unsafe(f"{path / MANIFEST} names {name!r}, which is not a plain file name")
    file = path / name
    _refuse_link(file)
    if not file.is_file():
        raise _broken(f"{file} is missing")
    if not isinstance(entry, dict) or file.stat().st_size != entry.get("bytes"):
        raise _broken(f"{file} has {file.stat().st_size} bytes, not what the manifest says")
    if _sha256(file) != entry.get("sha256"):
        raise _broken(f"{file} does not match its hash in the manifest")


def _is_plain(name: Any) -> bool:
    """Whether ``name`` is a file name with no folder in it."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and Path(name).name == name
        and name not in ("", ".", "..")
    )


def _refuse_link(file: Path) -> None:
    if file.is_symlink():
        raise _unsafe(f"{file} is a link", "an artifact holds plain files; copy it without links")


def _text(file: Path) -> str:
    try:
        # A pipe in place of a file would block.
        if not stat.S_ISREG(file.stat().st_mode):
            raise _broken(f"{file} is not a file")
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise _broken(f"{file} is larger than {MAX_TEXT_BYTES} bytes")
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _broken(f"{file} is missing") from None
    except UnicodeDecodeError:
        raise _broken(f"{file} is not UTF-8 text") from None
    except OSError as wrong:
        raise _broken(f"{file} cannot be read: {wrong.strerror or wrong}") from None


def _json(path: Path, name: str) -> dict[str, Any]:
    file = path / name
    _refuse_link(file)
    try:
        made = json.loads(_text(file))
    except (ValueError, RecursionError) as wrong:
        raise _broken(f"{file} cannot be read as JSON: {wrong}") from None
    if not isinstance(made, dict):
        raise _broken(f"{file} is not a JSON object")
    return made


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _broken(message: str, help: str = "compile the model again") -> DiagnosticError:
    return error(codes.ARTIFACT, message, help=help)


def _unsafe(
    message: str, help: str = "do not use this artifact; compile the model again"
) -> DiagnosticError:
    return error(codes.ARTIFACT_UNSAFE, message, help=help)


def _unwritable(path: Path, wrong: OSError) -> DiagnosticError:
    full = wrong.errno in (errno.ENOSPC, errno.EDQUOT)
    return error(
        codes.OUTPUT,
        f"cannot write {path}: {wrong.strerror or wrong}",
        help="free some space" if full else "choose a folder that you may write with -o",
    )
