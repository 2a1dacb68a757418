"""From counted events to a cost record: energy by component and layer, latency, area."""

from __future__ import annotations

import math
from dataclasses import dataclass

from imcc.backends.api import Activity, Target
from imcc.backends.records import LayerEvents, component_records, without_energy
from imcc.backends.sparse_snn import BACKEND
from imcc.backends.sparse_snn.cost import NOT_MODELLED
from imcc.backends.sparse_snn.dialect import SAMPLES, Product
from imcc.backends.sparse_snn.target import (
    SequentialKeys,
    SparseTarget,
    SystolicKeys,
    TemporalParallelKeys,
)
from imcc.ir import codes
from imcc.ir.cost import CostRecord, LayerCost
from imcc.ir.diagnostics import error
from imcc.ir.module import Function, Module

CACHE_FIGURE_BYTES = 64 * 1024
"""Capacity that the area figure of the cache stands for."""
CROSSBAR_PORTS = 16
"""Ports on each side that the area figure of the crossbar stands for."""
ACCUMULATOR_BITS = 16
"""Width charged for accumulators that take as many bits as a layer needs."""


@dataclass
class _Layer(LayerEvents):
    """A layer and how many products it has."""

    products: int = 0


def instances(target: SparseTarget, timesteps: int) -> dict[str, int]:
    """Instances of each component; adders are counted by bits of width, the cache by 64 KiB."""
    keys = target.keys
    elements = keys.array.elements
    made = {
        "cache_read": math.ceil(keys.cache.bytes / CACHE_FIGURE_BYTES),
        "crossbar": 1,
        "neuron_multiply": elements,
    }
    width = ACCUMULATOR_BITS
    if isinstance(keys, TemporalParallelKeys):
        held = keys.accumulators
        width = held.pseudo_bits or ACCUMULATOR_BITS
        width += timesteps * (held.correction_bits or ACCUMULATOR_BITS)
        made["laggy_adder"] = elements * keys.laggy.adders
    if isinstance(keys, (TemporalParallelKeys, SequentialKeys)):
        made["join"] = made["fast_prefix_sum"] = elements
    made["adder"] = elements * width
    return made


def areas_um2(target: SparseTarget, timesteps: int) -> dict[str, float]:
    """Area of each component that has a figure.

    The cache's figure is that of 64 KiB, the crossbar's that of 16 x 16 ports: both scale. The
    elements of a dense array are fed from its edges, so its crossbar has a port for each bank.
    """
    keys = target.keys
    ports = keys.cache.banks if isinstance(keys, SystolicKeys) else keys.array.elements
    scale = {
        "cache_read": keys.cache.bytes / CACHE_FIGURE_BYTES,
        "crossbar": keys.cache.banks * ports / CROSSBAR_PORTS**2,
    }
    return {
        item: figure * scale.get(item, count)
        for item, count in instances(target, timesteps).items()
        if (figure := target.components()[item].area_um2) is not None
    }


def cost_record(
    module: Module, name: str, target: Target, activity: Activity = "assumed"
) -> CostRecord:
    """Cost of one call of ``@name`` with B = 1, as counted on the profiled samples.

    Energy of an event whose figure is unknown is not in the totals; ``unknown`` names it. Raises
    :class:`DiagnosticError` if the module is not scheduled, or if measured activity is wanted.
    """
    if not isinstance(target, SparseTarget):
        raise error(codes.BAD_TARGET, f"{target.name} is no sparse-SNN target")
    if activity == "measured":
        raise error(
            codes.PASS_REQUIRES,
            "activity 'measured' is not available: counts rest on profiled samples",
            help="choose how many with profile-activity{samples=N}",
        )
    if module.phase != "scheduled":
        raise error(
            codes.PASS_REQUIRES,
            f"cost needs a scheduled module, this one is {module.phase!r}",
            help="run the target's whole pipeline",
        )
    function = module.function(name)
    layers, unknown = _gather(function, target)
    energies = {key: layer.energies(target) for key, layer in layers.items()}
    unknown += without_energy(layers.values(), target)
    found = [op for op in function.ops if isinstance(op, Product)]
    timesteps = max((op.fibers.word_bits for op in found), default=1)
    counts, areas = instances(target, timesteps), areas_um2(target, timesteps)
    area = sum(areas.values())
    profiled = bool(found) and all(SAMPLES in op.annotations for op in found)
    dynamic = sum(sum(item.values()) for item in energies.values())
    made = tuple(
        LayerCost(
            name=key,
            ops=tuple(layer.ops),
            energy_pj=None if layer.unknown and not layer.events else sum(energies[key].values()),
            busy_ns=layer.busy_ns,
            start_ns=layer.start_ns if layer.start_ns is not None else 0.0,
            end_ns=layer.end_ns,
            area_um2=area if layer.products else 0.0,
            events=dict(layer.events),
            energy_by_component_pj=energies[key],
            resources={"elements": target.keys.array.elements} if layer.products else {},
            unknown="; ".join(layer.unknown),
        )
        for key, layer in layers.items()
    )
    return CostRecord(
        energy_pj=dynamic,
        latency_ns=max((layer.end_ns for layer in layers.values()), default=0.0),
        area_um2=area,
        leakage_pj=0.0,
        resources={"elements": target.keys.array.elements, "banks": target.keys.cache.banks},
        components=component_records(layers.values(), energies.values(), counts, areas, {}, target),
        layers=made,
        activity="profiled" if profiled else "assumed",
        provenance={
            "target": target.name,
            "target_sha256": target.sha256,
            "cost_model": "events counted by the engine on compressed operands times component "
            "figures; layers one after another",
            "samples": min((int(op.annotations[SAMPLES]) for op in found), default=0)
            if profiled
            else 0,
            "rules": target.keys.rules.model_dump(),
            "published": target.keys.published.model_dump() if target.keys.published else None,
            "layers_share_area": True,
            "not_modelled": list(NOT_MODELLED),
            "area_unknown": sorted(set(counts) - set(areas)),
        },
        unknown=tuple(unknown),
    )


def _gather(function: Function, target: SparseTarget) -> tuple[dict[str, _Layer], list[str]]:
    layers: dict[str, _Layer] = {}
    unknown: list[str] = []
    for op in function.ops:
        if op.terminator:
            continue
        layer = layers.setdefault(op.scope or op.name, _Layer())
        cost = BACKEND.op_cost(op, target)
        layer.products += isinstance(op, Product)
        unknown += layer.add(op, cost, BACKEND.op_times(op))
    return layers, unknown
