"""What writing run-time matrices takes of an inference: time, energy, wear. For cost records."""

from __future__ import annotations

from typing import Any

from imcc.backends.crossbar import BACKEND
from imcc.backends.crossbar.cache import written_growth
from imcc.backends.crossbar.dialect import ReadMatrix, Write
from imcc.backends.crossbar.run_time_rules import layout
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.module import Module
from imcc.ir.ops import Op


def writing(
    module: Module, name: str, target: CrossbarTarget, interval_ns: float
) -> dict[str, Any] | None:
    """Writes of one call of ``@name`` with B = 1; None where nothing is written.

    ``scopes`` holds a row for each scope of the user's model that writes: the time at work of its
    writes, of the reads of what was written, and of all ops in the scope and below. Every matrix
    has crossbars of its own, so that a cell is written once in each inference (of a cache that
    cells keep, those of the new part; the mean over cells is given); inputs that follow one another
    in ``interval_ns`` wear cells out after ``endurance_writes`` over that mean.
    """
    ops = [op for op in module.function(name).ops if not op.terminator]
    writes = [op for op in ops if isinstance(op, Write)]
    if not writes:
        return None
    costs = {op: BACKEND.op_cost(op, target) for op in ops}
    energy: float | None = 0.0
    for op in writes:
        for event, count in costs[op].events.items():
            figure = target.energy_pj(event.split(".", 1)[0])
            energy = None if figure is None or energy is None else energy + count * figure
    keys = target.keys.dynamic
    endurance = target.dynamic.keys.device.endurance_writes
    cells = sum(layout(op).cells for op in writes)
    shares = {
        op: 1.0 if (made := written_growth(op, target)) is None else made.share for op in writes
    }
    each = sum(layout(op).cells * share for op, share in shares.items()) / cells
    lasts = None if endurance is None else endurance / each
    return {
        "matrices": sum(layout(op).groups for op in writes),
        "cells": cells,
        "writes_per_cell": each,
        "pulses_per_cell": keys.pulses_per_cell * target.dynamic.write_noise.pulses,
        "energy_pj": energy,
        "busy_ns": sum(costs[op].busy_ns for op in writes),
        "scopes": [
            _scope(scope, ops, {op: costs[op].busy_ns for op in ops})
            for scope in dict.fromkeys(op.scope for op in writes)
        ],
        "endurance_writes": endurance,
        "inferences_until_worn": lasts,
        "seconds_until_worn": None if lasts is None else lasts * interval_ns * 1e-9,
    }


def _scope(scope: str, ops: list[Op], busy: dict[Op, float]) -> dict[str, Any]:
    inside = [op for op in ops if op.scope == scope or op.scope.startswith(f"{scope}.")]
    total = sum(busy[op] for op in inside)
    written = sum(busy[op] for op in inside if isinstance(op, Write))
    return {
        "scope": scope,
        "write_ns": written,
        "read_ns": sum(busy[op] for op in inside if isinstance(op, ReadMatrix)),
        "busy_ns": total,
        "write_share": written / total if total else 0.0,
    }
