"""Exports to MLIR read back with xdsl and compared op by op; xdsl is an optional package."""

from __future__ import annotations

import math
import struct
from typing import Any

from imcc.ir.module import Function, Module
from imcc.ir.ops import Value
from imcc.ir.text.mlir import export_mlir


def read_with_xdsl(text: str) -> Any:
    """The module as xdsl reads and verifies it; raises what xdsl raises."""
    from xdsl.context import Context
    from xdsl.dialects.builtin import Builtin
    from xdsl.dialects.func import Func
    from xdsl.parser import Parser

    context = Context(allow_unregistered=True)
    context.load_dialect(Builtin)
    context.load_dialect(Func)
    module = Parser(context, text).parse_module()
    module.verify()
    return module


def check_export(module: Module) -> None:
    """Export ``module``, read it with xdsl, compare functions, ops, operands and attributes.

    Raises ``ValueError`` that names the first difference.
    """
    from xdsl.dialects.builtin import UnregisteredOp
    from xdsl.dialects.func import FuncOp

    made = read_with_xdsl(export_mlir(module))
    functions = {item.sym_name.data: item for item in made.walk() if isinstance(item, FuncOp)}
    _equal("functions", list(functions), list(module.functions))
    for name, function in module.functions.items():
        twins = list(functions[name].body.block.ops)
        ops = list(function.ops)
        _equal(f"number of ops of @{name}", len(twins), len(ops))
        order = {value: number for number, value in enumerate(_values(function))}
        seen: list[Any] = [*functions[name].body.block.args]
        seen += [result for twin in twins for result in twin.results]
        for op, twin in zip(ops, twins, strict=True):
            known = twin.op_name.data if isinstance(twin, UnregisteredOp) else "core.return"
            _equal("op", known, op.name)
            _equal(
                f"operands of {op.name}",
                [seen.index(item) for item in twin.operands],
                [order[value] for value in op.operands],
            )
            for key, value in op.attributes.items():
                if value is not None and not _same(twin.attributes[key], value):
                    raise ValueError(f"{op.name}, {key}: {twin.attributes[key]} is not {value!r}")


def _equal(what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise ValueError(f"{what}: {found} is not {wanted}")


def _values(function: Function) -> list[Value]:
    return [*function.arguments, *(value for op in function.ops for value in op.results)]


def _same(held: Any, value: Any) -> bool:
    from xdsl.dialects import builtin

    if isinstance(value, tuple):
        return len(held.data) == len(value) and all(map(_same, held.data, value))
    if isinstance(held, builtin.FloatAttr):
        found = float(held.value.data)
        return struct.pack(">d", found) == struct.pack(">d", value) or (
            math.isnan(value) and math.isnan(found)
        )
    if isinstance(held, builtin.IntegerAttr):
        # xdsl reads `true` as -1, the only other number of one bit.
        found = held.value.data
        return bool(abs(found) == 1 if value is True else found == value)
    if isinstance(held, builtin.SymbolRefAttr):
        return bool(held.root_reference.data == value)
    return bool(held.data == str(value))
