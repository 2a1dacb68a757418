"""Vision transformers as DeiT has them (Touvron et al., ICML 2021), in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """Multi-head self-attention with one linear layer to queries, keys and values each."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(size, size), nn.Linear(size, size)
        self.value, self.projection = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` to the same."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        made = functional.scaled_dot_product_attention(query, key, value)
        merged: Tensor = self.projection(made.transpose(1, 2).flatten(2))
        return merged


class EncoderBlock(nn.Module):
    """A pre-norm encoder."""

    def __init__(self, size: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size, eps=1e-6), nn.LayerNorm(size, eps=1e-6)
        self.attention = SelfAttention(size, heads)
        self.mlp = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` to the same."""
        x = x + self.attention(self.norm1(x))
        made: Tensor = x + self.mlp(self.norm2(x))
        return made


class VisionTransformer(nn.Module):
    """Class scores of ``[B, 3, image, image]``; the defaults are DeiT-S at 224 x 224."""

    def __init__(
        self,
        size: int = 384,
        heads: int = 6,
        depth: int = 12,
        hidden: int = 1536,
        image: int = 224,
        patch: int = 16,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, size, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, size))
        self.positions = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, size))
        self.encoders = nn.Sequential(*(EncoderBlock(size, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.head = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores from the class token."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        made: Tensor = self.head(self.norm(self.encoders(x))[:, 0])
        return made
