"""A whole report for the terminal: what was measured, and what a call costs."""

from __future__ import annotations

from typing import IO, Any

from imcc.report.cost_tables import print_costs
from imcc.report.tables import console_of, plain, table_of


def print_report(report: dict[str, Any], file: IO[str]) -> None:
    """Print all tables of a report to ``file``."""
    console = _headed(report, file)
    _accuracy(console, report.get("accuracy"))
    print_costs(console, report)


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


def _fraction(value: float) -> str:
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
            what, _fraction(accuracy[key]), _interval(interval), f"{accuracy['samples']} samples"
        )
    noisy = accuracy["noisy"]
    if noisy is not None:
        table.add_row(
            "compiled, write and read noise",
            _fraction(noisy["mean"]),
            _interval(noisy),
            f"{noisy['trials']} trials",
        )
    for level in accuracy["write_noise_sweep"]:
        table.add_row(
            f"  write noise {level['sigma_fraction']:g} of the range",
            _fraction(level["mean"]),
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
            _fraction(item["before"]),
            _fraction(item["after"]),
            f"{item['change']:+.4f}",
        )
    console.print(table)
