"""The command line that all benchmarks share."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class SavedRows:
    """Finished rows as JSON lines in a file, so that a run that was stopped goes on.

    A row is found again by ``key``: everything that it depends on. A row that says that it
    ``failed`` is tried again. Without a path nothing is kept. ``cpu_s`` is added: CPU seconds.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = Path(path) if path else None
        self.known: dict[str, Row] = {}
        if self.path is not None and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                held = json.loads(line)
                self.known[json.dumps(held["key"], sort_keys=True)] = held["row"]

    def row(self, key: Row, make: Callable[[], Row]) -> Row:
        """The row of ``key``, made now if it is not known, and shown on the error stream."""
        text = json.dumps(key, sort_keys=True)
        if text not in self.known:
            start = time.process_time()
            self.known[text] = made = make()
            made["cpu_s"] = time.process_time() - start
            sys.stderr.write(f"{json.dumps(made, default=str)}\n")
            sys.stderr.flush()
            if self.path is not None and "failed" not in made:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "row": made}, default=str) + "\n")
        return self.known[text]


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

    console = Console()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shown = [{key: _shown(cell) for key, cell in row.items()} for row in rows]
    width = sum(3 + max(len(c), *(len(row.get(c, "")) for row in shown)) for c in columns)
    if width > console.width:
        # A table would cut its cells: a block of lines for each row instead.
        wide = max(map(len, columns))
        console.print(description)
        for row in shown:
            lines = [f"  {key:<{wide}}  {cell}" for key, cell in row.items() if cell]
            console.print("\n".join(["", *lines]), markup=False, highlight=False)
        return
    table = Table(title=description)
    for column in columns:
        table.add_column(column)
    for row in shown:
        table.add_row(*(row.get(column, "") for column in columns))
    console.print(table)


def _shown(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
