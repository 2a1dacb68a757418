"""What a program is: types, values, ops, text, verifier, rewriting, cost record.

Importing this package loads no torch, numpy or networkx.
"""

from imcc.ir.attributes import Symbol
from imcc.ir.cost import CostRecord, Figure, LayerCost, OpCost
from imcc.ir.diagnostics import Diagnostic, DiagnosticError, Location
from imcc.ir.module import (
    FORMAT_VERSION,
    PHASES,
    Function,
    FunctionResult,
    Module,
    Resource,
    State,
    structural_difference,
)
from imcc.ir.ops import OPS, Op, Value
from imcc.ir.regions import Region, region
from imcc.ir.rewriting import Journal, Rewriter
from imcc.ir.text import parse_module, parse_type, print_module, print_op
from imcc.ir.types import DialectType, QuantType, SpikesType, TensorType, Type
from imcc.ir.verifier import verify

__all__ = [
    "FORMAT_VERSION",
    "OPS",
    "PHASES",
    "CostRecord",
    "Diagnostic",
    "DiagnosticError",
    "DialectType",
    "Figure",
    "Function",
    "FunctionResult",
    "Journal",
    "LayerCost",
    "Location",
    "Module",
    "Op",
    "OpCost",
    "QuantType",
    "Region",
    "Resource",
    "Rewriter",
    "SpikesType",
    "State",
    "Symbol",
    "TensorType",
    "Type",
    "Value",
    "parse_module",
    "parse_type",
    "print_module",
    "print_op",
    "region",
    "structural_difference",
    "verify",
]
