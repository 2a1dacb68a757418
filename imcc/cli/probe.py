"""Loads what ``imcc doctor`` asks about, in a process of its own: a crash there breaks nothing.

Reads names from the command line (``module:torch``, ``point:imcc.backends:crossbar``), prints
``start NAME`` before each and a JSON line after it. Run as a script, not imported.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from importlib.metadata import entry_points
from typing import Any


def check(name: str) -> dict[str, Any]:
    """Load one thing; ``error`` says what it raised, ``facts`` what it tells about itself."""
    kind, _, rest = name.partition(":")
    start = time.perf_counter()
    facts: dict[str, Any] = {}
    problem: str | None = None
    try:
        # What an import prints must not mix with the lines of this protocol.
        with contextlib.redirect_stdout(sys.stderr):
            if kind == "module":
                facts = _facts(rest, importlib.import_module(rest))
            else:
                group, _, point = rest.partition(":")
                next(iter(entry_points(group=group, name=point))).load()
    except BaseException as wrong:
        problem = f"{type(wrong).__name__}: {(str(wrong).strip().splitlines() or [''])[0]}"
    return {
        "name": name,
        "error": problem,
        "seconds": round(time.perf_counter() - start, 3),
        "facts": facts,
    }


def _facts(name: str, module: Any) -> dict[str, Any]:
    if name != "torch":
        return {}
    made: dict[str, Any] = {
        "threads": module.get_num_threads(),
        "cpu_capability": module.backends.cpu.get_cpu_capability(),
        "gpus": [],
    }
    if module.cuda.is_available():
        made["gpus"] = [
            module.cuda.get_device_name(number) for number in range(module.cuda.device_count())
        ]
    return made


if __name__ == "__main__":
    for item in sys.argv[1:]:
        sys.stdout.write(f"start {item}\n")
        sys.stdout.flush()
        sys.stdout.write(json.dumps(check(item)) + "\n")
        sys.stdout.flush()
