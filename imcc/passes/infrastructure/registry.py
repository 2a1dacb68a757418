"""Finding passes lazily: the entry-point group ``imcc.passes`` names packages, files name passes.

Listing names imports no pass; only the pass asked for is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import lru_cache
from importlib.metadata import entry_points

from imcc.ir import codes
from imcc.ir.diagnostics import error, nearest
from imcc.passes.infrastructure.base import Pass


@lru_cache(maxsize=1)
def _modules() -> dict[str, str]:
    found: dict[str, str] = {}
    for point in entry_points(group="imcc.passes"):
        try:
            spec = importlib.util.find_spec(point.value)
        except ImportError:
            spec = None
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        for info in pkgutil.iter_modules(places):
            if not info.ispkg and not info.name.startswith("_"):
                found.setdefault(info.name.replace("_", "-"), f"{point.value}.{info.name}")
    return found


def pass_names() -> list[str]:
    """Names of all passes of imcc and of installed plugins, sorted."""
    return sorted(_modules())


def find_pass(name: str) -> type[Pass]:
    """The pass class by name; raises a diagnostic with the nearest names if there is none."""
    where = _modules().get(name)
    if where is None:
        raise error(
            codes.UNKNOWN_PASS,
            f"unknown pass {name!r}",
            suggestions=nearest(name, _modules()),
            help="`imcc passes` lists them",
        )
    try:
        module = importlib.import_module(where)
    except Exception as wrong:
        raise error(
            codes.PLUGIN,
            f"pass {name!r} ({where}) does not load: {wrong}",
            help="repair or uninstall the package that registers it",
        ) from wrong
    for item in vars(module).values():
        if isinstance(item, type) and issubclass(item, Pass) and item.name == name:
            return item
    raise error(
        codes.PLUGIN,
        f"{where} defines no pass called {name!r}",
        help="a pass file holds a Pass subclass whose `name` is the file's name with dashes",
    )
