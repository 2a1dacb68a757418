"""Weight quantisation: perplexity or accuracy by method, bits and group, with time and memory.

Each row runs in a process of its own, so that peak memory is its own. The default model is
SmolLM2-135M (``examples/smollm2``) on WikiText-2; ``--model FILE.py`` takes any model file with
``calibration_data()`` and either ``tokenizer()`` and ``text(part)`` or ``evaluation_data()`` and
``metric()``. ``--calibration shakespeare`` calibrates out of domain.

    python -m benchmarks.ptq --json --windows 40 --iterations 10 --rounds 8
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.output import Row, main

SMOLLM2 = "examples/smollm2/model.py"
METHODS: dict[str, dict[str, str]] = {
    "rtn": {},
    "awq": {"init": "awq"},
    "gptq": {"rounding": "gptq"},
    "awq+gptq": {"init": "awq", "rounding": "gptq"},
    "tesseraq": {"init": "awq", "rounding": "tesseraq"},
}
FORMATS: tuple[tuple[int, int | None], ...] = ((4, None), (3, 64), (2, 64), (3, 128), (2, 128))


def pipeline(row: dict[str, Any], options: dict[str, Any]) -> str:
    """The pass that makes a row; ``float`` has none."""
    if row["method"] == "float":
        return "canonicalize"
    parts = [f"bits={row['bits']}", 'scheme="asymmetric"']
    if row["group"] is not None:
        parts.append(f"group={row['group']}")
    parts += [f'{key}="{value}"' for key, value in METHODS[row["method"]].items()]
    if row["method"] == "tesseraq":
        parts += [f"{key}={options[key]}" for key in ("rounds", "iterations", "learning_rate")]
        parts += [f"{key}=false" for key in ("tune_scale", "progressive") if options[f"no_{key}"]]
    parts.append(f"batch={options['batch']}")
    if options["plan"]:
        parts.append(f'plan="{options["plan"]}"')
    return f"canonicalize, quantize-weights{{{' '.join(parts)}}}"


def measure_row(row: dict[str, Any], options: dict[str, Any]) -> Row:
    """Quantise and measure in this process."""
    import torch

    from imcc.driver.data import calibration_batches, evaluation_set
    from imcc.driver.signature import Signature, input_names
    from imcc.driver.test_set import MetricTestSet, TextTestSet, tokenize
    from imcc.frontend.capture import capture
    from imcc.frontend.model_file import load_model_file
    from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline
    from imcc.runtime.executor import Executor

    held = load_model_file(options["model"])
    python = sys.modules[f"imcc_model_file_{held.path.stem}"]
    captured = capture(held.module, held.example_inputs)
    signature = Signature.of(captured, input_names(held.module, len(held.example_inputs)))
    module, store = captured.module.clone(), captured.resources.copy()
    if options["calibration"] == "shakespeare":
        path = Path(os.environ["IMCC_DATA"]) / "tinyshakespeare" / "input.txt"
        sequences = python.windows(path.read_text(encoding="utf-8"), python.SEQUENCES)
        given: Any = [(sequence[None],) for sequence in sequences]
    else:
        given = held.require("calibration_data", "quantisation")()
    batches = [tuple(signature.flatten(batch)) for batch in calibration_batches(given)]
    context = PassContext(resources=store, calibration=batches, seed=options["seed"])
    start = time.perf_counter()
    run_pipeline(module, parse_pipeline(pipeline(row, options)), context)
    seconds = time.perf_counter() - start
    if held.tokenizer is not None:
        ids = tokenize(python.text("test"), held.tokenizer())
        test: Any = TextTestSet(ids, 512, 512, options["windows"], batch=2)
    else:
        inputs, targets = evaluation_set(held.require("evaluation_data", "accuracy")())
        test = MetricTestSet(inputs, targets, held.require("metric", "accuracy"))
    with torch.no_grad():
        made = test.measure(Executor(module, store), signature)
    name = "perplexity" if test.name == "perplexity" else "accuracy"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "model": held.path.parent.name,
        **row,
        "init": METHODS.get(row["method"], {}).get("init", "rtn"),
        "calibration": f"{options['calibration']}, {sum(b[0].shape[0] for b in batches)} samples",
        name: made.statistics.mean,
        "ci95": made.over_samples,
        "samples": test.samples,
        "seconds": seconds,
        "peak_rss_gb": peak,
        "seed": options["seed"],
    }


def measure(options: argparse.Namespace) -> list[Row]:
    """All rows, each in a process of its own."""
    given = {key: value for key, value in vars(options).items() if key not in ("json", "row")}
    if options.row is not None:
        return [measure_row(json.loads(options.row), given)]
    wanted: list[dict[str, Any]] = [{"method": "float", "bits": 32, "group": None}]
    formats = [tuple(json.loads(f"[{text}]")) for text in options.formats] or list(FORMATS)
    for bits, group in formats[:2] if options.quick else formats:
        for method in options.methods.split(","):
            wanted.append({"method": method, "bits": bits, "group": group})
    rows: list[Row] = []
    for row in wanted:
        arguments = [sys.executable, "-m", "benchmarks.ptq", "--json", "--row", json.dumps(row)]
        for key, value in given.items():
            if key in ("methods", "formats", "quick") or value in (None, False):
                continue
            arguments += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
        done = subprocess.run(arguments, capture_output=True, text=True)
        if done.returncode:
            rows.append({**row, "failed": done.stderr.strip().splitlines()[-1:]})
            continue
        rows += json.loads(done.stdout)["rows"]
        sys.stderr.write(f"{rows[-1]}\n")
    return rows


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--formats", nargs="*", default=[], help="bits,group (group null: none)")
    parser.add_argument("--calibration", default="valid", choices=("valid", "shakespeare"))
    parser.add_argument("--windows", type=int, help="windows of the test text; default: all")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--no-tune-scale", action="store_true")
    parser.add_argument("--no-progressive", action="store_true")
    parser.add_argument("--plan", help="plan file of quantize-weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row", help=argparse.SUPPRESS)


if __name__ == "__main__":
    main("Weight quantisation: perplexity (lower is better) or accuracy", measure, extend=_extend)
