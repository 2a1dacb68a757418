"""Weight quantisation: perplexity or accuracy by method, bits and group, with time and memory.

The default model is SmolLM2-135M (``examples/smollm2``) on WikiText-2; ``--model FILE.py`` takes
any model file with ``calibration_data()`` and either ``tokenizer()`` and ``text(part)`` or
``evaluation_data()`` and ``metric()``. ``--calibration shakespeare`` calibrates out of domain.

The rows follow one another in one process, which captures the model once; the peak of memory is
reset before each (Linux; elsewhere it is the peak so far). ``seconds`` are of CPU time, all
threads, for quantising alone, so that a busy machine does not change them.

``auto-round`` is the PyPI package, asymmetric, given the same sequences, one sample a step as the
rows of ``tesseraq`` with ``--batch 1``; ``--auto-round-iterations`` sets its steps for each block.

Steps, sequences and windows default to what two cores do in an evening (about ten minutes of one
thread for each fitted row of SmolLM2). The published schedule is ``--rounds 20 --iterations 250
--learning-rate 1e-3 --scale-learning-rate 1e-3 --sequences 512 --length 2048``, best with
``--device cuda``. ``--windows 0`` evaluates the whole text. ``--quick`` takes minutes in all. Rows
are kept in ``--save`` as they are done, and a run goes on from there.

    python -m benchmarks.ptq --json --save out/ptq.jsonl
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.memory import peak_gb, reset_peak
from benchmarks.output import Row, SavedRows, main

SMOLLM2 = "examples/smollm2/model.py"
METHODS: dict[str, dict[str, str]] = {
    "rtn": {},
    "awq": {"init": "awq"},
    "gptq": {"rounding": "gptq"},
    "awq+gptq": {"init": "awq", "rounding": "gptq"},
    "tesseraq": {"init": "awq", "rounding": "tesseraq"},
    "auto-round": {},
}
FORMATS: tuple[tuple[int, int | None], ...] = ((4, None), (3, 64), (2, 64), (3, 128), (2, 128))


FORMATS_CHANNEL: tuple[tuple[int, int | None], ...] = ((4, None), (3, None), (2, None))
WINDOW = 512


def pipeline(row: dict[str, Any], options: dict[str, Any]) -> str:
    """The pass that makes a row; ``float`` has none."""
    rounded = f"quantize-activations{{bits={row['activation_bits']}}}, "
    before = "canonicalize, " + (rounded if row["activation_bits"] else "")
    if row["method"] == "float":
        return before.removesuffix(", ")
    parts = [f"bits={row['bits']}", 'scheme="asymmetric"']
    if row["group"] is not None:
        parts.append(f"group={row['group']}")
    parts += [f'{key}="{value}"' for key, value in METHODS[row["method"]].items()]
    if row["method"] == "tesseraq":
        keys = ("rounds", "iterations", "learning_rate", "scale_learning_rate")
        parts += [f"{key}={options[key]}" for key in keys]
        parts += [f"{key}=false" for key in ("tune_scale", "progressive") if options[f"no_{key}"]]
    parts += [f"batch={options['batch']}", f'device="{options["device"]}"']
    if options["plan"]:
        parts.append(f'plan="{options["plan"]}"')
    return f"{before}quantize-weights{{{' '.join(parts)}}}"


class Subject:
    """The model of all rows: captured once, with its calibration and test data."""

    def __init__(self, options: dict[str, Any]) -> None:
        from imcc.driver.data import calibration_batches, evaluation_set
        from imcc.driver.signature import Signature, input_names
        from imcc.driver.test_set import MetricTestSet, TextTestSet, tokenize
        from imcc.frontend.capture import capture
        from imcc.frontend.model_file import load_model_file

        self.options = options
        self.held = load_model_file(options["model"])
        self.python = sys.modules[f"imcc_model_file_{self.held.path.stem}"]
        self.captured = capture(self.held.module, self.held.example_inputs)
        names = input_names(self.held.module, len(self.held.example_inputs))
        self.signature = Signature.of(self.captured, names)
        self.language = self.held.tokenizer is not None
        if self.language:
            part = "valid" if options["calibration"] == "valid" else "shakespeare"
            found = windows(self._ids(part), options["length"], options["sequences"])
            given: Any = [(row[None],) for row in found]
        else:
            given = self.held.require("calibration_data", "quantisation")()
        self.batches = [tuple(self.signature.flatten(row)) for row in calibration_batches(given)]
        self.test: Any
        if self.language:
            ids = tokenize(self.python.text("test"), self.held.tokenizer())
            if options["windows"]:
                ids = windows(ids, WINDOW, options["windows"]).flatten()
            self.test = TextTestSet(ids, WINDOW, WINDOW, None, batch=2)
        else:
            data = evaluation_set(self.held.require("evaluation_data", "accuracy")())
            self.test = MetricTestSet(*data, self.held.require("metric", "accuracy"))

    def _ids(self, part: str) -> Any:
        from imcc.driver.test_set import tokenize

        if part == "shakespeare":
            path = Path(os.environ["IMCC_DATA"]) / "tinyshakespeare" / "input.txt"
            return tokenize(path.read_text(encoding="utf-8"), self.held.tokenizer())
        return tokenize(self.python.text(part), self.held.tokenizer())

    def row(self, row: dict[str, Any]) -> Row:
        """Quantise by one method and measure."""
        import torch

        reset_peak()
        measured, seconds = (
            self._auto_round(row) if row["method"] == "auto-round" else self._own(row)
        )
        name = "perplexity" if self.test.name == "perplexity" else "accuracy"
        made: Row = {
            "model": self.held.path.parent.name,
            **row,
            "init": METHODS.get(row["method"], {}).get("init", "rtn"),
            "steps_per_block": self._steps(row["method"]),
            "calibration": f"{self.options['calibration']}, "
            f"{sum(b[0].numel() if self.language else b[0].shape[0] for b in self.batches)} "
            + ("tokens" if self.language else "samples"),
            name: measured.statistics.mean,
            "ci95": measured.over_samples,
            "samples": self.test.samples,
            "seconds": seconds,
            "peak_rss_gb": peak_gb(),
            "threads": torch.get_num_threads(),
            "seed": self.options["seed"],
        }
        return made

    def _steps(self, method: str) -> int:
        rounds = 1 if self.options["no_progressive"] else self.options["rounds"]
        steps = {
            "tesseraq": rounds * self.options["iterations"],
            "auto-round": self.options["auto_round_iterations"],
        }
        return steps.get(method, 0)

    def _own(self, row: dict[str, Any]) -> tuple[Any, float]:
        import torch

        from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline
        from imcc.runtime.executor import Executor

        module, store = self.captured.module.clone(), self.captured.resources.copy()
        context = PassContext(resources=store, calibration=self.batches, seed=self.options["seed"])
        start = time.process_time()
        run_pipeline(module, parse_pipeline(pipeline(row, self.options)), context)
        seconds = time.process_time() - start
        with torch.no_grad():
            measured = self.test.measure(Executor(module, store), self.signature)
        return measured, seconds

    def _auto_round(self, row: dict[str, Any]) -> tuple[Any, float]:
        import torch
        from auto_round import AutoRound

        from imcc.driver.signature import Signature, input_names
        from imcc.frontend.capture import capture
        from imcc.runtime.executor import Executor

        model = copy.deepcopy(self.held.module)
        start = time.process_time()
        made, _ = AutoRound(
            model,
            tokenizer=self.held.tokenizer(),
            bits=row["bits"],
            group_size=row["group"] or -1,
            sym=False,
            iters=self.options["auto_round_iterations"],
            nsamples=len(self.batches),
            seqlen=self.options["length"],
            batch_size=1,
            dataset=[batch[0] for batch in self.batches],
            seed=42 + self.options["seed"],
            device_map=self.options["device"],
            low_cpu_mem_usage=False,
            enable_torch_compile=False,
            amp=False,
        ).quantize()
        seconds = time.process_time() - start
        captured = capture(made, self.held.example_inputs)
        signature = Signature.of(captured, input_names(made, len(self.held.example_inputs)))
        with torch.no_grad():
            executor = Executor(captured.module, captured.resources)
            return self.test.measure(executor, signature), seconds


def windows(ids: Any, length: int, count: int) -> Any:
    """``count`` runs of ``length`` tokens, evenly spread over a text."""
    import torch

    starts = torch.linspace(0, len(ids) - length, count).long()
    return torch.stack([ids[start : start + length] for start in starts])


def measure(options: argparse.Namespace) -> list[Row]:
    """All rows; one that fails says why and does not end the others."""
    import torch

    given = vars(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.model == SMOLLM2 and options.plan is None:
        given["plan"] = str(Path(SMOLLM2).with_name("plan.toml"))
    if options.quick:
        given.update(sequences=16, iterations=1, windows=4, auto_round_iterations=20)
    subject = Subject(given)
    wanted: list[dict[str, Any]] = []
    if not options.no_float:
        wanted.append({"method": "float", "bits": 32, "group": None})
    formats = [tuple(json.loads(f"[{text}]")) for text in options.formats]
    formats = formats or list(FORMATS if subject.language else FORMATS_CHANNEL)
    for bits, group in formats[-1:] if options.quick else formats:
        for method in options.methods.split(","):
            if method != "auto-round" or (subject.language and not options.activation_bits):
                wanted.append({"method": method, "bits": bits, "group": group})
    saved = SavedRows(options.save)
    settings = {key: value for key, value in given.items() if key not in UNSETTLING}

    def make(row: Row) -> Row:
        try:
            return subject.row(row)
        except Exception as wrong:
            return {**row, "failed": f"{type(wrong).__name__}: {wrong}"}

    rows = [{**row, "activation_bits": options.activation_bits} for row in wanted]
    return [saved.row({**settings, **row}, partial(make, row)) for row in rows]


UNSETTLING = ("json", "quick", "methods", "formats", "no_float", "save", "activation_bits")
"""Options that choose rows, or say what happens to them; the others settle what a row is."""


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--formats", nargs="*", default=[], help="bits,group (group null: none)")
    parser.add_argument("--no-float", action="store_true", help="no row of the float model")
    parser.add_argument("--calibration", default="valid", choices=("valid", "shakespeare"))
    parser.add_argument("--sequences", type=int, default=48, help="of the calibration text")
    parser.add_argument("--length", type=int, default=256, help="tokens of such a sequence")
    parser.add_argument(
        "--windows", type=int, default=24, help="evenly spread over the test text; 0: all of it"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=0.04)
    parser.add_argument("--scale-learning-rate", type=float, default=0.004)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--no-tune-scale", action="store_true")
    parser.add_argument("--no-progressive", action="store_true")
    parser.add_argument("--auto-round-iterations", type=int, default=90)
    parser.add_argument("--activation-bits", type=int, help="codes for inputs of layers, by token")
    parser.add_argument("--device", default="cpu", help="where blocks are fitted: cpu, cuda")
    parser.add_argument("--save", help="JSON lines of finished rows; a run goes on from it")
    parser.add_argument("--plan", help="plan file of quantize-weights")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    main("Weight quantisation: perplexity (lower is better) or accuracy", measure, extend=_extend)
