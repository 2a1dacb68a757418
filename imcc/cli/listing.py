"""What ``imcc ops``, ``passes``, ``targets`` and ``explain`` print: (text, JSON data) pairs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from imcc.ir import codes
from imcc.ir.attributes import format_value
from imcc.ir.diagnostics import CODES, error, nearest
from imcc.ir.ops import OPS, Op, OperandSpec
from imcc.ir.registry import load_all_dialects, op_class

Shown = tuple[str, Any]


def _summary(documented: Any) -> str:
    text = inspect.getdoc(documented) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def _columns(rows: Sequence[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows)


def show_ops() -> Shown:
    """Every op with the first paragraph of its documentation."""
    load_all_dialects()
    rows = [(name, _summary(OPS[name])) for name in sorted(OPS)]
    return _columns(rows), [{"name": name, "summary": text} for name, text in rows]


def show_op(name: str) -> Shown:
    """The declaration of one op."""
    op = op_class(name)
    if op is None:
        load_all_dialects()
        raise error(
            codes.UNKNOWN_OP,
            f"unknown op {name!r}",
            suggestions=nearest(name, OPS),
            help="`imcc ops` lists them",
        )
    data = _op_data(op)
    lines = [op.name, "", inspect.getdoc(op) or "", ""]
    for title in ("operands", "attributes", "results"):
        if data[title]:
            lines.append(f"{title}:")
            rows = [(f"  {item['name']}", item["text"]) for item in data[title]]
            lines.append(_columns(rows))
    lines += ["", "example:", f"  {op.example}"]
    return "\n".join(lines), data


def _op_data(op: type[Op]) -> dict[str, Any]:
    spec = op.spec()
    attributes = []
    for item in spec.attributes.values():
        parts = [item.kind.name]
        if item.unit:
            parts.append(f"in {item.unit}")
        if item.minimum is not None:
            parts.append(f"at least {item.minimum:g}")
        if item.maximum is not None:
            parts.append(f"at most {item.maximum:g}")
        if not item.required:
            parts.append(f"default {format_value(item.default)}")
        if item.doc:
            parts.append(item.doc)
        attributes.append({"name": item.name, "text": "; ".join(parts)})
    return {
        "name": op.name,
        "doc": inspect.getdoc(op),
        "operands": [{"name": item.name, "text": _operand(item)} for item in spec.operands],
        "attributes": attributes,
        "results": [{"name": item.name, "text": item.doc} for item in spec.results],
        "draws": op.draws,
        "writes": op.writes,
        "example": op.example,
    }


def _operand(item: OperandSpec) -> str:
    parts = [" or ".join(kind.__name__ for kind in item.types)]
    if item.quantised:
        parts.append("quantised")
    elif item.elements is not None:
        parts.append("elements " + ", ".join(sorted(item.elements)))
    if item.optional:
        parts.append(f"optional, written {item.name}=%value")
    if item.variadic:
        parts.append("any number")
    if item.consumes:
        parts.append("consumed")
    if item.doc:
        parts.append(item.doc)
    return "; ".join(parts)


def show_passes() -> Shown:
    """Every pass with the first paragraph of its documentation."""
    from imcc.passes.infrastructure import find_pass, pass_names

    rows = [(name, _summary(find_pass(name))) for name in pass_names()]
    return _columns(rows), [{"name": name, "summary": text} for name, text in rows]


def show_pass(name: str) -> Shown:
    """One pass with its options, contract and needs."""
    from imcc.passes.infrastructure import find_pass

    found = find_pass(name)
    options = []
    for item in found.options().values():
        parts = [item.kind.name]
        if item.unit:
            parts.append(f"in {item.unit}")
        parts.append("required" if item.required else f"default {format_value(item.default)}")
        if item.minimum is not None:
            parts.append(f"at least {item.minimum:g}")
        if item.maximum is not None:
            parts.append(f"at most {item.maximum:g}")
        parts.append(item.doc)
        options.append({"name": item.name, "text": "; ".join(parts)})
    lines = [name, "", inspect.getdoc(found) or "", "", f"promise: {found.contract}"]
    if found.needs:
        lines.append(f"needs: {', '.join(sorted(found.needs))}")
    if found.requires_phase or found.ensures_phase:
        lines.append(f"phase: {found.requires_phase or 'any'} -> {found.ensures_phase or 'same'}")
    if options:
        lines += ["options:", _columns([(f"  {o['name']}", o["text"]) for o in options])]
    data = {
        "name": name,
        "doc": inspect.getdoc(found),
        "options": options,
        "promise": str(found.contract),
        "needs": sorted(found.needs),
        "requires_phase": found.requires_phase,
        "ensures_phase": found.ensures_phase,
    }
    return "\n".join(lines), data


def show_targets() -> Shown:
    """Every installed target."""
    from imcc.backends.targets import list_targets

    found = list_targets()
    rows = [(item.name, f"[{item.backend}] {item.summary}") for item in found]
    data = [{"name": item.name, "backend": item.backend, "summary": item.summary} for item in found]
    return _columns(rows), data


def show_target(name: str, overrides: Sequence[str]) -> Shown:
    """One target as canonical TOML."""
    from imcc.backends.targets import find_target

    made = find_target(name, overrides)
    return made.text, {
        "name": made.name,
        "backend": made.backend,
        "sha256": made.sha256,
        "data": dict(made.data),
    }


def show_codes() -> Shown:
    """Every diagnostic code with its title."""
    rows = [(item.id, item.title) for item in CODES.values()]
    return _columns(rows), [{"code": name, "title": title} for name, title in rows]


def show_code(name: str) -> Shown:
    """The page of one diagnostic code."""
    found = CODES.get(name.upper())
    if found is None:
        raise error(
            codes.USAGE,
            f"no diagnostic code {name!r}",
            suggestions=nearest(name.upper(), CODES),
            help="`imcc explain` lists them",
        )
    more = codes.page(found)
    text = f"{found.id}: {found.title}\n\n{found.page}"
    if more:
        text += f"\n\n{more}"
    data = {"code": found.id, "title": found.title, "cause": found.page, "page": more or None}
    return text, data
