"""Pass ``kv-clip``: keys and values clipped before they are written into noisy cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError, error
from imcc.ir.dialects import nn, quant
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Function, Module
from imcc.ir.ops import Op, Value
from imcc.ir.types import SpikesType
from imcc.passes.clipping.attention_products import (
    AttentionProducts,
    attention_products,
    probe,
)
from imcc.passes.clipping.data import first_samples
from imcc.passes.clipping.search import GAINS, Candidate, Found, ScoreCache, search, search_each
from imcc.passes.clipping.transform import (
    Applied,
    Clip,
    Entries,
    apply_clip,
    apply_token_scale,
)
from imcc.passes.decompose_attention import DecomposeAttention
from imcc.passes.infrastructure import Approximate, Pass, PassContext, option

if TYPE_CHECKING:
    from torch import Tensor

    from imcc.ir.semantics.resources import ResourceStore

FLOATS = ("f16", "bf16", "f32", "f64")

Ranges = dict[tuple[int, str], Entries]
"""Entries by number of the attention and what its matrix holds."""


@dataclass(frozen=True)
class KvClip(Pass):
    """Clip ``K^T`` and ``V`` of every attention in front of the product that they are written for.

    With M the largest size of an entry in calibration and ``g = g_min / g_max`` of a cell:
    ``T(x) = sign(x) min(max(|x| - a, 0), c)``, ``a = alpha g M / (1 - g)``,
    ``c = (beta - g) M / (1 - g)``: what the source does to conductances (subtract ``alpha g_min``,
    floor at ``g_min``, clip at ``beta g_max``), done to the values. Codes follow, one scale for
    each matrix of the program, so that ``calibrate-activations`` leaves the operand alone.
    ``scale`` says what they stand for: the range before clipping with gain 1 (``keep``) or with the
    gain that fits ``T(x)`` to ``x`` best (``refit``), or the clipped range (``stretch``,
    ``stretch-refit``). ``token`` clips nothing: each token's key and value is divided by its own
    largest size, found at run time, which costs digital work.

    What is not given of ``alpha`` and ``beta`` is searched: candidates run on the target with its
    noise, and the one with the smallest error against the float program wins; where none beats no
    clipping the attention is left as it is. ``objective = "outputs"`` runs the whole program for
    one pair; ``"kl"`` does so too, and compares outputs as logits of classes, by the mean over
    samples and trials of ``sum_c p_c log(p_c / p'_c)`` with ``p`` the softmax over the last axis of
    the float program's; ``"attention"`` runs attention alone on what enters it in calibration, and
    gives each attention a pair of its own. None sees a test set.

    ``gain`` is one more factor on what codes stand for. Below 1 it makes products smaller together
    with their noise; ``search_gain`` searches it beside alpha and beta, or with these given. With
    ``each`` a search for one setting is followed by one for every attention, the first one first:
    its limit and gain are varied while the others keep theirs, within the budget once more.

    Takes attention apart as ``decompose-attention`` does. Source: ClipFormer, arXiv 2402.02586.
    """

    name: ClassVar[str] = "kv-clip"
    contract: ClassVar[Approximate] = Approximate(bound=1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "calibration"})

    scale: Literal["keep", "refit", "stretch", "stretch-refit", "token"] = option(
        default="stretch", doc="what codes stand for after clipping"
    )
    alpha: float | None = option(
        default=None, minimum=1.0, doc="g_min subtracted from each size; absent: searched"
    )
    beta: float | None = option(
        default=None,
        minimum=0.0,
        maximum=1.0,
        doc="largest conductance kept, as a fraction of g_max, above g_min; absent: searched",
    )
    g_min: float | None = option(
        default=None,
        minimum=1e-9,
        maximum=0.9,
        doc="smallest conductance as a fraction of the largest; absent: the target's",
    )
    bits: int = option(default=8, minimum=2, maximum=16, unit="bit", doc="bits of a code")
    gain: float = option(
        default=1.0, minimum=0.01, maximum=100.0, doc="factor on what codes stand for"
    )
    search_gain: bool = option(
        default=False,
        doc="search the factor too, from gain downwards, with the noise of the target",
    )
    each: bool = option(
        default=False, doc="a setting for each attention too where outputs are compared"
    )
    objective: Literal["attention", "outputs", "kl"] = option(
        default="outputs",
        doc="what a search keeps close to the float program: errors of attention or of outputs, "
        "or the distribution over classes that outputs are logits of",
    )
    budget: int = option(default=20, minimum=1, doc="simulations of a search")
    trials: int = option(default=2, minimum=1, doc="noisy trials of each simulation")
    samples: int = option(default=32, minimum=1, doc="calibration samples that a search runs on")
    cache: str | None = option(
        default=None, doc="folder for errors of candidates; a search goes on from what it holds"
    )

    @property
    def searches(self) -> bool:
        """Whether something is left to be searched."""
        given = self.alpha is not None and self.beta is not None and not self.search_gain
        return self.scale != "token" and not given

    def requires(self) -> frozenset[str]:
        """A target too, for a search."""
        return self.needs | {"target"} if self.searches else self.needs

    def run(self, module: Module, context: PassContext) -> None:
        """Find attention, look at its matrices, choose, rewrite."""
        changed = self.gain != 1.0 or self.search_gain
        if self.scale == "token" and (self.alpha is not None or self.beta is not None or changed):
            raise error(
                codes.BAD_OPTION,
                'pass kv-clip: scale="token" clips nothing, alpha, beta and gains have no meaning '
                "there",
                help='leave them out, or choose another scale, for instance "stretch"',
            )
        g_min = self._g_min(context)
        if any(isinstance(op, nn.Attention) for op in module.walk()):
            DecomposeAttention().run(module, context)
        count = 0
        for function in module.functions.values():
            found = self._clippable(function, context)
            if found:
                self._function(function, found, g_min, context)
                count += len(found)
        if not count:
            raise error(
                codes.PASS_REQUIRES,
                "pass kv-clip: the program has no attention with keys and values of real numbers",
                help="leave the pass out; it works on nn.attention and on two nn.matmul with a "
                "softmax between them, before calibrate-activations",
            )

    def _g_min(self, context: PassContext) -> float:
        held = self.g_min
        if held is None and context.backend is not None:
            held = context.backend.smallest_conductance(context.target)
        if held is None:
            if self.scale == "token":
                return 0.0
            raise error(
                codes.PASS_REQUIRES,
                "pass kv-clip: alpha and beta are in units of conductance, and no target says how "
                "small the smallest one is",
                help="give a target of crossbars, or the option g_min, for instance g_min=0.01",
            )
        alpha, beta = self.alpha or 1.0, 1.0 if self.beta is None else self.beta
        if beta <= held:
            raise error(
                codes.BAD_OPTION,
                f"pass kv-clip, option beta: {beta:g} is not above g_min / g_max = {held:g}: every "
                "entry would be 0",
                help=f"choose beta above {held:g} and at most 1",
            )
        if alpha * held / (1 - held) >= 1.0:
            raise error(
                codes.BAD_OPTION,
                f"pass kv-clip, option alpha: {alpha:g} times g_min = {held:g} is the whole range: "
                "every entry would be 0",
                help=f"choose alpha below {(1 - held) / held:g}",
            )
        return held

    def _clippable(self, function: Function, context: PassContext) -> list[AttentionProducts]:
        rewriter = context.rewriter(function.module, self.name)  # type: ignore[arg-type]
        made = []
        for item in attention_products(function):
            for _, product in item.products:
                if isinstance(product.b.owner, quant.Dequantize):
                    raise DiagnosticError(
                        product.diagnostic(
                            codes.PASS_REQUIRES,
                            "keys and values have codes already",
                            help="run kv-clip before calibrate-activations",
                        )
                    )
            if any(isinstance(product.b.type, SpikesType) for _, product in item.products):
                rewriter.refuse(item.scores, "keys or values are spikes")
            else:
                made.append(item)
        return made

    def _function(
        self,
        function: Function,
        found: list[AttentionProducts],
        g_min: float,
        context: PassContext,
    ) -> None:
        module = function.module
        if module is None:
            raise ValueError(f"@{function.name} is in no module")
        ranges = self._observe(function, found, context)
        chosen: list[Candidate] = [Clip(self.alpha or 1.0, self.beta or 1.0, self.gain)] * len(
            found
        )
        results: list[Found | None] = [None] * len(found)
        if self.searches:
            results = [*self._search(module, function, found, ranges, g_min, context)]
            chosen = [item.clip for item in results if item is not None]
        rows = context.measurements.setdefault(self.name, [])
        setting = {}
        if context.backend is not None:
            setting = context.backend.written_noise(context.target)
        for number, (item, clip) in enumerate(zip(found, chosen, strict=True)):
            result = results[number]
            row: dict[str, Any] = {"function": function.name, "attention": item.mixed.scope}
            row |= {"scale": self.scale, "alpha": None, "beta": None, "gain": None, "g_min": g_min}
            row |= {"searched": self.searches, "noise": setting}
            row["scale_granularity"] = "token" if self.scale == "token" else "matrix"
            if clip is not None and self.scale != "token":
                row |= vars(clip)
            if result is not None:
                row |= {"objective": self.objective, "simulations": result.tried}
                row |= {"error": result.error, "error_unclipped": result.unclipped}
            if clip is None:
                self._refuse(item, result, context)
                rows.append(row)
                continue
            made = self._apply(module, number, item, clip, ranges, g_min, context)
            for what, applied in made.items():
                row[what] = vars(applied)
            rows.append(row)

    def _refuse(self, item: AttentionProducts, result: Found | None, context: PassContext) -> None:
        shown = f"{result.unclipped:.3g}" if result is not None else "?"
        context.rewriter(item.scores.parent.module, self.name).refuse(  # type: ignore
            item.scores, f"no candidate had a smaller error than {shown}, that without clipping"
        )

    def _apply(
        self,
        module: Module,
        number: int,
        item: AttentionProducts,
        clip: Clip,
        ranges: Ranges,
        g_min: float,
        context: PassContext,
        store: ResourceStore | None = None,
    ) -> dict[str, Applied]:
        rewriter = context.rewriter(module, self.name)
        held = store if store is not None else context.weights()
        made = {}
        for what, product in item.products:
            seen = ranges[number, what]
            if self.scale == "token":
                made[what] = apply_token_scale(
                    what, product, bits=self.bits, seen=seen, rewriter=rewriter, store=held
                )
            else:
                made[what] = apply_clip(
                    product,
                    clip,
                    self.scale,
                    g_min=g_min,
                    bits=self.bits,
                    seen=seen,
                    rewriter=rewriter,
                    store=held,
                )
        return made

    def _observe(
        self, function: Function, found: Sequence[AttentionProducts], context: PassContext
    ) -> Ranges:
        ranges: Ranges = {}
        matrices: dict[Value, list[Entries]] = {}
        for number, item in enumerate(found):
            for what, product in item.products:
                ranges[number, what] = Entries()
                matrices.setdefault(product.b, []).append(ranges[number, what])
        batches = context.calibration_batches()
        for batch in batches:
            for value, seen in _values(function, batch, set(matrices), context).items():
                for entries in matrices[value]:
                    entries.add(seen, len(batches))
        for (number, what), held in ranges.items():
            if not held.largest:
                context.warnings.append(
                    Diagnostic(
                        codes.BAD_DATA,
                        f"{what}s are 0 in all calibration data",
                        severity="warning",
                        model=found[number].mixed.loc,
                        scope=found[number].mixed.scope,
                        help="check that calibration_data() returns real inputs",
                    )
                )
        return ranges

    def _search(
        self,
        module: Module,
        function: Function,
        found: list[AttentionProducts],
        ranges: Ranges,
        g_min: float,
        context: PassContext,
    ) -> list[Found]:
        from imcc.ir.semantics.resources import tensor_sha256

        local = self.objective == "attention"
        whole = first_samples(context.calibration_batches(), function, self.samples)
        last = function.terminator
        if local:
            cut = probe(module, found)
            program, outputs = cut.module, cut.outputs
            wanted = {*cut.inputs, *outputs}
        else:
            program, outputs = module, tuple(last.operands) if last is not None else ()
            wanted = set(outputs)
        if self.objective == "kl":
            _check_classes(outputs)
        batches, references = [], []
        for batch in whole:
            seen = _values(function, batch, wanted, context)
            batches.append(tuple(seen[v] for v in cut.inputs) if local else tuple(batch))
            references.append([seen[value] for value in outputs])

        def score(asked: Sequence[Candidate]) -> list[float]:
            copy, store = program.clone(), context.weights().copy()
            quiet = PassContext(resources=store)
            for number, item in enumerate(attention_products(copy.function(function_name))):
                clip = asked[number if len(asked) > 1 else 0]
                if clip is not None:
                    self._apply(copy, number, item, clip, ranges, g_min, quiet, store)
            made = context.simulate(copy, store, batches, self.trials)
            if self.objective == "kl":
                return [_divergence(made, references)]
            return _errors(made, references, together=not local)

        function_name = "inference" if local else function.name
        cache = ScoreCache(
            self.cache,
            {
                "program": repr(program),
                "weights": {k: v.sha256 for k, v in program.resources.items()},
                "target": context.target.sha256,
                "inputs": [[tensor_sha256(item) for item in batch] for batch in batches],
                "options": [
                    self.scale,
                    self.bits,
                    self.trials,
                    g_min,
                    context.seed,
                    self.objective,
                ],
                "ranges": [[held.largest, float(held.sizes().sum())] for held in ranges.values()],
            },
        )
        cached = cache.around(score)
        results = search(
            len(found) if local else 1,
            cached,
            budget=self.budget,
            g_min=g_min,
            alpha=self.alpha,
            beta=self.beta,
            gains=[self.gain, *(self.gain * g for g in GAINS)] if self.search_gain else [self.gain],
            progress=lambda done, total: context.progress(done, total, "search alpha and beta"),
        )
        if local:
            return results
        if not self.each or len(found) == 1:
            return results * len(found)
        return search_each(
            results[0], len(found), cached, budget=self.budget, gains=self.search_gain
        )


def _values(
    function: Function, batch: Sequence[Any], wanted: set[Value], context: PassContext
) -> dict[Value, Tensor]:
    """What values of a function hold when it runs on a batch, in float."""
    import torch

    from imcc.ir.semantics.interpreter import evaluate_function

    seen = {v: held for v, held in zip(function.inputs, batch, strict=False) if v in wanted}

    def observer(op: Op, results: tuple[Tensor, ...]) -> None:
        for value, held in zip(op.results, results, strict=True):
            if value in wanted:
                seen[value] = held.detach()

    with torch.no_grad():
        evaluate_function(function, batch, resources=context.weights(), observer=observer)
    return seen


def _errors(
    made: Sequence[Sequence[Tensor]], references: Sequence[Sequence[Tensor]], *, together: bool
) -> list[float]:
    """Relative errors ``rms(y' - y) / rms(y)`` of each output over batches, trials and samples."""
    wrong = [0.0] * len(references[0])
    power = [0.0] * len(references[0])
    for outputs, exact in zip(made, references, strict=True):
        for number, (output, reference) in enumerate(zip(outputs, exact, strict=True)):
            if not reference.is_floating_point():
                continue
            wide = reference.double()
            wrong[number] += float(((output.double() - wide) ** 2).sum())
            power[number] += float((wide**2).sum()) * output.shape[0]
    if together:
        wrong, power = [sum(wrong)], [sum(power)]
    return [(w / p) ** 0.5 if p else 0.0 for w, p in zip(wrong, power, strict=True)]


def _check_classes(outputs: Sequence[Value]) -> None:
    """Refuse outputs that cannot be logits of two classes or more."""
    for value in outputs:
        kind = tensor(value)
        if isinstance(kind.shape[-1], int) and kind.shape[-1] > 1 and str(kind.element) in FLOATS:
            continue
        raise error(
            codes.BAD_OPTION,
            f'pass kv-clip, option objective: "kl" compares classes, and the output %{value.name} '
            f"of type {kind} holds no logits along its last axis",
            model=value.owner.loc if isinstance(value.owner, Op) else (),
            help='choose objective="outputs" or "attention"',
        )


def _divergence(made: Sequence[Sequence[Tensor]], references: Sequence[Sequence[Tensor]]) -> float:
    """Mean of ``KL(softmax(y) || softmax(y'))`` over rows of all outputs, batches and trials."""
    from torch.nn import functional

    total, rows = 0.0, 0
    for outputs, exact in zip(made, references, strict=True):
        for output, reference in zip(outputs, exact, strict=True):
            log_p, log_q = (functional.log_softmax(x.double(), -1) for x in (reference, output))
            found = (log_p.exp() * (log_p - log_q)).sum(-1)
            total += float(found.sum())
            rows += found.numel()
    return total / rows
