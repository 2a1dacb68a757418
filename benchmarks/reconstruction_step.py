"""Time of one step of block reconstruction, beside the same loop written by hand in torch.

The block is a LLaMA layer of SmolLM2's sizes, or of LLaMA-2-7B's (``--shape 7b``), with random
weights. Both loops make soft weights, run the block, pull the loss back and take a step of Adam;
steps of the two alternate in one process, and the ratio of their medians is reported. The two
losses are compared first. ``--alone`` leaves the loop by hand out, so that the peak of memory is
that of imcc.

    python -m benchmarks.reconstruction_step --json
    python -m benchmarks.reconstruction_step --json --shape 7b --alone --steps 3
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.func import functional_call

from benchmarks.memory import peak_gb, reset_peak
from benchmarks.output import Row, main
from imcc.frontend.capture import capture
from imcc.ir.ops import Value
from imcc.passes.quantization.blocks import constant_weight, split_blocks
from imcc.passes.quantization.grid import Grid, WeightFormat
from imcc.passes.quantization.reconstruction import BlockLoss, Rounding, adam
from imcc.passes.quantization.streams import ActivationStore, Streams

SHAPES = {"smollm2-135m": (576, 9, 3, 1536), "7b": (4096, 32, 32, 11008)}
"""Hidden size, heads, key heads and inner size of a layer."""
FORM = WeightFormat(2, False, group=64)
RATE = 1e-3


class Layer(torch.nn.Module):
    """One decoder layer of transformers, with its rotary embedding as a constant."""

    def __init__(self, tokens: int, hidden: int, heads: int, key_heads: int, wide: int) -> None:
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        super().__init__()
        config = LlamaConfig(
            hidden_size=hidden,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            intermediate_size=wide,
            attn_implementation="sdpa",
        )
        self.layer = LlamaDecoderLayer(config, 0)
        angle = torch.outer(
            torch.arange(tokens), 1e-4 ** torch.linspace(0, 1, hidden // heads // 2)
        )
        table = torch.cat((angle, angle), -1)[None]
        self.register_buffer("cos", table.cos())
        self.register_buffer("sin", table.sin())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output."""
        made = self.layer(x, position_embeddings=(self.cos, self.sin))
        return made[0] if isinstance(made, tuple) else made


def measure(options: argparse.Namespace) -> list[Row]:
    """Alternate steps of both loops."""
    torch.manual_seed(0)
    shape = SHAPES[options.shape]
    layer = Layer(options.tokens, *shape).eval()
    x = torch.randn(options.batch, options.tokens, shape[0])
    captured = capture(layer, (x,))
    function, store = captured.module.function(), captured.resources
    (block,) = split_blocks(function, "model")
    streams = Streams(function, [(x,)], options.batch, ActivationStore())
    with torch.no_grad():
        target = block.run({block.inputs[0]: x}, store, streams.chunks[0].symbols)
    streams.put_float(streams.chunks[0], target)
    loss = BlockLoss.relative(block, streams, store)
    ours: dict[Value, Rounding] = {}
    theirs: dict[str, Rounding] = {}
    for op in block.layers:
        source = constant_weight(op)
        name = str(source.value) if source is not None else ""
        weight = store.get(name)
        grid = Grid.fit(FORM, weight)
        ours[op.weight] = Rounding(weight, grid, True)
        if not options.alone:
            theirs[name] = Rounding(weight, grid, True)
    wanted = next(iter(target.values()))

    def own() -> torch.Tensor:
        return loss(0, {value: item.weight() for value, item in ours.items()})

    def by_hand() -> torch.Tensor:
        weights = {name: item.weight() for name, item in theirs.items()}
        return (functional_call(layer, weights, (x,)) - wanted).square().sum() / loss.energy

    loops = [(own, adam(ours.values(), RATE))]
    if not options.alone:
        parameters = [p for item in theirs.values() for p in item.parameters()]
        loops.append((by_hand, torch.optim.Adam(parameters, lr=RATE)))
    first = [float(compute().detach()) for compute, _ in loops]
    times: list[list[float]] = [[] for _ in loops]
    reset_peak()
    for _ in range(3 if options.quick else options.steps):
        for held, (compute, optimiser) in zip(times, loops, strict=True):
            start = time.perf_counter()
            optimiser.zero_grad()
            compute().backward()
            optimiser.step()
            held.append(time.perf_counter() - start)
    medians = [statistics.median(held) for held in times]
    row: Row = {
        "block": f"LLaMA layer {shape[0]}, {shape[1]} heads, {shape[3]}",
        "tokens": options.batch * options.tokens,
        "steps": len(times[0]),
        "imcc_s": medians[0],
        "peak_rss_gb": peak_gb(),
        "threads": torch.get_num_threads(),
    }
    if not options.alone:
        row |= {
            "by_hand_s": medians[1],
            "ratio": medians[0] / medians[1],
            "loss_difference": abs(first[0] - first[1]) / first[1],
        }
    return [row]


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=512, help="of a sequence")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="smollm2-135m")
    parser.add_argument("--alone", action="store_true", help="without the loop by hand")


if __name__ == "__main__":
    main("One step of block reconstruction against a loop by hand", measure, extend=_extend)
