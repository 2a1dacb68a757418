"""Quantising a function block by block, one block's activations at a time.

For each block: its float outputs are the target; its weights get a grid (``init``) and codes
(``rounding``); the quantised block, as the interpreter runs it, makes the next block's input.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.dialects import core, learn, quant
from imcc.ir.module import Function, Resource
from imcc.ir.rewriting import Rewriter
from imcc.ir.semantics.resources import ResourceStore, tensor_sha256
from imcc.ir.text import print_op
from imcc.passes.infrastructure import PassContext
from imcc.passes.quantization.blocks import Block, Layer, constant_weight, split_blocks
from imcc.passes.quantization.checkpoint import BlockCheckpoint, Solution
from imcc.passes.quantization.gptq import gptq_codes
from imcc.passes.quantization.grid import Coded, Grid, WeightFormat, nearest_codes
from imcc.passes.quantization.moments import InputMoments, measure
from imcc.passes.quantization.plan import Rule, annotate, has_bits
from imcc.passes.quantization.reconstruction import (
    SOFT_SHARES,
    BlockLoss,
    Clipping,
    Recipe,
    Rounding,
    fit,
    round_progressively,
)
from imcc.passes.quantization.scaling import Fold, clipped_grid, fold_scales, replace_constants
from imcc.passes.quantization.sensitivity import layer_errors, plan_text, rules_for, spend
from imcc.passes.quantization.streams import CPU, ActivationStore, Streams


@dataclass(frozen=True)
class Method:
    """What the pass's options ask for; :class:`imcc.passes.quantize_weights.QuantizeWeights`."""

    form: WeightFormat
    init: str = "rtn"
    rounding: str = "nearest"
    rules: tuple[Rule, ...] = ()
    blocks: str = "auto"
    rounds: int = 20
    iterations: int = 250
    batch: int = 4
    learning_rate: float = 1e-3
    scale_learning_rate: float | None = None
    tune_scale: bool = True
    progressive: bool = True
    storage: str = "memory"
    activation_dtype: str = "f32"
    checkpoint: str | None = None
    budget: float | None = None
    plan_output: str | None = None
    device: torch.device = CPU

    @property
    def uses_data(self) -> bool:
        """Whether calibration data is needed."""
        return self.init != "rtn" or self.rounding != "nearest"

    @property
    def shares(self) -> tuple[float, ...]:
        """Soft shares of the rounds: the 20 published ones, or as many of them, evenly picked."""
        if not self.progressive:
            return ()
        last = len(SOFT_SHARES) - 1
        if self.rounds == 1:
            return (SOFT_SHARES[last],)
        return tuple(
            SOFT_SHARES[round(index * last / (self.rounds - 1))] for index in range(self.rounds)
        )


def compute_device(name: str) -> torch.device:
    """The device that torch calls ``name``; a diagnostic if there is none."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as wrong:
        said = str(wrong).splitlines()[0]
        raise error(
            codes.BAD_OPTION,
            f'device="{name}" cannot be used: {said[:200]}{"..." if len(said) > 200 else ""}',
            help='"cpu" always works; "cuda" needs a GPU and a build of torch for it',
        ) from None
    return device


def quantise_function(
    function: Function, method: Method, context: PassContext, rewriter: Rewriter
) -> None:
    """Quantise every constant weight of ``function`` that the plan does not skip."""
    blocks = split_blocks(function, method.blocks)
    formats = annotate(blocks, method.form, method.rules)
    if method.budget is not None:
        formats = _within_budget(function, blocks, formats, method, context)
    writer = _Writer(rewriter, context)
    if not method.uses_data:
        store = context.weights()
        for block in blocks:
            for layer in block.layers:
                if layer in formats:
                    weight = store.get(_constant(layer).value)
                    grid = Grid.fit(formats[layer], weight)
                    writer.write(layer, Coded(grid.codes(weight), grid), derived=True)
        return
    with ExitStack() as stack:
        folder = None
        if method.storage == "disk":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imcc-")))
        dtype = torch.bfloat16 if method.activation_dtype == "bf16" else torch.float32
        if method.device != CPU:
            # What ops make anew (positions, masks) is made there too.
            stack.enter_context(method.device)
        streams = Streams(
            function,
            context.calibration_batches(),
            method.batch,
            ActivationStore(folder, dtype, method.device),
        )
        checkpoint = None
        if method.checkpoint is not None:
            checkpoint = BlockCheckpoint(
                Path(method.checkpoint), _identity(function, method, context)
            )
        # Behind the last layer that gets codes nothing is asked of the streams; the logits of a
        # language model alone would be the largest of them.
        last = max(
            (at for at, block in enumerate(blocks) if any(x in formats for x in block.layers)),
            default=-1,
        )
        for index, block in enumerate(blocks[: last + 1]):
            _quantise_block(
                block, index, len(blocks), formats, method, streams, context, writer, checkpoint
            )
            streams.retire(blocks[index + 1 :])


def _within_budget(
    function: Function,
    blocks: Sequence[Block],
    formats: Mapping[Layer, WeightFormat],
    method: Method,
    context: PassContext,
) -> dict[Layer, WeightFormat]:
    store = context.weights()
    kept = ActivationStore(device=method.device)
    streams = Streams(function, context.calibration_batches(), method.batch, kept)
    with nullcontext() if method.device == CPU else method.device:
        errors = layer_errors(blocks, formats, streams, store.on(method.device))
    names = {layer: str(_constant(layer).value) for layer in errors}
    sizes = {names[layer]: store.get(names[layer]).numel() for layer in errors}
    fixed = {
        names[layer]: form.bits
        for layer, form in formats.items()
        if has_bits(names[layer], method.rules)
    }
    spent = spend(
        {names[layer]: held for layer, held in errors.items()}, sizes, method.budget or 0.0, fixed
    )
    found = {layer: replace(form, bits=spent[names[layer]]) for layer, form in formats.items()}
    weights = [str(_constant(layer).value) for block in blocks for layer in block.layers]
    rules = rules_for({names[layer]: form for layer, form in found.items()}, weights)
    if method.plan_output is not None:
        try:
            Path(method.plan_output).write_text(plan_text(rules), encoding="utf-8")
        except OSError as wrong:
            raise error(codes.OUTPUT, f"cannot write {method.plan_output}: {wrong}") from None
    return found


def _quantise_block(
    block: Block,
    index: int,
    total: int,
    formats: Mapping[Layer, WeightFormat],
    method: Method,
    streams: Streams,
    context: PassContext,
    writer: _Writer,
    checkpoint: BlockCheckpoint | None,
) -> None:
    store = context.weights().on(method.device)
    start = time.perf_counter()
    with torch.no_grad():
        for chunk in streams.chunks:
            made = block.run(
                streams.float_inputs(chunk, block), store, chunk.symbols, unrounded=True
            )
            streams.put_float(chunk, made)
    mine = {layer: formats[layer] for layer in block.layers if layer in formats}
    row: dict[str, Any] = {"block": block.name, "layers": len(mine)}
    if mine:
        found = checkpoint.read(index, block, mine) if checkpoint is not None else None
        if found is None:
            loss = BlockLoss.relative(block, streams, store)
            found = _solve(block, index, total, mine, method, store, context, writer, loss, row)
            if checkpoint is not None:
                checkpoint.write(index, block, found)
        else:
            replace_constants(found.folds, store, writer.rewriter)
            row["from_checkpoint"] = True
        for layer, coded in found.coded.items():
            writer.write(layer, coded)
    if mine or streams.differ(block):
        errors: list[float] = []
        with torch.no_grad():
            weights = block.static_weights(store)
            for chunk in streams.chunks:
                inputs = streams.quantised_inputs(chunk, block)
                made = block.run(inputs, store, chunk.symbols, weights=weights)
                streams.put_quantised(chunk, made)
                target = streams.float_outputs(chunk, block)
                errors.extend(_relative(made[value], target[value]) for value in target)
        row["output_error"] = math.fsum(errors) / len(errors) if errors else 0.0
    if mine:
        row["seconds"] = time.perf_counter() - start
        context.measurements.setdefault("quantize-weights", []).append(row)


def _solve(
    block: Block,
    index: int,
    total: int,
    formats: dict[Layer, WeightFormat],
    method: Method,
    store: ResourceStore,
    context: PassContext,
    writer: _Writer,
    loss: BlockLoss,
    row: dict[str, Any],
) -> Solution:
    seed = context.seed * 1_000_003 + index * 1009
    moments: dict[Layer, InputMoments] = {}
    folds: list[Fold] = []
    if method.init == "awq" or method.rounding == "gptq":
        moments = measure(block, loss.streams, store)
    if method.init == "awq":
        folds, row["scale_exponents"] = fold_scales(block, formats, moments, store, writer.rewriter)
    weights = {layer: store.get(_constant(layer).value) for layer in formats}
    steps = method.rounds if method.progressive else 1

    def report(done: int, value: float) -> None:
        context.progress(index, total, f"{block.name}: step {done + 1}, loss {value:.4g}")

    grids: dict[Layer, Grid] = {}
    if method.init == "learned-clipping":
        clipped = {layer.weight: Clipping(weights[layer], form) for layer, form in formats.items()}
        recipe = Recipe(method.iterations * steps, CLIPPING_RATE, seed)
        fit(clipped, loss, recipe, report)
        grids = {layer: clipped[layer.weight].finish() for layer in formats}
    for layer, form in formats.items():
        if method.init == "awq":
            grids[layer] = clipped_grid(layer, form, weights[layer], moments[layer])
        elif method.init == "rtn":
            grids[layer] = Grid.fit(form, weights[layer])
    if method.rounding == "nearest":
        coded = {
            layer: Coded(grids[layer].codes(weights[layer]), grids[layer]) for layer in formats
        }
        return Solution(coded, folds)
    if method.rounding == "gptq":
        coded = {
            layer: Coded(gptq_codes(layer, weights[layer], grid, moments[layer]), grid)
            for layer, grid in grids.items()
        }
        return Solution(coded, folds)
    soft = {
        layer.weight: Rounding(weights[layer], grids[layer], method.tune_scale) for layer in formats
    }
    recipe = Recipe(method.iterations, method.learning_rate, seed, method.scale_learning_rate)
    round_progressively(soft, loss, recipe, method.shares, report)
    coded = {layer: Coded(*soft[layer.weight].finish()) for layer in formats}
    return Solution(coded, folds)


CLIPPING_RATE = 5e-3
"""Learning rate of learned clipping (OmniQuant, section 4.1)."""


def _relative(made: Tensor, target: Tensor) -> float:
    energy = float(target.double().square().sum())
    return float((made.double() - target.double()).square().sum()) / (energy or 1.0)


def _identity(function: Function, method: Method, context: PassContext) -> str:
    """What a checkpoint depends on: options, seed, program, weights and calibration data."""
    options = replace(method, checkpoint=None, storage="", plan_output=None, device=CPU)
    digest = hashlib.sha256(f"{options} {context.seed}".encode())
    for op in function.ops:
        digest.update(print_op(op, locations=False).encode())
        if isinstance(op, core.Constant):
            digest.update(tensor_sha256(context.weights().get(op.value)).encode())
    for batch in context.calibration_batches():
        for item in batch:
            digest.update(tensor_sha256(item).encode())
    return digest.hexdigest()


class _Writer:
    """Puts codes into the module: constants and a ``quant.dequantize`` in front of the layer."""

    def __init__(self, rewriter: Rewriter, context: PassContext) -> None:
        self.rewriter, self.store = rewriter, context.weights()
        self.done: dict[tuple[str, WeightFormat], quant.Dequantize] = {}

    def write(self, layer: Layer, coded: Coded, *, derived: bool = False) -> None:
        """Read the layer's weight from its codes; one copy for all layers of a weight.

        ``derived`` says that codes and grid are the nearest ones of the weight's range.
        """
        source, form = _constant(layer), coded.grid.format
        key = (str(source.value), form)
        if key not in self.done:
            weight = self.store.get(source.value)
            zero = None if form.symmetric else coded.grid.stored(coded.grid.zero_point).int()
            held = self.store.put(
                f"{source.value}.codes",
                form.unrows(coded.codes, weight.shape),
                form.element,
            )
            scale = coded.grid.stored(coded.grid.scale).to(weight.dtype)
            resources = (
                held,
                self.store.put(f"{source.value}.scale", scale),
                None if zero is None else self.store.put(f"{source.value}.zero_point", zero),
            )
            constants = [self._constant(layer, resource) for resource in resources]
            if derived:
                made = [resource.name for resource in resources if resource is not None]
                self.store.derive([source.value], made, partial(nearest_codes, form))
            self.done[key] = self.rewriter.insert_before(
                layer,
                quant.Dequantize(x=constants[0], scale=constants[1], zero_point=constants[2]),
            )
        self.rewriter.set_operand(layer, "weight", self.done[key].y)
        for user in list(source.y.users):
            # What passes an error back through the layer reads the same codes.
            if isinstance(user, (learn.LinearInputGradient, learn.ConvInputGradient)):
                self.rewriter.set_operand(user, "weight", self.done[key].y)

    def _constant(self, layer: Layer, resource: Resource | None) -> Any:
        if resource is None:
            return None
        self.rewriter.add_resource(resource)
        return self.rewriter.insert_before(layer, core.Constant.of(resource.name, resource.type)).y


def _constant(layer: Layer) -> core.Constant:
    found = constant_weight(layer)
    if found is None:
        raise TypeError(f"{layer.name} has no constant weight")
    return found
