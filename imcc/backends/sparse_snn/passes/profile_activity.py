"""Pass ``profile-activity``: count what each product does on real samples, and schedule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from imcc.backends.sparse_snn import BACKEND
from imcc.ir.dialects import snn
from imcc.ir.module import Function, Module
from imcc.ir.ops import Op, Value
from imcc.passes.infrastructure import Exact, Pass, PassContext, option

if TYPE_CHECKING:
    from imcc.backends.sparse_snn.dialect import Product
    from imcc.backends.sparse_snn.product import Run
    from imcc.backends.sparse_snn.target import SparseTarget


@dataclass(frozen=True)
class ProfileActivity(Pass):
    """Run calibration samples through the program and each product through the target's engine.

    Cycles, stalls and events of a product are the mean over the samples, one inference each (B =
    1), from the compressed operands as they are. Layers run one after another: a product starts
    when the one before has ended; neuron units work beside the product whose sums they take in.
    """

    name: ClassVar[str] = "profile-activity"
    contract: ClassVar[Exact] = Exact()
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "calibration", "target"})
    requires_phase: ClassVar[str | None] = "placed"
    ensures_phase: ClassVar[str | None] = "scheduled"

    samples: int = option(default=4, minimum=1, doc="calibration samples that are counted")

    def run(self, module: Module, context: PassContext) -> None:
        """Annotate every product with what was counted, every op with when it runs."""
        from imcc.backends.sparse_snn.dialect import Product
        from imcc.backends.sparse_snn.passes_support import sparse_target

        target = sparse_target(self.name, context)
        rewriter = context.rewriter(module, self.name)
        for function in module.functions.values():
            found = [op for op in function.ops if isinstance(op, Product)]
            counted: dict[Op, list[Run]] = defaultdict(list)
            if found:
                for number, sample in enumerate(
                    context.calibration_samples(function, self.samples)
                ):
                    context.progress(number, self.samples, "profile activity")
                    for op, runs in _count(function, sample, context, target).items():
                        counted[op].append(_joined(runs))
            for op in found:
                self._annotate(op, counted[op], rewriter)
            now = 0.0
            for op in function.ops:
                if not op.terminator:
                    busy = BACKEND.op_cost(op, target).busy_ns
                    rewriter.annotate(op, sparse__start_ns=now, sparse__end_ns=now + busy)
                    now += busy

    def _annotate(self, op: Product, runs: list[Run], rewriter: Any) -> None:
        from imcc.backends.sparse_snn.dialect import EVENT_NAMES

        count = len(runs)
        events = tuple(
            sum(run.events.get(name, 0.0) for run in runs) / count for name in EVENT_NAMES
        )
        names = runs[0].counts
        shown = " ".join(
            f"{name}={sum(run.counts[name] for run in runs) / count:g}" for name in names
        )
        rewriter.annotate(
            op,
            sparse__cycles=sum(run.cycles for run in runs) / count,
            sparse__stalls=(
                sum(run.cache_stall_cycles for run in runs) / count,
                sum(run.dram_stall_cycles for run in runs) / count,
            ),
            sparse__events=events,
            sparse__counts=shown,
            sparse__samples=count,
        )


def _count(
    function: Function, sample: tuple[Any, ...], context: PassContext, target: SparseTarget
) -> dict[Op, list[Run]]:
    """What every product of a function does on one sample; a run for each group."""
    import torch

    from imcc.backends.sparse_snn.dialect import Product
    from imcc.backends.sparse_snn.engines import run
    from imcc.backends.sparse_snn.simulate import products
    from imcc.ir.semantics.interpreter import evaluate_function

    wanted = {op: _neuron_behind(op) for op in function.ops if isinstance(op, Product)}
    kept = {value for op in wanted for value in op.operands}
    kept |= {neuron.spikes for neuron in wanted.values() if neuron is not None}
    seen: dict[Value, Any] = {}

    def observer(op: Op, results: tuple[Any, ...]) -> None:
        for value, held in zip(op.results, results, strict=True):
            if value in kept:
                seen[value] = held

    with torch.no_grad():
        evaluate_function(
            function,
            sample,
            resources=context.weights(),
            backend=BACKEND.name,
            target=target,
            observer=observer,
        )
    made: dict[Op, list[Run]] = {}
    for op, neuron in wanted.items():
        zero = int(seen[op.x_zero_point]) if op.x_zero_point is not None else 0
        result = _stored(neuron, seen[neuron.spikes]) if neuron is not None else None
        made[op] = [
            run(item, target) for item in products(op, seen[op.a], seen[op.b], zero, result)
        ]
    return made


def _neuron_behind(op: Op) -> snn.LeakyIntegrateAndFire | None:
    """The neuron whose spikes are what is stored of a product, if there is one."""
    users: Sequence[Op] = [op]
    while users:
        following = [user for item in users for value in item.results for user in value.users]
        for user in following:
            if isinstance(user, snn.LeakyIntegrateAndFire):
                return user
        users = [user for user in following if not user.name.startswith("sparse.")]
    return None


def _stored(neuron: snn.LeakyIntegrateAndFire, spikes: Any) -> Any:
    """Activity of spikes ``[T, ...]`` as they are stored."""
    from imcc.backends.sparse_snn.product import StoredSpikes

    counts = spikes.sum(0) if neuron.time_axis else spikes
    return StoredSpikes(1, counts.numel(), int((counts > 0).sum()), float(counts.sum()))


def _joined(runs: Sequence[Run]) -> Run:
    """Groups of a convolution run one after another."""
    from imcc.backends.sparse_snn.product import Run

    if len(runs) == 1:
        return runs[0]

    def added(name: str) -> dict[str, Any]:
        total: dict[str, Any] = defaultdict(int)
        for run in runs:
            for key, value in getattr(run, name).items():
                total[key] += value
        return dict(total)

    return Run(
        runs[0].sums,
        sum(run.cycles for run in runs),
        sum(run.compute_cycles for run in runs),
        sum(run.cache_stall_cycles for run in runs),
        sum(run.dram_stall_cycles for run in runs),
        added("counts"),
        added("dram_bytes"),
        added("cache_lines"),
        added("events"),
    )
