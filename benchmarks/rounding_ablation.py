"""Which part of block reconstruction earns what: error of single blocks on held-out text.

Some blocks of SmolLM2-135M, each on the float inputs that reach it, start from awq at 2 bits in
groups of 64 and are fitted with a part left out or a setting changed. The figure is the squared
error of a block's output on windows of the test text, as a share of what awq alone leaves there;
geometric mean over the blocks. A row takes about 40 s of one thread, the whole about 15 minutes.

    python -m benchmarks.rounding_ablation --json --save out/ablation.jsonl
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.output import Row, SavedRows, main
from benchmarks.ptq import SMOLLM2, windows
from imcc.driver.test_set import tokenize
from imcc.frontend.capture import capture
from imcc.frontend.model_file import load_model_file
from imcc.ir.ops import Value
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline
from imcc.passes.quantization.blocks import Block, Layer, constant_weight, split_blocks
from imcc.passes.quantization.blockwise import Method
from imcc.passes.quantization.grid import WeightFormat
from imcc.passes.quantization.moments import measure as moments_of
from imcc.passes.quantization.reconstruction import BlockLoss, Recipe, Rounding, round_progressively
from imcc.passes.quantization.scaling import clipped_grid, fold_scales
from imcc.passes.quantization.streams import ActivationStore, Chunk, Streams

TOKENS = 256


@dataclass(frozen=True)
class Variant:
    """Settings of a row; the first of :data:`VARIANTS` is the reference."""

    rounds: int = 20
    iterations: int = 4
    learning_rate: float = 0.04
    scale_learning_rate: float = 0.004
    tune_scale: bool = True
    progressive: bool = True
    sequences: int = 24

    @property
    def steps(self) -> int:
        return self.iterations * (self.rounds if self.progressive else 1)


REFERENCE = Variant()
VARIANTS: dict[str, Variant] = {
    "reference": REFERENCE,
    "no progressive rounding": replace(REFERENCE, progressive=False, iterations=80),
    "no scale tuning": replace(REFERENCE, tune_scale=False),
    "neither": replace(REFERENCE, tune_scale=False, progressive=False, iterations=80),
    "2 rounds": replace(REFERENCE, rounds=2, iterations=40),
    "8 rounds": replace(REFERENCE, rounds=8, iterations=10),
    "scales at the rate of choices": replace(REFERENCE, scale_learning_rate=0.04),
    "rate halved": replace(REFERENCE, learning_rate=0.02),
    "rate doubled": replace(REFERENCE, learning_rate=0.08),
    "20 steps": replace(REFERENCE, iterations=1, learning_rate=0.08),
    "40 steps": replace(REFERENCE, iterations=2, learning_rate=0.06),
    "160 steps": replace(REFERENCE, iterations=8, learning_rate=0.02),
    "400 steps": replace(REFERENCE, iterations=20, learning_rate=0.01),
    "6 sequences": replace(REFERENCE, sequences=6),
    "12 sequences": replace(REFERENCE, sequences=12),
    "48 sequences": replace(REFERENCE, sequences=48),
}


class OneBlock:
    """A block alone: streams over its float inputs, for calibration and for test."""

    def __init__(self, block: Block, form: WeightFormat, subject: Subject) -> None:
        self.block, self.subject = block, subject
        self.form = dict.fromkeys(block.layers, form)
        train = subject.streams(block, subject.train)
        moments = moments_of(block, train, subject.store)
        fold_scales(block, self.form, moments, subject.store, subject.rewriter)
        self.weights = {layer: subject.store.get(_constant(layer)) for layer in block.layers}
        self.grids = {
            layer: clipped_grid(layer, form, weight, moments[layer])
            for layer, weight in self.weights.items()
        }
        self.start = self.error(
            {layer.weight: self.grids[layer].nearest(w) for layer, w in self.weights.items()}
        )

    def error(self, weights: dict[Value, Tensor]) -> float:
        """The loss on the test windows."""
        loss = self._loss(self.subject.test)
        count = len(loss.streams.chunks)
        with torch.no_grad():
            return math.fsum(float(loss(index, weights)) for index in range(count)) / count

    def _loss(self, chunks: list[Chunk]) -> BlockLoss:
        streams = self.subject.streams(self.block, chunks)
        return BlockLoss.relative(self.block, streams, self.subject.store)

    def fitted(self, variant: Variant, seed: int) -> float:
        """Error on the test windows after fitting, as a share of the start's."""
        soft = {
            layer.weight: Rounding(weight, self.grids[layer], variant.tune_scale)
            for layer, weight in self.weights.items()
        }
        chunks = self.subject.train[:: len(self.subject.train) // variant.sequences]
        loss = self._loss(chunks)
        shares = Method(
            self.form[self.block.layers[0]], rounds=variant.rounds, progressive=variant.progressive
        ).shares
        rates = (variant.learning_rate, variant.scale_learning_rate)
        recipe = Recipe(variant.iterations, rates[0], seed, rates[1])
        round_progressively(soft, loss, recipe, shares, lambda step, value: None)
        made = {}
        for layer, weight in self.weights.items():
            codes, grid = soft[layer.weight].finish()
            made[layer.weight] = grid.real(codes, weight.shape)
        return self.error(made) / self.start


class Subject:
    """The captured model and what flows through it in float, kept block by block."""

    def __init__(self, wanted: list[int], sequences: int) -> None:
        held = load_model_file(SMOLLM2)
        captured = capture(held.module, held.example_inputs)
        self.store = captured.resources
        context = PassContext(resources=self.store)
        run_pipeline(captured.module, parse_pipeline("canonicalize"), context)
        self.rewriter = context.rewriter(captured.module, "rounding-ablation")
        self.function = captured.module.function()
        self.blocks = split_blocks(self.function)

        self.wanted = [self.blocks[index] for index in wanted]
        text = _module_of(held).text
        self.train = self._chunks(tokenize(text("valid"), held.tokenizer()), sequences)
        self.test = self._chunks(tokenize(text("test"), held.tokenizer()), 8)

    def _chunks(self, ids: Tensor, count: int) -> list[Chunk]:
        rows = [(row[None],) for row in windows(ids, TOKENS, count)]
        flow = Streams(self.function, rows, 1, ActivationStore())
        made = [Chunk(chunk.symbols, {}) for chunk in flow.chunks]
        last = self.blocks.index(self.wanted[-1])
        for index, block in enumerate(self.blocks[: last + 1]):
            for chunk, kept in zip(flow.chunks, made, strict=True):
                inputs = flow.float_inputs(chunk, block)
                with torch.no_grad():
                    outputs = block.run(inputs, self.store, chunk.symbols)
                flow.put_float(chunk, outputs)
                if block in self.wanted:
                    kept.float_values.update({**inputs, **outputs})
            flow.retire(self.blocks[index + 1 :])
        return made

    def streams(self, block: Block, chunks: list[Chunk]) -> Streams:
        """Streams that hold what was kept."""
        made = Streams(self.function, [], 1, ActivationStore())
        made.chunks = chunks
        return made


def _module_of(held: Any) -> Any:
    import sys

    return sys.modules[f"imcc_model_file_{held.path.stem}"]


def _constant(layer: Layer) -> str:
    found = constant_weight(layer)
    if found is None:
        raise TypeError(f"{layer.name} has no constant weight")
    return str(found.value)


def measure(options: argparse.Namespace) -> list[Row]:
    """One row for each variant."""
    torch.set_num_threads(options.threads)
    saved = SavedRows(options.save)
    form = WeightFormat(options.bits, symmetric=False, group=options.group)
    blocks: list[OneBlock] = []

    def make(name: str, variant: Variant) -> Row:
        if not blocks:
            subject = Subject(options.blocks, 48)
            blocks.extend(OneBlock(block, form, subject) for block in subject.wanted)
        start = time.process_time()
        shares = [block.fitted(variant, options.seed) for block in blocks]
        return {
            "variant": name,
            "steps": variant.steps,
            "learning_rate": variant.learning_rate,
            "scale_learning_rate": variant.scale_learning_rate,
            "tokens": variant.sequences * TOKENS,
            "error_over_awq": math.prod(shares) ** (1 / len(shares)),
            "by_block": [round(share, 4) for share in shares],
            "seconds": time.process_time() - start,
        }

    def rows() -> Iterator[Row]:
        chosen = list(VARIANTS.items())[: 3 if options.quick else None]
        for name, variant in chosen:
            key = {"variant": name, "bits": options.bits, "group": options.group}
            key |= {"blocks": options.blocks, "seed": options.seed}
            yield saved.row(key, partial(make, name, variant))

    return list(rows())


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--blocks", type=int, nargs="+", default=[3, 14, 25], help="in order")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="JSON lines of finished rows; a run goes on from it")


if __name__ == "__main__":
    main("Rounding by block reconstruction, part by part", measure, extend=_extend)
