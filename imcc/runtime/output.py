"""Folders that appear whole or not at all."""

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


def _umask() -> int:
    held = os.umask(0)
    os.umask(held)
    return held
