"""Places in the user's files: from stack traces of exported ops and from exceptions."""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType, TracebackType

from imcc.ir.diagnostics import Location

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_PACKAGE = str(Path(__file__).resolve().parents[1])
_MODELS = str(Path(_PACKAGE) / "models")
_STANDARD = str(Path(sysconfig.get_path("stdlib")).resolve())
_INSTALLED = ("/site-packages/", "/dist-packages/")


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


def _is_installed(path: str) -> bool:
    return any(part in path for part in _INSTALLED)


def _is_standard(path: str) -> bool:
    return path.startswith(_STANDARD) and not _is_installed(path)


def _innermost(frames: Iterable[tuple[str, int]]) -> tuple[Location | None, Location | None]:
    """The innermost frame of the user's own files, and the innermost of an installed package."""
    installed: Location | None = None
    own: Location | None = None
    for file, line in frames:
        if _is_torch(file) or _is_compiler(file) or _is_standard(file):
            continue
        if _is_installed(file):
            installed = Location(shown_path(file), line)
        else:
            own = Location(shown_path(file), line)
    return own, installed


def _chosen(own: Location | None, installed: Location | None) -> tuple[Location, ...]:
    # A model out of an installed package (torchvision) is the user's code as far as it goes: its
    # frames count only where no frame of the user's own files exists.
    found = own or installed
    return () if found is None else (found,)


def place_of_trace(trace: str | None) -> tuple[Location, ...]:
    """The innermost frame of the user in a stack trace as torch.export records it, if any."""
    return _chosen(*_innermost((m[1], int(m[2])) for m in _FRAME.finditer(trace or "")))


def place_of_exception(wrong: BaseException) -> tuple[Location, ...]:
    """The innermost frame of the user that an exception passed through, causes included.

    An exception that passed through installed packages only gets two places: the user's line that
    is being run, if there is one, and then the innermost one of the package.
    """
    seen: BaseException | None = wrong
    while seen is not None:
        own, installed = _innermost(_frames(seen.__traceback__))
        if own is not None:
            return (own,)
        if installed is not None:
            return (*place_of_caller(), installed)
        seen = seen.__cause__ or seen.__context__
    return ()


def place_of_frame(frame: FrameType) -> tuple[Location, ...]:
    """Where a frame is, if it runs a file of the user's own or of a package out of torch."""
    return _chosen(*_innermost([(frame.f_code.co_filename, frame.f_lineno)]))


def place_of_caller() -> tuple[Location, ...]:
    """The innermost frame of the user's own files that is running now, if any."""
    frames: list[tuple[str, int]] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        frames.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    own, _ = _innermost(reversed(frames))
    # The installed command is a file as well, in the folder of programs.
    if own is None or Path(own.file).parent.name in ("bin", "Scripts"):
        return ()
    return (own,)


def _frames(trace: TracebackType | None) -> list[tuple[str, int]]:
    return [(frame.filename, frame.lineno or 1) for frame in traceback.extract_tb(trace)]
