"""Modules made from the ``example`` that each op declares.

An example reads ``%x: type, %w: type => op line``: function arguments, then one op in text form.
"""

from __future__ import annotations

from imcc.ir.module import FORMAT_VERSION, Module
from imcc.ir.ops import Op
from imcc.ir.phases import is_neutral
from imcc.ir.text import parse_module


def example_text(op: type[Op]) -> str:
    """Text of a module whose one function holds the op's example."""
    arguments, found, line = op.example.partition("=>")
    if not found:
        raise ValueError(f"{op.name} has no example of the form `arguments => op line`")
    line = line.strip()
    phase = "captured" if is_neutral(op.name.split(".")[0]) else "mapped"
    body, resources = [f"    {line}"], []
    names, types, single = "", "()", False
    if not op.terminator:
        head, has_results, _ = line.partition(f" = {op.name}")
        if has_results:
            names = head
            single = "," not in head
            types = line.rpartition("} : ")[2] if "} : " in line else line.rpartition(" : ")[2]
            types = f"({types})"
        if op.name == "core.constant":
            resources.append(f"  resource @w : {types[1:-1]}")
        body.append(f"    core.return {names}".rstrip())
    else:
        held = _types(arguments)
        types, single = "(" + ", ".join(held) + ")", len(held) == 1
    if single:
        types = types[1:-1]
    return "\n".join(
        [
            f"// imc {FORMAT_VERSION}",
            f'module @example phase("{phase}") {{',
            *resources,
            f"  func @inference({arguments.strip()}) -> {types} {{",
            *body,
            "  }",
            "}",
            "",
        ]
    )


def example_module(op: type[Op]) -> Module:
    """The parsed module of the op's example."""
    return parse_module(example_text(op), f"<example of {op.name}>")


def _types(arguments: str) -> list[str]:
    return [part.split(":", 1)[1].strip().rstrip(",") for part in arguments.split("%")[1:]]
