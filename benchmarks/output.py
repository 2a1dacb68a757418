"""The command line that all benchmarks share."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]


def main(
    description: str,
    measure: Callable[[argparse.Namespace], list[Row]],
    extend: Callable[[argparse.ArgumentParser], None] | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse ``--json`` and ``--quick``, measure, and print the rows."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="less work; rows are marked quick")
    if extend is not None:
        extend(parser)
    options = parser.parse_args(argv)
    rows = measure(options)
    if options.quick:
        rows = [{**row, "quick": True} for row in rows]
    if options.json:
        machine = {"python": platform.python_version(), "machine": platform.machine()}
        json.dump({"rows": rows, "environment": machine}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=description)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column)
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console().print(table)
