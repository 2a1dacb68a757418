"""Dialects, found through the entry-point group ``imcc.dialects``; built-ins use the same door.

A dialect is a module (without torch or numpy at import) that declares ops, types and annotations.
It may set ``SEMANTICS`` to the name of a module with its evaluation rules, loaded on first use.
The name of the entry point is the dialect's prefix.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.ops import OPS, Op

_LOADED: dict[str, ModuleType] = {}


@lru_cache(maxsize=1)
def dialect_entry_points() -> dict[str, EntryPoint]:
    """Entry points of all installed dialects by prefix."""
    return {point.name: point for point in entry_points(group="imcc.dialects")}


def load_dialect(prefix: str) -> ModuleType | None:
    """Import the dialect with this prefix; None if there is none, a diagnostic if it breaks."""
    loaded = _LOADED.get(prefix)
    if loaded is not None:
        return loaded
    point = dialect_entry_points().get(prefix)
    if point is None:
        return None
    try:
        module = importlib.import_module(point.value)
    except Exception as wrong:
        raise error(
            codes.PLUGIN,
            f"dialect {prefix!r} ({point.value}) does not load: {wrong}",
            help="repair or uninstall the package that registers it",
        ) from wrong
    _LOADED[prefix] = module
    return module


def load_dialect_of(name: str) -> ModuleType | None:
    """Import the dialect that a dotted name (``nn.relu``, ``xbar.start_ns``) belongs to."""
    return load_dialect(name.split(".", 1)[0])


def op_class(name: str) -> type[Op] | None:
    """The op class by name, its dialect loaded; None if it does not exist."""
    found = OPS.get(name)
    if found is None:
        load_dialect_of(name)
        found = OPS.get(str(name))
    return found


def load_all_dialects() -> dict[str, ModuleType]:
    """Import every installed dialect; returns them by prefix."""
    for prefix in dialect_entry_points():
        load_dialect(prefix)
    return dict(_LOADED)


@lru_cache(maxsize=256)
def load_semantics(prefix: str) -> None:
    """Import the evaluation rules of a dialect (this loads torch)."""
    module = load_dialect(prefix)
    where = getattr(module, "SEMANTICS", None)
    if where is not None:
        importlib.import_module(where)
