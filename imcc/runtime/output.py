"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imcc.ir import codes
from imcc.ir.diagnostics import error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, renamed to ``path`` when the block ends without an exception.

    Raises ``OUTPUT`` if ``path`` exists (an empty folder may) or cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise error(codes.OUTPUT, f"{path} exists already", help="choose another folder")
    work: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield work
        work.chmod(0o777 & ~_umask())
        os.replace(work, path)
    except OSError as wrong:
        raise error(
            codes.OUTPUT,
            f"cannot write {path}: {wrong.strerror or wrong}",
            help="choose another folder",
        ) from None
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def check_new_file(path: Path, *, force: bool) -> None:
    """Refuse early to replace a file; raises ``OUTPUT``."""
    if path.is_dir():
        raise error(codes.OUTPUT, f"{path} is a folder", help="name a file")
    if path.exists() and not force:
        raise error(
            codes.OUTPUT,
            f"{path} exists already",
            help="replace it with --force (in Python force=True), or choose another name",
        )


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write, renamed to ``path`` when the block ends without an exception.

    Raises ``OUTPUT`` if it cannot be written; then nothing is left of it.
    """
    work: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent
        )
        os.close(descriptor)
        work = Path(name)
        yield work
        # A temporary file is private; what was asked for is as public as its folder allows.
        work.chmod(0o666 & ~_umask())
        os.replace(work, path)
        work = None
    except OSError as wrong:
        raise error(
            codes.OUTPUT,
            f"cannot write {path}: {wrong.strerror or wrong}",
            help="choose a place that you may write, with room for it",
        ) from None
    finally:
        if work is not None:
            work.unlink(missing_ok=True)


def write_file(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all; raises ``OUTPUT`` if that fails."""
    with new_file(path) as work:
        work.write_text(text, encoding="utf-8", newline="\n")


def _umask() -> int:
    held = os.umask(0)
    os.umask(held)
    return held
