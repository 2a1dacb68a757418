"""What ``imcc optimize`` found, as tables for the terminal."""

from __future__ import annotations

from typing import IO, Any

from imcc.report.cost_tables import listed, without_energy
from imcc.report.tables import console_of, plain, print_line, quantity, table_of


def print_optimization(report: dict[str, Any], file: IO[str]) -> None:
    """Print predictions, rankings and the points of accuracy against EDAP to ``file``."""
    found = report["optimization"]
    console = console_of(file)
    target = report["targets"][0]["name"]
    console.print(plain(f"{report['model']['name']} on {target}"), style="bold")
    if found["goal"]["delay_us"] is not None:
        _predictions(console, found)
    if found["met_without_change"]:
        console.print("The delay is met as the model is: nothing was changed.")
    for ranking in found["rankings"]:
        table = table_of(f"Placements of {ranking['count']}, short training", "", "held-out loss")
        for item in ranking["placements"]:
            encoders = ", ".join(map(str, item["encoders"]))
            table.add_row(f"{item['placement']}: {encoders}", f"{item['held_out_loss']:.4f}")
        console.print(table)
    table = table_of(
        "Accuracy against EDAP", "", "accuracy", "energy", "latency", "area", "EDAP gain", "Pareto"
    )
    for number, point in enumerate(found["points"]):
        measured = point["accuracy"]
        table.add_row(
            plain(("> " if number == found["chosen"] else "") + point["name"]),
            "-" if measured is None else f"{measured:.4f}",
            quantity(point["energy_pj"], "pJ"),
            quantity(point["latency_ns"], "ns"),
            quantity(point["area_um2"], "um2"),
            f"{point['edap_gain']:.3g}x",
            "yes" if point["pareto"] else "",
        )
    console.print(table)
    unknown = without_energy(report["entry_points"]["inference"])
    if unknown:
        print_line(console, f"no number above has the energy of {listed(unknown)}")


def _predictions(console: Any, found: dict[str, Any]) -> None:
    limit = found["goal"]["delay_us"] * 1e3
    table = table_of(f"Predicted for {quantity(limit, 'ns')}", "reuse encoders", "latency", "met")
    for row in found["predictions"]:
        met = "yes" if row["met"] else "no"
        table.add_row(str(row["count"]), quantity(row["latency_us"] * 1e3, "ns"), met)
    console.print(table)
