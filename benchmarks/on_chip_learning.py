"""Learning on the chip: direct feedback alignment against back-propagation, on two data sets.

    python -m benchmarks.on_chip_learning [--json] [--data watch hapt] [--seeds 10] [--partial FILE]

A spiking network, trained in float on some wearers (``examples/wearable``), is compiled for
``rram`` with an entry point that adapts, deployed with write and read noise, and adapts to a wearer
whom training did not see, from 96 labelled windows in one pass. A row is one data set,
rule and level of write noise over seeds; a seed draws the device, the order of the windows, and
takes the wearers in turn. Accuracy is on other windows of the same wearer, which decide nothing.
``ci95`` is Student's interval of the mean of ``accuracy_after`` over seeds. Energy, latency and
area are those of one adaptation step of one window (B = 1), of the cost report of ``@adapt``.

The learning rates are those of the lowest running loss on the labelled windows of wearers that no
row uses (``--choose``). ``--partial`` keeps finished runs in a file and goes on from it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import imcc
from imcc.backends.api import find_backend
from imcc.backends.targets import find_target
from imcc.driver.compiled import CompiledModel
from imcc.driver.data import as_inputs
from imcc.runtime.adaptation import FIRST_EVALUATED, AdaptationOptions
from imcc.runtime.executor import Device
from imcc.runtime.trials import TrialStatistics

EXAMPLE = Path(__file__).parents[1] / "examples" / "wearable"
TARGET = "rram"
RULES = ("dfa", "dfa-shared", "bp")
WRITE_NOISE = (0.005, 0.01, 0.015)
"""Deviation of a written conductance, as a fraction of the range; ``rram`` assumes 0.02."""
TRANSPOSED = "copy"
"""Back-propagation reads a second copy of the weights. Reads from the columns (``array``) cost
something else, which is reported beside it; their simulation takes ten times longer."""
BATCH = 8
LEARNING_RATE = {"dfa": 0.004, "dfa-shared": 0.004, "bp": 0.0007}
WEARERS = {"watch": (8, 9), "hapt": (9, 10)}
TUNING_WEARERS = {"watch": 10, "hapt": 2}
LABELLED = 96
"""Labelled windows that a device learns from: half of what a wearer gives in four minutes."""
EVALUATED = 48
"""Windows of a wearer that accuracy is taken on, spread over those that adaptation leaves."""
PAPER = {
    "energy saved": 0.641,
    "area saved": 0.101,
    "latency ratio": 2.1,
    "accuracy gained": 0.0755,
}
"""Up to; arXiv 2502.06736, abstract. Crossbars, devices and networks are not stated there."""


def data_set(name: str) -> Any:
    """The example's module of a data set, with trained weights."""
    if str(EXAMPLE) not in sys.path:
        sys.path.insert(0, str(EXAMPLE))
    data = importlib.import_module(name)
    if not data.WEIGHTS.is_file():
        print(f"training the network for {name} (two minutes)", file=sys.stderr)
        with contextlib.redirect_stdout(sys.stderr):
            importlib.import_module("train").make(name)
    return data


def thinned(x: Any, y: Any, count: int) -> tuple[Any, Any]:
    """At most ``count`` samples, evenly spread."""
    step = max(1, -(-len(y) // count))
    return x[::step], y[::step]


class Workload:
    """One data set, captured once and compiled once for each rule."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.data = name, data_set(name)
        self.folder = folder / name
        self.calibration = [(self.data.calibration_data(),)]
        imcc.compile(
            self.data.model(),
            self.data.example_inputs(),
            TARGET,
            calibration=self.data.calibration_data(),
            to="captured",
            dump_phases=self.folder,
        )
        self.known = thinned(self.data.known_windows().x, self.data.known_windows().y, 256)

    def compiled(self, rule: str, rate: float, transposed: str = TRANSPOSED) -> CompiledModel:
        """The program that adapts, through the target's own passes."""
        target = find_target(TARGET)
        feedback = f'insert-feedback{{rule="{rule}" learning_rate={rate}}}'
        passes = find_backend(target.backend).pipeline(target)
        passes = passes.replace("fold-batch-norm,", f"fold-batch-norm, {feedback},")
        return imcc.resume(
            self.folder / "captured.imc",
            target=TARGET,
            overrides=[f"learning.transposed={transposed}"],
            passes=passes,
            calibration=self.calibration,
        )

    def accuracy(self, made: CompiledModel, device: Device, x: Any, y: Any) -> float:
        """Accuracy of one device as deployed."""
        outputs = made.executor.run(
            made.signature.tensors(as_inputs(x)),
            trials=(device.trial,),
            seed=device.seed,
            noisy=device.noisy,
            first_sample=FIRST_EVALUATED,
        )
        return float((outputs[0][0].argmax(1) == y).double().mean())


def at_noise(made: CompiledModel, write_noise: float) -> CompiledModel:
    """The same program on devices with other write noise; nothing has adapted."""
    noise = f"device.write_noise.sigma_fraction={write_noise}"
    target = find_target(TARGET, [noise, f"learning.transposed={TRANSPOSED}"])
    return CompiledModel(made.module, made.resources, target, made.signature, made.report_data)


def run(
    load: Workload, made: CompiledModel, write_noise: float, seed: int, before: float | None
) -> dict[str, Any]:
    """One device, one wearer: accuracy before (unless known) and after, writes, simulation time."""
    wearers = WEARERS[load.name]
    wearer = wearers[seed % len(wearers)]
    held, test = load.data.adaptation_windows(wearer, seed), load.data.test_windows(wearer)
    x, y = thinned(test.x, test.y, EVALUATED)
    start, device, program = time.process_time(), Device(seed), at_noise(made, write_noise)
    if before is None:
        before = load.accuracy(program, device, x, y)
    options = AdaptationOptions(batch=BATCH, samples=LABELLED)
    record = imcc.adapt(program, (held.x, held.y), options=options, device=device)
    return {
        "wearer": wearer,
        "before": before,
        "after": load.accuracy(program, device, x, y),
        "status": record.status,
        "samples": record.samples,
        "writes": record.writes,
        "cpu_s": time.process_time() - start,
    }


def measure(
    names: list[str],
    rules: list[str],
    noises: list[float],
    seeds: int,
    partial: Path | None,
    minutes: float | None,
) -> dict[str, Any]:
    """All rows, with the configuration that they hold for."""
    done: dict[str, Any] = {}
    if partial is not None and partial.is_file():
        done = json.loads(partial.read_text())
    rows: list[dict[str, Any]] = []
    until = None if minutes is None else time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        loads = [Workload(name, Path(folder)) for name in names]
        programs = {
            (load.name, rule): load.compiled(rule, LEARNING_RATE[rule])
            for load in loads
            for rule in rules
        }
        # A seed after the other, so that what there is so far covers every row alike.
        for seed in range(seeds):
            for load in loads:
                for noise in noises:
                    before: float | None = None
                    for rule in rules:
                        key = _key(load.name, rule, noise, seed)
                        late = until is not None and time.monotonic() > until
                        if key not in done and not late:
                            made = programs[load.name, rule]
                            done[key] = run(load, made, noise, seed, before)
                            if partial is not None:
                                partial.write_text(json.dumps(done, indent=1))
                            print(key, json.dumps(done[key]), file=sys.stderr, flush=True)
                        if key in done:
                            # Before it adapts, a device is the same whatever the rule.
                            before = done[key]["before"]
        for load in loads:
            quiet, program = Device(noisy=False), at_noise(programs[load.name, rules[0]], 0.0)
            known = load.accuracy(program, quiet, *load.known)
            ideal: dict[int, float] = {}
            for wearer in WEARERS[load.name]:
                test = load.data.test_windows(wearer)
                ideal[wearer] = load.accuracy(program, quiet, *thinned(test.x, test.y, EVALUATED))
            for noise in noises:
                whole = [
                    seed
                    for seed in range(seeds)
                    if all(_key(load.name, rule, noise, seed) in done for rule in rules)
                ]
                for rule in rules if whole else ():
                    found = [done[_key(load.name, rule, noise, seed)] for seed in whole]
                    point = programs[load.name, rule]
                    rows.append(_row(load.name, rule, noise, found, point, known, ideal))
        arrays = [
            {
                "data": load.name,
                "rule": "bp",
                "transposed": "array",
                **_cost(load.compiled("bp", LEARNING_RATE["bp"], "array")),
            }
            for load in loads
            if "bp" in rules
        ]
    return {
        "rows": rows,
        "bp_reads_from_columns": arrays,
        "ratios": _ratios(rows),
        "paper_up_to": PAPER,
        "configuration": {
            "target": {**find_target(TARGET).data, "transposed": TRANSPOSED},
            "batch": BATCH,
            "learning_rate": LEARNING_RATE,
            "wearers": {name: WEARERS[name] for name in names},
            "labelled_windows": f"at most {LABELLED}, one pass, shuffled by the seed",
            "evaluated_windows": EVALUATED,
            "layers": "all weights and biases",
            "seeds": seeds,
        },
    }


def _key(name: str, rule: str, noise: float, seed: int) -> str:
    return f"{name}/{rule}/{noise}/{LEARNING_RATE[rule]}/{seed}"


def _row(
    name: str,
    rule: str,
    noise: float,
    found: list[dict[str, Any]],
    program: CompiledModel,
    known: float,
    ideal: dict[int, float],
) -> dict[str, Any]:
    before = TrialStatistics(tuple(item["before"] for item in found))
    after = TrialStatistics(tuple(item["after"] for item in found))
    lost = known - before.mean
    return {
        "data": name,
        "rule": rule,
        "write_noise": noise,
        "accuracy_before": before.mean,
        "accuracy_after": after.mean,
        "ci95": list(after.ci95) if after.ci95 is not None else None,
        **_cost(program),
        "accuracy_known_wearers_no_noise": known,
        "accuracy_new_wearers_no_noise": sum(ideal.values()) / len(ideal),
        "recovered": (after.mean - before.mean) / lost if lost > 0 else None,
        "seeds": len(found),
        "diverged": sum(item["status"] == "diverged" for item in found),
        "cell_writes": sum(item["writes"]["writes"] for item in found) / len(found),
        "most_writes": max(item["writes"]["most"] for item in found),
    }


def _cost(program: CompiledModel) -> dict[str, Any]:
    """Energy, latency and area of a step of one window, beside those of inference."""
    point = program.report_data["entry_points"]["adapt"]
    inference = program.report_data["entry_points"]["inference"]
    return {
        "energy_pj": point["energy_pj"],
        "latency_ns": point["latency_ns"],
        "area_um2": point["area_um2"],
        "inference_energy_pj": inference["energy_pj"],
        "inference_latency_ns": inference["latency_ns"],
        "unknown": point["unknown"],
    }


def _ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Direct feedback relative to back-propagation, as the paper states it."""
    made = []
    for row in rows:
        other = next(
            (
                item
                for item in rows
                if item["rule"] == "bp"
                and (item["data"], item["write_noise"]) == (row["data"], row["write_noise"])
            ),
            None,
        )
        if other is None or row["rule"] == "bp":
            continue
        made.append(
            {
                "data": row["data"],
                "rule": row["rule"],
                "write_noise": row["write_noise"],
                "energy saved": 1 - row["energy_pj"] / other["energy_pj"],
                "area saved": 1 - row["area_um2"] / other["area_um2"],
                "latency ratio": other["latency_ns"] / row["latency_ns"],
                "accuracy gained": row["accuracy_after"] - other["accuracy_after"],
            }
        )
    return made


def choose(names: list[str], rates: list[float]) -> None:
    """Print the running loss of learning rates on labelled windows of the tuning wearers."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            load = Workload(name, Path(folder))
            held = load.data.adaptation_windows(TUNING_WEARERS[name])
            for rule in RULES:
                for rate in rates:
                    made = at_noise(load.compiled(rule, rate), WRITE_NOISE[1])
                    options = AdaptationOptions(batch=BATCH, divergence=10.0)
                    record = imcc.adapt(made, (held.x, held.y), options=options)
                    mean = sum(item[2] for item in record.running) / len(record.running)
                    print(f"{name} {rule:10s} {rate:g}: mean running loss {mean:.3f}", flush=True)


def show(made: dict[str, Any]) -> None:
    """Print the rows and the ratios as tables."""
    print(
        f"{'data':6s} {'rule':10s} {'noise':>6s} {'before':>7s} {'after':>7s} {'ci95':>16s} "
        f"{'recovered':>9s} {'energy uJ':>9s} {'latency us':>10s} {'area mm2':>9s}"
    )
    for row in made["rows"]:
        low, high = row["ci95"] or (float("nan"), float("nan"))
        recovered = float("nan") if row["recovered"] is None else row["recovered"]
        print(
            f"{row['data']:6s} {row['rule']:10s} {row['write_noise']:6g} "
            f"{row['accuracy_before']:7.3f} {row['accuracy_after']:7.3f} "
            f"[{low:.3f}, {high:.3f}] {recovered:9.2f} "
            f"{row['energy_pj'] / 1e6:9.2f} {row['latency_ns'] / 1e3:10.1f} "
            f"{row['area_um2'] / 1e6:9.2f}"
        )
    print("\nagainst bp (the paper: up to)")
    for key, value in made["paper_up_to"].items():
        best = max(made["ratios"], key=lambda item: item[key], default=None)
        if best is not None:
            where = f"{best['data']}, {best['rule']}, write noise {best['write_noise']:g}"
            least = min(item[key] for item in made["ratios"])
            print(f"{key}: {least:.3g} to {best[key]:.3g} ({where}); paper {value:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", nargs="+", choices=("watch", "hapt"), default=["watch", "hapt"])
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--noise", nargs="+", type=float, default=list(WRITE_NOISE))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--partial", type=Path)
    parser.add_argument("--minutes", type=float, help="start no run after this")
    parser.add_argument("--choose", nargs="+", type=float, metavar="RATE")
    given = parser.parse_args()
    if given.choose:
        choose(given.data, given.choose)
        return
    made = measure(given.data, given.rules, given.noise, given.seeds, given.partial, given.minutes)
    if given.json:
        print(json.dumps(made, indent=2))
    else:
        show(made)


if __name__ == "__main__":
    main()
