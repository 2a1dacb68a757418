"""One spelling for what models write in several ways: graph rules, applied once after capture."""

from __future__ import annotations

from imcc.ir.module import Module
from imcc.ir.semantics.resources import ResourceStore


def canonicalise(module: Module, resources: ResourceStore) -> None:
    """Apply the rules to a captured module."""
