"""A picture of a program: DOT text always, SVG where Graphviz' ``dot`` is installed."""

from __future__ import annotations

from typing import Any

from imcc.ir.module import Module
from imcc.ir.ops import Op
from imcc.report.tables import quantity

HIDDEN = frozenset({"core.constant", "core.return", "xbar.program"})
MAX_NODES = 3000
"""Of larger programs only the first ops are drawn, and the picture says so."""


def program_dot(module: Module, report: dict[str, Any], function: str = "inference") -> str:
    """DOT of a function: ops as nodes in clusters by layer, labelled with type and cost."""
    from graphviz import Digraph

    layers = {layer["name"]: layer for layer in report["entry_points"][function]["layers"]}
    graph = Digraph(module.name)
    graph.attr(rankdir="TB", fontname="Helvetica", nodesep="0.25", ranksep="0.3")
    graph.attr("node", shape="box", style="rounded,filled", fillcolor="white", fontname="Helvetica")
    graph.attr("edge", fontname="Helvetica", fontsize="9", color="gray40")
    held = module.function(function)
    visible = [op for op in held.ops if op.name not in HIDDEN]
    shown = visible[:MAX_NODES]
    if len(visible) > len(shown):
        graph.attr(label=f"the first {len(shown)} of {len(visible)} ops", labelloc="t")
    names = {op: f"op{number}" for number, op in enumerate(shown)}
    clusters: dict[str, list[Op]] = {}
    for op in shown:
        clusters.setdefault(op.scope, []).append(op)
    for number, (scope, ops) in enumerate(clusters.items()):
        if not scope:
            for op in ops:
                _node(graph, names[op], op)
            continue
        with graph.subgraph(name=f"cluster_{number}") as cluster:
            layer = layers.get(scope)
            label = _escape(scope)
            if layer is not None:
                label += f"\\n{quantity(layer['energy_pj'], 'pJ')}, "
                label += quantity(layer["busy_ns"], "ns")
            cluster.attr(label=label, color="gray70", style="rounded", fontsize="11")
            for op in ops:
                _node(cluster, names[op], op)
    for value in held.inputs:
        graph.node(f"in_{value.name}", f"{_escape(value.name)}\\n{value.type}", shape="oval")
    for op in shown:
        for value in op.operands:
            if value.owner in names:
                graph.edge(names[value.owner], names[op], label=f" {value.type}")
            elif value.owner is None and value in held.inputs:
                graph.edge(f"in_{value.name}", names[op])
    last = held.terminator
    for number, value in enumerate(last.operands if last is not None else ()):
        if value.owner in names:
            graph.node(f"out{number}", f"result\\n{value.type}", shape="oval")
            graph.edge(names[value.owner], f"out{number}")
    source: str = graph.source
    return source


def render_svg(dot: str) -> tuple[bytes | None, str]:
    """The picture as SVG, or None and why: no ``dot`` on the path, or it failed."""
    from graphviz import CalledProcessError, ExecutableNotFound, Source

    try:
        made: bytes = Source(dot).pipe(format="svg", quiet=True)
    except ExecutableNotFound:
        return None, "no `dot` found (install Graphviz to get a picture)"
    except CalledProcessError as wrong:
        return None, f"`dot` failed with exit code {wrong.returncode}"
    return made, ""


def _node(graph: Any, name: str, op: Op) -> None:
    matrix = getattr(op, "matrix", None)
    tip = f"{op.name} {op.loc[0]}" if op.loc else op.name
    label = op.name
    if matrix is not None:
        label += f"\\n{_escape(matrix.name)}"
    graph.node(name, label, tooltip=_escape(tip))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', "'")
