"""Small members of image model families, in the style that their libraries write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)
"""Channels of each convolution; 0 is a pooling by 2 (Simonyan and Zisserman, 2015, column A)."""


def vgg11(classes: int = 10, width: float = 0.25) -> nn.Module:
    """VGG-11 with batch norm for 32 x 32 images, ``width`` times as wide."""
    layers: list[nn.Module] = []
    held = 3
    for channels in VGG11:
        if not channels:
            layers.append(nn.MaxPool2d(2))
            continue
        made = int(channels * width)
        layers += [nn.Conv2d(held, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU(inplace=True)]
        held = made
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(held, classes))


class FusedAttention(nn.Module):
    """Self-attention with one projection to queries, keys and values, as timm writes it."""

    def __init__(self, size: int, heads: int, spelled_out: bool) -> None:
        super().__init__()
        self.heads, self.scale = heads, (size // heads) ** -0.5
        self.spelled_out = spelled_out
        self.qkv = nn.Linear(size, 3 * size)
        self.proj = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` to the same."""
        batch, tokens, size = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, size // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.spelled_out:
            scores = (query * self.scale) @ key.transpose(-2, -1)
            made = scores.softmax(dim=-1) @ value
        else:
            made = functional.scaled_dot_product_attention(query, key, value)
        merged: Tensor = self.proj(made.transpose(1, 2).reshape(batch, tokens, size))
        return merged


class Block(nn.Module):
    """A pre-norm encoder block with layer scale."""

    def __init__(self, size: int, heads: int, spelled_out: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attn = FusedAttention(size, heads, spelled_out)
        self.mlp = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
        self.gamma = nn.Parameter(torch.full((size,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` to the same."""
        x = x + self.gamma * self.attn(self.norm1(x))
        made: Tensor = x + self.gamma * self.mlp(self.norm2(x))
        return made


class FusedViT(nn.Module):
    """A vision transformer of two blocks, with fused qkv in both spellings of attention."""

    def __init__(self, size: int = 32, heads: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, size, 8, stride=8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, size) * 0.02)
        self.blocks = nn.Sequential(Block(size, heads, True), Block(size, heads, False))
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of 32 x 32 images."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        made: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return made


class Hybrid(nn.Module):
    """A convolutional stem with depthwise layers, attention over its pixels, pooled."""

    def __init__(self, size: int = 32, heads: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, size, 3, stride=2, padding=1),
            nn.BatchNorm2d(size),
            nn.Hardswish(),
            nn.Conv2d(size, size, 3, stride=2, padding=1, groups=size),
            nn.Conv2d(size, size, 1),
            nn.SiLU(),
        )
        self.blocks = nn.ModuleList(Block(size, heads, False) for _ in range(2))
        self.mix = nn.Conv2d(size, size, 3, padding=1)
        self.head = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of 32 x 32 images."""
        x = self.stem(x)
        height, width = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        pixels = tokens.transpose(1, 2).reshape(x.shape[0], -1, height, width)
        made: Tensor = self.head(functional.relu(self.mix(pixels) + x).mean((-2, -1)))
        return made
