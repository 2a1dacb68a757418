"""Where the batch is in the inputs: in front, or behind the time steps of a spiking network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from imcc.frontend.neurons import Exchanged


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

    def widened(self, leaf: Any) -> Any:
        """The input with at least two samples: the first is repeated."""
        axis = self.axis_of(leaf)
        if axis is None or self.size is None or self.size >= 2:
            return leaf
        return torch.cat([leaf, leaf], dim=axis)


def batch_layout(module: nn.Module, inputs: Sequence[Any], exchanged: Exchanged) -> BatchLayout:
    """Find the batch axis; runs the model once more where it holds spiking neurons.

    Axis 0 is time if a model that gets it twice as long computes more time steps.
    """
    first = next(item for item in pytree.tree_leaves(tuple(inputs)) if isinstance(item, Tensor))
    if not first.dim():
        return BatchLayout(None)
    size = int(first.shape[0])
    steps = exchanged.flattened_steps
    if steps > 1 and size % steps == 0:
        return BatchLayout(size // steps, steps=steps)
    if exchanged.neurons and first.dim() > 1 and _is_time(module, inputs, exchanged, size):
        return BatchLayout(int(first.shape[1]), time=size)
    return BatchLayout(size)


def _is_time(module: nn.Module, inputs: Sequence[Any], exchanged: Exchanged, size: int) -> bool:
    def run(times: int) -> int:
        def longer(leaf: Any) -> Any:
            fits = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size
            return torch.cat([leaf] * times) if fits else leaf

        before = exchanged.steps
        module(*pytree.tree_map(longer, tuple(inputs)))
        return exchanged.steps - before

    try:
        return run(2) > run(1)
    except Exception:
        # A model that takes one size only says nothing; its axis 0 counts as the batch.
        return False
