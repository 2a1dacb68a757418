"""A report cut along one line: tables of all layers, components, tiles, passes or ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO, Any

from imcc.backends.api import find_backend
from imcc.driver.compiled import CompiledModel
from imcc.report.costs import op_entries
from imcc.report.tables import console_of, percent, plain, print_line, quantity, share, table_of

Rows = list[dict[str, Any]]


def by_layer(compiled: CompiledModel, entry: str) -> Rows:
    """Layers in program order: energy, share of it, times, area, ops."""
    made = []
    point = compiled.report_data["entry_points"][entry]
    for layer in point["layers"]:
        made.append(
            {
                "layer": layer["name"],
                "energy_pj": layer["energy_pj"],
                "share": share(layer["energy_pj"], point["energy_pj"]),
                "busy_ns": layer["busy_ns"],
                "start_ns": layer.get("start_ns"),
                "area_um2": layer["area_um2"],
                "ops": len(layer.get("ops") or ()),
            }
        )
    return made


def by_component(compiled: CompiledModel, entry: str) -> Rows:
    """Components: energy of events, leakage, share of both, events, area, instances, source."""
    made = []
    point = compiled.report_data["entry_points"][entry]
    for name, held in point["components"].items():
        figures = held.get("figures") or {}
        first: dict[str, Any] = next(iter(figures.values()), {})
        made.append(
            {
                "component": name,
                "energy_pj": held.get("energy_pj"),
                "leakage_pj": held.get("leakage_pj"),
                "share": share(_spent(held), point["energy_pj"]),
                "events": sum((held.get("events") or {}).values()),
                "area_um2": held.get("area_um2"),
                "instances": held.get("instances"),
                "source": first.get("source", ""),
            }
        )
    return made


def _spent(held: Mapping[str, Any]) -> float | None:
    """Energy of a component's events and its leakage, as far as they are known."""
    known = [value for key in ("energy_pj", "leakage_pj") if (value := held.get(key)) is not None]
    return sum(known) if known else None


def by_tile(compiled: CompiledModel, entry: str) -> Rows:
    """Groups of the outermost level: which layers they serve, how many units are in use."""
    backend = find_backend(compiled.target.backend)
    placement = backend.placement(compiled.module, entry, compiled.target)
    if placement is None:
        return []
    size = 1
    for _, count in placement.levels:
        size *= count
    used: dict[int, int] = {}
    layers: dict[int, dict[str, None]] = {}
    for item in placement.matrices:
        for group in range(item.first // size, (item.first + item.count - 1) // size + 1):
            first, last = max(item.first, group * size), item.first + item.count
            used[group] = used.get(group, 0) + min(last, (group + 1) * size) - first
            layers.setdefault(group, {})[item.layer] = None
    name = placement.levels[0][0] if placement.levels else placement.unit
    return [
        {
            name: group,
            "layers": ", ".join(layers[group]),
            f"{placement.unit}s": used[group],
            "of": size,
            "share": used[group] / size,
        }
        for group in sorted(used)
    ]


def by_pass(compiled: CompiledModel, entry: str) -> Rows:
    """Passes in order: time, rewrites, the phase afterwards."""
    history = compiled.history
    if history is None:
        return [
            {"pass": item["pass"], "seconds": item["seconds"], "changes": item["changes"]}
            for item in compiled.report_data.get("passes") or ()
        ]
    return [
        {
            "pass": stage.pass_,
            "seconds": stage.seconds,
            "changes": len(stage.rewrites),
            "refusals": len(stage.refusals),
            "phase": stage.phase,
        }
        for stage in history.stages[1:]
    ]


def by_op(compiled: CompiledModel, entry: str) -> Rows:
    """Ops in program order with energy and times: the schedule as a table."""
    point = compiled.report_data["entry_points"][entry]
    return [
        {
            "value": f"%{item.name}",
            "op": item.op.name,
            "layer": item.layer,
            "energy_pj": item.energy_pj,
            "share": share(item.energy_pj, point["energy_pj"]),
            "start_ns": item.start_ns,
            "busy_ns": item.busy_ns,
        }
        for item in op_entries(compiled, entry)
        if not item.free
    ]


CUTS: dict[str, Callable[[CompiledModel, str], Rows]] = {
    "layer": by_layer,
    "component": by_component,
    "tile": by_tile,
    "pass": by_pass,
    "op": by_op,
}
"""What ``imcc report --by`` takes."""


def print_rows(title: str, rows: Rows, file: IO[str]) -> None:
    """Print rows as a table; columns with a unit in their name are scaled."""
    console = console_of(file)
    if not rows:
        console.print(plain(f"{title}: nothing to show"))
        return
    # Sources are sentences: they stand below, under their numbers.
    sources: dict[str, int] = {}
    for row in rows:
        if row.get("source"):
            sources.setdefault(row["source"], len(sources) + 1)
    table = table_of(title, *(_heading(key) for key in rows[0]))
    for column in table.columns:
        if column.header in _TEXT:
            column.justify = "left"
    for row in rows:
        numbered = dict(row)
        if "source" in row:
            numbered["source"] = f"[{sources[row['source']]}]" if row["source"] else ""
        table.add_row(*(_cell(key, value, numbered) for key, value in numbered.items()))
    console.print(table)
    for source, number in sources.items():
        print_line(console, f"[{number}] {source}")


_UNITS = {"_pj": "pJ", "_ns": "ns", "_um2": "um2"}
_TEXT = {"layer", "layers", "op", "source", "phase"}


def _heading(key: str) -> str:
    for ending in _UNITS:
        key = key.removesuffix(ending)
    return "time" if key == "seconds" else key


def _cell(key: str, value: Any, row: Mapping[str, Any]) -> str:
    if value is None and key in ("area_um2", "leakage_pj") and row.get("instances", 1) is None:
        return "-"  # of what is not on the chip, or counts with another component
    for ending, unit in _UNITS.items():
        if key.endswith(ending):
            return quantity(value, unit)
    if value is None:
        return "-"
    if key == "share":
        return percent(value)
    if key == "seconds":
        return quantity(1e9 * value, "ns")
    if isinstance(value, (int, float)):
        return f"{value:,.0f}"
    return plain(str(value))
