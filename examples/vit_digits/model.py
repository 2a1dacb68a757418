"""A vision transformer of eight small encoders for scikit-learn's digits, 8 x 8 pixels.

The module offers what ``imcc`` looks for in a model file: the network with its trained weights,
example inputs, calibration and training data from the training images, and test images with a
metric. The images come with scikit-learn. ``train.py`` in the same folder makes the weights anew.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = Path(__file__).resolve().parent / "vit_digits.safetensors"
TEST_IMAGES = 500
EVALUATED = int(os.environ.get("VIT_DIGITS_IMAGES", "500"))
"""Of the test images, how many ``evaluation_data`` gives: many devices matter more than images."""
CALIBRATION_SAMPLES = 128
BATCH_SIZE = 64


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.projection(mixed.transpose(-3, -2).flatten(-2))


class Encoder(nn.Module):
    """Attention and two linear layers around a GELU, each after a norm and beside a shortcut."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Maps ``float32 [N, 8, 8]`` images in [0, 1] to ``[N, 10]`` logits.

    16 patches of 2 x 2 pixels and a class token, from which the logits are taken.
    """

    def __init__(self, dim: int = 32, heads: int = 2, depth: int = 8) -> None:
        super().__init__()
        self.patches = nn.Linear(4, dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 17, dim) * 0.02)
        self.encoders = nn.ModuleList(Encoder(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        x = self.patches(x)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for encoder in self.encoders:
            x = encoder(x)
        return self.head(self.norm(x[:, 0]))


@cache
def splits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """1297 images and labels to train on, and 500 to test on."""
    from sklearn.datasets import load_digits

    held = load_digits()
    order = torch.randperm(len(held.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(held.images).float()[order] / 16
    labels = torch.from_numpy(held.target).long()[order]
    return (images[:-TEST_IMAGES], labels[:-TEST_IMAGES]), (
        images[-TEST_IMAGES:],
        labels[-TEST_IMAGES:],
    )


def model() -> nn.Module:
    """The trained network in evaluation mode."""
    network = VisionTransformer()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval()


def example_inputs() -> tuple[Tensor, ...]:
    """One training image; it fixes the shape and the dtype of the input."""
    return (splits()[0][0][:1],)


def calibration_data() -> Tensor:
    """Training images, from which activation ranges are taken."""
    return splits()[0][0][:CALIBRATION_SAMPLES]


def evaluation_data() -> tuple[Tensor, Tensor]:
    """The first EVALUATED test images and their labels."""
    images, labels = splits()[1]
    return images[:EVALUATED], labels[:EVALUATED]


def metric(outputs: Tensor, targets: Tensor) -> float:
    """Accuracy: the fraction of images whose largest logit is at the label."""
    return (outputs.argmax(dim=-1) == targets).to(torch.float64).mean().item()


def training_data() -> list[tuple[Tensor, Tensor]]:
    """The training images as batches of (images, labels)."""
    images, labels = splits()[0]
    return list(zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))


def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of the logits against the labels of the batch."""
    return functional.cross_entropy(outputs, batch[1])
