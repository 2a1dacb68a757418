"""imcc: a compiler from PyTorch models to in-memory-computing hardware.

``imcc.compile`` is the way in from Python; ``imcc`` on the command line does the same. Importing
the package loads neither torch nor numpy: each stage imports what it needs when it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imcc._version import __version__

if TYPE_CHECKING:
    from imcc.driver import (
        CompiledModel,
        CompileOptions,
        adapt,
        bisect,
        compile,
        load,
        resume,
        train,
    )

__all__ = [
    "CompileOptions",
    "CompiledModel",
    "__version__",
    "adapt",
    "bisect",
    "compile",
    "load",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from imcc import driver

        return getattr(driver, name)
    raise AttributeError(f"module 'imcc' has no attribute {name!r}")
