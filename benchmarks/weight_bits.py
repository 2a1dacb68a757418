"""What 2-, 3- and 4-bit weights keep and save on crossbars: accuracy, energy, latency, area.

Each row compiles a model file for a target with another ``quantize-weights`` in its default
pipeline and measures the file's metric on noisy trials. Codes of fewer bits take fewer cells and
so fewer columns, conversions and crossbars; groups of scales cost a conversion of their own for
each group where a column of an array holds several, and a multiplication for each group's sum.

    python -m benchmarks.weight_bits --json --model examples/digits_cnn/model.py
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from benchmarks.output import Row, main

METHODS = {
    "nearest": 'scheme="asymmetric"',
    "gptq": 'scheme="asymmetric" rounding="gptq"',
    "tesseraq": 'scheme="asymmetric" rounding="tesseraq" rounds=8 learning_rate=0.02',
}
FORMATS: tuple[tuple[int, int | None], ...] = ((8, None), (4, None), (3, None), (2, None))


def measure(options: argparse.Namespace) -> list[Row]:
    """One row for each method and format."""
    from imcc.backends.api import find_backend
    from imcc.backends.targets import find_target
    from imcc.driver.compiler import compile_file
    from imcc.driver.options import CompileOptions

    target = find_target(options.target, tuple(options.set))
    pipeline = find_backend(target.backend).pipeline(target)
    rows: list[Row] = []
    formats = [tuple(json.loads(f"[{text}]")) for text in options.formats] or list(FORMATS)
    for bits, group in formats[:2] if options.quick else formats:
        for method in options.methods.split(",") if bits < 8 else ("nearest",):
            weights = f"bits={bits} {METHODS[method]}" + (f" group={group}" if group else "")
            if method == "tesseraq":
                weights += f" iterations={options.iterations}"
            if options.blocks:
                weights += f' blocks="{options.blocks}"'
            made = compile_file(
                options.model,
                CompileOptions(
                    target.name,
                    tuple(options.set),
                    pipeline.replace("quantize-weights", f"quantize-weights{{{weights}}}"),
                    trials=options.trials,
                    seed=options.seed,
                    sweep=False,
                ),
            )
            rows.append(_row(made.report(), {"method": method, "bits": bits, "group": group}))
            sys.stderr.write(f"{rows[-1]}\n")
    return rows


def _row(report: dict[str, Any], row: Row) -> Row:
    cost = report["entry_points"]["inference"]
    energy = cost["energy_pj"]
    converters = sum(
        cost["components"][name]["energy_pj"] or 0.0
        for name in ("adc", "adc_conversion")
        if name in cost["components"]
    )
    accuracy = report["accuracy"]
    noisy = accuracy["noisy"]
    return {
        "model": report["model"] if isinstance(report.get("model"), str) else "",
        "target": report["targets"][0]["name"],
        **row,
        "float": accuracy["float"],
        "noise_free": accuracy["noise_free"],
        "noisy": noisy["mean"] if noisy else None,
        "noisy_ci95": noisy.get("ci95") if noisy else None,
        "trials": noisy.get("trials") if noisy else 0,
        "samples": accuracy["samples"],
        "crossbars": cost["resources"]["crossbars"],
        "energy_pj": energy,
        "adc_share": converters / energy,
        "latency_ns": cost["latency_ns"],
        "area_um2": cost["area_um2"],
    }


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="examples/digits_cnn/model.py")
    parser.add_argument("--target", default="rram")
    parser.add_argument("--set", action="append", default=[], help="key=value of the target")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--formats", nargs="*", default=[], help="bits,group (group null: none)")
    parser.add_argument("--iterations", type=int, default=50, help="tesseraq: steps of a round")
    parser.add_argument("--blocks", choices=("auto", "layer", "model"))
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    main("Weight bits on crossbars: accuracy and cost", measure, extend=_extend)
