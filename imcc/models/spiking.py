"""A small spiking network in plain snnTorch style: a Python loop over time steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LoopedNetwork(nn.Module):
    """Two layers of ``snntorch.Leaky`` neurons, run step by step; spikes of all steps come out.

    Input ``[T, B, inputs]``, output ``[T, B, outputs]``.
    """

    def __init__(
        self, steps: int = 8, inputs: int = 16, hidden: int = 32, outputs: int = 10
    ) -> None:
        import snntorch

        super().__init__()
        self.steps = steps
        self.first = nn.Linear(inputs, hidden)
        self.hidden = snntorch.Leaky(beta=0.9)
        self.second = nn.Linear(hidden, outputs)
        self.output = snntorch.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of the output neurons at every step."""
        hidden, output = self.hidden.init_leaky(), self.output.init_leaky()
        spikes = []
        for step in range(self.steps):
            fired, hidden = self.hidden(self.first(x[step]), hidden)
            fired, output = self.output(self.second(fired), output)
            spikes.append(fired)
        return torch.stack(spikes)
