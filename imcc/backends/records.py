"""What the cost records of all backends share: events gathered by layer, energy by component.

An event is named ``component.event``; its energy is its count times the component's figure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from imcc.ir.cost import OpCost
from imcc.ir.ops import Op


class FigureSource(Protocol):
    """A target, as far as its component figures go."""

    def components(self) -> Mapping[str, Any]:
        """All components by name."""

    def energy_pj(self, component: str) -> float | None:
        """Energy of one event of a component; None if it is unknown."""

    def figures(self, component: str) -> dict[str, Any]:
        """A component's figures with unit, node and source."""


@dataclass
class LayerEvents:
    """What the ops of one layer do in one call: events, time at work, what has no known cost."""

    ops: list[str] = field(default_factory=list)
    events: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    busy_ns: float = 0.0
    start_ns: float | None = None
    end_ns: float = 0.0
    unknown: list[str] = field(default_factory=list)

    def add(self, op: Op, cost: OpCost, times: tuple[float, float] | None) -> list[str]:
        """Take in an op; returns what of its cost is unknown, for the whole record."""
        self.ops.append(op.name)
        self.busy_ns += cost.busy_ns
        for event, count in cost.events.items():
            self.events[event] += count
        start, end = times or (0.0, 0.0)
        if end > start:
            self.start_ns = start if self.start_ns is None else min(self.start_ns, start)
            self.end_ns = max(self.end_ns, end)
        if not cost.unknown:
            return []
        self.unknown.append(f"{op.name}: {cost.unknown}")
        return [f"{op.scope or op.name}: {op.name} ({cost.unknown})"]

    def energies(self, target: FigureSource) -> dict[str, float]:
        """Energy in pJ by component, of events whose figure is known."""
        made: dict[str, float] = defaultdict(float)
        for event, count in self.events.items():
            component = component_of(event)
            figure = target.energy_pj(component)
            if figure is not None:
                made[component] += count * figure
        return dict(made)


def component_of(event: str) -> str:
    """The component that an event happens in."""
    return event.split(".", 1)[0]


def without_energy(layers: Iterable[LayerEvents], target: FigureSource) -> list[str]:
    """Lines for components that have events and no energy figure, sorted."""
    found = {
        component_of(event) for layer in layers for event, count in layer.events.items() if count
    }
    return [
        f"energy of component {item}" for item in sorted(found) if target.energy_pj(item) is None
    ]


def component_records(
    layers: Iterable[LayerEvents],
    energies: Iterable[Mapping[str, float]],
    counts: Mapping[str, int],
    areas: Mapping[str, float | None],
    leakage: Mapping[str, float],
    target: FigureSource,
) -> dict[str, dict[str, Any]]:
    """The ``components`` of a record: energy, leakage, area, instances, events, figures."""
    events: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for layer in layers:
        for event, count in layer.events.items():
            events[component_of(event)][event] += count
    spent = list(energies)
    made: dict[str, dict[str, Any]] = {}
    for name in target.components():
        if name not in counts and name not in events:
            continue
        # A component without a figure takes nothing where nothing happens in it.
        known = target.energy_pj(name) is not None or not any(events[name].values())
        made[name] = {
            "energy_pj": sum(item.get(name, 0.0) for item in spent) if known else None,
            "leakage_pj": leakage.get(name),
            "area_um2": areas.get(name),
            "instances": counts.get(name),
            "events": dict(events[name]),
            "figures": target.figures(name),
        }
    return made
