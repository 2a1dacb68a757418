"""From events to a cost record: energy by component and layer, latency, area, resources."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from imcc.backends.api import Activity, Target
from imcc.backends.crossbar import BACKEND
from imcc.backends.crossbar.activity import activity_of
from imcc.backends.crossbar.cost import NOT_MODELLED, operations_of, words
from imcc.backends.crossbar.dialect import (
    CROSSBARS,
    FIRST_CROSSBAR,
    FIRST_TILE,
    TILES,
    MatrixType,
    Mvm,
    ReadMatrix,
    Write,
)
from imcc.backends.crossbar.learning_ops import MATRIX_OPS, matrix_of
from imcc.backends.crossbar.learning_schedule import adapts, learning_part
from imcc.backends.crossbar.streaming import busy_by_hardware
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.backends.crossbar.traffic import off_chip_bits
from imcc.backends.crossbar.writing import writing
from imcc.backends.records import LayerEvents, component_records, without_energy
from imcc.ir import codes
from imcc.ir.cost import CostRecord, LayerCost, PlacedMatrix, Placement
from imcc.ir.diagnostics import error
from imcc.ir.dialects import snn
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Module
from imcc.ir.ops import Op

VECTOR_UNIT = ("alu_add", "alu_multiply", "lookup")


@dataclass
class _Layer(LayerEvents):
    """A layer and the crossbars that hold its matrices."""

    crossbars: set[tuple[int, int]] = field(default_factory=set)
    tiles: set[int] = field(default_factory=set)


def cost_record(
    module: Module, name: str, target: Target, activity: Activity = "assumed"
) -> CostRecord:
    """Cost of one call of ``@name`` with B = 1, from its placement and schedule.

    Energy of an event whose figure is unknown is not in the totals; ``unknown`` names it.
    Raises :class:`DiagnosticError` if the module is not scheduled.
    """
    if not isinstance(target, CrossbarTarget):
        raise error(codes.BAD_TARGET, f"{target.name} is no crossbar target")
    found = activity_of(module, name, target)
    profiled = "inputs" in found and not found["assumed_layers"]
    if activity == "measured" or (activity == "profiled" and not profiled):
        raise error(
            codes.PASS_REQUIRES,
            f"activity {activity!r} is not available: counts rest on "
            + ("profiled samples" if profiled else "an assumed density of input bits"),
            help='compile with activity.source = "profiled" to count them on calibration data',
        )
    if module.phase != "scheduled":
        raise error(
            codes.PASS_REQUIRES,
            f"cost needs phase 'scheduled', the module is {module.phase!r}",
            help="run the target's whole pipeline",
        )
    layers, unknown = _gather(module, name, target, activity)
    tile_sets = [layer.tiles for layer in layers.values()]
    tiles = len(set().union(*tile_sets))
    energies = {key: layer.energies(target) for key, layer in layers.items()}
    unknown += without_energy(layers.values(), target)
    counts = _instances(tiles, target, _membrane_words(module, name, target))
    learning = learning_part(module.function(name), counts, tiles, target)
    latency = max((layer.end_ns for layer in layers.values()), default=0.0)
    interval, bottleneck = _interval(module, name, target, latency)
    leakage = {
        item: count * held.leakage_uw * interval * 1e-3
        for item, count in counts.items()
        if (held := target.components()[item]).leakage_uw is not None
    }
    areas = {item: _area(item, count, target) for item, count in counts.items()}
    shared = tile_area_um2(target)
    made = tuple(
        _layer(key, layer, energies[key], shared * len(layer.tiles), target)
        for key, layer in layers.items()
    )
    components = component_records(
        layers.values(), energies.values(), counts, areas, leakage, target
    )
    dynamic = sum(sum(item.values()) for item in energies.values())
    return CostRecord(
        energy_pj=dynamic + sum(leakage.values()),
        latency_ns=latency,
        area_um2=sum(value for value in areas.values() if value is not None),
        leakage_pj=sum(leakage.values()),
        resources=_resources(
            set().union(*(layer.crossbars for layer in layers.values())), tiles, target
        ),
        components=components,
        layers=made,
        activity="profiled" if profiled else "assumed",
        provenance={
            "target": target.name,
            "target_sha256": target.sha256,
            "cost_model": "events times component figures; placement area; "
            f"{target.keys.scheduling.mode} schedule",
            "inference": _what_one_inference_is(module, name),
            "sizes": {"B": 1, **module.sizes},
            "bottleneck": bottleneck,
            **found,
            "not_modelled": [*NOT_MODELLED, *_not_modelled(target)],
            **learning,
            "area_unknown": sorted(k for k, v in areas.items() if v is None),
            "leakage_unknown": sorted(set(counts) - set(leakage)),
        },
        unknown=tuple(unknown),
        operations=sum(operations_of(op) for op in module.function(name).ops),
        interval_ns=interval,
        critical_path=_critical_path(module, name),
        compatibility=_compatibility(module, name, target),
        writing=writing(module, name, target, interval),
    )


def _not_modelled(target: CrossbarTarget) -> tuple[str, ...]:
    if not target.two_devices:
        return ()
    return ("area and leakage of a second device's arrays: counted as those of the weights",)


def _compatibility(module: Module, name: str, target: CrossbarTarget) -> dict[str, Any] | None:
    """What another tool's closed form says of an entry point that reads crossbars."""
    held = target.keys.compatibility
    if held.model == "none" or not any(isinstance(op, Mvm) for op in module.function(name).ops):
        return None
    from imcc.backends.crossbar.spikesim import closed_form, layers_of

    layers, steps = layers_of(module, name)
    keys = target.keys
    return closed_form(
        layers, steps, keys.array.rows, keys.hierarchy.pes_per_tile, held.device, held.order
    )


def _what_one_inference_is(module: Module, name: str) -> str:
    sizes = ", ".join(f"{symbol} = {size}" for symbol, size in {"B": 1, **module.sizes}.items())
    arguments = ", ".join(
        f"%{item.name}: {item.type}"
        for item in module.function(name).arguments
        if not isinstance(item.type, MatrixType)
    )
    return f"one call of @{name} with {sizes}: {arguments}"


def _interval(
    module: Module, name: str, target: CrossbarTarget, latency: float
) -> tuple[float, str]:
    """Time from one input to the next, and what sets it: the busiest hardware of a pipeline."""
    function = module.function(name)
    if target.keys.scheduling.mode != "pipelined" or adapts(function) or not latency:
        return latency, "all ops: the next input waits for the last of them"
    busy = {op: BACKEND.op_cost(op, target).busy_ns for op in function.ops}
    held, layers = busy_by_hardware(module, name, busy)
    pins = sum(off_chip_bits(op, target) for op in busy) / target.keys.off_chip.bits_per_ns
    slowest = max(held, key=lambda item: held[item], default="")
    if pins > held.get(slowest, 0.0):
        return pins, "the pins"
    return held[slowest], f"{slowest} ({layers[slowest]})"


def _critical_path(module: Module, name: str) -> tuple[str, ...]:
    """Layers back from the op that ends last, each the operand (or hardware) that it waited for.

    Where an op follows another without a gap, that op is the one it waited for; where layers
    overlap, the operand that is complete last.
    """
    timed = [
        (op, times)
        for op in module.function(name).ops
        if (times := BACKEND.op_times(op)) is not None and times[1] > times[0]
    ]
    by_end = {times[1]: op for op, times in reversed(timed)}
    held = dict(timed)
    op = max(held, key=lambda item: held[item][1], default=None)
    path: list[str] = []
    while op is not None:
        layer = op.scope or op.name
        if not path or path[-1] != layer:
            path.append(layer)
        start = held[op][0]
        before = by_end.get(start)
        if before is None or before is op or held[before][0] >= start:
            before = _latest_operand(op, held)
        op = before
    return tuple(reversed(path))


def _latest_operand(op: Op, held: dict[Op, tuple[float, float]]) -> Op | None:
    """The op with a time of its own that completes an operand last, through those without one."""
    found: list[Op] = []
    seen: set[Op] = set()
    waiting = [value.owner for value in op.operands]
    while waiting:
        owner = waiting.pop()
        if owner is None or owner in seen:
            continue
        seen.add(owner)
        if owner in held:
            found.append(owner)
        else:
            waiting += [value.owner for value in owner.operands]
    return max(found, key=lambda item: held[item][1], default=None)


def _membrane_words(module: Module, name: str, target: CrossbarTarget) -> int:
    """Buffer words that hold the membranes of all neurons, one state each."""
    total = 0
    for op in module.function(name).ops:
        if isinstance(op, (snn.LeakyIntegrator, snn.LeakyIntegrateAndFire)):
            total += -(-words(op.v, target) // _steps(op))
    return total


def _steps(op: snn.LeakyIntegrator | snn.LeakyIntegrateAndFire) -> int:
    shape = tensor(op.x).shape
    return shape[0] if op.time_axis and shape and isinstance(shape[0], int) else 1


def _gather(
    module: Module, name: str, target: CrossbarTarget, activity: Activity
) -> tuple[dict[str, _Layer], list[str]]:
    layers: dict[str, _Layer] = {}
    unknown: list[str] = []
    for op in module.function(name).ops:
        if op.terminator:
            continue
        layer = layers.setdefault(op.scope or op.name, _Layer())
        cost = BACKEND.op_cost(op, target, activity)
        unknown += layer.add(op, cost, BACKEND.op_times(op))
        if FIRST_TILE in op.annotations:
            held = op.annotations
            layer.crossbars.add((held[FIRST_CROSSBAR], held[CROSSBARS]))
            layer.tiles.update(range(held[FIRST_TILE], held[FIRST_TILE] + held[TILES]))
    return layers, unknown


def placement(module: Module, function: str, target: Target) -> Placement | None:
    """The matrices that the ops of ``@function`` read or program, by their first crossbar."""
    if not isinstance(target, CrossbarTarget):
        return None
    found: dict[tuple[int, int], PlacedMatrix] = {}
    states = module.function(function).value_states()
    for op in module.function(function).ops:
        if isinstance(op, (*MATRIX_OPS, Write, ReadMatrix)) and FIRST_CROSSBAR in op.annotations:
            first, count = op.annotations[FIRST_CROSSBAR], op.annotations[CROSSBARS]
            matrix = matrix_of(op)
            name = states.get(matrix, matrix.name)
            found.setdefault((first, count), PlacedMatrix(name, op.scope or op.name, first, count))
    if not found:
        return None
    held = target.keys.hierarchy
    return Placement(
        "crossbar",
        (("tile", held.pes_per_tile), ("pe", held.crossbars_per_pe)),
        tuple(found[key] for key in sorted(found)),
    )


def _instances(tiles: int, target: CrossbarTarget, membrane_words: int = 0) -> dict[str, int]:
    """Instances of each component on the tiles in use, of vector units and membrane memory."""
    array = target.keys.array
    crossbars = tiles * target.crossbars_per_tile
    adcs = crossbars * target.adcs_per_crossbar
    lanes = target.keys.digital.lanes
    if target.keys.digital.per == "tile":
        lanes *= max(1, tiles)
    made = {
        "cell_read": crossbars * array.rows * array.columns,
        "row_driver": crossbars * array.rows,
        "column_driver": crossbars * array.columns,
        "adc": adcs,
        "shift_add": adcs,
        "buffer_read": tiles,
        "htree": tiles,
        "noc": tiles,
        "alu_add": lanes,
        "alu_multiply": lanes,
        "lookup": lanes,
    }
    if membrane_words:
        made["membrane"] = membrane_words
    return made


def _area(component: str, count: int, target: CrossbarTarget) -> float | None:
    figure = target.area_um2(component)
    return None if figure is None else figure * count


def _tile_instances(tiles: int, target: CrossbarTarget) -> dict[str, int]:
    """Instances on some tiles, without what is the chip's."""
    counts = _instances(tiles, target)
    shared = () if target.keys.digital.per == "tile" else VECTOR_UNIT
    return {item: counts[item] for item in counts if item not in shared}


def tile_area_um2(target: CrossbarTarget) -> float:
    """Area of one tile, of components whose figure is known."""
    counts = _tile_instances(1, target)
    areas = [_area(item, count, target) for item, count in counts.items()]
    return sum(value for value in areas if value is not None)


def _layer(
    name: str, layer: _Layer, energy: dict[str, float], area: float, target: CrossbarTarget
) -> LayerCost:
    total = sum(energy.values())
    only_unknown = bool(layer.unknown) and not layer.events
    return LayerCost(
        name=name,
        ops=tuple(layer.ops),
        energy_pj=None if only_unknown else total,
        busy_ns=layer.busy_ns,
        start_ns=layer.start_ns if layer.start_ns is not None else 0.0,
        end_ns=layer.end_ns,
        area_um2=area,
        events=dict(layer.events),
        energy_by_component_pj=energy,
        resources=_resources(layer.crossbars, len(layer.tiles), target) if layer.tiles else {},
        unknown="; ".join(layer.unknown),
        instances=_tile_instances(len(layer.tiles), target) if layer.tiles else {},
    )


def _resources(
    crossbars: set[tuple[int, int]], tiles: int, target: CrossbarTarget
) -> dict[str, int]:
    used = sum(count for _, count in crossbars)
    per_pe = target.keys.hierarchy.crossbars_per_pe
    pes, last = 0, -1
    for first, count in sorted(crossbars):
        top = (first + count - 1) // per_pe
        pes += max(0, top - max(first // per_pe - 1, last))
        last = max(last, top)
    return {
        "crossbars": used,
        "pes": pes,
        "tiles": tiles,
        "adcs": used * target.adcs_per_crossbar,
    }
