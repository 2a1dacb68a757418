"""Attention reuse: what it saves on the shapes of DeiT-S, and what it costs in accuracy.

``--part shapes``: DeiT-S at 224 x 224 on ``trexsim``, by shapes alone: energy, delay, area, EDAP,
TOPS/W and TOPS/mm2 for 0 to 11 reuse encoders, beside what TReX publishes (IEEE TETC 2024,
10.1109/tetc.2024.3480524), the share of attention's delay that writing takes, and both over what
the paper leaves open. About a minute and a half of a core.

``--part accuracy``: accuracy under noise against EDAP of a trained transformer of eight encoders,
``examples/vit_digits``, for each of ``--counts`` reuse encoders: placements ranked by short
trainings on a fifth of the data, the best trained in full, and the model without reuse trained as
long. About four minutes of a core with the default counts, ten for ``--counts 1 2 3 4 5 6 7``;
``--model examples/vit_fashion/model.py`` is the larger one, about an hour. ``--save FILE`` keeps
rows as they are done.

Both parts are the default. ``--quick`` is a minute of both.

    python -m benchmarks.attention_reuse --json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.output import Row, SavedRows, main

MODEL = "examples/vit_digits/model.py"
ENCODERS = 12

SETTINGS = ("array.encoding=differential",)
"""Of the target, where accuracy is measured. With offset codes, the preset's, a weight of 0 is a
cell at half of its range: of the accuracy of ``examples/vit_fashion`` the platform's 20 % of
writing and 10 % of reading leave .11 of ten classes, and .13 after 80 steps of training."""

PUBLISHED = {
    "edap_gain_at_6": 2.3,
    "edap_gain_most_aggressive": 6.3,
    "tops_per_mm2_gain_at_6": 1.86,
    "tops_per_mm2_gain_most_aggressive": 4.21,
    "tops_per_w_gain": (1.03, 1.11),
    "write_share_of_attention": 0.8,
}
"""TReX, DeiT-S. The most aggressive point does not say how many encoders reuse."""


@dataclass(frozen=True)
class Variant:
    """A reading of what the paper leaves open: keys of the target, and the block."""

    name: str
    overrides: tuple[str, ...] = ()
    own_projection: bool = True
    source: str = "previous"


VARIANTS = (
    Variant("preset"),
    Variant("block without projection", own_projection=False),
    Variant("chain takes last attention", source="attention"),
    Variant("2 pulses a row", ("dynamic.pulses_per_row=2", "dynamic.pulses_per_cell=2")),
    Variant("32 pulses a row", ("dynamic.pulses_per_row=32",)),
    Variant("columns 8 at a time", ("dynamic.columns_at_once=8",)),
    Variant("crossbars 10 at a time", ("dynamic.arrays_at_once=10",)),
    Variant("columns 8, crossbars 10", ("dynamic.columns_at_once=8", "dynamic.arrays_at_once=10")),
)


def measure(options: argparse.Namespace) -> list[Row]:
    """The rows of the parts asked for."""
    rows: list[Row] = []
    if options.part in ("shapes", "all"):
        rows += shapes(options)
    if options.part in ("accuracy", "all"):
        rows += accuracy(options)
    return rows


def shapes(options: argparse.Namespace) -> list[Row]:
    """DeiT-S by shapes: a row for each variant and number of reuse encoders."""
    import torch

    from imcc.backends.targets import find_target
    from imcc.frontend.capture import capture
    from imcc.models.vision_transformer import VisionTransformer

    with torch.device("meta"):
        model = VisionTransformer(depth=ENCODERS).eval()
        held = capture(model, (torch.zeros(1, 3, 224, 224),))
    rows: list[Row] = []
    variants = VARIANTS[:1] if options.quick else VARIANTS + hybrid() + overlaps()
    for variant in variants:
        target = find_target("trexsim", variant.overrides)
        full = variant.name == "preset"
        counts = range(ENCODERS) if full else (0, 6, 10)
        rows += _curve(held.module, variant, target, (0, 6) if options.quick else counts)
    return rows


def hybrid() -> tuple[Variant, ...]:
    """Run-time matrices on the SRAM of the preset ``sram``: its device, arrays and pulses."""
    from imcc.backends.targets import find_target

    held = find_target("sram").data
    device = held["device"]
    return (
        Variant(
            "hybrid: run-time matrices in SRAM",
            (
                f"dynamic.timing.write_ns={held['timing']['write_ns']}",
                f"dynamic.array.cell_bits={held['array']['cell_bits']}",
                f"dynamic.device.on_off_ratio={device['on_off_ratio']}",
                f"dynamic.device.g_max_us={device['g_max_us']}",
                "dynamic.pulses_per_cell=1",
                "dynamic.pulses_per_row=1",
            ),
        ),
    )


def overlaps() -> tuple[Variant, ...]:
    """The schedule that the preset does not have, and with it the slowest ways of writing."""
    pipelined = "scheduling.mode=pipelined"
    return (
        Variant("layers overlap", (pipelined,)),
        Variant("layers overlap, columns 8", (pipelined, "dynamic.columns_at_once=8")),
        Variant("layers overlap, crossbars 10", (pipelined, "dynamic.arrays_at_once=10")),
    )


def _curve(module: Any, variant: Variant, target: Any, counts: Any) -> list[Row]:
    from imcc.backends.api import find_backend
    from imcc.driver.estimation import Estimates
    from imcc.passes.attention_reuse import How, with_reuse
    from imcc.passes.infrastructure import PassContext
    from imcc.passes.reuse.placement import placement

    context = PassContext(target=target, backend=find_backend(target.backend))
    context.estimator = Estimates(context)
    how = How(variant.own_projection, variant.source)
    base: Row | None = None
    rows: list[Row] = []
    for count in counts:
        encoders = placement("strided", "late", count, ENCODERS)
        function = with_reuse(module, encoders, how)
        cost = context.estimate(function)
        macs = multiply_accumulates(function)
        row = {
            "variant": variant.name,
            "target": target.name,
            "reuse": count,
            "gmacs": macs * 1e-9,
            "energy_uj": cost.energy_pj * 1e-6,
            "latency_us": cost.latency_ns * 1e-3,
            "area_mm2": cost.area_um2 * 1e-6,
            "tiles": cost.resources["tiles"],
            "unknown_costs": len(cost.unknown),
        }
        row["edap_uj_ms_mm2"] = row["energy_uj"] * row["latency_us"] * 1e-3 * row["area_mm2"]
        merit = cost.merit
        if merit is None or merit.operations != 2 * macs:
            raise ValueError(f"{macs} multiply-accumulates here, {merit} in the cost record")
        row["interval_us"] = merit.interval_ns * 1e-3
        row["tops_per_w"], row["tops_per_mm2"] = merit.tops_per_w, merit.tops_per_mm2
        base = base or row
        row["edap_gain"] = base["edap_uj_ms_mm2"] / row["edap_uj_ms_mm2"]
        row["delay_gain"] = base["latency_us"] / row["latency_us"]
        row["area_gain"] = base["area_mm2"] / row["area_mm2"]
        row["energy_gain"] = base["energy_uj"] / row["energy_uj"]
        row["tops_per_w_gain"] = row["tops_per_w"] / base["tops_per_w"]
        row["tops_per_mm2_gain"] = row["tops_per_mm2"] / base["tops_per_mm2"]
        share = row["gmacs"] / base["gmacs"]
        # What EDAP, TOPS/W and TOPS/mm2 say of one another, operations counted as executed.
        row["edap_gain_from_tops"] = (
            row["tops_per_w_gain"] * row["tops_per_mm2_gain"] / share**2
        ) * (base["latency_us"] / base["interval_us"] / row["latency_us"] * row["interval_us"])
        if count == 0:
            row |= write_share(function, target)
        if count == 6:
            row["published_edap_gain"] = PUBLISHED["edap_gain_at_6"]
            row["published_tops_per_mm2_gain"] = PUBLISHED["tops_per_mm2_gain_at_6"]
            # What the published EDAP and TOPS/mm2 leave for TOPS/W at this share of operations.
            row["tops_per_w_gain_that_published_figures_imply"] = (
                PUBLISHED["edap_gain_at_6"] * share**2 / PUBLISHED["tops_per_mm2_gain_at_6"]
            )
            row["the_same_with_all_original_operations"] = (
                PUBLISHED["edap_gain_at_6"] / PUBLISHED["tops_per_mm2_gain_at_6"]
            )
        rows.append(row)
    return rows


def multiply_accumulates(function: Any) -> int:
    """Terms of all products that a program computes for B = 1, attention's two among them."""
    from imcc.backends.crossbar.cost import stated
    from imcc.ir.dialects import nn
    from imcc.ir.dialects.core import tensor
    from imcc.ir.dims import product

    total = 0
    for op in function.ops:
        if isinstance(op, nn.Linear):
            total += stated(product([tensor(op.y).elements, tensor(op.x).shape[-1]]), op.y)
        elif isinstance(op, nn.Conv):
            kernel = product(tensor(op.weight).shape[1:])
            total += stated(product([tensor(op.y).elements, kernel]), op.y)
        elif isinstance(op, nn.Attention):
            queries, values = tensor(op.query), tensor(op.value)
            keys = values.shape[-2]
            total += stated(product([queries.elements, keys]), op.y)
            total += stated(product([tensor(op.y).elements, keys]), op.y)
    return total


def write_share(function: Any, target: Any) -> Row:
    """Share of writing in the delay of the attention blocks, layers one after another.

    ``of_block``: of query, key, value and output projections, both products and their writes.
    ``of_products``: of the two products and their writes.
    """
    from imcc.backends.api import find_backend
    from imcc.ir.semantics.resources import ResourceStore
    from imcc.passes.infrastructure import PassContext, begin, parse_pipeline, run_pipeline

    backend = find_backend(target.backend)
    module = function.module.clone()
    context = PassContext(
        resources=ResourceStore(), target=target, backend=backend, legality=backend.legal
    )
    begin(module, context)
    run_pipeline(module, parse_pipeline(backend.cost_pipeline(target)), context)
    write = block = products = 0.0
    for op in module.function().ops:
        if ".attention" not in op.scope or op.terminator:
            continue
        busy = backend.op_cost(op, target).busy_ns
        block += busy
        write += busy if op.name == "xbar.write" else 0.0
        products += busy if op.name in ("xbar.write", "xbar.matmul") else 0.0
    return {
        "write_share_of_block": write / block if block else None,
        "write_share_of_products": write / products if products else None,
        "published_write_share": PUBLISHED["write_share_of_attention"],
    }


def accuracy(options: argparse.Namespace) -> list[Row]:
    """Accuracy and EDAP of the trained example for each number of reuse encoders.

    Each point is kept in ``--save`` as it is done, with the ranking that led to it; a run goes on
    from there. A file belongs to one set of options.
    """
    from imcc.driver.optimization import (
        OptimizeOptions,
        Trained,
        compare,
        point_of,
        reuse_search,
    )
    from imcc.frontend.model_file import load_model_file

    counts = (2,) if options.quick else tuple(options.counts)
    found = OptimizeOptions(
        "trexsim",
        counts=counts,
        overrides=tuple(options.set or SETTINGS),
        learning_rate=options.learning_rate,
        rank_steps=2 if options.quick else options.rank_steps,
        steps=4 if options.quick else options.steps,
        trials=2 if options.quick else options.trials,
        folder=options.checkpoints,
    )
    held = load_model_file(options.model)
    search = reuse_search(held, found)
    search.learn(held)
    untouched = Trained((), search.start.module, search.start.resources)
    saved = SavedRows(options.save)
    settings = {key: value for key, value in vars(options).items() if key not in PLACES}

    def point(name: str, trained: Callable[[], Trained]) -> Row:
        def make() -> Row:
            made = trained()
            return point_of(name, made, search.compile(made))

        return {"name": name, **saved.row({"name": name, **settings}, make)}

    def rank(count: int) -> Row:
        def make() -> Row:
            ranked = search.rank(search.candidates(count))
            return {"reuse": count, "placements": [item.to_json() for item in ranked]}

        name = f"ranking of {count}"
        return {"name": name, **saved.row({"name": name, **settings}, make)}

    def best(encoders: list[int]) -> Trained:
        return search.train(search.insert(tuple(encoders)))

    points = [
        point("without reuse", lambda: untouched),
        point("without reuse, trained", partial(search.train, untouched)),
    ]
    rankings: list[Row] = []
    for count in counts:
        ranking = rank(count)["placements"]
        rankings += [{"variant": "ranking", "reuse": count, **item} for item in ranking]
        name = f"{count} reuse, {ranking[0]['placement']}"
        points.append(point(name, partial(best, ranking[0]["encoders"])))
    compare(points)
    keep = (
        "name", "encoders", "accuracy", "accuracy_ci95", "noise_free", "edap_gain", "pareto",
        "steps", "energy_pj", "latency_ns", "area_um2",
    )  # fmt: skip
    return [{"variant": "accuracy", **{key: item[key] for key in keep}} for item in points] + (
        rankings
    )


PLACES = ("json", "quick", "part", "counts", "save", "checkpoints")
"""Options that choose points, or say where they are kept; the others settle what a point is."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options besides ``--json`` and ``--quick``."""
    parser.add_argument("--part", choices=("shapes", "accuracy", "all"), default="all")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--counts", type=int, nargs="+", default=[3, 4])
    parser.add_argument(
        "--set", action="append", default=None, metavar="KEY=VALUE", help=f"default {SETTINGS[0]}"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rank-steps", type=int, default=16, help="of each short training")
    parser.add_argument("--steps", type=int, default=80, help="of each whole training")
    parser.add_argument("--trials", type=int, default=3, help="devices for each accuracy")
    parser.add_argument("--checkpoints", type=Path, help="folder of trainings to go on from")
    parser.add_argument("--save", type=Path, help="JSON lines of finished accuracy rows")


if __name__ == "__main__":
    main(__doc__.splitlines()[0], measure, arguments)
