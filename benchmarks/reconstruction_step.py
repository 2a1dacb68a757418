"""Time of one step of block reconstruction, beside the same loop written by hand in torch.

The block is a LLaMA layer of SmolLM2's sizes with random weights, on sequences of 512 tokens. Both
loops make soft weights, run the block, pull the loss back and take a step of Adam; steps of the two
alternate in one process, and the ratio of their medians is reported. The two losses are compared
first.

    python -m benchmarks.reconstruction_step --json
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.func import functional_call

from benchmarks.output import Row, main
from imcc.frontend.capture import capture
from imcc.ir.ops import Value
from imcc.passes.quantization.blocks import constant_weight, split_blocks
from imcc.passes.quantization.grid import Grid, WeightFormat
from imcc.passes.quantization.reconstruction import BlockLoss, Rounding
from imcc.passes.quantization.streams import ActivationStore, Streams

TOKENS = 512
FORM = WeightFormat(2, False, group=64)


class Layer(torch.nn.Module):
    """One decoder layer of transformers, with its rotary embedding as a constant."""

    def __init__(self, hidden: int, heads: int, key_heads: int, wide: int) -> None:
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
            torch.arange(TOKENS), 1e-4 ** torch.linspace(0, 1, hidden // heads // 2)
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
    layer = Layer(576, 9, 3, 1536).eval()
    x = torch.randn(options.batch, TOKENS, 576)
    captured = capture(layer, (x,))
    function, store = captured.module.function(), captured.resources
    (block,) = split_blocks(function, "model")
    streams = Streams(function, [(x,)], options.batch, ActivationStore())
    with torch.no_grad():
        target = block.run({block.inputs[0]: x}, store, streams.chunks[0].symbols)
    energy = sum(float(held.square().sum()) for held in target.values())
    loss = BlockLoss(block, streams, store, [target], energy)
    ours: dict[Value, Rounding] = {}
    theirs: dict[str, Rounding] = {}
    for op in block.layers:
        source = constant_weight(op)
        name = str(source.value) if source is not None else ""
        weight = store.get(name)
        grid = Grid.fit(FORM, weight)
        ours[op.weight] = Rounding(weight, grid, True)
        theirs[name] = Rounding(weight, grid, True)
    wanted = next(iter(target.values()))

    def own() -> torch.Tensor:
        return loss(0, {value: item.weight() for value, item in ours.items()})

    def by_hand() -> torch.Tensor:
        weights = {name: item.weight() for name, item in theirs.items()}
        return (functional_call(layer, weights, (x,)) - wanted).square().sum() / energy

    optimisers = [
        torch.optim.Adam([p for item in held.values() for p in item.parameters()], lr=1e-3)
        for held in (ours, theirs)
    ]
    first = [float(compute().detach()) for compute in (own, by_hand)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(3 if options.quick else options.steps):
        for held, optimiser, compute in zip(times, optimisers, (own, by_hand), strict=True):
            start = time.perf_counter()
            optimiser.zero_grad()
            compute().backward()
            optimiser.step()
            held.append(time.perf_counter() - start)
    medians = [statistics.median(held) for held in times]
    return [
        {
            "block": "LLaMA layer 576, 9 heads, 1536",
            "batch": options.batch,
            "steps": len(times[0]),
            "imcc_s": medians[0],
            "by_hand_s": medians[1],
            "ratio": medians[0] / medians[1],
            "loss_difference": abs(first[0] - first[1]) / first[1],
            "threads": torch.get_num_threads(),
        }
    ]


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=15)


if __name__ == "__main__":
    main("One step of block reconstruction against a loop by hand", measure, extend=_extend)
