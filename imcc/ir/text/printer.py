"""Printer: canonical text of modules, functions and ops."""

from __future__ import annotations

import json

from imcc.ir.attributes import format_value
from imcc.ir.module import FORMAT_VERSION, Function, FunctionResult, Module
from imcc.ir.ops import Op


def print_module(
    module: Module, *, resource_file: str | None = None, locations: bool = True
) -> str:
    """Canonical text of a module; ends in a newline.

    ``resource_file`` is written in place of the module's own where it is given. Without
    ``locations`` places in the user's files are left out.
    """
    head = f'module @{module.name} phase("{module.phase}")'
    if module.sizes:
        shown = ", ".join(f"{symbol}={size}" for symbol, size in sorted(module.sizes.items()))
        head += f" sizes({shown})"
    file = resource_file if resource_file is not None else module.resource_file
    if file is not None:
        head += f" resources({json.dumps(file)})"
    lines = [f"// imc {FORMAT_VERSION}", head + " {"]
    for resource in module.resources.values():
        digest = f' sha256("{resource.sha256}")' if resource.sha256 is not None else ""
        lines.append(f"  resource @{resource.name} : {resource.type}{digest}")
    for state in module.states.values():
        init = f" init(@{state.init})" if state.init is not None else ""
        lines.append(f"  state @{state.name} : {state.type}{init}")
    for function in module.functions.values():
        lines.extend("  " + line for line in _function_lines(function, locations))
    lines.append("}")
    return "\n".join(lines) + "\n"


def print_function(function: Function) -> str:
    """Canonical text of a function, not indented."""
    return "\n".join(_function_lines(function))


def _function_lines(function: Function, locations: bool = True) -> list[str]:
    arguments = ", ".join(
        f"%{value.name}: {value.type}" + (f" state(@{state})" if state is not None else "")
        for value, state in zip(function.arguments, function.argument_states, strict=True)
    )
    target = f" target({json.dumps(function.target)})" if function.target is not None else ""
    head = f"func @{function.name}({arguments}) -> {_results(function.results)}{target} {{"
    return [head, *("  " + print_op(op, locations) for op in function.ops), "}"]


def _results(results: list[FunctionResult]) -> str:
    shown = [
        f"{item.type}" + (f" state(@{item.state})" if item.state is not None else "")
        for item in results
    ]
    return shown[0] if len(shown) == 1 else f"({', '.join(shown)})"


def print_op(op: Op, locations: bool = True) -> str:
    """Canonical text of one op, one line, not indented."""
    parts: list[str] = []
    if op.results:
        parts.append(", ".join(f"%{value.name}" for value in op.results) + " = ")
    parts.append(op.name)
    positional: list[str] = []
    named: list[str] = []
    for declared, value in op.named_operands():
        if declared.optional:
            named.append(f"{declared.name}=%{value.name}")
        else:
            positional.append(f"%{value.name}")
    if positional or named:
        parts.append(" " + ", ".join(positional + named))
    held = op.__dict__
    pairs = [
        f"{name} = {format_value(held[name])}"
        for name, declared in type(op).spec().attributes.items()
        if declared.required or held[name] != declared.default
    ]
    annotations = held["annotations"]
    pairs.extend(f"{name} = {format_value(annotations[name])}" for name in sorted(annotations))
    if op.scope:
        pairs.append(f"scope = {json.dumps(op.scope, ensure_ascii=False)}")
    if pairs:
        parts.append(" {" + ", ".join(pairs) + "}")
    if op.results:
        parts.append(" : " + ", ".join(str(value.type) for value in op.results))
    if op.loc and locations:
        places = ", ".join(
            f"{json.dumps(place.file, ensure_ascii=False)}:{place.line}" for place in op.loc
        )
        parts.append(f" loc({places})")
    return "".join(parts)
