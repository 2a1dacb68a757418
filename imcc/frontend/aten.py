"""All rules for aten ops: importing this module fills the table."""

from __future__ import annotations

from imcc.frontend import (
    aten_elementwise,
    aten_index,
    aten_layers,
    aten_products,
    aten_tensors,
    aten_writes,
)
from imcc.frontend.rules import HINTS, RULES

__all__ = [
    "HINTS",
    "RULES",
    "aten_elementwise",
    "aten_index",
    "aten_layers",
    "aten_products",
    "aten_tensors",
    "aten_writes",
]
