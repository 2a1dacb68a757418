"""From a model and a delay to a trained program that meets it: attention reuse after TReX.

Four steps, each callable alone: how many encoders reuse (:meth:`ReuseSearch.fewest`), where they
may lie (:meth:`ReuseSearch.candidates`), which of these is best after a short training
(:meth:`ReuseSearch.rank`), and the whole training of the winner (:meth:`ReuseSearch.train`).
:func:`optimize_file` is all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from imcc.backends.api import Target, find_backend
from imcc.backends.targets import find_target
from imcc.driver.compiled import CompiledModel
from imcc.driver.data import calibration_batches, evaluation_set
from imcc.driver.estimation import Estimates
from imcc.driver.options import CompileOptions
from imcc.driver.signature import Signature, in_order, input_names
from imcc.driver.stages import Start, finish
from imcc.driver.test_set import MetricTestSet
from imcc.driver.training import training_batches, training_loss
from imcc.frontend.capture import capture
from imcc.frontend.model_file import ModelFile, load_model_file
from imcc.ir import codes
from imcc.ir.cost import CostRecord
from imcc.ir.diagnostics import error
from imcc.ir.module import Module
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.attention_reuse import AttentionReuse, How, fewest_for_delay, with_reuse
from imcc.passes.infrastructure import (
    PassContext,
    Progress,
    Timing,
    no_progress,
    parse_pipeline,
    run_pipeline,
)
from imcc.passes.reuse.placement import candidates
from imcc.passes.reuse.sites import attention_sites
from imcc.training import Batch, Loss, NoisyProgram, Recipe, fine_tune, scalar_loss

SHARE = 0.2
"""TReX ranks placements by training on a fifth of the data."""


@dataclass(frozen=True)
class OptimizeOptions:
    """What to search for, and with what effort.

    Either ``delay_us``, the latency that the target's cost model must predict at most, or
    ``counts``, numbers of reuse encoders of which each is carried through, for a whole curve.
    ``own_projection``, ``source`` and ``init`` are those of the pass ``attention-reuse``.

    ``rank_steps`` and ``steps`` are training steps of a batch each; None: once through a fifth of
    the batches, once through all. ``held_out_batches`` bounds how many of the batches that train no
    candidate decide between candidates, None: all of them. ``compare_trained`` trains the model
    without reuse as long, so that what training alone gives is not counted as reuse's. ``passes``
    is the pipeline behind reuse, None: the target's own; training runs through the target's own in
    any case. ``folder`` keeps checkpoints, from which a run that was stopped goes on.
    """

    target: str
    delay_us: float | None = None
    counts: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()
    passes: str | None = None
    own_projection: bool = True
    source: Literal["previous", "attention"] = "previous"
    init: Literal["identity", "random", "least_squares"] = "least_squares"
    rank_steps: int | None = None
    steps: int | None = None
    held_out_batches: int | None = 8
    learning_rate: float = 3e-4
    reads: Literal["simulated", "linear"] = "linear"
    compare_trained: bool = True
    trials: int = 10
    seed: int = 0
    folder: Path | None = None

    @property
    def how(self) -> How:
        """The block."""
        return How(self.own_projection, self.source, self.init)


@dataclass(frozen=True)
class Trained:
    """A program with reuse in ``encoders``, its float weights, and the losses of its training."""

    encoders: tuple[int, ...]
    module: Module
    resources: ResourceStore
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Ranked:
    """A placement after the short training: mean loss on held-out training batches, under noise."""

    encoders: tuple[int, ...]
    placement: str
    held_out_loss: float
    trained: Trained = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "encoders": list(self.encoders),
            "placement": self.placement,
            "held_out_loss": self.held_out_loss,
        }


@dataclass(frozen=True)
class Optimized:
    """The chosen program compiled for the target, and the report of the search."""

    model: CompiledModel
    float_module: Module
    float_resources: ResourceStore
    report: dict[str, Any]


@dataclass
class ReuseSearch:
    """One model, one target: the steps of the search.

    ``batches`` are training batches; the last tenth (at least one, where there are two) trains no
    candidate of a ranking; the first ``held_out_batches`` of it decide between them.
    """

    start: Start
    target: Target
    options: OptimizeOptions
    calibration: list[tuple[Any, ...]] | None
    batches: Sequence[Batch]
    loss: Loss | None
    test_set: MetricTestSet | None
    progress: Progress = no_progress

    def __post_init__(self) -> None:
        """Make the context in which passes run and costs are asked for."""
        self.context = PassContext(
            resources=self.start.resources,
            target=self.target,
            backend=find_backend(self.target.backend),
            calibration=self.calibration,
            seed=self.options.seed,
            legality=find_backend(self.target.backend).legal,
        )
        self.context.estimator = Estimates(self.context)
        self.encoders = len(attention_sites(self.start.module.function()).encoders)

    def learn(self, held: ModelFile) -> None:
        """Take training data and loss from the model file, which must have them."""
        given, loss = held.require("training_data", "training"), held.require("loss", "training")
        signature = self.start.signature
        self.batches = training_batches(
            given(), signature, self.start.module.function().fixed_batch
        )
        self.loss = training_loss(loss, signature)

    # -- steps -----------------------------------------------------------------------------------

    def cost(self, encoders: tuple[int, ...]) -> CostRecord:
        """What the cost model predicts for reuse in these encoders."""
        made: CostRecord = self.context.estimate(
            with_reuse(self.start.module, encoders, self.options.how)
        )
        return made

    def fewest(self, delay_us: float, rows: list[dict[str, Any]] | None = None) -> int:
        """Step 1: how many encoders must reuse; raises OUT_OF_REACH with the best there is."""
        asked = rows if rows is not None else []
        context = dataclasses.replace(self.context, progress=self.progress)
        how = self.options.how
        found = fewest_for_delay(
            self.start.module, delay_us, "strided", "late", how, context, asked
        )
        return len(found)

    def candidates(self, count: int) -> dict[tuple[int, ...], str]:
        """Step 2: placements of so many encoders, those that meet the delay where there is one."""
        self.possible(count)
        made = candidates(count, self.encoders)
        limit = self.options.delay_us
        if limit is None:
            return made
        return {key: name for key, name in made.items() if self.latency_us(key) <= limit}

    def possible(self, count: int) -> None:
        """Refuse a count that leaves no encoder with attention."""
        if not 0 <= count < max(self.encoders, 1):
            raise error(
                codes.BAD_OPTION,
                f"{count} of {self.encoders} encoders cannot reuse attention",
                help=f"choose at most {max(self.encoders - 1, 0)}",
            )

    def latency_us(self, encoders: tuple[int, ...]) -> float:
        """Predicted latency of a call."""
        return self.cost(encoders).latency_ns * 1e-3

    def insert(self, encoders: tuple[int, ...]) -> Trained:
        """The program with reuse, before any training."""
        module, store = self.start.module.clone(), self.start.resources.copy()
        if encoders:
            how = self.options.how
            item = AttentionReuse(
                encoders=encoders,
                own_projection=how.own_projection,
                source=self.options.source,
                init=how.init,
            )
            context = dataclasses.replace(
                self.context, resources=store, measurements={}, timing=Timing()
            )
            run_pipeline(module, (item,), context)
        return Trained(encoders, module, store)

    def rank(self, found: dict[tuple[int, ...], str]) -> list[Ranked]:
        """Step 3: train each candidate on a fifth of the data; the best on held-out data first."""
        fit, held_out = self._split()
        part = fit[: max(1, round(len(fit) * SHARE))]
        steps = self.options.rank_steps if self.options.rank_steps is not None else len(part)
        made: list[Ranked] = []
        for encoders, name in found.items():
            trained = self.train(self.insert(encoders), part, steps, "rank")
            made.append(Ranked(encoders, name, self.mean_loss(trained, held_out), trained))
        return sorted(made, key=lambda item: item.held_out_loss)

    def train(
        self,
        start: Trained,
        batches: Sequence[Batch] | None = None,
        steps: int | None = None,
        purpose: str = "train",
    ) -> Trained:
        """Step 4: train a program through the target's noisy simulator.

        ``purpose`` is in the name of the checkpoint: short trainings see other batches.
        """
        if self.loss is None:
            raise error(codes.BAD_DATA, "training needs data and a loss")
        given = batches if batches is not None else self.batches
        wanted = steps if steps is not None else self.options.steps
        count = wanted if wanted is not None else len(given)
        if count == 0:
            return start
        recipe = Recipe(
            steps=count,
            learning_rate=self.options.learning_rate,
            reads=self.options.reads,
            seed=self.options.seed,
        )
        made = fine_tune(
            start.module,
            start.resources,
            given,
            self.loss,
            recipe,
            target=self.target,
            calibration=self.calibration,
            checkpoint=self._checkpoint(purpose, start.encoders, count),
            progress=self.progress,
        )
        return Trained(start.encoders, made.module, made.resources, made.losses)

    def mean_loss(self, trained: Trained, batches: Sequence[Batch]) -> float:
        """Mean loss over batches under noise: a device for each, the same for all programs."""
        if self.loss is None:
            raise error(codes.BAD_DATA, "training needs data and a loss")
        program = NoisyProgram.lower(
            trained.module,
            trained.resources,
            self.target,
            calibration=self.calibration,
            seed=self.options.seed,
            linear_reads=self.options.reads == "linear",
        )
        total = 0.0
        with torch.no_grad():
            for number, (inputs, rest) in enumerate(batches):
                outputs = program.run(
                    {},
                    inputs,
                    seed=self.options.seed + 1,
                    trial=number,
                    linear_reads=self.options.reads == "linear",
                )
                total += float(scalar_loss(self.loss, outputs, rest))
        if not math.isfinite(total):
            named = ", ".join(map(str, trained.encoders)) or "none"
            raise error(
                codes.NUMERIC,
                f"the loss on held-out batches is {total} with reuse in encoders {named}",
                help="lower the learning rate, or check the data and loss() for numbers that are "
                "not finite",
            )
        return total / max(len(batches), 1)

    def best(self, count: int) -> tuple[list[Ranked], Trained]:
        """Steps 2 to 4 for a number of reuse encoders: the ranking, and the winner in full."""
        ranked = self.rank(self.candidates(count))
        return ranked, self.train(self.insert(ranked[0].encoders))

    def compile(self, trained: Trained) -> CompiledModel:
        """Compile a program for the target, and evaluate it where there is evaluation data."""
        start = dataclasses.replace(self.start, module=trained.module, resources=trained.resources)
        backend = find_backend(self.target.backend)
        text = self.options.passes
        passes = parse_pipeline(text if text is not None else backend.pipeline(self.target))
        options = CompileOptions(
            self.options.target,
            self.options.overrides,
            trials=self.options.trials,
            seed=self.options.seed,
            sweep=False,
        )
        return finish(
            start,
            self.target,
            passes,
            self.calibration,
            options,
            self.test_set,
            Timing(),
            self.progress,
        )

    # -- inside ----------------------------------------------------------------------------------

    def _split(self) -> tuple[Sequence[Batch], Sequence[Batch]]:
        count = len(self.batches)
        held_out = max(1, count // 10) if count > 1 else 0
        if not held_out:
            return self.batches, self.batches
        decide = self.batches[count - held_out :]
        return self.batches[: count - held_out], decide[: self.options.held_out_batches]

    def _checkpoint(self, purpose: str, encoders: tuple[int, ...], steps: int) -> Path | None:
        if self.options.folder is None:
            return None
        name = "-".join(map(str, encoders)) or "none"
        return self.options.folder / f"{purpose}-{name}-{steps}-steps"


def optimize_file(
    spec: str | ModelFile, options: OptimizeOptions, progress: Progress = no_progress
) -> Optimized:
    """Optimise a user's model file; it needs training data and a loss unless the goal is met."""
    if (options.delay_us is None) == (not options.counts):
        raise error(
            codes.USAGE,
            "give either a delay or counts of reuse encoders",
            help="--delay 500us, or --counts 2,4,6",
        )
    held = spec if isinstance(spec, ModelFile) else load_model_file(spec)
    search = reuse_search(held, options, progress)
    if not search.encoders:
        raise error(
            codes.PASS_REQUIRES,
            "there is no self-attention to reuse",
            help="`imcc optimize` removes attention from some encoders of a transformer",
        )
    for count in options.counts:
        search.possible(count)
    asked: list[dict[str, Any]] = []
    counts: tuple[int, ...] = options.counts
    if options.delay_us is not None:
        counts = (search.fewest(options.delay_us, asked),)
    untouched = Trained((), search.start.module, search.start.resources)
    made = [search.compile(untouched)]
    points = [point_of("without reuse", untouched, made[0])]
    if not points[0]["edap_pj_ns_um2"]:
        raise error(
            codes.BAD_OPTION,
            f"target {options.target} gives no cost to weigh accuracy against",
            help="choose a target of hardware; `imcc targets` lists them",
        )
    kept = [untouched]
    rankings: list[dict[str, Any]] = []
    if any(counts):
        search.learn(held)
        if options.compare_trained:
            kept.append(search.train(untouched))
            made.append(search.compile(kept[-1]))
            points.append(point_of("without reuse, trained", kept[-1], made[-1]))
    for count in sorted({count for count in counts if count}):
        ranked, trained = search.best(count)
        rankings.append({"count": count, "placements": [item.to_json() for item in ranked]})
        kept.append(trained)
        made.append(search.compile(trained))
        points.append(point_of(f"{count} reuse, {ranked[0].placement}", trained, made[-1]))
    chosen = len(points) - 1 if any(counts) else 0
    compare(points)
    found = {
        "goal": {"delay_us": options.delay_us, "counts": list(options.counts)},
        "met_without_change": options.delay_us is not None and not any(counts),
        "encoders": search.encoders,
        "predictions": asked,
        "rankings": rankings,
        "points": points,
        "chosen": chosen,
        "training": {
            "held_out": "of the last tenth of the training batches, which trains no candidate",
            "held_out_batches": options.held_out_batches,
            "reads": options.reads,
            "learning_rate": options.learning_rate,
            "init": options.init,
            "dropout": "none; batch norm frozen",
        },
    }
    winner = made[chosen]
    winner.report_data["optimization"] = found
    return Optimized(winner, kept[chosen].module, kept[chosen].resources, winner.report())


def compare(points: Sequence[dict[str, Any]]) -> None:
    """Add to each point whether it is in the Pareto set, and its EDAP gain over the first."""
    front = pareto(points)
    for number, point in enumerate(points):
        point["pareto"] = number in front
        point["edap_gain"] = points[0]["edap_pj_ns_um2"] / point["edap_pj_ns_um2"]


def pareto(points: Sequence[dict[str, Any]]) -> set[int]:
    """Points that no other beats in EDAP without losing in accuracy, or the other way round.

    Without accuracies all but the lowest EDAP are dominated.
    """

    def beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
        better = (a["accuracy"] or 0.0, -a["edap_pj_ns_um2"])
        worse = (b["accuracy"] or 0.0, -b["edap_pj_ns_um2"])
        return better != worse and all(x >= y for x, y in zip(better, worse, strict=True))

    return {
        number
        for number, point in enumerate(points)
        if not any(beats(other, point) for other in points)
    }


def point_of(name: str, trained: Trained, made: CompiledModel) -> dict[str, Any]:
    """Cost, EDAP and accuracy of a compiled program, as the report holds them."""
    report = made.report_data
    accuracy = report["accuracy"]
    noisy = accuracy["noisy"] if accuracy is not None else None
    measured = None
    if accuracy is not None:
        measured = noisy["mean"] if noisy is not None else accuracy["noise_free"]
    energy, latency, area = report["energy_pj"], report["latency_ns"], report["area_um2"]
    return {
        "name": name,
        "encoders": list(trained.encoders),
        "energy_pj": energy,
        "latency_ns": latency,
        "area_um2": area,
        "edap_pj_ns_um2": energy * latency * area,
        "accuracy": measured,
        "accuracy_ci95": noisy["ci95"] if noisy is not None else None,
        "noise_free": accuracy["noise_free"] if accuracy is not None else None,
        "steps": len(trained.losses),
        "last_losses": list(trained.losses[-10:]),
    }


def reuse_search(
    held: ModelFile, options: OptimizeOptions, progress: Progress = no_progress
) -> ReuseSearch:
    """The search for a model file, captured; training data and loss come with :meth:`learn`."""
    target = find_target(options.target, options.overrides)
    if not isinstance(held.module, nn.Module):
        raise error(
            codes.MODEL_FILE,
            f"{held.path} is an exported program",
            help="give the model file that it was exported from",
        )
    inputs = in_order(held.module, held.example_inputs)
    name = held.path.resolve().parent.name if held.path.stem == "model" else held.path.stem
    progress(0, 1, "capture")
    captured = capture(held.module, inputs)
    names = captured.input_names or input_names(held.module, len(inputs))
    signature = Signature.of(captured, names)
    start = Start(
        captured.module,
        captured.resources,
        signature,
        captured.module,
        captured.resources,
        name,
        held.path.name,
        captured.warnings,
    )
    calibration = None
    if held.calibration_data is not None:
        given = calibration_batches(held.calibration_data())
        calibration = [tuple(signature.tensors(batch)) for batch in given]
    test_set = None
    if held.evaluation_data is not None:
        values, targets = evaluation_set(held.evaluation_data())
        test_set = MetricTestSet(values, targets, held.require("metric", "evaluation"))
    return ReuseSearch(start, target, options, calibration, (), None, test_set, progress)
