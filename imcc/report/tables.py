"""Tables, quantities and lines of text for the terminal."""

from __future__ import annotations

import textwrap
from typing import IO, Any


def quantity(value: float | None, unit: str) -> str:
    """A number with the SI prefix that leaves one to three digits: 1234 pJ is 1.234 nJ."""
    if value is None:
        return "unknown"
    scales = {
        "pJ": [
            (1e12, "J"),
            (1e9, "mJ"),
            (1e6, "uJ"),
            (1e3, "nJ"),
            (1.0, "pJ"),
            (1e-3, "fJ"),
            (1e-6, "aJ"),
        ],
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


def print_line(console: Any, text: str, indent: int = 2) -> None:
    """Print a line below a table; what does not fit goes on indented as the line is."""
    for line in textwrap.wrap(plain(text), console.width - indent, break_on_hyphens=False):
        console.print(" " * indent + line)


def percent(value: float | None) -> str:
    """A share: 0.123 is 12.3 %."""
    return "-" if value is None else f"{100 * value:.1f} %"


def share(part: float | None, total: float | None) -> float | None:
    """``part / total``, or None where one of them is not known or the total is 0."""
    return part / total if part is not None and total else None


def table_of(title: str, *columns: str) -> Any:
    """An empty table in the style of all reports: the first column left, the others right."""
    from rich import box
    from rich.table import Table

    # A title wraps at the width of its table.
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        min_width=len(title),
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table
