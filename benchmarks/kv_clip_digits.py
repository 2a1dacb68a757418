"""A vision transformer of four encoders for scikit-learn's digits, trained in seconds."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Encoder(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        made = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(made.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norm2(x))


class DigitsTransformer(nn.Module):
    """``[N, 8, 8]`` pixels in [0, 1] to logits: 16 patches of 2 x 2 and a class token."""

    def __init__(self, dim: int = 32, heads: int = 2, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Linear(4, dim)
        self.start = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, dim))
        self.encoders = nn.ModuleList(Encoder(dim, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(-1, 16, 4)
        x = self.patches(x)
        x = torch.cat([self.start.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for encoder in self.encoders:
            x = encoder(x)
        return self.head(self.norm(x[:, 0]))


@lru_cache(maxsize=1)
def trained(epochs: int = 40) -> tuple[Any, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The network, training images and labels, test images and labels."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images))
    images, labels = images[order], labels[order]
    x, y = images[:1297], labels[:1297]
    model = DigitsTransformer()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    steps = epochs * (len(x) // 64 + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            loss = functional.cross_entropy(model(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval(), (x, y), (images[1297:], labels[1297:])
