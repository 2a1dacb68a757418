"""When the ops of an adaptation step run, and the hardware that it needs besides inference's.

An op starts when its operands and its unit are there: the crossbars of its matrix, the gradient
unit of its layer (``learning.units = "layer"``), or the chip's vector unit. By direct feedback the
deltas of all layers follow from the output error alone, so that layers work side by side; by
back-propagation each waits for the one behind it. The same rule makes both schedules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from imcc.backends.crossbar import BACKEND
from imcc.backends.crossbar.cost import element_bits, elements
from imcc.backends.crossbar.dialect import CROSSBARS, FIRST_CROSSBAR
from imcc.backends.crossbar.learning_ops import MATRIX_OPS, ReadCodes, TransposedMvm, Update
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.dialects import core, learn
from imcc.ir.module import Function
from imcc.ir.ops import Op, Value
from imcc.ir.types import TensorType

Times = dict[Op, tuple[float, float]]

WEIGHT_GRADIENTS = (learn.LinearWeightGradient, learn.ConvWeightGradient)


def adapts(function: Function) -> bool:
    """Whether a function is an adaptation step: it writes to a matrix, or computes an error."""
    return any(isinstance(op, (Update, learn.OutputError)) for op in function.ops)


def layers_of(function: Function) -> dict[Op, str]:
    """The layer that each gradient op works for: that of the first weight gradient behind it."""
    made: dict[Op, str] = {}
    order = {op: place for place, op in enumerate(function.ops)}
    for op in reversed(order):
        if isinstance(op, WEIGHT_GRADIENTS):
            made[op] = op.scope
            continue
        users = sorted((u for value in op.results for u in value.users), key=order.__getitem__)
        found = next((made[user] for user in users if made.get(user)), "")
        made[op] = found or op.scope
    return made


def hardware_of(op: Op, layers: Mapping[Op, str], target: CrossbarTarget) -> str:
    """What an op occupies while it works."""
    if isinstance(op, MATRIX_OPS) and FIRST_CROSSBAR in op.annotations:
        return f"crossbar {op.annotations[FIRST_CROSSBAR]}"
    if op.name.startswith("learn.") and target.keys.learning.units == "layer":
        return f"gradient unit of {layers[op]}"
    return "vector unit"


def schedule(function: Function, target: CrossbarTarget) -> list[tuple[Op, float, float]]:
    """Start and end of every op but the return: whichever can start first does."""
    ops = [op for op in function.ops if not op.terminator]
    layers = layers_of(function)
    busy = {op: BACKEND.op_cost(op, target).busy_ns for op in ops}
    waits = {op: _waits_for(op) for op in ops}
    ends: dict[Op, float] = {}
    free: dict[str, float] = {}
    starts: dict[Op, float] = {}
    left = ops
    while left:
        best: tuple[float, Op] | None = None
        for op in left:
            if not all(source in ends for source in waits[op]):
                continue
            start = max((ends[source] for source in waits[op]), default=0.0)
            if busy[op]:
                start = max(start, free.get(hardware_of(op, layers, target), 0.0))
            if best is None or start < best[0]:
                best = (start, op)
        if best is None:
            raise ValueError(f"@{function.name} waits for itself")
        start, op = best
        starts[op], ends[op] = start, start + busy[op]
        if busy[op]:
            free[hardware_of(op, layers, target)] = ends[op]
        left = [other for other in left if other is not op]
    return [(op, starts[op], ends[op]) for op in ops]


def _waits_for(op: Op) -> set[Op]:
    """What makes the operands; a write also waits for what reads the old contents."""
    found = {value.owner for value in op.operands if value.owner is not None}
    if isinstance(op, Update):
        found.update(user for user in op.held.users if user is not op and not user.terminator)
    return found


# -- hardware --------------------------------------------------------------------------------------


def added_hardware(function: Function, tiles: int, target: CrossbarTarget) -> dict[str, int]:
    """Instances of components that an adaptation step needs besides those of its tiles.

    Arrays that are read from their columns: drivers and selectors at the other side, and converters
    for the rows unless ``learning.shared_converters``. A gradient unit for each layer. Buffers for
    what is alive at once beyond what the tiles' buffers hold.
    """
    keys = target.keys
    made: dict[str, int] = {}

    def add(name: str, count: int) -> None:
        if count:
            made[name] = made.get(name, 0) + count

    turned = {
        op.annotations[FIRST_CROSSBAR]: op.annotations[CROSSBARS]
        for op in function.ops
        if isinstance(op, TransposedMvm)
    }
    crossbars = sum(turned.values())
    add("row_driver", crossbars * keys.array.columns)
    add("column_driver", crossbars * keys.array.rows)
    if not keys.learning.shared_converters:
        converters = crossbars * -(-keys.array.rows // keys.adc.columns_per_adc)
        add("adc", converters)
        add("shift_add", converters)
    if keys.learning.units == "layer":
        layers = layers_of(function)
        units = {
            layers[op]
            for op in function.ops
            if op.name.startswith("learn.") and BACKEND.op_cost(op, target).busy_ns
        }
        for component in ("alu_add", "alu_multiply"):
            add(component, len(units) * keys.learning.lanes)
    beyond = peak_bytes(function, target) - tiles * keys.learning.buffer_bytes
    add("buffer_read", max(0, math.ceil(beyond / keys.learning.buffer_bytes)))
    return made


def learning_part(
    function: Function, counts: dict[str, int], tiles: int, target: CrossbarTarget
) -> dict[str, Any]:
    """What a record says of an adaptation step; its hardware is added to ``counts``.

    Empty for other functions. ``update`` is the part of energy and time that a batch of samples
    takes once.
    """
    if not adapts(function):
        return {}
    added = added_hardware(function, tiles, target)
    for name, count in added.items():
        counts[name] = counts.get(name, 0) + count
    return {
        "learning": {
            **target.keys.learning.model_dump(),
            "added_instances": added,
            "peak_buffer_bytes": peak_bytes(function, target),
            "update": update_part(function, target),
        }
    }


def peak_bytes(function: Function, target: CrossbarTarget) -> int:
    """The most bytes of tensors that are alive at once, by the schedule, for one sample.

    A tensor lives from the start of the op that makes it to the end of the last that reads it; one
    that is state or returned lives throughout. Ops that only rename data make none.
    """
    root: dict[Value, Value] = {}
    births: dict[Value, float] = {}
    deaths: dict[Value, float] = {}
    last = max((_times(op)[1] for op in function.ops), default=0.0)
    for value, state in zip(function.arguments, function.argument_states, strict=True):
        root[value] = value
        births[value], deaths[value] = 0.0, 0.0 if state is None else last
    for op in function.ops:
        start, end = (last, last) if op.terminator else _times(op)
        for value in op.operands:
            held = root.get(value)
            if held is not None:
                deaths[held] = max(deaths.get(held, 0.0), end)
        if op.terminator or isinstance(op, core.Constant):
            continue
        renames = bool(op.operands) and bool(BACKEND.op_cost(op, target).free)
        for value in op.results:
            root[value] = root.get(op.operands[0], value) if renames else value
            births.setdefault(root[value], start)
            deaths.setdefault(root[value], end)
    changes = sorted(_changes(births, deaths))
    peak = now = 0
    for _, size in changes:
        now += size
        peak = max(peak, now)
    return peak


def _changes(
    births: Mapping[Value, float], deaths: Mapping[Value, float]
) -> Iterator[tuple[float, int]]:
    for value, birth in births.items():
        if isinstance(value.type, TensorType):
            size = math.ceil(elements(value) * element_bits(value) / 8)
            yield birth, size
            yield deaths[value], -size


def _times(op: Op) -> tuple[float, float]:
    return BACKEND.op_times(op) or (0.0, 0.0)


# -- what is done once for a batch -----------------------------------------------------------------


def update_part(function: Function, target: CrossbarTarget) -> dict[str, float]:
    """Energy in pJ and time in ns of what is done once for a batch of samples: new weights.

    The rest of the step is done for each sample, gradients being added up.
    """
    once = _once(function)
    energy = 0.0
    for op in once:
        for event, count in BACKEND.op_cost(op, target).events.items():
            energy += count * (target.energy_pj(event.partition(".")[0]) or 0.0)
    ends = [_times(op)[1] for op in function.ops if op not in once and not op.terminator]
    last = max((_times(op)[1] for op in function.ops if not op.terminator), default=0.0)
    return {"energy_pj": energy, "latency_ns": last - max(ends, default=0.0)}


def _once(function: Function) -> set[Op]:
    """Updates, and what is computed from updated weights alone."""
    found: set[Op] = set()
    for op in function.ops:
        follows = any(value.owner in found for value in op.operands)
        if not op.terminator and (follows or isinstance(op, (learn.Update, ReadCodes))):
            found.add(op)
    return found
