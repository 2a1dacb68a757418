"""Entry points: the one door through which built-in and outside parts of imcc are found.

Groups: ``imcc.dialects``, ``imcc.passes``, ``imcc.backends``, ``imcc.targets``, ``imcc.rules``,
``imcc.frontend``, ``imcc.noise_models``. A backend's package brings its own ``passes``, ``targets``
and ``dialect`` along: one line in ``imcc.backends`` is enough for all of them.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error


@lru_cache(maxsize=32)
def plugin_points(group: str) -> tuple[EntryPoint, ...]:
    """All installed entry points of a group, in the order of installation."""
    return tuple(entry_points(group=group))


def load_plugin(point: EntryPoint, what: str) -> Any:
    """What the entry point names; raises ``PLUGIN`` if it does not load."""
    try:
        return point.load()
    except DiagnosticError:
        raise
    except Exception as wrong:
        raise broken_plugin(f"{what} {point.name!r} ({point.value})", wrong) from wrong


def broken_plugin(what: str, wrong: Exception) -> DiagnosticError:
    """The diagnostic for a part that raises when it is imported."""
    return error(
        codes.PLUGIN,
        f"{what} does not load: {type(wrong).__name__}: {wrong}",
        help="repair or uninstall the package that registers it",
    )


@lru_cache(maxsize=32)
def plugin_packages(group: str, inside_backends: str) -> tuple[tuple[str, Path], ...]:
    """Packages of a group, and those called ``inside_backends`` in every backend's package.

    Pairs of dotted name and folder. A package that does not load is left out: what it would
    bring is then unknown by name, and the rest of imcc keeps working.
    """
    names = [point.value for point in plugin_points(group)]
    names += [f"{point.value}.{inside_backends}" for point in plugin_points("imcc.backends")]
    found: dict[tuple[str, Path], None] = {}
    for name in names:
        for place in package_places(name):
            found[name, place] = None
    return tuple(found)


def package_places(name: str) -> list[Path]:
    """Folders of a package by dotted name; none if it does not exist or does not load."""
    try:
        spec = importlib.util.find_spec(name)
    except Exception:
        return []
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
