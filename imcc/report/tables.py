"""A report as tables for the terminal."""

from __future__ import annotations

from typing import IO, Any

COSTLIEST = 8


def quantity(value: float | None, unit: str) -> str:
    """A number with the SI prefix that leaves one to three digits: 1234 pJ is 1.234 nJ."""
    if value is None:
        return "unknown"
    scales = {
        "pJ": [(1e12, "J"), (1e9, "mJ"), (1e6, "uJ"), (1e3, "nJ"), (1.0, "pJ"), (1e-3, "fJ")],
        "ns": [(1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns"), (1e-3, "ps")],
        "um2": [(1.0, "um2")],
    }
    if unit == "um2" and abs(value) >= 1e4:
        return f"{value / 1e6:.4g} mm2"
    for factor, name in scales[unit]:
        if abs(value) >= factor:
            return f"{value / factor:.4g} {name}"
    return f"{value:.4g} {unit}"


def exact(value: float) -> str:
    """A count or a quantity in full, thousands apart: 262,144."""
    if abs(value) < 1.0:
        return f"{value:.6g}"
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def console_of(file: IO[str]) -> Any:
    """A console that prints names as they are: a loaded report is not trusted with markup."""
    from rich.console import Console

    return Console(file=file, highlight=False, markup=False, width=None if file.isatty() else 100)


def plain(text: str) -> str:
    """``text`` without characters that steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def print_report(report: dict[str, Any], file: IO[str]) -> None:
    """Print all tables of a report to ``file``."""
    console = _headed(report, file)
    _accuracy(console, report.get("accuracy"))
    _totals(console, report)
    _merit(console, report)
    _compatibility(console, report)
    _writing(console, report)
    _inputs(console, report)
    _layers(console, report)
    _components(console, report)


def print_accuracy(report: dict[str, Any], file: IO[str]) -> None:
    """Print what was measured to ``file``."""
    _accuracy(_headed(report, file), report.get("accuracy"))


def _headed(report: dict[str, Any], file: IO[str]) -> Any:
    console = console_of(file)
    target = report["targets"][0]
    model = report["model"]["name"]
    console.print(
        plain(
            f"{model} on {target['name']} (target {target['sha256'][:12]}, "
            f"seed {report['seed']}, imcc {report['imcc_version']})"
        ),
        style="bold",
    )
    return console


def share(part: float | None, total: float | None) -> float | None:
    """``part / total``, or None where one of them is not known or the total is 0."""
    return part / total if part is not None and total else None


def table_of(title: str, *columns: str) -> Any:
    """An empty table in the style of all reports: the first column left, the others right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _percent(value: float) -> str:
    return f"{value:.4f}"


def _interval(data: dict[str, Any]) -> str:
    interval = data.get("ci95")
    return f"[{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "-"


def _accuracy(console: Any, accuracy: dict[str, Any] | None) -> None:
    if accuracy is None:
        return
    title = f"{accuracy['metric']} on {accuracy['samples']} samples"
    table = table_of(title, "", "value", "95 % interval", "over")
    for key, what in (("float", "float"), ("noise_free", "compiled, no noise")):
        interval = {"ci95": accuracy.get(f"{key}_ci95")}
        table.add_row(
            what, _percent(accuracy[key]), _interval(interval), f"{accuracy['samples']} samples"
        )
    noisy = accuracy["noisy"]
    if noisy is not None:
        table.add_row(
            "compiled, write and read noise",
            _percent(noisy["mean"]),
            _interval(noisy),
            f"{noisy['trials']} trials",
        )
    for level in accuracy["write_noise_sweep"]:
        table.add_row(
            f"  write noise {level['sigma_fraction']:g} of the range",
            _percent(level["mean"]),
            _interval(level),
            f"{level['trials']} trials",
        )
    console.print(table)
    _checked(console, accuracy.get("passes") or [])


def _checked(console: Any, passes: list[dict[str, Any]]) -> None:
    """What each approximate pass did to the metric, if that was measured."""
    if not passes:
        return
    table = table_of("What passes cost in accuracy", "pass", "before", "after", "change")
    for item in passes:
        table.add_row(
            plain(item["pass"]),
            _percent(item["before"]),
            _percent(item["after"]),
            f"{item['change']:+.4f}",
        )
    console.print(table)


def _totals(console: Any, report: dict[str, Any]) -> None:
    table = table_of("Cost of one call (B = 1)", "entry point", "energy", "latency", "area")
    for name, point in report["entry_points"].items():
        unknown = point["unknown"]
        mark = f" + {len(unknown)} unknown" if unknown else ""
        table.add_row(
            plain(f"@{name}"),
            quantity(point["energy_pj"], "pJ") + mark,
            quantity(point["latency_ns"], "ns"),
            quantity(point["area_um2"], "um2"),
        )
    console.print(table)
    if report["resources"]:
        shown = ", ".join(f"{count} {name}" for name, count in report["resources"].items())
        console.print(plain(f"  {shown}"))


def _merit(console: Any, report: dict[str, Any]) -> None:
    """Throughput and efficiency of one inference, and what they count."""
    point = report["entry_points"]["inference"]
    merit = point.get("merit")
    if not merit:
        return
    console.print(
        plain(
            f"  {merit['tops']:.4g} TOPS, {merit['tops_per_w']:.4g} TOPS/W, "
            f"{merit['tops_per_mm2']:.4g} TOPS/mm2, {merit['inferences_per_s']:.4g} inferences/s; "
            f"EDP {1e-21 * merit['edp_pj_ns']:.4g} J s, "
            f"EDAP {1e-21 * 1e-6 * merit['edap_pj_ns_um2']:.4g} J s mm2"
        )
    )
    said = point["provenance"].get("inference")
    console.print(plain(f"  operations: {merit['counted']}"))
    if said:
        console.print(plain(f"  an inference is {said}"))


def _compatibility(console: Any, report: dict[str, Any]) -> None:
    """Another tool's closed form beside the event model."""
    point = report["entry_points"]["inference"]
    held = point.get("compatibility")
    if not held:
        return
    table = table_of(
        f"As {held['model']} computes it, {held['time_steps']} time steps",
        "",
        held["model"],
        "events",
    )
    resources = report.get("resources") or {}
    for name in ("pes", "tiles"):
        table.add_row(name.replace("pes", "PEs"), str(held[name]), str(resources.get(name, "-")))
    for name, unit in (("area_um2", "um2"), ("energy_pj", "pJ"), ("latency_ns", "ns")):
        what = name.rsplit("_", 1)[0]
        table.add_row(what, quantity(held[name], unit), quantity(point[name], unit))
    console.print(table)
    for item in held["oddities"]:
        console.print(plain(f"  {held['model']}: {item}"))


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
            _percent(row["write_share"]),
        )
    console.print(table)
    lasts = "their endurance is not known"
    if held["inferences_until_worn"] is not None:
        lasts = (
            f"they bear {held['inferences_until_worn']:.3g} inferences, "
            f"{quantity(held['seconds_until_worn'] * 1e9, 'ns')} at full rate"
        )
    console.print(
        plain(
            f"  {held['matrices']} matrices, {held['cells']} cells, each written "
            f"{held['writes_per_cell']:.4g} time an inference with "
            f"{held['pulses_per_cell']:g} pulses; {lasts}"
        )
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
            _percent(row["density"]),
            " ".join(f"{value:.2f}" for value in each),
            _percent(row["driven_runs"]),
        )
    console.print(table)
    said = f"  all reads: {held['input_bit_density']:.4f}; assumed were {held['assumed_density']:g}"
    console.print(plain(said + (f"; {len(rows)} reads in all" if len(rows) > COSTLIEST else "")))


def _layers(console: Any, report: dict[str, Any]) -> None:
    layers = report["entry_points"]["inference"]["layers"]
    costly = sorted(layers, key=lambda layer: -(layer["energy_pj"] or 0.0))[:COSTLIEST]
    total = report["energy_pj"] or 1.0
    table = table_of("Costliest layers", "layer", "energy", "share", "busy", "area")
    for layer in costly:
        energy = layer["energy_pj"]
        share = f"{100 * energy / total:.1f} %" if energy is not None else "-"
        table.add_row(
            plain(layer["name"]),
            quantity(energy, "pJ"),
            share,
            quantity(layer["busy_ns"], "ns"),
            quantity(layer["area_um2"], "um2"),
        )
    console.print(table)
    left = len(layers) - len(costly)
    if left > 0:
        console.print(f"  and {left} more, see --json")


def _components(console: Any, report: dict[str, Any]) -> None:
    components = report["entry_points"]["inference"]["components"]
    if not components:
        return
    total = report["energy_pj"] or 1.0
    table = table_of("Components", "component", "energy", "share", "area")
    order = sorted(components.items(), key=lambda item: -(item[1].get("energy_pj") or 0.0))
    for name, data in order:
        energy = data.get("energy_pj")
        share = f"{100 * energy / total:.1f} %" if energy is not None else "-"
        table.add_row(
            plain(name), quantity(energy, "pJ"), share, quantity(data.get("area_um2"), "um2")
        )
    console.print(table)
