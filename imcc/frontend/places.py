"""Places in the user's files: from stack traces of exported ops and from exceptions."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from imcc.ir.diagnostics import Location

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_PACKAGE = str(Path(__file__).resolve().parents[1])
_MODELS = str(Path(_PACKAGE) / "models")


def shown_path(path: str) -> str:
    """The path relative to the working folder if it lies below, so that reports are portable."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return path


def _is_compiler(path: str) -> bool:
    return path.startswith(_PACKAGE) and not path.startswith(_MODELS)


def _is_torch(path: str) -> bool:
    return path.startswith("torch/") or "/site-packages/torch/" in path or path.startswith("<")


def _innermost(frames: Iterable[tuple[str, int]]) -> Location | None:
    # A model out of an installed package (torchvision) is the user's code as far as it goes: its
    # frames count only where no frame of the user's own files exists.
    installed: Location | None = None
    own: Location | None = None
    for file, line in frames:
        if _is_torch(file) or _is_compiler(file) or "/importlib/" in file:
            continue
        if "/site-packages/" in file or "/dist-packages/" in file:
            installed = Location(file, line)
        else:
            own = Location(file, line)
    found = own or installed
    return None if found is None else Location(shown_path(found.file), found.line)


def place_of_trace(trace: str | None) -> tuple[Location, ...]:
    """The innermost frame of the user in a stack trace as torch.export records it, if any."""
    frames = [(match[1], int(match[2])) for match in _FRAME.finditer(trace or "")]
    found = _innermost(frames)
    return () if found is None else (found,)


def place_of_exception(wrong: BaseException) -> tuple[Location, ...]:
    """The innermost frame of the user that an exception passed through, causes included."""
    seen: BaseException | None = wrong
    while seen is not None:
        found = _innermost(_frames(seen.__traceback__))
        if found is not None:
            return (found,)
        seen = seen.__cause__ or seen.__context__
    return ()


def _frames(trace: TracebackType | None) -> list[tuple[str, int]]:
    return [(frame.filename, frame.lineno or 1) for frame in traceback.extract_tb(trace)]
