"""Where the batch is in the inputs: in front, or behind the time steps of a spiking network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from imcc.frontend.neurons import Exchanged

if TYPE_CHECKING:
    from imcc.frontend.inputs import Inputs


@dataclass(frozen=True)
class BatchLayout:
    """The batch axis of inputs.

    ``size`` is the batch size of the example inputs (None: there is no batch axis). With ``time``,
    inputs ``[time, size, ...]`` have it on axis 1. With ``steps`` above 1, axis 0 holds
    ``steps * size`` rows.
    """

    size: int | None
    time: int | None = None
    steps: int = 1

    def axis_of(self, leaf: Any) -> int | None:
        """The batch axis of an input, or None."""
        if not isinstance(leaf, Tensor) or self.size is None:
            return None
        shape = tuple(leaf.shape)
        if self.time is not None and shape[:2] == (self.time, self.size):
            return 1
        return 0 if shape[:1] == (self.steps * self.size,) else None


def batch_layout(module: nn.Module, inputs: Inputs, exchanged: Exchanged) -> BatchLayout:
    """Find the batch axis; runs the model some more times where it holds spiking neurons.

    The batch is the axis whose double size makes neurons compute as many steps of twice as many
    elements; axis 0 where neither does.
    """
    first = next(item for item in inputs.leaves() if isinstance(item, Tensor))
    if not first.dim():
        return BatchLayout(None)
    size = int(first.shape[0])
    steps = exchanged.flattened_steps
    if steps > 1 and size % steps == 0:
        return BatchLayout(size // steps, steps=steps)
    if not exchanged.computed[0] or first.dim() < 2:
        return BatchLayout(size)
    shape = tuple(first.shape[:2])
    once = _computed(module, inputs, exchanged, shape, None)
    twice = (once[0], 2 * once[1])
    if _computed(module, inputs, exchanged, shape, 0) == twice:
        return BatchLayout(size)
    if _computed(module, inputs, exchanged, shape, 1) == twice:
        return BatchLayout(shape[1], time=size)
    return BatchLayout(size)


def _computed(
    module: nn.Module,
    inputs: Inputs,
    exchanged: Exchanged,
    shape: tuple[int, ...],
    doubled: int | None,
) -> tuple[int, int]:
    """Steps and elements of a run with an axis of the inputs doubled; zeros if it fails."""
    count = (doubled or 0) + 1

    def larger(leaf: Any) -> Any:
        fits = isinstance(leaf, Tensor) and tuple(leaf.shape[:count]) == shape[:count]
        return torch.cat([leaf, leaf], dim=count - 1) if fits else leaf

    before = exchanged.computed
    leaves = inputs.leaves()
    changed = inputs if doubled is None else inputs.with_leaves([larger(leaf) for leaf in leaves])
    try:
        module(*changed.arguments(), **changed.keywords())
    except Exception:
        return (0, 0)
    after = exchanged.computed
    return after[0] - before[0], after[1] - before[1]
