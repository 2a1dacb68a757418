"""``imcc view``: one HTML file that shows what a compilation did. It loads nothing from anywhere.

The page holds a small head as JSON, shown at once, and a body with programs, rewrites and costs of
ops, compressed and unpacked in the browser. Style and scripts are the files of ``report/html``,
allowed by their hashes alone: text of a user can neither run nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from importlib import resources
from typing import Any

from imcc.backends.api import find_backend
from imcc.driver.compiled import CompiledModel
from imcc.ir.diagnostics import DiagnosticError
from imcc.passes.infrastructure import parse_pipeline
from imcc.report.costs import op_entries
from imcc.report.trace import tracks
from imcc.runtime.history import History, HistoryRecorder

PAGE, STYLES, SCRIPTS = (
    "page.html",
    ("tokens.css", "page.css", "panels.css", "views.css"),
    (
        "dom.js",
        "program.js",
        "layout.js",
        "charts.js",
        "overview.js",
        "passes.js",
        "scopes.js",
        "graph.js",
        "navigate.js",
        "search.js",
        "inspect.js",
        "cost.js",
        "tiles.js",
        "schedule.js",
        "accuracy.js",
        "app.js",
    ),
)
TOP_LAYERS = 8


def page(compiled: CompiledModel) -> str:
    """The page of a compiled program; the same for the same artifact."""
    style = "".join(_file(name) for name in STYLES)
    # One strict function scope: files see each other's names, the page's globals stay clean.
    script = '"use strict";(() => {\n' + "".join(_file(name) for name in SCRIPTS) + "})();\n"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}' blob:; worker-src blob:; "
        f"style-src '{_hash(style)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "title": html.escape(f"{compiled.report_data['model']['name']} - imcc"),
        "policy": html.escape(policy),
        "style": style,
        "script": script,
        "head": _embedded(page_head(compiled)),
        "body": base64.b64encode(
            zlib.compress(json.dumps(page_body(compiled), separators=(",", ":")).encode(), 9)
        ).decode(),
    }
    # In one go, so that a name that looks like a placeholder stays a name.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file(PAGE))


def page_head(compiled: CompiledModel) -> dict[str, Any]:
    """What the page shows first: totals, accuracy, passes, costliest layers, provenance."""
    report = compiled.report_data
    history = _history(compiled)
    points = report["entry_points"]
    layers = points["inference"]["layers"]
    costly = sorted(layers, key=lambda layer: -(layer["energy_pj"] or 0.0))[:TOP_LAYERS]
    return {
        **{
            key: report.get(key)
            for key in ("imcc_version", "model", "targets", "seed", "phase", "pipeline")
        },
        "entry_points": {
            name: {
                key: point.get(key)
                for key in (
                    *("energy_pj", "latency_ns", "area_um2", "leakage_pj", "resources"),
                    *("activity", "provenance", "unknown"),
                )
            }
            for name, point in points.items()
        },
        "accuracy": report["accuracy"],
        "warnings": report["warnings"],
        "ops": {name: len(held) for name, held in compiled.module.functions.items()},
        "layers": len(layers),
        "top_layers": [
            {
                key: layer.get(key)
                for key in ("name", "energy_pj", "busy_ns", "energy_by_component_pj")
            }
            for layer in costly
        ],
        "stages": [
            {
                "pass": stage.pass_,
                "phase": stage.phase,
                "seconds": stage.seconds,
                "changed": stage.program is not None,
                "rewrites": len(stage.rewrites),
                "refusals": len(stage.refusals),
                "promise": _promise(stage.pass_),
            }
            for stage in history.stages
        ],
        "recorded": compiled.history is not None,
    }


def page_body(compiled: CompiledModel) -> dict[str, Any]:
    """Programs, rewrites, costs of layers and ops, places and times."""
    report = compiled.report_data
    backend = find_backend(compiled.target.backend)
    placements, ops, lanes = {}, {}, {}
    for entry in report["entry_points"]:
        placed = backend.placement(compiled.module, entry, compiled.target)
        placements[entry] = placed.to_json() if placed is not None else None
        entries = op_entries(compiled, entry)
        ops[entry] = [item.to_json() for item in entries]
        lanes[entry] = [
            {"name": name, "ops": [item.name for item in held]}
            for name, held in tracks(compiled, entry, entries)
        ]
    return {
        "entry_points": report["entry_points"],
        "history": _history(compiled).model_dump(by_alias=True),
        "ops": ops,
        "tracks": lanes,
        "placement": placements,
        "target": compiled.target.text,
    }


def _history(compiled: CompiledModel) -> History:
    """What was recorded; else the program as it is, without the files that it names."""
    if compiled.history is not None:
        return compiled.history
    return HistoryRecorder(compiled.module).history(excerpts=False)


def _promise(text: str) -> str | None:
    try:
        return str(parse_pipeline(text)[0].promise()) if text else None
    except DiagnosticError:
        # A pass of a plugin that is not installed here.
        return None


def _embedded(data: Any) -> str:
    """JSON that stands in a ``script`` element and cannot end it."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(name: str) -> str:
    return resources.files("imcc.report").joinpath("html", name).read_text(encoding="utf-8")
