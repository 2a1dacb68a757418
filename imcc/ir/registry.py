"""Dialects, found through the entry-point group ``imcc.dialects``; built-ins use the same door.

The name of the entry point is the dialect's prefix. A backend's package may hold a module
``dialect`` whose prefix is the backend's name; it needs no entry point of its own.

A dialect is a module (without torch or numpy at import) that declares ops, types and annotations.
It may set ``SEMANTICS`` to the name of a module with its evaluation rules, loaded on first use,
and ``NEUTRAL = True`` if its ops stand for no hardware (:func:`imcc.ir.phases.is_neutral`).
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType

from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.ops import OPS, Op
from imcc.ir.plugins import broken_plugin, package_places, plugin_points

_LOADED: dict[str, ModuleType] = {}


@lru_cache(maxsize=1)
def dialect_modules() -> dict[str, str]:
    """Dotted names of the modules of all installed dialects by prefix; imports none of them."""
    found = {point.name: point.value for point in plugin_points("imcc.dialects")}
    for point in plugin_points("imcc.backends"):
        name = f"{point.value}.dialect"
        if point.name in found or name in found.values():
            continue
        if any((folder / "dialect.py").is_file() for folder in package_places(point.value)):
            found[point.name] = name
    return found


def load_dialect(prefix: str) -> ModuleType | None:
    """Import the dialect with this prefix; None if there is none, a diagnostic if it breaks."""
    loaded = _LOADED.get(prefix)
    if loaded is not None:
        return loaded
    name = dialect_modules().get(prefix)
    if name is None:
        return None
    try:
        module = importlib.import_module(name)
    except DiagnosticError:
        raise
    except Exception as wrong:
        raise broken_plugin(f"dialect {prefix!r} ({name})", wrong) from wrong
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
    for prefix in dialect_modules():
        load_dialect(prefix)
    return dict(_LOADED)


@lru_cache(maxsize=256)
def load_semantics(prefix: str) -> None:
    """Import the evaluation rules of a dialect (this loads torch)."""
    module = load_dialect(prefix)
    where = getattr(module, "SEMANTICS", None)
    if where is not None:
        importlib.import_module(where)
