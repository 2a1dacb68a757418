"""What each op of a compiled program costs, when it runs, and what its energy is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imcc.backends.api import find_backend
from imcc.driver.compiled import CompiledModel
from imcc.ir.ops import Op


@dataclass(frozen=True)
class OpEntry:
    """One op of an entry point: its events and times for one call with B = 1.

    ``energy_pj`` is None where no event of the op has a figure. ``missing`` names components that
    have none. ``note`` says how ``busy_ns`` comes about, ``free`` why the op costs nothing,
    ``unknown`` why its cost is not known. ``start_ns`` is None where there is no schedule.
    """

    name: str
    op: Op
    layer: str
    events: Mapping[str, float]
    energy_pj: float | None
    energy_by_event_pj: Mapping[str, float]
    missing: tuple[str, ...]
    busy_ns: float
    start_ns: float | None
    end_ns: float | None
    note: str
    free: str
    unknown: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "name": self.name,
            "op": self.op.name,
            "layer": self.layer,
            "events": dict(self.events),
            "energy_pj": self.energy_pj,
            "energy_by_event_pj": dict(self.energy_by_event_pj),
            "missing": list(self.missing),
            "busy_ns": self.busy_ns,
            "start_ns": self.start_ns,
            "end_ns": self.end_ns,
            "note": self.note or None,
            "free": self.free or None,
            "unknown": self.unknown or None,
        }


def component_of(event: str) -> str:
    """The component of an event ``component.action``."""
    return event.split(".", 1)[0]


def figure_of(point: Mapping[str, Any], component: str, kind: str) -> dict[str, Any] | None:
    """A component's figure (``energy``, ``area``, ``leakage``) in an entry point's cost record."""
    held = point["components"].get(component) or {}
    found: dict[str, Any] | None = (held.get("figures") or {}).get(kind)
    return found


def op_entries(compiled: CompiledModel, function: str) -> list[OpEntry]:
    """Every op of an entry point but its return, in program order.

    Events come from the backend's cost rules, energies are events times the report's figures.
    """
    backend = find_backend(compiled.target.backend)
    point = compiled.report_data["entry_points"][function]
    made: list[OpEntry] = []
    for op in compiled.module.function(function).ops:
        if op.terminator:
            continue
        cost = backend.op_cost(op, compiled.target)
        energies: dict[str, float] = {}
        missing: list[str] = []
        for event, count in cost.events.items():
            figure = figure_of(point, component_of(event), "energy")
            if figure is None:
                missing.append(component_of(event))
            else:
                energies[event] = count * figure["value"]
        if cost.free:
            energy: float | None = 0.0
        else:
            energy = sum(energies.values()) if energies else None
        times = backend.op_times(op)
        made.append(
            OpEntry(
                name=op.results[0].name if op.results else "",
                op=op,
                layer=op.scope or op.name,
                events=cost.events,
                energy_pj=energy,
                energy_by_event_pj=energies,
                missing=tuple(dict.fromkeys(missing)),
                busy_ns=cost.busy_ns,
                start_ns=times[0] if times else None,
                end_ns=times[1] if times else None,
                note=cost.note,
                free=cost.free,
                unknown=cost.unknown,
            )
        )
    return made
