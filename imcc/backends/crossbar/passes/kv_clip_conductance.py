"""Pass ``kv-clip-conductance``: the cells of keys and values clipped, each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from imcc.backends.crossbar.dialect import Write
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Function, Module
from imcc.passes.clipping.search import Candidate, Score, search
from imcc.passes.clipping.transform import Clip
from imcc.passes.infrastructure import Approximate, Pass, PassContext, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KvClipConductance(Pass):
    """Set ``alpha`` and ``beta`` of every ``xbar.write``: the source's transform, word for word.

    Each cell is asked for ``min(max(g - alpha g_min, g_min), beta g_max)``; what it stands for is
    not scaled back. What is not given is searched for the whole program: candidates run with the
    target's noise on calibration data, and the one whose outputs differ least from those without
    noise and clipping wins (relative error ``rms(y' - y) / rms(y)``); where none beats no clipping
    nothing changes. The form on values is the pass ``kv-clip``.

    Source: ClipFormer, arXiv 2402.02586.
    """

    name: ClassVar[str] = "kv-clip-conductance"
    contract: ClassVar[Approximate] = Approximate(bound=1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "calibration", "target"})
    requires_phase: ClassVar[str | None] = "mapped"

    alpha: float | None = option(
        default=None, minimum=1.0, doc="g_min taken off each cell; absent: searched"
    )
    beta: float | None = option(
        default=None,
        minimum=0.0,
        maximum=1.0,
        doc="largest conductance as a fraction of g_max, above g_min; absent: searched",
    )
    budget: int = option(default=20, minimum=1, doc="simulations of a search")
    trials: int = option(default=2, minimum=1, doc="noisy trials of each simulation")
    samples: int = option(default=32, minimum=1, doc="calibration samples that a search runs on")

    def run(self, module: Module, context: PassContext) -> None:
        """Choose, then set the attributes of every write."""
        from imcc.backends.crossbar.passes_support import crossbar_target

        target = crossbar_target(self.name, context)
        g_min = 1 / target.dynamic.keys.device.on_off_ratio
        if self.beta is not None and self.beta <= g_min:
            raise error(
                codes.BAD_OPTION,
                f"pass {self.name}, option beta: {self.beta:g} is not above g_min / g_max = "
                f"{g_min:g}: every cell would be at g_min",
                help=f"choose beta above {g_min:g} and at most 1",
            )
        if self.alpha is not None and (1 + self.alpha) * g_min >= 1:
            raise error(
                codes.BAD_OPTION,
                f"pass {self.name}, option alpha: {self.alpha:g} times g_min = {g_min:g} is the "
                "whole range: every cell would be at g_min",
                help=f"choose alpha below {1 / g_min - 1:g}",
            )
        rewriter = context.rewriter(module, self.name)
        count = 0
        for function in module.functions.values():
            writes = [op for op in function.ops if isinstance(op, Write)]
            if not writes:
                continue
            count += len(writes)
            clip: Candidate
            row: dict[str, object] = {"function": function.name, "matrices": len(writes)}
            if self.alpha is not None and self.beta is not None:
                clip = Clip(self.alpha, self.beta)
            else:
                found = search(
                    1,
                    self._score(module, function, context),
                    budget=self.budget,
                    g_min=g_min,
                    alpha=self.alpha,
                    beta=self.beta,
                    progress=lambda d, n: context.progress(d, n, "search alpha and beta"),
                )[0]
                clip = found.clip
                row |= {"error": found.error, "error_unclipped": found.unclipped}
            row |= {"alpha": clip and clip.alpha, "beta": clip and clip.beta, "g_min": g_min}
            row["noise"] = context.backend.written_noise(target)
            context.measurements.setdefault(self.name, []).append(row)
            for op in writes:
                if clip is None:
                    rewriter.refuse(op, "no candidate had a smaller error than no clipping")
                else:
                    rewriter.set_attributes(op, alpha=clip.alpha, beta=clip.beta)
        if not count:
            raise error(
                codes.PASS_REQUIRES,
                f"pass {self.name}: the program writes no matrices at run time",
                help='set dynamic.matrices = "crossbar" for a network with attention',
            )

    def _score(self, module: Module, function: Function, context: PassContext) -> Score:
        import torch

        from imcc.backends.crossbar.passes_support import crossbar_target
        from imcc.ir.rewriting import Rewriter
        from imcc.ir.semantics.draws import Draws
        from imcc.ir.semantics.interpreter import evaluate_function
        from imcc.passes.clipping.data import first_samples

        target = crossbar_target(self.name, context)
        batches = first_samples(context.calibration_batches(), function, self.samples)
        copy = module.clone()
        twin = copy.function(function.name)
        quiet = Rewriter(copy)

        def outputs(trial: int | None) -> list[list[Tensor]]:
            states: dict[str, object] = {}
            draws = None if trial is None else Draws(context.seed, (trial,), (0,))
            made = []
            with torch.no_grad():
                for name in context.backend.deploy_functions:
                    if name in copy.functions:
                        states = evaluate_function(
                            copy.function(name),
                            (),
                            resources=context.weights(),
                            states=states,
                            backend="crossbar",
                            target=target,
                            draws=draws,
                        ).states
                for batch in batches:
                    axes = [tensor(value).batch_axis for value in twin.inputs]
                    sizes = [x.shape[a] for x, a in zip(batch, axes, strict=False) if a is not None]
                    samples = tuple(range(int(sizes[0]) if sizes else 1))
                    made.append(
                        evaluate_function(
                            twin,
                            batch,
                            resources=context.weights(),
                            states=states,
                            backend="crossbar",
                            target=target,
                            draws=None if trial is None else Draws(context.seed, (trial,), samples),
                        ).outputs
                    )
            return made

        exact = outputs(None)

        def score(asked: Sequence[Candidate]) -> list[float]:
            clip = asked[0]
            for op in twin.ops:
                if isinstance(op, Write):
                    alpha, beta = (0.0, 1.0) if clip is None else (clip.alpha, clip.beta)
                    quiet.set_attributes(op, alpha=alpha, beta=beta)
            wrong = power = 0.0
            for trial in range(self.trials):
                for made, wanted in zip(outputs(trial), exact, strict=True):
                    for output, reference in zip(made, wanted, strict=True):
                        wrong += float(((output - reference).double() ** 2).sum())
                        power += float((reference.double() ** 2).sum())
            return [(wrong / power) ** 0.5 if power else 0.0]

        return score
