"""Finding passes lazily: files name passes.

They lie in packages registered in the entry-point group ``imcc.passes`` and in the ``passes``
package of each backend. Listing names imports no pass; only the pass asked for is imported.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error, nearest
from imcc.ir.plugins import broken_plugin, plugin_packages
from imcc.passes.infrastructure.base import Pass


@lru_cache(maxsize=1)
def _modules() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, folder in plugin_packages("imcc.passes", "passes"):
        for info in pkgutil.iter_modules([str(folder)]):
            if not info.ispkg and not info.name.startswith("_"):
                found.setdefault(info.name.replace("_", "-"), f"{name}.{info.name}")
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
    except DiagnosticError:
        raise
    except Exception as wrong:
        raise broken_plugin(f"pass {name!r} ({where})", wrong) from wrong
    for item in vars(module).values():
        if isinstance(item, type) and issubclass(item, Pass) and item.name == name:
            return item
    raise error(
        codes.PLUGIN,
        f"{where} defines no pass called {name!r}",
        help="a pass file holds a Pass subclass whose `name` is the file's name with dashes",
    )
