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
    """Find the batch axis; runs the model once more where it holds spiking neurons.

    Axis 0 is time if a model that gets it twice as long computes more time steps.
    """
    first = next(item for item in inputs.leaves() if isinstance(item, Tensor))
    if not first.dim():
        return BatchLayout(None)
    size = int(first.shape[0])
    steps = exchanged.flattened_steps
    if steps > 1 and size % steps == 0:
        return BatchLayout(size // steps, steps=steps)
    if exchanged.steps and first.dim() > 1 and _is_time(module, inputs, exchanged, size):
        return BatchLayout(int(first.shape[1]), time=size)
    return BatchLayout(size)


def _is_time(module: nn.Module, inputs: Inputs, exchanged: Exchanged, size: int) -> bool:
    def run(times: int) -> int:
        def longer(leaf: Any) -> Any:
            fits = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size
            return torch.cat([leaf] * times) if fits else leaf

        before = exchanged.steps
        changed = inputs.with_leaves([longer(leaf) for leaf in inputs.leaves()])
        module(*changed.arguments(), **changed.keywords())
        return exchanged.steps - before

    try:
        return run(2) > run(1)
    except Exception:
        # A model that takes one size only says nothing; its axis 0 counts as the batch.
        return False
