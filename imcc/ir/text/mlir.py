"""A door to MLIR: modules in MLIR's generic text form, for tools that read it.

What MLIR has no word for is kept beside it, so that nothing is lost:

=========================== ==================================================================
imcc                        MLIR
=========================== ==================================================================
module, phase               ``builtin.module`` with ``imcc.phase``, ``imcc.resource_file``
resource, state             ops ``imcc.resource``, ``imcc.state`` with a symbol name
function                    ``func.func``; states and targets as argument and op attributes
op                          the op's own name, of a dialect that the reader need not know
``tensor<4*BxS16xf32>``     ``tensor<?x?x16xf32>``; the symbols in ``imcc.types``
quantised elements          ``!imcc.q<"s8, axis=0">`` as the element type
``spikes<...>``, handles    ``!imcc.spikes<"...">``, ``!xbar.matrix<"...">``
places in the user's model  locations, several of them fused
=========================== ==================================================================

Readers allow unregistered dialects: ``xdsl-opt --allow-unregistered-dialect``, ``mlir-opt
--allow-unregistered-dialect``.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from imcc.ir.attributes import Symbol
from imcc.ir.diagnostics import Location
from imcc.ir.module import Function, Module
from imcc.ir.ops import Op, Value
from imcc.ir.types import DialectType, QuantType, SpikesType, TensorType, Type

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_$.]*")
_VALUE = re.compile(r"[0-9]+|[A-Za-z_$.-][A-Za-z0-9_$.-]*")
_INDEX_LIMITS = (-(1 << 63), (1 << 63) - 1)


def export_mlir(module: Module) -> str:
    """The module in MLIR's generic form; ends in a newline."""
    lines = [f'"builtin.module"() <{{sym_name = {_string(module.name)}}}> ({{']
    for resource in module.resources.values():
        held: dict[str, str] = {
            "sym_name": _string(resource.name),
            "type": _type(resource.type),
        }
        if resource.sha256 is not None:
            held["sha256"] = _string(resource.sha256)
        lines.append(f'  "imcc.resource"() {_dictionary(held)} : () -> ()')
    for state in module.states.values():
        held = {"sym_name": _string(state.name), "type": _type(state.type)}
        if state.init is not None:
            held["init"] = _symbol(state.init)
        held |= _symbolic([state.type])
        lines.append(f'  "imcc.state"() {_dictionary(held)} : () -> ()')
    for function in module.functions.values():
        lines.extend("  " + line for line in _function(function))
    attributes = {"imcc.phase": _string(module.phase)}
    if module.resource_file is not None:
        attributes["imcc.resource_file"] = _string(module.resource_file)
    lines.append(f"}}) {_dictionary(attributes)} : () -> ()")
    return "\n".join(lines) + "\n"


def _function(function: Function) -> list[str]:
    names = _names(function)
    arguments = [value.type for value in function.arguments]
    results = [item.type for item in function.results]
    properties = {
        "sym_name": _string(function.name),
        "function_type": f"({', '.join(map(_type, arguments))}) -> {_results(results)}",
    }
    if function.arguments:
        marks = [
            {"imcc.name": _string(value.name), **_symbolic([value.type]), **_state(state)}
            for value, state in zip(function.arguments, function.argument_states, strict=True)
        ]
        properties["arg_attrs"] = f"[{', '.join(map(_dictionary, marks))}]"
    if function.results:
        marks = [{**_symbolic([item.type]), **_state(item.state)} for item in function.results]
        properties["res_attrs"] = f"[{', '.join(map(_dictionary, marks))}]"
    head = ", ".join(f"{names[value]}: {_type(value.type)}" for value in function.arguments)
    lines = [f'"func.func"() <{_dictionary(properties)}> ({{']
    if function.arguments:
        lines.append(f"^bb0({head}):")
    lines.extend(f"  {_op(op, names)}" for op in function.ops)
    attributes = {} if function.target is None else {"imcc.target": _string(function.target)}
    shown = f" {_dictionary(attributes)}" if attributes else ""
    lines.append(f"}}){shown} : () -> ()")
    return lines


def _state(name: str | None) -> dict[str, str]:
    return {} if name is None else {"imcc.state": _symbol(name)}


def _names(function: Function) -> dict[Value, str]:
    """Names that MLIR accepts, unique in the function; nearly always the values' own."""
    made: dict[Value, str] = {}
    taken: set[str] = set()
    values = [*function.arguments, *(value for op in function.ops for value in op.results)]
    for value in values:
        base = value.name if _VALUE.fullmatch(value.name) else f"_{value.name}"
        name, number = base, 0
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        made[value] = f"%{name}"
    return made


def _op(op: Op, names: Mapping[Value, str]) -> str:
    given = op.operands
    attributes = {
        name: _attribute(value) for name, value in op.attributes.items() if value is not None
    }
    attributes |= {name: _attribute(op.annotations[name]) for name in sorted(op.annotations)}
    declared = type(op).spec()
    if len(declared.operands) > 1 and (declared.optional_operands or declared.variadic_operand):
        counts = [
            len(held) if item.variadic else int(held is not None)
            for item in declared.operands
            for held in (op.__dict__[item.name],)
        ]
        attributes["operandSegmentSizes"] = f"array<i32: {', '.join(map(str, counts))}>"
    if op.scope:
        attributes["scope"] = _string(op.scope)
    attributes |= _symbolic([value.type for value in op.results])
    results = ", ".join(names[value] for value in op.results)
    name = "func.return" if op.name == "core.return" else op.name
    parts = [f"{results} = " if results else "", f'"{name}"']
    parts.append(f"({', '.join(names[value] for value in given)})")
    if attributes:
        parts.append(f" {_dictionary(attributes)}")
    taken = ", ".join(_type(value.type) for value in given)
    parts.append(f" : ({taken}) -> {_results([value.type for value in op.results])}")
    return "".join(parts) + _location(op.loc)


def _results(types: list[Type]) -> str:
    shown = ", ".join(map(_type, types))
    return shown if len(types) == 1 else f"({shown})"


def _location(places: Iterable[Location]) -> str:
    shown = [f"{_string(place.file)}:{place.line}:{place.column}" for place in places]
    if not shown:
        return ""
    return f" loc({shown[0]})" if len(shown) == 1 else f" loc(fused[{', '.join(shown)}])"


def _type(held: Type) -> str:
    if isinstance(held, TensorType):
        shape = "".join(f"{dim}x" if isinstance(dim, int) else "?x" for dim in held.shape)
        return f"tensor<{shape}{_element(held.element)}>"
    if isinstance(held, SpikesType):
        return f"!imcc.spikes<{_string('x'.join(map(str, held.shape)))}>"
    if isinstance(held, DialectType):
        inside = str(held).removeprefix(f"!{held.name}<").removesuffix(">")
        return f"!{held.name}<{_string(inside)}>"
    return f"!imcc.type<{_string(str(held))}>"


def _element(element: str | QuantType) -> str:
    if isinstance(element, QuantType):
        inside = str(element).removeprefix("q<").removesuffix(">")
        return f"!imcc.q<{_string(inside)}>"
    return "ui8" if element == "u8" else element


def _symbolic(types: list[Type]) -> dict[str, str]:
    """The exact types, where MLIR's ``?`` stands for a symbol such as ``4*B``."""
    symbolic = any(
        isinstance(kind, TensorType) and not all(isinstance(dim, int) for dim in kind.shape)
        for kind in types
    )
    if not symbolic:
        return {}
    return {"imcc.types": f"[{', '.join(_string(str(kind)) for kind in types)}]"}


def _dictionary(items: Mapping[str, str]) -> str:
    shown = [
        f"{name if _BARE.fullmatch(name) else _string(name)} = {value}"
        for name, value in items.items()
    ]
    return "{" + ", ".join(shown) + "}"


def _attribute(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Symbol):
        return _symbol(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int):
        # MLIR's integers have a width; one that 64 bits cannot hold stays text.
        fits = _INDEX_LIMITS[0] <= value <= _INDEX_LIMITS[1]
        return f"{value} : i64" if fits else _string(str(value))
    if isinstance(value, float):
        return f"{_float(value)} : f64"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_attribute, value))}]"
    if isinstance(value, Mapping):
        return _dictionary({str(key): _attribute(item) for key, item in value.items()})
    return "unit" if value is None else _string(str(value))


def _float(value: float) -> str:
    """A decimal that reads back to the same bits; MLIR wants a point in it, or the bits."""
    if not math.isfinite(value):
        return "0x" + struct.pack(">d", value).hex().upper()
    shown = repr(value)
    head, mark, exponent = shown.partition("e")
    return shown if "." in head else f"{head}.0{mark}{exponent}"


def _symbol(name: str) -> str:
    return f"@{name}" if _BARE.fullmatch(name) else f"@{_string(name)}"


def _string(text: str) -> str:
    """A quoted string; of escapes MLIR knows quote, backslash and two hex digits for a byte."""
    return '"' + "".join(map(_character, text)) + '"'


def _character(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    return "".join(f"\\{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
