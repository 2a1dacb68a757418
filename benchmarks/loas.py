"""LoAS against SparTen, GoSPA, Gamma and PTB for spikes: ratios, counts, options, trends.

    python -m benchmarks.loas --json
    python -m benchmarks.loas --traces mine.npz --weight-sparsity 0.95

Every ratio stands beside the published one, with the band that the options of the targets span:
what the public material leaves open decides most of it (``docs/decisions``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import typing
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.loas_networks import (
    Network,
    networks,
    read_traces,
    with_more_timesteps,
)
from imcc.backends.sparse_snn import engines
from imcc.backends.sparse_snn.product import Product
from imcc.backends.sparse_snn.target import SparseTarget
from imcc.backends.targets import find_target

BASELINES = ("sparten-snn", "gospa-snn", "gamma-snn", "ptb")
SPARSE = BASELINES[:3]
PAPER_SPEEDUP: dict[str, dict[str, float]] = {
    "sparten-snn": {"mean": 6.79, "resnet19": 8.51},
    "gospa-snn": {"mean": 5.99},
    "gamma-snn": {"mean": 3.25},
    "ptb": {"vgg16": 46.9},
}
PAPER_ENERGY: dict[str, dict[str, float]] = {
    "sparten-snn": {"alexnet": 3.68},
    "ptb": {"vgg16": 6.0},
}
TOLERANCE = 0.05
"""How near to a published figure a set of options must come to give it."""
DRAM_PJ_PER_BIT = (3.92, 7.0, 12.45)
"""HBM2 (O'Connor et al., 2017), first-generation HBM, and what Prosperity's simulator takes."""

Overrides = tuple[str, ...]


@cache
def _target(name: str, overrides: Overrides = ()) -> SparseTarget:
    made = find_target(name, overrides)
    if not isinstance(made, SparseTarget):
        raise SystemExit(f"{name} is no target of the backend sparse_snn")
    return made


class Bench:
    """Runs networks on targets and keeps the totals."""

    def __init__(self) -> None:
        self._products: dict[Any, list[Product]] = {}
        self._totals: dict[Any, dict[str, Any]] = {}

    def totals(
        self, network: Network, target: str, seed: int = 0, overrides: Overrides = ()
    ) -> dict[str, Any]:
        """Sums over the layers of a network: cycles, counts, traffic, events."""
        key = (id(network), target, seed, tuple(sorted(overrides)))
        if key not in self._totals:
            held = _target(target, overrides)
            spikes = held.keys.rules.spikes
            drawn = (id(network), seed, spikes)
            if drawn not in self._products:
                self._products[drawn] = network.products(seed, spikes)
            made: dict[str, Any] = {
                name: defaultdict(float)
                for name in ("counts", "dram_bytes", "cache_lines", "events")
            }
            for name in ("cycles", "compute", "cache_stall", "dram_stall"):
                made[name] = 0
            for product in self._products[drawn]:
                run = engines.run(product, held)
                made["cycles"] += run.cycles
                made["compute"] += run.compute_cycles
                made["cache_stall"] += run.cache_stall_cycles
                made["dram_stall"] += run.dram_stall_cycles
                for name in ("counts", "dram_bytes", "cache_lines", "events"):
                    for item, count in getattr(run, name).items():
                        made[name][item] += count
            self._totals[key] = made
        return self._totals[key]

    def cycles(self, network: Network, target: str, seed: int = 0, over: Overrides = ()) -> float:
        return float(self.totals(network, target, seed, over)["cycles"])

    def energy_pj(
        self,
        network: Network,
        target: str,
        seed: int = 0,
        over: Overrides = (),
        dram_pj: float | None = None,
        on_chip: str = "events",
    ) -> float:
        """Energy of a network: DRAM, and on chip either events or published power times time."""
        held, totals = _target(target, over), self.totals(network, target, seed, over)
        energies = {
            event: count * (held.energy_pj(event.split(".")[0]) or 0.0)
            for event, count in totals["events"].items()
        }
        dram = energies.pop("dram.bit")
        if dram_pj is not None:
            dram = totals["events"]["dram.bit"] * dram_pj
        if on_chip == "power" and held.keys.published is not None:
            # mW times ns is pJ.
            chip = held.keys.published.power_mw * totals["cycles"] * held.cycle_ns
            return dram + chip
        return dram + sum(energies.values())


def choices(target: str) -> dict[str, list[str]]:
    """All settings of each open rule, the default first."""
    rules = _target(target).keys.rules
    made: dict[str, list[str]] = {}
    for key, field in type(rules).model_fields.items():
        default = getattr(rules, key)
        literal = typing.get_args(field.annotation)
        if literal:
            values: Sequence[Any] = literal
        elif field.annotation is bool:
            values = (False, True)
        else:
            limits = {type(item).__name__: item for item in field.metadata}
            values = range(limits["Ge"].ge, min(limits["Le"].le, 3) + 1)
        rest = [value for value in values if value != default]
        made[key] = [str(value).lower() for value in (default, *rest)]
    return made


def changes(target: str, most: int) -> Iterator[Overrides]:
    """All ways to change at most ``most`` rules; the early stop needs a sum that is not kept."""
    options = choices(target)
    for count in range(most + 1):
        for keys in itertools.combinations(options, count):
            for values in itertools.product(*(options[key][1:] for key in keys)):
                made = tuple(
                    f"rules.{key}={value}" for key, value in zip(keys, values, strict=True)
                )
                stops = "rules.laggy_early_stop=true" in made
                if stops and "laggy_scope" not in keys:
                    continue
                yield made


def corner(bench: Bench, networks: Sequence[Network], target: str, fastest: bool) -> Overrides:
    """Rules that are each, alone, the fastest or slowest on these networks.

    Rules act in one direction whatever the others are, so this is the end of the band.
    """
    made = []
    for key, values in choices(target).items():
        timed = {
            value: sum(
                bench.cycles(item, target, 0, (f"rules.{key}={value}",)) for item in networks
            )
            for value in values
        }
        pick = min if fastest else max
        best = pick(timed, key=lambda value: timed[value])
        if timed[best] != timed[values[0]]:
            made.append(f"rules.{key}={best}")
    return tuple(made)


def ratio_table(
    bench: Bench, held: Sequence[Network], seeds: int, measure: Callable[..., float]
) -> dict[str, Any]:
    """Baseline over LoAS by network, the mean over networks, and the spread over seeds."""
    made: dict[str, Any] = {}
    for baseline in BASELINES:
        per_network, spread = {}, {}
        for network in held:
            values = [
                measure(network, baseline, seed) / measure(network, "loas", seed)
                for seed in range(seeds)
            ]
            per_network[network.name] = statistics.fmean(values)
            spread[network.name] = statistics.stdev(values) if seeds > 1 else None
        traced = [per_network[item.name] for item in held if not _is_synthetic(item)]
        made[baseline] = {
            "mean": statistics.fmean(per_network.values()),
            "mean_without_synthetic": statistics.fmean(traced) if traced else None,
            "per_network": per_network,
            "std_over_seeds": spread,
        }
    return made


def _is_synthetic(network: Network) -> bool:
    return network.origin.startswith("synthetic")


def speed_band(bench: Bench, held: Sequence[Network], baseline: str) -> dict[str, Any]:
    """The ends of the mean speedup over all options of both sides."""
    searched = [item for item in held if item.name != "resnet19"] or list(held)
    ends = {}
    for end, loas_fast in (("low", False), ("high", True)):
        ours = corner(bench, searched, "loas", loas_fast)
        theirs = corner(bench, searched, baseline, not loas_fast)
        ratios = {
            item.name: bench.cycles(item, baseline, 0, theirs) / bench.cycles(item, "loas", 0, ours)
            for item in held
        }
        ends[end] = {
            "mean": statistics.fmean(ratios.values()),
            "per_network": ratios,
            "options": {"loas": list(ours), baseline: list(theirs)},
        }
    return ends


def one_at_a_time(bench: Bench, held: Sequence[Network], baseline: str) -> list[dict[str, Any]]:
    """The mean speedup with one rule changed, on either side."""
    made = []
    for target in ("loas", baseline):
        for over in changes(target, 1):
            if not over and target == baseline:
                continue
            ours, theirs = (over, ()) if target == "loas" else ((), over)
            ratios = _ratios(bench, held, baseline, ours, theirs)
            energy = [
                bench.energy_pj(item, baseline, 0, theirs) / bench.energy_pj(item, "loas", 0, ours)
                for item in held
            ]
            made.append(
                {
                    "target": target if over else "default",
                    "option": over[0] if over else "",
                    "speedup": statistics.fmean(ratios),
                    "energy_ratio": statistics.fmean(energy),
                }
            )
    return made


def _ratios(
    bench: Bench, held: Sequence[Network], baseline: str, ours: Overrides, theirs: Overrides
) -> list[float]:
    return [
        bench.cycles(item, baseline, 0, theirs) / bench.cycles(item, "loas", 0, ours)
        for item in held
    ]


def options_for_published(
    bench: Bench, held: Sequence[Network], baseline: str, most: int
) -> dict[str, Any]:
    """The smallest changes of options that bring the mean speedup to the published figure."""

    def values(ours: Overrides, theirs: Overrides) -> Iterator[tuple[list[str], float]]:
        yield [], statistics.fmean(_ratios(bench, held, baseline, ours, theirs))

    return _search(PAPER_SPEEDUP[baseline]["mean"], baseline, most, "speedup", values)


def options_for_published_energy(
    bench: Bench, network: Network, baseline: str, most: int
) -> dict[str, Any]:
    """The same for the energy of one network; figures of energy count as options too."""

    def values(ours: Overrides, theirs: Overrides) -> Iterator[tuple[list[str], float]]:
        for dram_pj, on_chip in itertools.product(DRAM_PJ_PER_BIT, ("events", "power")):
            changed = [f"dram={dram_pj} pJ/bit"] if dram_pj != DRAM_PJ_PER_BIT[0] else []
            changed += ["on chip: published power x time"] if on_chip == "power" else []
            theirs_pj = bench.energy_pj(network, baseline, 0, theirs, dram_pj, on_chip)
            ours_pj = bench.energy_pj(network, "loas", 0, ours, dram_pj, on_chip)
            yield changed, theirs_pj / ours_pj

    wanted = PAPER_ENERGY[baseline][network.name]
    return _search(wanted, baseline, most, "energy_ratio", values)


def _search(
    wanted: float,
    baseline: str,
    most: int,
    what: str,
    values: Callable[[Overrides, Overrides], Iterator[tuple[list[str], float]]],
) -> dict[str, Any]:
    """All sets of the fewest changes that come within the tolerance, and the nearest of all."""
    entries = []
    for ours in changes("loas", most):
        for theirs in changes(baseline, most - len(ours)):
            for figures, value in values(ours, theirs):
                count = len(ours) + len(theirs) + len(figures)
                if count <= most:
                    entry = {"loas": list(ours), baseline: list(theirs), "figures": figures}
                    entries.append((count, abs(value / wanted - 1), {**entry, what: value}))
    near = [item for item in entries if item[1] <= TOLERANCE]
    fewest = min((item[0] for item in near), default=None)
    sets = sorted((item for item in near if item[0] == fewest), key=lambda item: item[1])
    return {
        "published": wanted,
        "changes": fewest,
        "sets": [item[2] for item in sets[:6]],
        "nearest": min(entries, key=lambda item: item[1])[2],
    }


def energy_band(bench: Bench, held: Sequence[Network], baseline: str) -> dict[str, Any]:
    """Energy ratio by DRAM energy, by what counts on chip, and by one rule changed."""
    variants = []
    for dram_pj, on_chip in itertools.product(DRAM_PJ_PER_BIT, ("events", "power")):
        ratios = {
            item.name: bench.energy_pj(item, baseline, 0, (), dram_pj, on_chip)
            / bench.energy_pj(item, "loas", 0, (), dram_pj, on_chip)
            for item in held
        }
        variants.append(
            {
                "dram_pj_per_bit": dram_pj,
                "on_chip": on_chip,
                "mean": statistics.fmean(ratios.values()),
                "per_network": ratios,
            }
        )
    return {
        "low": min(item["mean"] for item in variants),
        "high": max(item["mean"] for item in variants),
        "variants": variants,
    }


def trends(bench: Bench, held: Sequence[Network]) -> list[dict[str, Any]]:
    """How LoAS reacts to more timesteps, denser weights and silencing, beside the paper."""
    made = []
    for network in held:
        base = bench.cycles(network, "loas")
        for how in ("repeat", "independent"):
            if network.timesteps * 2 > 32:
                continue
            longer = with_more_timesteps(network, how)
            made.append(
                {
                    "trend": f"T from {network.timesteps} to {2 * network.timesteps}, {how}",
                    "network": network.name,
                    "performance_change": base / bench.cycles(longer, "loas") - 1,
                    "paper": -0.14,
                }
            )
        dense = Network(**{**vars(network), "weight_sparsity": 0.25})
        if all(layer.weights is None for layer in network.silenced):
            made.append(
                {
                    "trend": f"weight sparsity from {network.weight_sparsity:.3f} to 0.25",
                    "network": network.name,
                    "performance_change": base / bench.cycles(dense, "loas") - 1,
                    "paper": -0.88,
                }
            )
        if network.original is not None:
            before = bench.cycles(network, "loas", 0, ("rules.spikes=original",))
            made.append(
                {
                    "trend": "silencing neurons that spike once",
                    "network": network.name,
                    "performance_change": before / base - 1,
                    "paper": 0.20,
                }
            )
    return made


def counts_of(bench: Bench, held: Sequence[Network], seeds: int) -> dict[str, Any]:
    """Counts of every engine by network: mean over seeds, and the smallest and largest."""
    made: dict[str, Any] = {}
    for network in held:
        for target in ("loas", *BASELINES):
            rows: dict[str, list[float]] = defaultdict(list)
            for seed in range(seeds):
                totals = bench.totals(network, target, seed)
                rows["cycles"].append(totals["cycles"])
                for name in ("compute", "cache_stall", "dram_stall"):
                    rows[f"{name}_cycles"].append(totals[name])
                for name, count in totals["counts"].items():
                    rows[name].append(count)
                for name, count in totals["dram_bytes"].items():
                    rows[f"dram_{name}_bytes"].append(count)
                for name, count in totals["cache_lines"].items():
                    rows[f"cache_{name}_lines"].append(count)
            made.setdefault(network.name, {})[target] = {
                name: {
                    "mean": statistics.fmean(values),
                    "low": min(values),
                    "high": max(values),
                }
                for name, values in rows.items()
            }
    return made


def published_power(bench: Bench, held: Sequence[Network]) -> list[dict[str, Any]]:
    """Average power of our events on LoAS beside the published totals; nothing is scaled."""
    target = _target("loas")
    published = target.keys.published
    if published is None:
        return []
    made = []
    for network in held:
        totals = bench.totals(network, "loas")
        time_ns = totals["cycles"] * target.cycle_ns
        cache, rest = 0.0, 0.0
        for event, count in totals["events"].items():
            component = event.split(".")[0]
            energy = count * (target.energy_pj(component) or 0.0)
            if component.startswith("cache"):
                cache += energy
            elif component != "dram":
                rest += energy
        made.append(
            {
                "network": network.name,
                "cache_mw": cache / time_ns,
                "published_cache_mw": published.cache_power_mw,
                "rest_mw": rest / time_ns,
                "published_rest_mw": published.power_mw - published.cache_power_mw,
                "total_mw": (cache + rest) / time_ns,
                "published_total_mw": published.power_mw,
                "note": "ours is switching energy of counted events; leakage and clock have no "
                "figure",
            }
        )
    return made


def measure(options: argparse.Namespace) -> dict[str, Any]:
    def note(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    if options.traces is not None:
        held = [read_traces(options.traces, options.traces.stem, options.weight_sparsity)]
    else:
        held = networks(options.weight_sparsity, note)
    bench, seeds = Bench(), options.seeds
    traced = [item for item in held if item.name != "resnet19"] or held
    speedup = ratio_table(bench, held, seeds, bench.cycles)
    energy = ratio_table(bench, held, seeds, bench.energy_pj)
    needed = {}
    for baseline in BASELINES:
        note(f"options of {baseline}")
        speedup[baseline]["band"] = speed_band(bench, held, baseline)
        speedup[baseline]["paper"] = PAPER_SPEEDUP.get(baseline, {})
        speedup[baseline]["one_at_a_time"] = one_at_a_time(bench, traced, baseline)
        energy[baseline]["band"] = energy_band(bench, held, baseline)
        energy[baseline]["paper"] = PAPER_ENERGY.get(baseline, {})
        if baseline in SPARSE:
            needed[baseline] = options_for_published(bench, traced, baseline, options.changes)
    for network in held:
        if network.name in PAPER_ENERGY["sparten-snn"]:
            needed[f"energy of {network.name}, sparten-snn"] = options_for_published_energy(
                bench, network, "sparten-snn", options.changes
            )
    return {
        "networks": [
            {
                "name": item.name,
                "origin": item.origin,
                "synthetic": _is_synthetic(item),
                "timesteps": item.timesteps,
                "weight_sparsity": item.weight_sparsity,
                "weights": "drawn" if item.silenced[0].weights is None else "given",
                "before_silencing": item.original_origin or "not known",
            }
            for item in held
        ],
        "seeds": seeds,
        "speedup": speedup,
        "energy_ratio": energy,
        "options_for_published": needed,
        "options_searched_on": [item.name for item in traced],
        "trends": trends(bench, traced),
        "power": published_power(bench, held),
        "counts": counts_of(bench, held, seeds),
    }


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=130)
    names = [item["name"] for item in result["networks"]]
    for item in result["networks"]:
        console.print(f"{item['name']}: {item['origin']}, weights {item['weights']}")
    for what in ("speedup", "energy_ratio"):
        table = Table(title=f"{what} of LoAS, mean of {result['seeds']} seeds")
        for column in ("baseline", *names, "mean", "band", "paper"):
            table.add_column(column)
        for baseline, row in result[what].items():
            band = row["band"]
            ends = [
                item["mean"] if isinstance(item, dict) else item
                for item in (band["low"], band["high"])
            ]
            paper = ", ".join(f"{name} {value}" for name, value in row["paper"].items())
            table.add_row(
                baseline,
                *(f"{row['per_network'][name]:.2f}" for name in names),
                f"{row['mean']:.2f}",
                f"{ends[0]:.2f} to {ends[1]:.2f}",
                paper,
            )
        console.print(table)
    table = Table(title="fewest options that give a published figure (within 5 %)")
    for column in ("claim", "published", "gives", "options"):
        table.add_column(column)
    for claim, row in result["options_for_published"].items():
        for entry in row["sets"] or [row["nearest"]]:
            options = [
                f"{target}: {item.removeprefix('rules.')}"
                for target in ("loas", *SPARSE, "figures")
                for item in entry.get(target, ())
            ]
            mark = "" if row["sets"] else "nearest: "
            value = entry.get("speedup", entry.get("energy_ratio"))
            table.add_row(
                claim,
                f"{row['published']:.2f}",
                f"{mark}{value:.2f}",
                "; ".join(options) or "the defaults",
            )
    console.print(table)
    table = Table(title="trends of LoAS")
    for column in ("trend", "network", "performance", "paper"):
        table.add_column(column)
    for row in result["trends"]:
        table.add_row(
            row["trend"],
            row["network"],
            f"{row['performance_change']:+.0%}",
            f"{row['paper']:+.0%}",
        )
    console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="one seed, one option at a time")
    parser.add_argument("--traces", type=Path, metavar="FILE.npz", help="spikes of your network")
    parser.add_argument("--weight-sparsity", type=float, help="share of weights that are 0")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the weights (3)")
    parser.add_argument("--changes", type=int, default=2, help="options changed together (2)")
    options = parser.parse_args(argv)
    if options.weight_sparsity is not None and not 0 <= options.weight_sparsity <= 1:
        parser.error("--weight-sparsity is a share from 0 to 1")
    if options.seeds < 1 or options.changes < 1:
        parser.error("--seeds and --changes are 1 or more")
    if options.quick:
        options.seeds, options.changes = 1, 1
    result = measure(options)
    if options.json:
        environment = {"python": platform.python_version(), "machine": platform.machine()}
        json.dump(
            {**result, "quick": options.quick, "environment": environment}, sys.stdout, indent=2
        )
        sys.stdout.write("\n")
        return
    _print(result)


if __name__ == "__main__":
    main()
