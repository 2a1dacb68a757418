"""Pass ``quantize-weights``: weights of matrix ops to integer codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.dialects import core, nn
from imcc.ir.module import Module
from imcc.passes.infrastructure import Approximate, Pass, PassContext, option


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Replace each constant weight of ``nn.linear`` and ``nn.conv`` by dequantised codes.

    Symmetric codes: ``scale = max|w| / (2^(bits-1) - 1)``; asymmetric: ``scale = (max - min) /
    (2^bits - 1)`` and a zero point; for each output channel, each group of ``group`` inputs of it,
    or the whole tensor. ``code = round(w / scale) + zero_point``, ties to even. Weights become
    ``core.constant`` codes of type ``q<s8, axis=0>`` followed by ``quant.dequantize``; the codes
    are the stored truth.

    ``init`` chooses the grid. ``rtn``: from the range of the weights. ``awq``: channel scales,
    folded into neighbouring ops, and clipped ranges, both searched (Lin et al., MLSys 2024).
    ``learned-clipping``: ranges fitted to the block's outputs (OmniQuant, arXiv 2308.13137).

    ``rounding`` chooses the codes. ``nearest``. ``gptq``: column by column, with the error spread
    over later columns (Frantar et al., ICLR 2023). ``tesseraq``: progressive adaptive rounding and
    dequantisation-scale tuning by block reconstruction (arXiv 2410.19103).

    All but ``rtn`` with ``nearest`` need calibration data and work block by block: a block is a
    repeated module (``layers.3``), else a layer. Each block is asked to give the float outputs of
    the float network from inputs that passed the quantised blocks before it.
    """

    name: ClassVar[str] = "quantize-weights"
    contract: ClassVar[Approximate] = Approximate(bound=0.1)
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    bits: int = option(default=8, minimum=2, maximum=8, unit="bit", doc="bits of a code")
    granularity: Literal["channel", "tensor"] = option(
        default="channel", doc="one scale for each output channel, or one for the tensor"
    )
    group: int | None = option(
        default=None,
        minimum=2,
        doc="inputs of a linear layer that share a scale; absent: all of a channel",
    )
    scheme: Literal["symmetric", "asymmetric"] = option(
        default="symmetric", doc="codes around 0, or with a zero point"
    )
    init: Literal["rtn", "awq", "learned-clipping"] = option(
        default="rtn", doc="how scales are chosen"
    )
    rounding: Literal["nearest", "gptq", "tesseraq"] = option(
        default="nearest", doc="how codes are chosen"
    )
    plan: str | None = option(
        default=None, doc="TOML file with bits, group, scheme or skip by name of weight"
    )
    budget: float | None = option(
        default=None,
        minimum=2.0,
        maximum=8.0,
        unit="bit",
        doc="mean bits of a weight: layers get 2 to 8 bits by how much their output errs",
    )
    plan_output: str | None = option(
        default=None, doc="with a budget: file for the plan that it led to"
    )
    blocks: Literal["auto", "layer", "model"] = option(
        default="auto", doc="what is fitted together: repeated modules, single layers, everything"
    )
    rounds: int = option(
        default=20, minimum=1, maximum=20, doc="tesseraq: rounds of hardening, then fitting"
    )
    iterations: int = option(
        default=250, minimum=1, doc="steps of a round (tesseraq; learned-clipping takes them all)"
    )
    batch: int = option(default=4, minimum=1, doc="samples of a step")
    learning_rate: float = option(
        default=1e-3, minimum=1e-8, maximum=1.0, doc="tesseraq: Adam's rate for choices"
    )
    scale_learning_rate: float | None = option(
        default=None,
        minimum=1e-8,
        maximum=1.0,
        doc="tesseraq: Adam's rate for scales; by default that of choices",
    )
    tune_scale: bool = option(default=True, doc="tesseraq: tune scales of dequantisation too")
    progressive: bool = option(
        default=True, doc="tesseraq: harden in rounds; false: one round, then round all at once"
    )
    storage: Literal["memory", "disk"] = option(
        default="memory", doc="where activations between blocks are kept"
    )
    activation_dtype: Literal["f32", "bf16"] = option(default="f32", doc="type of kept activations")
    checkpoint: str | None = option(
        default=None, doc="folder for finished blocks; a run that was stopped goes on from it"
    )

    device: str = option(
        default="cpu", doc="where blocks are fitted, as torch names it: cpu, cuda, cuda:1"
    )

    def promise(self) -> Approximate:
        """The bound grows as the step does: 0.1 at 8 bits, twice that for each bit less."""
        bits = self.bits if self.budget is None else 2
        return Approximate(bound=0.1 * 2.0 ** max(0, 8 - bits))

    def requires(self) -> frozenset[str]:
        """Calibration data too, for whatever looks at activations."""
        if self.init == "rtn" and self.rounding == "nearest" and self.budget is None:
            return self.needs
        return self.needs | {"calibration"}

    def _refuse_combinations(self) -> None:
        wrong = None
        if self.granularity == "tensor" and self.group is not None:
            wrong = 'granularity="tensor" and group exclude each other'
        elif self.plan_output is not None and self.budget is None:
            wrong = "plan_output needs a budget: without one there is no plan to write"
        elif self.checkpoint == "":
            wrong = "the name of the checkpoint folder is empty"
        if wrong is not None:
            raise error(codes.BAD_OPTION, f"pass {self.name}: {wrong}")

    def run(self, module: Module, context: PassContext) -> None:
        """Quantise every weight once, however many ops read it."""
        from imcc.passes.quantization.blockwise import Method, compute_device, quantise_function
        from imcc.passes.quantization.grid import WeightFormat
        from imcc.passes.quantization.plan import read_plan

        self._refuse_combinations()
        rewriter = context.rewriter(module, self.name)
        method = Method(
            form=WeightFormat(
                self.bits, self.scheme == "symmetric", self.granularity == "tensor", self.group
            ),
            init=self.init,
            rounding=self.rounding,
            rules=read_plan(self.plan) if self.plan is not None else (),
            blocks=self.blocks,
            rounds=self.rounds,
            iterations=self.iterations,
            batch=self.batch,
            learning_rate=self.learning_rate,
            scale_learning_rate=self.scale_learning_rate,
            tune_scale=self.tune_scale,
            progressive=self.progressive,
            storage=self.storage,
            activation_dtype=self.activation_dtype,
            checkpoint=self.checkpoint,
            budget=self.budget,
            plan_output=self.plan_output,
            device=compute_device(self.device),
        )
        for function in module.functions.values():
            for op in function.ops:
                if not isinstance(op, (nn.Linear, nn.Conv)):
                    continue
                if not isinstance(op.weight.owner, core.Constant):
                    rewriter.refuse(op, "the weight is computed at run time")
            quantise_function(function, method, context, rewriter)
