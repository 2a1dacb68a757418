"""Costs of a report for the terminal: totals, figures of merit, layers, components.

Rows of the tables of layers and of components add up to the totals. ``>=`` marks a sum in which
something without a figure is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from imcc.report.tables import percent, plain, print_line, quantity, share, table_of

COSTLIEST = 8
NAMED = 8
"""How many costs without a figure are named; the JSON form has all."""
AT_LEAST = ">= "

Record = Mapping[str, Any]


def print_costs(console: Any, report: dict[str, Any]) -> None:
    """Print all tables of costs."""
    point = report["entry_points"]["inference"]
    _totals(console, report)
    _merit(console, point)
    _compatibility(console, report)
    _writing(console, report)
    _inputs(console, report)
    _layers(console, point)
    _components(console, point)


# -- what has no figure ----------------------------------------------------------------------------


def without_energy(point: Record) -> list[str]:
    """Components and ops whose energy is in no total."""
    return [str(item).removeprefix("energy of component ") for item in point["unknown"]]


def without_area(point: Record) -> list[str]:
    """Components that are on the chip and whose area is in no total."""
    return _without(point, "area_um2")


def without_leakage(point: Record) -> list[str]:
    """Components that are on the chip and whose leakage is in no total."""
    return _without(point, "leakage_pj")


def incomplete_energy(point: Record) -> bool:
    """Whether something is missing in the energy of an entry point."""
    return bool(point["unknown"] or without_leakage(point))


def _without(point: Record, key: str) -> list[str]:
    held = point["components"]
    return [name for name in held if held[name].get("instances") and held[name].get(key) is None]


def _part(layer: Record, point: Record) -> bool:
    """Whether some of a layer's events have no figure."""
    dark = {name for name, held in point["components"].items() if held.get("energy_pj") is None}
    events = layer.get("events") or {}
    return bool(layer.get("unknown")) or any(
        count and event.split(".", 1)[0] in dark for event, count in events.items()
    )


def _sum_of(value: float, unit: str, incomplete: Any) -> str:
    """A sum; one of which nothing is known is no 0."""
    if incomplete and not value:
        return "unknown"
    return (AT_LEAST if incomplete else "") + quantity(value, unit)


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    held = list(names)
    more = f" and {len(held) - NAMED} more, see --json" if len(held) > NAMED else ""
    return ", ".join(held[:NAMED]) + more


# -- tables ----------------------------------------------------------------------------------------


def _totals(console: Any, report: dict[str, Any]) -> None:
    points: dict[str, Record] = report["entry_points"]
    table = table_of(
        "Cost of one call (B = 1)", "entry point", "energy", "latency", "interval", "area"
    )
    for name, point in points.items():
        table.add_row(
            plain(f"@{name}"),
            _sum_of(point["energy_pj"], "pJ", incomplete_energy(point)),
            quantity(point["latency_ns"], "ns"),
            quantity(point.get("interval_ns"), "ns"),
            _sum_of(point["area_um2"], "um2", without_area(point)),
        )
    console.print(table)
    _left_out(console, points)
    main = points["inference"]
    if main.get("interval_ns") is not None:
        setter = main["provenance"].get("bottleneck")
        print_line(
            console,
            "interval: from one input to the next" + (f"; set by {setter}" if setter else ""),
        )
    if report["resources"]:
        shown = ", ".join(f"{count} {name}" for name, count in report["resources"].items())
        print_line(console, shown)


def _left_out(console: Any, points: Mapping[str, Record]) -> None:
    """What ``>=`` stands for: parts without a figure, by entry point where these differ."""
    kinds = (("energy", without_energy), ("leakage", without_leakage), ("area", without_area))
    lines: list[str] = []
    for what, find in kinds:
        held: dict[tuple[str, ...], list[str]] = {}
        for name, point in points.items():
            held.setdefault(tuple(find(point)), []).append(f"@{name}")
        for names, entries in held.items():
            where = "" if len(entries) == len(points) else f" in {', '.join(entries)}"
            if names:
                lines.append(f"{what}{where} of {listed(names)}")
    if lines:
        print_line(console, ">=: parts without a figure are not in the sum:")
    for line in lines:
        print_line(console, line, indent=4)


def _merit(console: Any, point: Record) -> None:
    """Throughput and efficiency of one inference, and what they count."""
    merit = point.get("merit")
    if not merit:
        return
    energy, area = incomplete_energy(point), bool(without_area(point))
    most, least = ("at most " if energy else ""), ("at least " if energy else "")
    print_line(
        console,
        f"{merit['tops']:.4g} TOPS, {most}{merit['tops_per_w']:.4g} TOPS/W, "
        f"{'at most ' if area else ''}{merit['tops_per_mm2']:.4g} TOPS/mm2, "
        f"{merit['inferences_per_s']:.4g} inferences/s",
    )
    print_line(
        console,
        f"EDP {least}{1e-21 * merit['edp_pj_ns']:.4g} J s, "
        f"EDAP {'at least ' if energy or area else ''}"
        f"{1e-21 * 1e-6 * merit['edap_pj_ns_um2']:.4g} J s mm2",
    )
    print_line(console, f"operations: {merit['counted']}")
    said = point["provenance"].get("inference")
    if said:
        print_line(console, f"an inference is {said}")


def _compatibility(console: Any, report: dict[str, Any]) -> None:
    """Another tool's closed form beside the event model."""
    point = report["entry_points"]["inference"]
    held = point.get("compatibility")
    if not held:
        return
    steps = held["time_steps"]
    table = table_of(
        f"As {held['model']} computes it, {steps} time step{'' if steps == 1 else 's'}",
        "",
        held["model"],
        "events",
    )
    resources = report.get("resources") or {}
    for name in ("pes", "tiles"):
        table.add_row(name.replace("pes", "PEs"), str(held[name]), str(resources.get(name, "-")))
    for name, unit, incomplete in (
        ("area_um2", "um2", without_area(point)),
        ("energy_pj", "pJ", incomplete_energy(point)),
        ("latency_ns", "ns", None),
    ):
        what = name.rsplit("_", 1)[0]
        table.add_row(what, quantity(held[name], unit), _sum_of(point[name], unit, incomplete))
    console.print(table)
    for item in held["oddities"]:
        print_line(console, f"{held['model']}: {item}")


def _writing(console: Any, report: dict[str, Any]) -> None:
    """Matrices written at run time: their share of the time, and how long cells last."""
    held = report["entry_points"]["inference"].get("writing")
    if not held:
        return
    table = table_of("Written at run time", "scope", "writing", "reading it", "all ops", "share")
    for row in held["scopes"]:
        table.add_row(
            plain(row["scope"] or "(none)"),
            quantity(row["write_ns"], "ns"),
            quantity(row["read_ns"], "ns"),
            quantity(row["busy_ns"], "ns"),
            f"{row['write_share']:.4f}",
        )
    console.print(table)
    lasts = "their endurance is not known"
    if held["inferences_until_worn"] is not None:
        lasts = (
            f"they bear {held['inferences_until_worn']:.3g} inferences, "
            f"{quantity(held['seconds_until_worn'] * 1e9, 'ns')} at full rate"
        )
    print_line(
        console,
        f"{held['matrices']} matrices, {held['cells']} cells, each written "
        f"{held['writes_per_cell']:.4g} time an inference with "
        f"{held['pulses_per_cell']:g} pulses; {lasts}",
    )


def _inputs(console: Any, report: dict[str, Any]) -> None:
    """What counts rest on: which rows inputs drive, where that was counted."""
    held = report["entry_points"]["inference"]["provenance"]
    rows: dict[str, dict[str, Any]] = held.get("inputs") or {}
    if not rows:
        return
    first = next(iter(rows.values()))
    table = table_of(
        f"Rows that inputs drive, counted on {first['samples']} samples",
        "layer",
        "share",
        "by time step, or by bit from the lowest",
        "runs driven",
    )
    for name, row in list(rows.items())[:COSTLIEST]:
        each = row["by_step"] or row["by_digit"]
        table.add_row(
            plain(name),
            f"{row['density']:.4f}",
            " ".join(f"{value:.2f}" for value in each),
            f"{row['driven_runs']:.4f}",
        )
    console.print(table)
    said = f"all reads: {held['input_bit_density']:.4f}; assumed were {held['assumed_density']:g}"
    print_line(console, said + (f"; {len(rows)} reads in all" if len(rows) > COSTLIEST else ""))


def _layers(console: Any, point: Record) -> None:
    """The costliest layers, the others together, and what belongs to no layer."""
    layers = sorted(point["layers"], key=lambda layer: -(layer["energy_pj"] or 0.0))
    total = point["energy_pj"]
    table = table_of("Costliest layers", "layer", "energy", "share", "busy", "area")
    for layer in layers[:COSTLIEST]:
        table.add_row(
            plain(layer["name"]),
            _sum_of(layer["energy_pj"] or 0.0, "pJ", _part(layer, point)),
            percent(share(layer["energy_pj"], total)),
            quantity(layer["busy_ns"], "ns"),
            quantity(layer["area_um2"], "um2"),
        )
    rest = layers[COSTLIEST:]
    if rest:
        energy = sum(layer["energy_pj"] or 0.0 for layer in rest)
        dark = any(_part(layer, point) for layer in rest)
        table.add_row(
            f"{len(rest)} more",
            _sum_of(energy, "pJ", dark),
            percent(share(energy, total)),
            "",
            quantity(sum(layer["area_um2"] for layer in rest), "um2"),
        )
    leakage = point.get("leakage_pj") or 0.0
    area = point["area_um2"] - sum(layer["area_um2"] for layer in layers)
    # Layers that share tiles, or one array, count them each.
    shared = area < -1e-9 * point["area_um2"]
    if leakage or area > 1e-9 * point["area_um2"]:
        table.add_row(
            "of no layer",
            _sum_of(leakage, "pJ", without_leakage(point)),
            percent(share(leakage, total)),
            "",
            "-" if shared else quantity(max(0.0, area), "um2"),
        )
    table.add_section()
    table.add_row(
        "total",
        _sum_of(total, "pJ", incomplete_energy(point)),
        percent(share(total, total)),
        "",
        _sum_of(point["area_um2"], "um2", without_area(point)),
    )
    console.print(table)
    said = ["of no layer: leakage"] if leakage else []
    if area > 1e-9 * point["area_um2"]:
        said.append(("" if said else "of no layer: ") + "area of what all layers use")
    if said:
        print_line(console, ", ".join(said))
    if shared:
        print_line(console, "areas add up to more than the total: layers share hardware")
    if rest:
        print_line(console, "`--by layer` shows all layers")


def _components(console: Any, point: Record) -> None:
    """Components: what their events take, what they leak, and how these make the total."""
    components = point["components"]
    if not components:
        return
    total, leakage = point["energy_pj"], point.get("leakage_pj") or 0.0
    table = table_of("Components", "component", "dynamic", "leakage", "share", "area")

    def spent(held: Record) -> float:
        return (held.get("energy_pj") or 0.0) + (held.get("leakage_pj") or 0.0)

    for name, held in sorted(components.items(), key=lambda item: -spent(item[1])):
        known = held.get("energy_pj") is not None or held.get("leakage_pj") is not None
        placed = bool(held.get("instances"))
        table.add_row(
            plain(name),
            quantity(held.get("energy_pj"), "pJ"),
            quantity(held.get("leakage_pj"), "pJ") if placed else "-",
            percent(share(spent(held), total)) if known else "-",
            quantity(held.get("area_um2"), "um2") if placed else "-",
        )
    table.add_section()
    table.add_row(
        "total",
        _sum_of(total - leakage, "pJ", point["unknown"]),
        _sum_of(leakage, "pJ", without_leakage(point)),
        percent(share(total, total)),
        _sum_of(point["area_um2"], "um2", without_area(point)),
    )
    console.print(table)
    parts = f"{quantity(total - leakage, 'pJ')} dynamic + {quantity(leakage, 'pJ')} leakage"
    print_line(console, f"{parts} = {quantity(total, 'pJ')}")
