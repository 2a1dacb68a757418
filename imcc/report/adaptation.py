"""What an on-line adaptation did, as a table and as a plot."""

from __future__ import annotations

from typing import IO
from xml.sax.saxutils import escape

from imcc.report.tables import console_of, plain, quantity, table_of
from imcc.runtime.adaptation import AdaptationRecord

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 30, 50
HELD_OUT, RUNNING = "#1f77b4", "#ff7f0e"


def print_adaptation(record: AdaptationRecord, file: IO[str]) -> None:
    """Print how it ended, accuracy, and what it cost."""
    console = console_of(file)
    table = table_of("On-line adaptation", "", "value")
    rows = [
        ("status", f"{record.status}: {record.reason}"),
        ("samples, updates", f"{record.samples}, {record.steps}"),
        ("held-out accuracy before", _share(record.before)),
        ("held-out accuracy after", _share(record.after)),
    ]
    if record.running:
        rows.append(("accuracy of the last labelled samples", _share(record.running[-1][1])))
    rows.append(("energy", quantity(record.energy_pj, "pJ")))
    rows.append(("time", quantity(record.latency_ns, "ns")))
    if record.writes is not None:
        rows.append(("cell writes", f"{record.writes['writes']:,}"))
        rows.append(("most writes of a cell", f"{record.writes['most']:,}"))
    for name, value in rows:
        table.add_row(name, plain(value))
    console.print(table)


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def curve_svg(record: AdaptationRecord) -> str:
    """Accuracy over labelled samples as SVG: on held-out data, and of the samples as they come."""
    held = list(record.during)
    if record.before is not None:
        held = [(0, record.before), *held]
    if record.after is not None and (not held or held[-1][0] != record.samples):
        held.append((record.samples, record.after))
    running = [(samples, value) for samples, value, _ in record.running]
    last = max([1, record.samples])
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tenth in range(0, 11, 2):
        y = _y(tenth / 10)
        lines.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>'
        )
        lines.append(
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>'
        )
    for quarter in range(5):
        count = last * quarter // 4
        lines.append(
            f'<text x="{_x(count, last):.1f}" y="{HEIGHT - BOTTOM + 18}" '
            f'text-anchor="middle">{count}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(
        f'<text x="{middle:.1f}" y="{HEIGHT - 12}" text-anchor="middle">labelled samples</text>'
    )
    shown = (
        (held, HELD_OUT, "held-out data"),
        (running, RUNNING, "labelled samples, as they come"),
    )
    place = LEFT
    for points, colour, name in shown:
        if not points:
            continue
        path = " ".join(f"{_x(samples, last):.1f},{_y(value):.1f}" for samples, value in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for samples, value in points:
            lines.append(
                f'<circle cx="{_x(samples, last):.1f}" cy="{_y(value):.1f}" r="3" fill="{colour}"/>'
            )
        lines.append(f'<rect x="{place}" y="10" width="12" height="4" fill="{colour}"/>')
        lines.append(f'<text x="{place + 18}" y="16">{escape("accuracy: " + name)}</text>')
        place += 220
    return "\n".join([*lines, "</svg>", ""])


def _x(samples: int, last: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * samples / last


def _y(value: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - value)
