"""The schedule as a trace file in Chrome's trace event format, which Perfetto opens.

The format counts in microseconds: a time of 1 ns is written as 0.001. Each entry point is a
process; each layer on tiles of its own is a thread, and so is what runs elsewhere. Ops that overlap
on one thread get further threads, since slices of one thread must nest.
"""

from __future__ import annotations

import json
from typing import Any

from imcc.backends.api import find_backend
from imcc.driver.compiled import CompiledModel
from imcc.report.costs import OpEntry, op_entries

NS_PER_US = 1000.0


def trace_events(compiled: CompiledModel) -> dict[str, Any]:
    """The trace as JSON data: ``ts`` and ``dur`` in microseconds, exact times in ``args``."""
    events: list[dict[str, Any]] = []
    report = compiled.report_data
    for process, function in enumerate(report["entry_points"], start=1):
        entries = [entry for entry in op_entries(compiled, function) if _timed(entry)]
        events.append(_name("process_name", process, 0, f"@{function}"))
        for thread, (track, held) in enumerate(tracks(compiled, function, entries), start=1):
            events.append(_name("thread_name", process, thread, track))
            events.append(
                {
                    "ph": "M",
                    "name": "thread_sort_index",
                    "pid": process,
                    "tid": thread,
                    "args": {"sort_index": thread},
                }
            )
            events += [_slice(entry, process, thread) for entry in held]
        events += _power(entries, process)
    return {
        "displayTimeUnit": "ns",
        "otherData": {
            "model": report["model"]["name"],
            "target": report["targets"][0]["name"],
            "target_sha256": report["targets"][0]["sha256"],
            "imcc_version": report["imcc_version"],
            "units": "ts and dur in microseconds, as the format demands; args.*_ns in nanoseconds",
        },
        "traceEvents": events,
    }


def trace_text(compiled: CompiledModel) -> str:
    """The trace file's text, the same for the same artifact."""
    return json.dumps(trace_events(compiled), ensure_ascii=True, indent=1) + "\n"


def tracks(
    compiled: CompiledModel, function: str, entries: list[OpEntry]
) -> list[tuple[str, list[OpEntry]]]:
    """Ops that take time, by where they run: each matrix on its tiles, the rest together.

    In order of place; ops of one track do not overlap.
    """
    backend = find_backend(compiled.target.backend)
    placement = backend.placement(compiled.module, function, compiled.target)
    places: dict[str, tuple[int, str]] = {}
    elsewhere = "ops"
    if placement is not None:
        inner = 1
        for _, count in placement.levels:
            inner *= count
        group = placement.levels[0][0] if placement.levels else placement.unit
        elsewhere = f"not on {group}s"
        for item in placement.matrices:
            low, high = item.first // inner, (item.first + item.count - 1) // inner
            shown = f"{group} {low}" if low == high else f"{group} {low} to {high}"
            places.setdefault(item.name, (item.first, f"{shown}: {item.layer}"))
    states = compiled.module.function(function).value_states()
    found: dict[tuple[int, str], list[list[OpEntry]]] = {}
    for entry in filter(_timed, entries):
        values = (*entry.op.operands, *entry.op.results)
        at = (places.get(states.get(value, value.name)) for value in values)
        key = next((place for place in at if place is not None), (-1, elsewhere))
        lanes = found.setdefault(key, [])
        for lane in lanes:
            if _end(lane[-1]) <= _start(entry):
                lane.append(entry)
                break
        else:
            lanes.append([entry])
    return [
        (label if len(lanes) == 1 else f"{label} ({number} of {len(lanes)})", lane)
        for (_, label), lanes in sorted(found.items())
        for number, lane in enumerate(lanes, start=1)
    ]


def _timed(entry: OpEntry) -> bool:
    return entry.start_ns is not None and entry.busy_ns > 0


def _start(entry: OpEntry) -> float:
    return entry.start_ns if entry.start_ns is not None else 0.0


def _end(entry: OpEntry) -> float:
    return _start(entry) + entry.busy_ns


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _slice(entry: OpEntry, process: int, thread: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": f"{entry.layer}: {entry.op.name}",
        "cat": entry.op.name,
        "pid": process,
        "tid": thread,
        "ts": _start(entry) / NS_PER_US,
        "dur": entry.busy_ns / NS_PER_US,
        "args": {
            "value": f"%{entry.name}",
            "start_ns": _start(entry),
            "end_ns": _end(entry),
            "energy_pj": entry.energy_pj,
            "events": dict(entry.events),
            "source": [str(place) for place in entry.op.loc],
        },
    }


def _power(entries: list[OpEntry], process: int) -> list[dict[str, Any]]:
    """Mean dynamic power over time in mW (pJ / ns), as a counter."""
    changes: dict[float, float] = {}
    for entry in entries:
        if entry.energy_pj is not None and _end(entry) > _start(entry):
            power = entry.energy_pj / (_end(entry) - _start(entry))
            changes[_start(entry)] = changes.get(_start(entry), 0.0) + power
            changes[_end(entry)] = changes.get(_end(entry), 0.0) - power
    made, now = [], 0.0
    for time in sorted(changes):
        now += changes[time]
        made.append(
            {
                "ph": "C",
                "name": "mean power of ops at work",
                "pid": process,
                "tid": 0,
                "ts": time / NS_PER_US,
                # What is left of sums of differences is rounding.
                "args": {"mW": max(0.0, round(now, 9))},
            }
        )
    return made
