"""Two reports side by side: the same model on two targets, or before and after a change."""

from __future__ import annotations

from typing import IO, Any

from imcc.report.cost_tables import listed, without_area, without_energy, without_leakage
from imcc.report.tables import console_of, plain, quantity, share, table_of

QUANTITIES = (("energy_pj", "pJ"), ("latency_ns", "ns"), ("area_um2", "um2"))


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Totals, accuracy and layers of two reports; ``ratio`` is second over first.

    Layers are matched by their name in the model. ``notes`` says what makes the two hard to
    compare: other models, costs that are not known, counts that rest on other grounds.
    """
    sides = (first, second)
    main = [report["entry_points"]["inference"] for report in sides]
    totals = {name: _pair(report[name] for report in sides) for name, _ in QUANTITIES}
    layers: dict[str, list[dict[str, Any] | None]] = {}
    for side, record in enumerate(main):
        for layer in record["layers"]:
            if layer["events"] or layer["unknown"] or layer["busy_ns"]:
                layers.setdefault(layer["name"], [None, None])[side] = layer
    rows = [
        {
            "name": name,
            "energy_pj": _pair(layer["energy_pj"] if layer else None for layer in held),
            "busy_ns": _pair(layer["busy_ns"] if layer else None for layer in held),
        }
        for name, held in layers.items()
    ]
    return {
        "model": [report["model"]["name"] for report in sides],
        "target": [report["targets"][0]["name"] for report in sides],
        "totals": totals,
        "accuracy": {
            name: [_accuracy(report, name) for report in sides]
            for name in ("float", "noise_free", "noisy")
        },
        "activity": [record["activity"] for record in main],
        "layers": rows,
        "notes": _notes(sides, main),
    }


def _pair(values: Any) -> dict[str, Any]:
    left, right = values
    return {"first": left, "second": right, "ratio": share(right, left)}


def _accuracy(report: dict[str, Any], name: str) -> float | None:
    held = (report.get("accuracy") or {}).get(name)
    made: float | None = held.get("mean") if isinstance(held, dict) else held
    return made


def _notes(sides: tuple[dict[str, Any], ...], main: list[dict[str, Any]]) -> list[str]:
    made = []
    names = [report["model"]["name"] for report in sides]
    if names[0] != names[1]:
        made.append(f"the models differ: {names[0]} and {names[1]}")
    for report, record in zip(sides, main, strict=True):
        target = report["targets"][0]["name"]
        for what, names in (
            ("energy", without_energy(record)),
            ("leakage", without_leakage(record)),
            ("area", without_area(record)),
        ):
            if names:
                made.append(f"{target}: {what} is without that of {listed(names)}")
        left_out = record["provenance"].get("not_modelled")
        if left_out:
            made.append(f"{target}: not modelled: {', '.join(map(str, left_out))}")
    kinds = [record["activity"] for record in main]
    if kinds[0] != kinds[1]:
        made.append(f"counts rest on {kinds[0]} and on {kinds[1]} activity")
    return made


def print_compare(made: dict[str, Any], file: IO[str]) -> None:
    """Print both tables and the notes to ``file``."""
    console = console_of(file)
    named = zip(made["model"], made["target"], strict=True)
    heads = [plain(f"{model} on {target}") for model, target in named]
    table = table_of("Totals", "quantity", *heads, "ratio")
    for name, unit in QUANTITIES:
        pair = made["totals"][name]
        shown = [quantity(pair[side], unit) for side in ("first", "second")]
        table.add_row(name.split("_")[0], *shown, _ratio(pair["ratio"]))
    for name, values in made["accuracy"].items():
        if values != [None, None]:
            shown = ["" if value is None else f"{value:.4f}" for value in values]
            table.add_row(f"accuracy, {name.replace('_', ' ')}", *shown, "")
    table.add_row("activity", *made["activity"], "")
    console.print(table)
    table = table_of("Layers", "layer", *(f"energy, {name}" for name in made["target"]), "ratio")
    for name in made["target"]:
        table.add_column(plain(f"busy, {name}"), justify="right")
    table.add_column("ratio", justify="right")
    for row in made["layers"]:
        cells = []
        for key, unit in (("energy_pj", "pJ"), ("busy_ns", "ns")):
            pair = row[key]
            for side in ("first", "second"):
                cells.append("" if pair[side] is None else quantity(pair[side], unit))
            cells.append(_ratio(pair["ratio"]))
        table.add_row(plain(row["name"]), *cells)
    console.print(table)
    for note in made["notes"]:
        console.print(plain(f"note: {note}"))


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
