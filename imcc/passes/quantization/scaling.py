"""AWQ: channel scales folded into neighbours, and clipped ranges, searched on calibration data.

Lin et al., "AWQ: Activation-aware Weight Quantization", MLSys 2024. A linear layer's input channel
k is divided by ``s_k`` and its weight column multiplied by it; the division moves into the op that
makes the input, where the graph allows. The searches judge a candidate by the error of the layers'
outputs from second moments (:mod:`imcc.passes.quantization.moments`).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from imcc.ir.dialects import core, nn
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.quantization.blocks import Block, Layer, constant_weight
from imcc.passes.quantization.grid import Grid, WeightFormat
from imcc.passes.quantization.moments import InputMoments, layers_by_input, output_error

STEPS = 20
"""Candidates of each search, as in the paper's released search."""
MAX_SHRINK = 0.5
"""Smallest share of a group's range that the clip search tries."""


@dataclass(frozen=True)
class Fold:
    """A constant operand of an op, and the tensor that takes its place."""

    op: Op
    operand: str
    tensor: Tensor


def fold_scales(
    block: Block,
    formats: dict[Layer, WeightFormat],
    moments: dict[Layer, InputMoments],
    store: ResourceStore,
    rewriter: Rewriter,
) -> tuple[list[Fold], dict[str, float]]:
    """Search and fold channel scales for every foldable input; returns folds and exponents.

    ``s = E|x|^a / sqrt(max * min)``, a in 0, 1/20, ... 1 (paper, eq. 4 and 5). ``a = 0`` changes
    nothing. Moments of the changed layers are updated with the scales.
    """
    made: list[Fold] = []
    chosen: dict[str, float] = {}
    inside = set(block.ops)
    for value, layers in layers_by_input(block.layers).items():
        linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        takers = foldable(value, layers, inside)
        if takers is None or len(linears) != len(layers):
            for layer in layers:
                rewriter.refuse(layer, "no op before it can take up channel scales")
            continue
        weights = {layer: store.get(_constant(layer).value) for layer in linears}
        fitted = [layer for layer in linears if layer in formats]
        if not fitted:
            continue
        held = moments[linears[0]]
        best: tuple[float, float, Tensor] | None = None
        for step in range(STEPS):
            exponent = step / STEPS
            scale = _candidate(held.absolute[0], exponent)
            error = sum(
                output_error(
                    layer,
                    held,
                    _searched(
                        Grid.fit(formats[layer], weights[layer] * scale), weights[layer] * scale
                    )
                    / scale
                    - weights[layer],
                )
                for layer in fitted
            )
            if best is None or error < best[0]:
                best = (error, exponent, scale)
        if best is None or best[1] == 0:
            continue
        chosen[value.name], scale = best[1], best[2]
        folds = [_divided(op, operand, scale, store) for op, operand in takers]
        folds += [Fold(layer, "weight", weight * scale) for layer, weight in weights.items()]
        replace_constants(folds, store, rewriter)
        made += folds
        for layer in linears:
            outer = scale[:, None] * scale[None, :]
            moments[layer] = InputMoments(held.second / outer, held.absolute / scale, held.count)
    return made, chosen


def clipped_grid(layer: Layer, form: WeightFormat, weight: Tensor, moments: InputMoments) -> Grid:
    """The grid whose range, shrunk for each group by itself, errs least on calibration data.

    Candidates shrink the range to 1, 0.975, ... 0.5. The error of a group is its own share of the
    output, ``d C_gg d^T``; correlations between groups are left out, as in the paper's search.
    """
    if form.per_tensor or isinstance(layer, nn.Conv):
        return Grid.fit(form, weight)
    second = _group_moments(form, moments.second[0])
    rows = form.rows(weight)
    best = torch.full((*rows.shape[:2], 1), torch.inf, dtype=rows.dtype)
    shrink = torch.ones_like(best)
    for step in range(STEPS):
        factor = 1 - (1 - MAX_SHRINK) * step / STEPS
        grid = Grid.fit(form, weight, factor)
        change = form.rows(_searched(grid, weight)) - rows
        error = (torch.einsum("rgi,gij->rgj", change, second) * change).sum(-1, keepdim=True)
        better = error < best
        best, shrink = (
            torch.where(better, error, best),
            torch.where(better, torch.full_like(shrink, factor), shrink),
        )
    return Grid.fit(form, weight, shrink)


def foldable(value: Value, readers: Sequence[Op], inside: Set[Op]) -> list[tuple[Op, str]] | None:
    """Constant operands that must be divided so that ``value`` is, along its last axis; or None.

    A norm with a weight absorbs a factor in weight and bias; a product in one of its factors; a
    linear layer in the rows of its weight and in its bias; ReLU passes it on. Only ops of
    ``inside`` may change, and ``value`` must have no other readers.
    """
    op = value.owner
    if op is None or op not in inside or set(value.users) - set(readers):
        return None
    if isinstance(op, (nn.Relu, nn.LeakyRelu)):
        return foldable(op.x, [op], inside)
    last_axis = getattr(op, "axis", -1) == -1
    if isinstance(op, nn.Linear) or ("norm" in op.name and last_axis):
        return _constants(op)
    if isinstance(op, core.Multiply):
        size = core.tensor(value).shape[-1]
        for name, side in (("b", op.b), ("a", op.a)):
            if isinstance(side.owner, core.Constant) and core.tensor(side).shape == (size,):
                return [(op, name)]
            if core.tensor(side).shape == core.tensor(value).shape:
                found = foldable(side, [op], inside)
                if found is not None:
                    return found
    return None


def replace_constants(folds: Sequence[Fold], store: ResourceStore, rewriter: Rewriter) -> None:
    """Give each op its new constant."""
    for fold in folds:
        source = fold.op.__dict__[fold.operand].owner
        name = str(source.value).removesuffix(".scaled") + ".scaled"
        held = rewriter.add_resource(store.put(name, fold.tensor))
        made = rewriter.insert_before(fold.op, core.Constant.of(held.name, held.type))
        rewriter.set_operand(fold.op, fold.operand, made.y)


def _constants(op: Op) -> list[tuple[Op, str]] | None:
    found: list[tuple[Op, str]] = []
    for name in ("weight", "bias"):
        value = op.__dict__.get(name)
        if value is None and name == "weight":
            return None
        if value is None:
            continue
        if not isinstance(value.owner, core.Constant) or core.tensor(value).rank > 2:
            return None
        found.append((op, name))
    return found


def _divided(op: Op, operand: str, scale: Tensor, store: ResourceStore) -> Fold:
    held = store.get(op.__dict__[operand].owner.value)
    return Fold(op, operand, held / scale.reshape(-1, *[1] * (held.dim() - 1)))


def _constant(layer: Layer) -> core.Constant:
    found = constant_weight(layer)
    if found is None:
        raise TypeError(f"{layer.name} has no constant weight")
    return found


def _searched(grid: Grid, weight: Tensor) -> Tensor:
    """``grid.nearest`` in the weight's own precision: a search looks at many grids."""
    scaled = torch.round(grid.format.rows(weight) / grid.scale)
    return grid.real(grid.clamp(scaled + grid.zero_point), weight.shape)


def _candidate(absolute: Tensor, exponent: float) -> Tensor:
    scale = absolute.clamp(min=1e-4).pow(exponent)
    return scale / (scale.max() * scale.min()).sqrt()


def _group_moments(form: WeightFormat, second: Tensor) -> Tensor:
    size = form.group or second.shape[0]
    short = -second.shape[0] % size
    padded = torch.nn.functional.pad(second, (0, short, 0, short))
    count = padded.shape[0] // size
    blocks = padded.reshape(count, size, count, size)
    index = torch.arange(count)
    return blocks[index, :, index, :]
