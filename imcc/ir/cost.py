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


COUNTED = "2 for each multiply-accumulate of matrix products as executed, once per inference"
"""Which operations TOPS counts."""


@dataclass(frozen=True)
class Merit:
    """Figures of merit of one inference.

    ``operations`` are counted as :data:`COUNTED` says. ``tops`` is operations over ``interval_ns``
    (from one input to the next), ``tops_per_w`` operations over energy, ``tops_per_mm2`` ``tops``
    over area; ``edp_pj_ns`` is energy times latency, ``edap_pj_ns_um2`` that times area.
    """

    operations: float
    interval_ns: float
    tops: float
    tops_per_w: float
    tops_per_mm2: float
    edp_pj_ns: float
    edap_pj_ns_um2: float

    @classmethod
    def of(
        cls,
        operations: float,
        energy_pj: float,
        latency_ns: float,
        area_um2: float,
        interval_ns: float | None = None,
    ) -> Merit | None:
        """From totals; None where one of them is 0, so that a ratio means nothing."""
        interval = latency_ns if interval_ns is None else interval_ns
        if not (operations and energy_pj and interval and area_um2):
            return None
        # 1 operation / ns is 1e-3 tera-operations / s; 1 operation / pJ is 1 TOPS/W.
        tops = operations / interval * 1e-3
        edp = energy_pj * latency_ns
        return cls(
            operations,
            interval,
            tops,
            operations / energy_pj,
            tops / (area_um2 * 1e-6),
            edp,
            edp * area_um2,
        )

    def implied_edap_pj_ns_um2(self, latency_ns: float) -> float:
        """EDAP that the other figures imply: they share operations, energy, time and area.

        ``E = N / (TOPS/W)`` and ``A = N / (interval x TOPS/mm2)``, so that
        ``EDAP = N^2 / (TOPS/W x TOPS/mm2) x latency / interval`` (with units). Where publications
        give the three figures, this tells whether they count the same operations.
        """
        area = self.operations / self.interval_ns * 1e-3 / self.tops_per_mm2 * 1e6
        return self.operations / self.tops_per_w * latency_ns * area

    def to_json(self, latency_ns: float) -> dict[str, Any]:
        """Plain JSON data with the statement of what is counted and the check."""
        implied = self.implied_edap_pj_ns_um2(latency_ns)
        agree = abs(implied - self.edap_pj_ns_um2) <= 1e-9 * self.edap_pj_ns_um2
        return {
            "operations": self.operations,
            "counted": COUNTED,
            "interval_ns": self.interval_ns,
            "inferences_per_s": 1e9 / self.interval_ns,
            "tops": self.tops,
            "tops_per_w": self.tops_per_w,
            "tops_per_mm2": self.tops_per_mm2,
            "edp_pj_ns": self.edp_pj_ns,
            "edap_pj_ns_um2": self.edap_pj_ns_um2,
            "edap_agrees_with_tops": agree,
        }


@dataclass(frozen=True)
class CostRecord:
    """Cost of one call of an entry point: totals, by component, by layer, with provenance.

    ``energy_pj`` includes leakage over ``interval_ns``, the time from one input to the next (the
    latency where layers do not overlap). ``operations`` are those that TOPS counts,
    ``critical_path`` the layers that the latency is made of, ``compatibility`` what a closed-form
    model of another tool, named in it, gives. ``components`` maps a component to its energy,
    area, events and figures. ``unknown`` lists ops whose cost is not known; they are *not* in the
    totals. ``activity`` says whether event counts rest on assumed, profiled or measured activity.
    ``writing`` says what matrices that are written at run time take of it.
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
    operations: float = 0.0
    interval_ns: float | None = None
    critical_path: tuple[str, ...] = ()
    compatibility: Mapping[str, Any] | None = None
    writing: Mapping[str, Any] | None = None

    @property
    def merit(self) -> Merit | None:
        """Figures of merit, where operations are counted and all totals are known."""
        return Merit.of(
            self.operations, self.energy_pj, self.latency_ns, self.area_um2, self.interval_ns
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, the ``entry_points`` items of the report."""
        return {
            "energy_pj": self.energy_pj,
            "latency_ns": self.latency_ns,
            "area_um2": self.area_um2,
            "leakage_pj": self.leakage_pj,
            "interval_ns": self.latency_ns if self.interval_ns is None else self.interval_ns,
            "resources": dict(self.resources),
            "components": {name: dict(data) for name, data in self.components.items()},
            "layers": [layer.to_json() for layer in self.layers],
            "activity": self.activity,
            "provenance": dict(self.provenance),
            "unknown": list(self.unknown),
            "merit": self.merit.to_json(self.latency_ns) if self.merit is not None else None,
            "critical_path": list(self.critical_path),
            "compatibility": dict(self.compatibility) if self.compatibility is not None else None,
            "writing": dict(self.writing) if self.writing is not None else None,
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
