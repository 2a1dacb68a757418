"""Block reconstruction: variables of the weights of a block, fitted to the block's float outputs.

Two uses of one loop. :class:`Rounding` is TesseraQ (arXiv 2410.19103): progressive adaptive
rounding with dequantisation-scale tuning. :class:`Clipping` learns the range of each group
(OmniQuant, arXiv 2308.13137, eq. 2), rounding with a straight-through gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.ops import Value
from imcc.ir.semantics.quant import round_straight_through
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.quantization.blocks import Block
from imcc.passes.quantization.grid import Grid, WeightFormat
from imcc.passes.quantization.streams import CPU, Chunk, Streams

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
"""Bounds of the stretched sigmoid (Louizos et al., ICLR 2018), so that 0 and 1 are reached."""

SOFT_SHARES = (
    0.8, 0.65, 0.5, 0.43, 0.38, 0.34, 0.3, 0.27, 0.24, 0.21,
    0.18, 0.15, 0.12, 0.1, 0.08, 0.06, 0.04, 0.02, 0.01, 0.005,
)  # fmt: skip
"""Share of the rounding variables that stay soft in each of 20 rounds (TesseraQ's released
configurations)."""

SCALE_DECAY = 1e-4
"""Weight decay on the scale variables (TesseraQ's released code; none on the rounding's)."""


class Variables(Protocol):
    """What is fitted for one weight."""

    def parameters(self) -> Iterator[Tensor]:
        """Tensors that the optimiser changes, with their weight decay as ``.decay`` if any."""

    def weight(self) -> Tensor:
        """The weight that the block computes with, differentiable in the parameters."""


def stretched_sigmoid(x: Tensor) -> Tensor:
    """``h(x) = clamp(sigmoid(x) * (high - low) + low, 0, 1)``."""
    return (torch.sigmoid(x) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)


def inverse_stretched_sigmoid(y: Tensor) -> Tensor:
    """The x with ``h(x) = y`` for y in [0, 1]."""
    return -torch.log((STRETCH_HIGH - STRETCH_LOW) / (y - STRETCH_LOW) - 1)


class SoftCodes(torch.autograd.Function):
    """``clamp(floor + h(nu), low, high)`` and its gradient in ``nu`` alone.

    The derivative is ``(high_h - low_h) s (1 - s)`` with ``s = sigmoid(nu)`` where neither clamp
    acts, else 0. One function instead of a chain of ops: a step passes over all weights of a block
    a dozen times less, and keeps two tensors of their size instead of seven.
    """

    @staticmethod
    def forward(ctx: Any, choice: Tensor, floor: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The soft codes, without the zero point."""
        gate = torch.sigmoid(choice)
        made = gate.mul(STRETCH_HIGH - STRETCH_LOW).add_(STRETCH_LOW)
        inside = (made > 0) & (made < 1)
        made = made.clamp_(0, 1).add_(floor)
        inside &= (made > low) & (made < high)
        ctx.save_for_backward(gate, inside)
        return torch.minimum(torch.maximum(made, low, out=made), high, out=made)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient in ``nu``."""
        gate, inside = ctx.saved_tensors
        slope = torch.addcmul(gate, gate, gate, value=-1).mul_(STRETCH_HIGH - STRETCH_LOW)
        return slope.mul_(inside).mul_(grads[0]), None, None, None


class Rounding:
    """``q = clamp(floor(w / s) + h(nu) + z)``, ``w' = (q - z) * s * 2 h(v)``.

    ``nu`` starts where the soft weight equals the weight, ``v`` at 0 (factor 1). A variable that
    is hardened becomes plus or minus infinity: h is then 0 or 1, without gradient. The factor of
    the scale lies in 0 ... 2.
    """

    def __init__(self, weight: Tensor, grid: Grid, tune_scale: bool) -> None:
        self.shape = weight.shape
        self.grid = grid
        scaled = grid.format.rows(weight) / grid.scale
        self.floor = torch.floor(scaled)
        self.choice = inverse_stretched_sigmoid(scaled - self.floor).requires_grad_()
        self.factor = torch.zeros_like(grid.scale).requires_grad_(tune_scale)
        self.low = grid.format.element.minimum - grid.zero_point
        self.high = grid.format.element.maximum - grid.zero_point

    def parameters(self) -> Iterator[Tensor]:
        """The rounding choices, and the factors of the scales if they are tuned."""
        yield self.choice
        if self.factor.requires_grad:
            yield self.factor

    def weight(self) -> Tensor:
        """The soft weight."""
        centred: Tensor = SoftCodes.apply(  # type: ignore[no-untyped-call]
            self.choice, self.floor, self.low, self.high
        )
        made = centred * (self.grid.scale * self.scale_factor())
        return self.grid.format.unrows(made, self.shape)

    def scale_factor(self) -> Tensor:
        """``2 h(v)``."""
        return 2 * stretched_sigmoid(self.factor)

    def harden(self, soft_share: float) -> None:
        """Round the choices that are furthest from undecided, all but ``soft_share`` of them."""
        with torch.no_grad():
            score = (stretched_sigmoid(self.choice) - 0.5).abs()
            keep = int(soft_share * score.numel())
            if keep == 0:
                undecided = torch.zeros_like(score, dtype=torch.bool)
            else:
                # A partition finds it in a tenth of the time that torch's kthvalue takes.
                threshold = float(np.partition(score.cpu().flatten().numpy(), keep - 1)[keep - 1])
                undecided = (score <= threshold) & (score < 0.5)
            hard = torch.where(self.choice >= 0, torch.inf, -torch.inf)
            self.choice.copy_(torch.where(undecided, self.choice, hard))

    def finish(self) -> tuple[Tensor, Grid]:
        """Codes and the grid that gives them their meaning, every choice rounded."""
        self.harden(0.0)
        with torch.no_grad():
            centred = self.floor + stretched_sigmoid(self.choice)
            made = self.grid.clamp(centred + self.grid.zero_point)
            return made, self.grid.scaled(self.scale_factor())


class Clipping:
    """A grid over ``[sigmoid(b) min(w), sigmoid(g) max(w)]`` of each group, rounded to nearest.

    Both start at 4 (0.982 of the range), as in OmniQuant's released code.
    """

    def __init__(self, weight: Tensor, form: WeightFormat) -> None:
        self.given, self.format = weight, form
        rows = form.rows(weight)
        self.low = rows.amin(-1, keepdim=True).clamp(max=0)
        self.high = rows.amax(-1, keepdim=True).clamp(min=0)
        self.upper = torch.full_like(self.high, 4.0).requires_grad_()
        self.lower = torch.full_like(self.low, 4.0).requires_grad_()

    def parameters(self) -> Iterator[Tensor]:
        """Logits of the upper and the lower bound."""
        yield self.upper
        yield self.lower

    def grid(self) -> Grid:
        """The grid over the present range."""
        low = self.low * torch.sigmoid(self.lower)
        high = self.high * torch.sigmoid(self.upper)
        return Grid.of_range(self.format, low, high)

    def weight(self) -> Tensor:
        """The weight on the present grid, straight-through in the rounding."""
        grid = self.grid()
        zero = grid.zero_point.detach()
        scaled = round_straight_through(self.format.rows(self.given) / grid.scale)
        return grid.real(grid.clamp(scaled + zero), self.given.shape)

    def finish(self) -> Grid:
        """The grid that was learned."""
        with torch.no_grad():
            return self.grid()


@dataclass(frozen=True)
class Recipe:
    """Length and rates of an optimisation: ``iterations`` steps of Adam over one chunk each.

    Scales of a rounding move at ``scale_learning_rate`` where there is one.
    """

    iterations: int
    learning_rate: float
    seed: int
    scale_learning_rate: float | None = None


class BlockLoss:
    """Squared error of a block's outputs, as a share of their energy, on one chunk."""

    def __init__(
        self,
        block: Block,
        streams: Streams,
        store: ResourceStore,
        energy: float,
    ) -> None:
        self.block, self.streams, self.store = block, streams, store
        self.energy = energy

    @classmethod
    def relative(cls, block: Block, streams: Streams, store: ResourceStore) -> BlockLoss:
        """The loss over the energy that the float outputs have, chunk by chunk, on average.

        Raises :class:`DiagnosticError` if they are not finite.
        """
        energy = math.fsum(
            float(held.square().sum())
            for chunk in streams.chunks
            for held in streams.float_outputs(chunk, block).values()
            if held.is_floating_point()
        )
        if not math.isfinite(energy):
            raise error(
                codes.BAD_DATA,
                f"block {block.name!r} gives values that are not finite on the calibration data",
                help="check the calibration data and the model in float",
            )
        return cls(block, streams, store, (energy or 1.0) / len(streams.chunks))

    def __call__(self, index: int, weights: Mapping[Value, Tensor]) -> Tensor:
        """``sum |y' - y|^2 / mean over chunks of sum |y|^2`` for the weights given."""
        chunk: Chunk = self.streams.chunks[index]
        inputs = self.streams.quantised_inputs(chunk, self.block)
        made = self.block.run(inputs, self.store, chunk.symbols, weights=weights)
        total = torch.zeros(())
        for value, target in self.streams.float_outputs(chunk, self.block).items():
            if target.is_floating_point():
                total = total + (made[value] - target).square().sum()
        return total / self.energy


def adam(
    variables: Iterable[Rounding | Clipping],
    learning_rate: float,
    scale_learning_rate: float | None = None,
) -> torch.optim.Adam:
    """A fresh optimiser of all parameters, with ``SCALE_DECAY`` on the scales of a rounding."""
    groups = []
    for item in variables:
        for index, parameter in enumerate(item.parameters()):
            group: dict[str, Any] = {"params": [parameter]}
            if isinstance(item, Rounding) and index == 1:
                group |= {"weight_decay": SCALE_DECAY, "lr": scale_learning_rate or learning_rate}
            groups.append(group)
    return torch.optim.Adam(groups, lr=learning_rate, fused=True)


def fit(
    variables: Mapping[Value, Rounding] | Mapping[Value, Clipping],
    loss: BlockLoss,
    recipe: Recipe,
    step_done: Callable[[int, float], None],
) -> None:
    """Minimise the block's loss with a fresh Adam, chunks in an order drawn from the seed.

    Raises :class:`DiagnosticError` that names the block if the loss stops being finite.
    """
    optimiser = adam(variables.values(), recipe.learning_rate, recipe.scale_learning_rate)
    # On the CPU for every device: the order of the steps is part of the result.
    generator = torch.Generator(CPU).manual_seed(recipe.seed)
    order: list[int] = []
    for step in range(recipe.iterations):
        if not order:
            count = len(loss.streams.chunks)
            order = torch.randperm(count, generator=generator, device=CPU).tolist()
        made = loss(order.pop(), {value: item.weight() for value, item in variables.items()})
        value = float(made.detach())
        if not math.isfinite(value):
            raise error(
                codes.NUMERIC,
                f"the reconstruction loss of block {loss.block.name!r} is {value} at step {step}",
                help="lower learning_rate, give more bits to this block in a plan, or check the "
                "calibration data for extreme values",
            )
        optimiser.zero_grad()
        made.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        step_done(step, value)


def round_progressively(
    variables: Mapping[Value, Rounding],
    loss: BlockLoss,
    recipe: Recipe,
    shares: tuple[float, ...],
    step_done: Callable[[int, float], None],
) -> None:
    """Progressive adaptive rounding: before each round, harden all but a share; then fit the rest.

    Without shares there is one round in which everything stays soft. What is soft at the end is
    rounded by :meth:`Rounding.finish`.
    """
    for number, share in enumerate(shares or (1.0,)):
        if shares:
            for item in variables.values():
                item.harden(share)
        part = replace(recipe, seed=recipe.seed + number)
        fit(variables, loss, part, _later(step_done, number * recipe.iterations))


def _later(step_done: Callable[[int, float], None], before: int) -> Callable[[int, float], None]:
    return lambda step, value: step_done(before + step, value)
