"""From events to a cost record."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from imcc.backends.api import Activity, Backend, Target
from imcc.ir import codes
from imcc.ir.cost import CostRecord, LayerCost
from imcc.ir.diagnostics import error
from imcc.ir.module import Module
from imcc_example.nearmem.target import Components, NearMemoryTarget


@dataclass
class _Layer:
    ops: list[str] = field(default_factory=list)
    events: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    energy: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    times: list[tuple[float, float]] = field(default_factory=list)


def cost_record(
    backend: Backend, module: Module, name: str, target: Target, activity: Activity
) -> CostRecord:
    """Cost of one call of ``@name``; raises a diagnostic if the module is not scheduled."""
    if not isinstance(target, NearMemoryTarget) or module.phase != "scheduled":
        raise error(
            codes.PASS_REQUIRES,
            f"cost needs phase 'scheduled' on nearmem, the module is {module.phase!r}",
            help="run the target's whole pipeline",
        )
    layers: dict[str, _Layer] = defaultdict(_Layer)
    for op in module.function(name).ops:
        if op.terminator:
            continue
        layer, cost = layers[op.scope or op.name], backend.op_cost(op, target, activity)
        layer.ops.append(op.name)
        layer.times.append(backend.op_times(op) or (0.0, 0.0))
        for event, count in cost.events.items():
            component = event.split(".", 1)[0]
            layer.events[event] += count
            layer.energy[component] += count * (target.component(component).energy_pj or 0.0)
    made = tuple(_layer(key, layer) for key, layer in layers.items())
    components = {
        key: _component(key, layers, target)
        for key in Components.model_fields
        if any(key in layer.energy for layer in layers.values())
    }
    areas = [item["area_um2"] for item in components.values() if item["area_um2"] is not None]
    return CostRecord(
        energy_pj=sum(sum(layer.energy.values()) for layer in layers.values()),
        latency_ns=max((layer.end_ns for layer in made), default=0.0),
        area_um2=sum(areas),
        leakage_pj=0.0,
        resources={"lanes": target.keys.lanes.count},
        components=components,
        layers=made,
        activity="assumed",
        provenance={
            "target": target.name,
            "target_sha256": target.sha256,
            "cost_model": "events times component figures; sequential schedule",
            "not_modelled": ["leakage", "control and clock tree", "off-chip memory"],
            "area_unknown": [k for k, item in components.items() if item["area_um2"] is None],
        },
    )


def _layer(name: str, layer: _Layer) -> LayerCost:
    return LayerCost(
        name=name,
        ops=tuple(layer.ops),
        energy_pj=sum(layer.energy.values()),
        busy_ns=sum(end - start for start, end in layer.times),
        start_ns=min(start for start, _ in layer.times),
        end_ns=max(end for _, end in layer.times),
        area_um2=0.0,
        events=dict(layer.events),
        energy_by_component_pj=dict(layer.energy),
        resources={},
    )


def _component(name: str, layers: dict[str, _Layer], target: NearMemoryTarget) -> dict[str, Any]:
    held = target.component(name)
    lanes = target.keys.lanes.count if name != "buffer" else 1
    events: dict[str, float] = defaultdict(float)
    for layer in layers.values():
        for event, count in layer.events.items():
            if event.startswith(f"{name}."):
                events[event] += count
    return {
        "energy_pj": sum(layer.energy.get(name, 0.0) for layer in layers.values()),
        "area_um2": None if held.area_um2 is None else held.area_um2 * lanes,
        "events": dict(events),
        "figures": held.figures(),
    }
