"""Pass ``attention-reuse``: encoders that take an earlier attention output in place of their own.

TReX (IEEE TETC 2024, 10.1109/tetc.2024.3480524).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.dialects import core
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Function, Module, clone_function
from imcc.ir.ops import Value
from imcc.passes.infrastructure import Approximate, Pass, PassContext, option
from imcc.passes.reuse.placement import Family, Side, placement
from imcc.passes.reuse.sites import AttentionSite, Sites, attention_sites

if TYPE_CHECKING:
    from imcc.passes.reuse.block import ReuseBlock

NONE_FOUND = "run it before decompose-attention, on a model with self-attention"


@dataclass(frozen=True)
class AttentionReuse(Pass):
    """Replace the attention of some encoders by layer norm, a full layer and GELU.

    A reuse encoder computes no queries, keys, values, scores or softmax. The block
    ``y = gelu(W norm(x) + b)`` takes ``x``, the merged heads of the encoder before it, and stands
    for its own merged heads. Encoders are found by self-attention (``nn.attention`` whose three
    inputs come from one tensor), counted from 0 in program order; encoder 0 always attends.

    Which encoders: ``encoders`` names them; or ``count`` with ``placement`` and ``side``; or
    ``delay_us``, the latency of a call that the target's cost model must predict at most: the
    smallest count that meets it. A program that meets it already is not changed; a delay that even
    the largest count misses is refused with the best that is reachable.

    The new weights start as ``identity`` (the block gives the GELU of the normalised input),
    ``random`` (uniform within one over the root of the width, seeded) or ``least_squares`` (fitted
    to the attention that goes, on calibration data, the output projection with it). Results change
    until the program is trained on.
    """

    name: ClassVar[str] = "attention-reuse"
    contract: ClassVar[Approximate] = Approximate(bound=float("inf"))

    encoders: tuple[int, ...] = option(default=(), minimum=1, doc="encoders by number, from 1 on")
    count: int | None = option(default=None, minimum=0, doc="how many encoders reuse")
    delay_us: float | None = option(
        default=None, minimum=0.0, unit="us", doc="latency that the cost model must predict at most"
    )
    placement: Literal["strided", "continuous", "pyramid"] = option(
        default="strided", doc="pattern of count or delay_us: spread, one run, growing runs"
    )
    side: Literal["late", "early"] = option(
        default="late", doc="towards the output, or mirrored towards the input"
    )
    own_projection: bool = option(
        default=True, doc="keep the encoder's output projection behind the block"
    )
    source: Literal["previous", "attention"] = option(
        default="previous",
        doc="what the second reuse encoder in a row takes: the block's output of the one before, "
        "or the last true attention output",
    )
    init: Literal["identity", "random", "least_squares"] = option(
        default="identity", doc="how the new weights start"
    )
    ridge: float = option(
        default=1e-3, minimum=0.0, doc="penalty of least_squares, relative to the mean square"
    )

    def requires(self) -> frozenset[str]:
        """Data for the fit, a target for the delay."""
        needs = {"weights", "calibration"} if self.init == "least_squares" else set()
        return frozenset(needs | ({"target"} if self.delay_us is not None else set()))

    def run(self, module: Module, context: PassContext) -> None:
        """Choose the encoders, replace them in order, fit where asked."""
        asked = [bool(self.encoders), self.count is not None, self.delay_us is not None]
        if sum(asked) != 1:
            raise error(
                codes.BAD_OPTION,
                "attention-reuse takes one of encoders, count and delay_us",
                help="attention-reuse{encoders=[3, 5]}, attention-reuse{count=4} or "
                "attention-reuse{delay_us=500.0}",
            )
        function = module.functions.get("inference")
        if function is None:
            raise error(codes.PASS_REQUIRES, "there is no function @inference", help=NONE_FOUND)
        sites = attention_sites(function)
        rows: list[dict[str, Any]] = context.measurements.setdefault(self.name, [])
        chosen = self._chosen(module, sites, context, rows)
        if not chosen:
            return
        rewriter = context.rewriter(module, self.name)
        for op, reason in sites.refused:
            rewriter.refuse(op, reason)
        rows += replace_attention(
            function, sites, chosen, context, How(self.own_projection, self.source, self.init),
            ridge=self.ridge,
        )  # fmt: skip

    def _chosen(
        self, module: Module, sites: Sites, context: PassContext, rows: list[dict[str, Any]]
    ) -> tuple[int, ...]:
        known = len(sites.encoders)
        if not known:
            reasons = "; ".join(dict.fromkeys(reason for _, reason in sites.refused))
            raise error(
                codes.PASS_REQUIRES,
                "there is no self-attention to reuse",
                reason=reasons,
                help=NONE_FOUND,
            )
        if self.encoders:
            wrong = [number for number in self.encoders if number >= known]
            if wrong:
                raise error(
                    codes.BAD_OPTION,
                    f"there is no encoder {wrong[0]}: the model has {known}",
                    help=f"encoders are counted from 0; those that may reuse are {_range(known)}",
                )
            return tuple(sorted(set(self.encoders)))
        if self.count is not None:
            if self.count >= known:
                raise error(
                    codes.BAD_OPTION,
                    f"{self.count} of {known} encoders cannot reuse attention",
                    reason="the first encoder has none before it",
                    help=f"choose count at most {known - 1}",
                )
            return placement(self.placement, self.side, self.count, known)
        delay_us = self.delay_us if self.delay_us is not None else 0.0
        how = How(self.own_projection, self.source)
        return fewest_for_delay(module, delay_us, self.placement, self.side, how, context, rows)


@dataclass(frozen=True)
class How:
    """The open points of the block, as in :class:`AttentionReuse`."""

    own_projection: bool = True
    source: str = "previous"
    init: Literal["identity", "random", "least_squares"] = "identity"


def out_of_reach(delay_us: float, best: tuple[float, int], encoders: int) -> Exception:
    """The refusal of a delay target, with the best that there is."""
    return error(
        codes.OUT_OF_REACH,
        f"a delay of {delay_us:g} us is out of reach: the best is {best[0]:.6g} us, with "
        f"{best[1]} of {encoders} encoders reusing attention",
        help=f"ask for {best[0]:.6g} us or more, or change the target (`imcc targets`)",
    )


def fewest_for_delay(
    module: Module,
    delay_us: float,
    family: Family,
    side: Side,
    how: How,
    context: PassContext,
    rows: list[dict[str, Any]],
) -> tuple[int, ...]:
    """The fewest reuse encoders that meet a delay, by asking the cost model for each count.

    ``rows`` takes what was asked and answered. Raises OUT_OF_REACH, with the best that there is.
    """
    known = len(attention_sites(module.function()).encoders)
    best: tuple[float, int] | None = None
    for count in range(max(known, 1)):
        context.progress(count, known, "predict delay")
        encoders = placement(family, side, count, known)
        latency = context.estimate(with_reuse(module, encoders, how)).latency_ns * 1e-3
        rows.append(
            {"kind": "delay", "count": count, "latency_us": latency, "met": latency <= delay_us}
        )
        if latency <= delay_us:
            return encoders
        if best is None or latency < best[0]:
            best = (latency, count)
    raise out_of_reach(delay_us, best or (float("inf"), 0), known)


def with_reuse(module: Module, encoders: tuple[int, ...], how: How | None = None) -> Function:
    """The inference function of a copy of ``module`` with reuse, new weights absent: for costs."""
    copy = module.clone()
    if encoders:
        function = copy.function()
        sites = attention_sites(function)
        shape = dataclasses.replace(how or How(), init="identity")
        replace_attention(function, sites, encoders, PassContext(), shape)
    return copy.function()


def replace_attention(
    function: Function,
    sites: Sites,
    chosen: tuple[int, ...],
    context: PassContext,
    how: How,
    *,
    ridge: float = 1e-3,
) -> list[dict[str, Any]]:
    """Insert the blocks in program order; gives a row for each."""
    from imcc.passes.reuse.block import Inserter

    module = function.module
    if module is None:
        raise error(codes.STRUCTURE, f"@{function.name} belongs to no module")
    rewriter = context.rewriter(module, AttentionReuse.name)
    inserter = Inserter(rewriter, context.resources, how.init, context.seed)
    teacher = clone_function(function)
    lessons = attention_sites(teacher).encoders
    fitter: Any = None
    if how.init == "least_squares":
        from imcc.passes.reuse.fitting import Fitter

        fitter = Fitter(
            teacher, function, context.calibration_batches(), context.weights(), rewriter,
            ridge, context.progress,
        )  # fmt: skip
    placed: dict[int, Value] = {}
    rows: list[dict[str, Any]] = []
    for number in chosen:
        site = sites.encoders[number]
        source = _source(site, sites, placed, how)
        scope = site.op.scope
        block: ReuseBlock = inserter.insert(site, source, how.own_projection)
        placed[number] = block.activation.y
        row: dict[str, Any] = {
            "kind": "block",
            "encoder": number,
            "scope": scope,
            "source": source.name,
            "removed_ops": len(block.removed),
        }
        if fitter is not None:
            lesson = lessons[number]
            output = lesson.projection.y if lesson.projection is not None else None
            row |= fitter.fit(block, lesson.merged, output)
        rows.append(row)
    for op in reversed(list(function.ops)):
        if isinstance(op, core.Constant) and not op.y.users:
            rewriter.erase(op, note="unused")
    for name in sorted(set(module.resources) - module.used_resources()):
        rewriter.remove_resource(name)
    return rows


def _source(site: AttentionSite, sites: Sites, placed: dict[int, Value], how: How) -> Value:
    """What a block of ``site`` takes; a diagnostic where there is nothing that fits."""
    if site.previous is None:
        raise _refused(site, "no earlier attention with tokens shaped alike flows into this one")
    if not how.own_projection and site.projection is None:
        raise _refused(site, "no output projection reads the merged heads alone")
    previous = sites.encoders[site.previous]
    while previous.index in placed:
        if how.source == "previous":
            return placed[previous.index]
        if previous.previous is None:
            break
        previous = sites.encoders[previous.previous]
    return previous.merged


def _refused(site: AttentionSite, reason: str) -> Exception:
    from imcc.ir.diagnostics import DiagnosticError

    return DiagnosticError(
        site.op.diagnostic(
            codes.BAD_OPTION,
            f"encoder {site.index} cannot reuse attention",
            reason=f"{reason}; its heads are {tensor(site.merged)}",
            help="choose other encoders: attention-reuse{encoders=[...]}",
        )
    )


def _range(known: int) -> str:
    return f"1 to {known - 1}" if known > 1 else "none"
