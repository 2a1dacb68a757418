"""The one cost record: events, component figures, and what they add up to.

Ops become *events* (how often a component does an action). A *figure* says what one event costs,
at which node, from which source. Energy is events times figures, plus leakage power times time;
latency comes from the schedule, area from the placement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Figure:
    """A component's figure: ``value`` in ``unit`` at ``node_nm``, and where it comes from."""

    value: float
    unit: str
    source: str
    node_nm: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "value": self.value,
            "unit": self.unit,
            "node_nm": self.node_nm,
            "source": self.source,
            "note": self.note,
        }


@dataclass(frozen=True)
class OpCost:
    """What one call of an op does per inference (B = 1).

    ``events`` maps ``component.action`` to a count. ``busy_ns`` is how long the op occupies its
    hardware once inputs are there, and ``note`` how that time comes about. ``free`` says why an op
    costs nothing; ``unknown`` why its cost is not known. Exactly one of events, free and unknown
    speaks.
    """

    events: Mapping[str, float] = field(default_factory=dict)
    busy_ns: float = 0.0
    free: str = ""
    unknown: str = ""
    note: str = ""


@dataclass(frozen=True)
class LayerCost:
    """Cost of all ops of one layer (a scope of the user's model), or of one op without a scope.

    Layers overlap in time, so ``busy_ns`` do not add up to the latency. ``instances`` counts the
    instances of each component that ``area_um2`` is made of.
    """

    name: str
    ops: tuple[str, ...]
    energy_pj: float | None
    busy_ns: float
    start_ns: float
    end_ns: float
    area_um2: float
    events: Mapping[str, float]
    energy_by_component_pj: Mapping[str, float]
    resources: Mapping[str, int]
    unknown: str = ""
    instances: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "name": self.name,
            "ops": list(self.ops),
            "energy_pj": self.energy_pj,
            "busy_ns": self.busy_ns,
            "start_ns": self.start_ns,
            "end_ns": self.end_ns,
            "area_um2": self.area_um2,
            "events": dict(self.events),
            "energy_by_component_pj": dict(self.energy_by_component_pj),
            "resources": dict(self.resources),
            "instances": dict(self.instances),
            "unknown": self.unknown or None,
        }


@dataclass(frozen=True)
class CostRecord:
    """Cost of one call of an entry point: totals, by component, by layer, with provenance.

    ``energy_pj`` includes leakage over the latency. ``components`` maps a component to its energy,
    area, events and figures. ``unknown`` lists ops whose cost is not known; they are *not* in the
    totals. ``activity`` says whether event counts rest on assumed, profiled or measured activity.
    """

    energy_pj: float
    latency_ns: float
    area_um2: float
    leakage_pj: float
    resources: Mapping[str, int]
    components: Mapping[str, Mapping[str, Any]]
    layers: tuple[LayerCost, ...]
    activity: str
    provenance: Mapping[str, Any]
    unknown: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, the ``entry_points`` items of the report."""
        return {
            "energy_pj": self.energy_pj,
            "latency_ns": self.latency_ns,
            "area_um2": self.area_um2,
            "leakage_pj": self.leakage_pj,
            "resources": dict(self.resources),
            "components": {name: dict(data) for name, data in self.components.items()},
            "layers": [layer.to_json() for layer in self.layers],
            "activity": self.activity,
            "provenance": dict(self.provenance),
            "unknown": list(self.unknown),
        }


@dataclass(frozen=True)
class PlacedMatrix:
    """A matrix on the chip: it holds ``count`` units from number ``first`` on."""

    name: str
    layer: str
    first: int
    count: int


@dataclass(frozen=True)
class Placement:
    """Which units of the chip hold which matrix.

    ``levels`` are the groups that units lie in, outermost first, each with how many of the next
    level it holds: ``(("tile", 8), ("pe", 4))`` and unit ``crossbar`` say that crossbar ``i`` lies
    in PE ``i // 4`` and in tile ``i // 32``.
    """

    unit: str
    levels: tuple[tuple[str, int], ...]
    matrices: tuple[PlacedMatrix, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "unit": self.unit,
            "levels": [[name, count] for name, count in self.levels],
            "matrices": [
                {"name": item.name, "layer": item.layer, "first": item.first, "count": item.count}
                for item in self.matrices
            ],
        }
