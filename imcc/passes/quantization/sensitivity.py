"""Bits for each layer under a budget, by how much each layer alone disturbs its block's output.

The error of layer l is measured once, on calibration data: the block runs in float but for that
layer at 3 bits, ``E_l = |y' - y|^2 / |y|^2`` over the block's outputs. Other bits follow from the
layer's own output, ``e_l(b) = E_l * tr(D_b C D_b^T) / tr(D_3 C D_3^T)`` with D_b the change that
rounding to nearest makes at b bits. Errors of layers are taken to add up. Starting from the fewest
bits, what lowers the sum most for each bit of storage is bought until the budget is spent.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.quantization.blocks import Block, Layer, constant_weight
from imcc.passes.quantization.grid import Grid, WeightFormat
from imcc.passes.quantization.moments import InputMoments, measure, output_error
from imcc.passes.quantization.plan import BITS, Rule
from imcc.passes.quantization.streams import Streams

Errors = dict[int, float]


REFERENCE_BITS = 3


def layer_errors(
    blocks: Sequence[Block],
    formats: Mapping[Layer, WeightFormat],
    streams: Streams,
    store: ResourceStore,
) -> dict[Layer, Errors]:
    """The error of every layer at 2 to 8 bits."""
    found: dict[Layer, Errors] = {}
    for index, block in enumerate(blocks):
        with torch.no_grad():
            for chunk in streams.chunks:
                inputs = streams.float_inputs(chunk, block)
                made = block.run(inputs, store, chunk.symbols, unrounded=True)
                streams.put_float(chunk, made)
        layers = [layer for layer in block.layers if layer in formats]
        moments = measure(block, streams, store) if layers else {}
        for layer in layers:
            found[layer] = _errors(block, layer, formats[layer], moments[layer], streams, store)
        streams.retire(blocks[index + 1 :])
    return found


def _errors(
    block: Block,
    layer: Layer,
    form: WeightFormat,
    moments: InputMoments,
    streams: Streams,
    store: ResourceStore,
) -> Errors:
    source = constant_weight(layer)
    weight = store.get(source.value if source is not None else "")

    def rounded(bits: int) -> Tensor:
        return Grid.fit(replace(form, bits=bits), weight).nearest(weight)

    change, energy = 0.0, 0.0
    with torch.no_grad():
        for chunk in streams.chunks:
            inputs = streams.float_inputs(chunk, block)
            weights = {layer.weight: rounded(REFERENCE_BITS)}
            made = block.run(inputs, store, chunk.symbols, weights=weights, unrounded=True)
            for value, held in streams.float_outputs(chunk, block).items():
                if held.is_floating_point():
                    change += float((made[value] - held).square().sum())
                    energy += float(held.square().sum())
    own = output_error(layer, moments, rounded(REFERENCE_BITS) - weight) or 1.0
    at_reference = change / (energy or 1.0)
    return {
        bits: at_reference * output_error(layer, moments, rounded(bits) - weight) / own
        for bits in BITS
    }


def spend(
    errors: Mapping[str, Errors],
    sizes: Mapping[str, int],
    budget: float,
    fixed: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Bits by name with ``sum(size * bits) <= budget * sum(size)``; ``fixed`` ones stay.

    Raises :class:`DiagnosticError` for a budget below the fewest bits.
    """
    fixed = fixed or {}
    least, most = BITS[0], BITS[-1]
    if budget < least:
        raise error(
            codes.BAD_OPTION,
            f"a budget of {budget} bits for each weight is below the fewest bits, {least}",
        )
    bits = {name: fixed.get(name, least) for name in errors}
    left = budget * sum(sizes.values()) - sum(sizes[name] * held for name, held in bits.items())
    if left < 0:
        raise error(
            codes.BAD_OPTION,
            f"a budget of {budget} bits for each weight does not hold what the plan fixes: with "
            f"{least} bits for all others it takes {budget - left / sum(sizes.values()):.3g}",
            help="raise the budget, or leave bits out of the plan's rules",
        )
    queue: list[tuple[float, str, int]] = []

    def offer(name: str) -> None:
        # Several bits at once, where one alone gains less: the error need not be convex.
        held = bits[name]
        steps = [
            ((errors[name][held] - errors[name][after]) / ((after - held) * sizes[name]), after)
            for after in range(held + 1, most + 1)
        ]
        if steps:
            gain, after = max(steps)
            heapq.heappush(queue, (-gain, name, after))

    for name in errors:
        if name not in fixed:
            offer(name)
    while queue:
        _, name, after = heapq.heappop(queue)
        price = (after - bits[name]) * sizes[name]
        while price > left and after > bits[name] + 1:
            after -= 1
            price = (after - bits[name]) * sizes[name]
        if price > left:
            continue
        left -= price
        bits[name] = after
        offer(name)
    return bits


def rules_for(formats: Mapping[str, WeightFormat], weights: Sequence[str]) -> tuple[Rule, ...]:
    """Plan rules that give each of ``weights`` its format, whatever the pass's options are."""
    made = []
    for name in dict.fromkeys(weights):
        form = formats.get(name)
        if form is None:
            made.append(Rule(pattern=name, skip=True))
            continue
        made.append(
            Rule(
                pattern=name,
                bits=form.bits,
                group=form.group,
                scheme="symmetric" if form.symmetric else "asymmetric",
                granularity="tensor" if form.per_tensor else "channel",
            )
        )
    return tuple(made)


def plan_text(rules: Sequence[Rule]) -> str:
    """Rules as the text of a plan file."""
    parts = []
    for rule in rules:
        lines = ["[[layer]]"]
        for key, value in asdict(rule).items():
            if value is not None and (key != "skip" or value):
                lines.append(f"{key} = {json.dumps(value)}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
