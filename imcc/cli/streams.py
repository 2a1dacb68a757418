"""The process's standard streams: stdout is imcc's alone, and closed ones do not matter."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextlib.contextmanager
def own_streams() -> Iterator[None]:
    """Keep stdout for what imcc itself prints; all else that is written to it goes to stderr.

    A model file and what it runs may write to file descriptor 1 past ``sys.stdout``; machine
    output must not be mixed with it. Streams that the caller closed read and write nothing.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 -- lives as the process
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    held = sys.stdout
    try:
        own = os.dup(1)
        os.dup2(2, 1)
    except OSError:
        # Descriptor 1 or 2 is closed: nothing can be mixed.
        yield
        return
    sys.stdout = open(  # noqa: SIM115 -- closed by hand below
        own, "w", encoding=held.encoding, errors=held.errors, closefd=True
    )
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        sys.stdout = held


def is_full(wrong: OSError) -> bool:
    """Whether writing to a stream (not to a named file) failed for want of room."""
    return wrong.filename is None and wrong.errno in _CANNOT_WRITE


def drop_stdout() -> None:
    """Point stdout elsewhere, so that what is left in its buffer is dropped quietly at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
