"""Second moments of what enters a layer: all that scale search, clip search and GPTQ need.

For a layer ``y = W x`` and a change D of its weight, the mean squared error over calibration data
is ``tr(D C D^T)`` with ``C = E[x x^T]``: candidates are judged without running data again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imcc.ir.dialects import nn
from imcc.ir.ops import Op, Value
from imcc.ir.semantics.nn import with_one_batch
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.quantization.blocks import Block, Layer
from imcc.passes.quantization.streams import Streams


@dataclass
class InputMoments:
    """``second``: ``E[x x^T]`` as ``[groups, K, K]``; ``absolute``: ``E|x|`` as ``[groups, K]``.

    K counts the inputs of one output; for a convolution, channels of a group times positions.
    """

    second: Tensor
    absolute: Tensor
    count: int = 0

    def add(self, columns: Tensor) -> None:
        """Take in ``[groups, tokens, K]``."""
        self.second += columns.transpose(1, 2) @ columns
        self.absolute += columns.abs().sum(1)
        self.count += columns.shape[1]

    def finish(self) -> InputMoments:
        """Sums to means."""
        return InputMoments(self.second / self.count, self.absolute / self.count, self.count)


def measure(block: Block, streams: Streams, store: ResourceStore) -> dict[Layer, InputMoments]:
    """Moments of every layer of ``block`` over the quantised stream; shared inputs share one."""
    layers = block.layers
    kinds: dict[tuple[object, ...], InputMoments] = {}
    keys: dict[Layer, tuple[object, ...]] = {layer: _key(layer) for layer in layers}
    wanted: dict[Value, list[Layer]] = {}
    for layer in {key: layer for layer, key in keys.items()}.values():
        wanted.setdefault(layer.x, []).append(layer)

    def take(value: Value, tensor: Tensor) -> None:
        for layer in wanted.get(value, ()):
            columns = unfold(layer, tensor)
            groups, _, size = columns.shape
            held = kinds.get(keys[layer])
            if held is None:
                zeros = columns.new_zeros
                held = InputMoments(zeros(groups, size, size), zeros(groups, size))
                kinds[keys[layer]] = held
            held.add(columns)

    def observer(op: Op, results: tuple[Tensor, ...]) -> None:
        for value, tensor in zip(op.results, results, strict=True):
            take(value, tensor)

    with torch.no_grad():
        for chunk in streams.chunks:
            inputs = streams.quantised_inputs(chunk, block)
            for value, tensor in inputs.items():
                take(value, tensor)
            block.run(inputs, store, chunk.symbols, observer=observer)
    finished = {key: held.finish() for key, held in kinds.items()}
    return {layer: finished[keys[layer]] for layer in layers}


def unfold(layer: Layer, x: Tensor) -> Tensor:
    """The inputs of a layer as ``[groups, tokens, K]``, one row for each output position."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    spatial = len(layer.stride)
    weight = layer.weight.type.shape  # type: ignore[attr-defined]
    kernel = tuple(int(size) for size in weight[2:])
    columns: list[Tensor] = []

    def gather(flat: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(
            flat, [amount for size in reversed(layer.padding) for amount in (size, size)]
        )
        for axis, size in enumerate(kernel):
            reach = layer.dilation[axis] * (size - 1) + 1
            padded = padded.unfold(2 + axis, reach, layer.stride[axis])
        for axis in range(spatial):
            steps = slice(None, None, layer.dilation[axis])
            index: tuple[Any, ...] = (..., steps, *[slice(None)] * (spatial - 1 - axis))
            padded = padded[index]
        # [B, C, positions, kernel] to [groups, B * positions, C / groups * kernel]
        batch, channels = padded.shape[:2]
        split = padded.reshape(batch, layer.groups, channels // layer.groups, *padded.shape[2:])
        order = (1, 0, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial))
        moved = split.permute(order)
        columns.append(moved.flatten(1, 1 + spatial).flatten(2))
        return flat

    with_one_batch(x, spatial, gather)
    return columns[0]


def per_group(layer: Layer, weight: Tensor) -> Tensor:
    """A weight ``[N, ...]`` as ``[groups, N / groups, K]``."""
    groups = layer.groups if isinstance(layer, nn.Conv) else 1
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def output_error(layer: Layer, moments: InputMoments, change: Tensor) -> float:
    """Mean squared error of a layer's output, summed over channels, for a change of its weight."""
    rows = per_group(layer, change)
    return float(((rows @ moments.second) * rows).sum())


def layers_by_input(layers: Iterable[Layer]) -> dict[Value, list[Layer]]:
    """Layers that read the same value."""
    found: dict[Value, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.x, []).append(layer)
    return found


def _key(layer: Layer) -> tuple[object, ...]:
    if isinstance(layer, nn.Linear):
        return (layer.x,)
    kernel = layer.weight.type.shape[2:]  # type: ignore[attr-defined]
    return (layer.x, kernel, layer.stride, layer.padding, layer.dilation, layer.groups)
