"""``imcc report``, ``compare`` and ``view``: artifacts as tables, a trace file, a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from imcc.driver import CompiledModel, load, resume
from imcc.ir import codes
from imcc.ir.diagnostics import error, nearest
from imcc.runtime.output import check_new_file, write_file


def report(
    artifact: Path,
    by: str | None,
    why: str | None,
    entry: str,
    trace: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Print the report, one cut through it, or where a number comes from; or write the trace."""
    if by is not None and why is not None:
        raise click.UsageError("give either --by or --why")
    if trace is not None:
        check_new_file(trace, force=force)
    made = _read(artifact)
    if entry not in made.report_data["entry_points"]:
        raise error(
            codes.USAGE,
            f"no entry point {entry!r}",
            suggestions=nearest(entry, made.report_data["entry_points"]),
            help=f"entry points: {', '.join(made.report_data['entry_points'])}",
        )
    if trace is not None:
        from imcc.report.trace import trace_text

        write_file(trace, trace_text(made))
        click.echo(f"wrote {trace}; open it with https://ui.perfetto.dev", err=True)
    if why is not None:
        from imcc.report.why import print_why
        from imcc.report.why import why as explain

        reason = explain(made, why)
        if as_json:
            _print_json(reason.to_json())
        else:
            print_why(reason, sys.stdout)
    elif by is not None:
        _print_cut(made, by, entry, as_json)
    elif as_json:
        _print_json(made.report())
    elif trace is None:
        from imcc.report.overview import print_report

        print_report(made.report(), sys.stdout)


def view(artifact: Path, output: Path | None, show: bool, force: bool) -> None:
    """Write the page of an artifact, by default beside it, and open it if asked."""
    from imcc.report.page import page

    path = output if output is not None else artifact.with_name(f"{artifact.name}.html")
    check_new_file(path, force=force)
    write_file(path, page(_read(artifact)))
    click.echo(f"wrote {path}", err=True)
    if show:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            click.echo(f"note: found no browser; open {path} yourself", err=True)


def _read(path: Path) -> CompiledModel:
    """An artifact, or the dump of a phase compiled to the end."""
    return resume(path) if path.suffix == ".imc" else load(path)


def compare(first: Path, second: Path, as_json: bool) -> None:
    """Print two artifacts side by side."""
    from imcc.report.compare import compare as compare_reports
    from imcc.report.compare import print_compare

    made = compare_reports(_read(first).report(), _read(second).report())
    if as_json:
        _print_json(made)
    else:
        print_compare(made, sys.stdout)


def _print_cut(made: CompiledModel, by: str, entry: str, as_json: bool) -> None:
    from imcc.report.by import CUTS, print_rows

    rows = CUTS[by](made, entry)
    if as_json:
        _print_json(rows)
    else:
        where = "" if by == "pass" else f" of @{entry}"
        print_rows(f"By {by}{where}", rows, sys.stdout)


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2))
