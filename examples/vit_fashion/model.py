"""A vision transformer of eight encoders for Fashion-MNIST, 28 x 28 pictures of clothing.

The module offers what ``imcc`` looks for in a model file: the network with its trained weights,
example inputs, calibration and training data from the training split, and test images with a
metric. Run ``train.py`` in the same folder to make the weights anew.

``fashion_sample.npz`` beside this file holds the first 512 training images: enough to compile and
to calibrate. Training and test images are looked for in the folder ``fashion-mnist`` of the
environment variable IMCC_DATA (docs/data.md), and where Debian's package ``dataset-fashion-mnist``
puts them.
"""

from __future__ import annotations

import gzip
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "vit_fashion.safetensors"
SAMPLE = HERE / "fashion_sample.npz"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")

CLASSES = 10
CALIBRATION_SAMPLES = 256
BATCH_SIZE = int(os.environ.get("VIT_FASHION_BATCH", "128"))
"""Training images of a batch. Fine-tuning through a simulator gains from more devices: take 64."""
TEST_IMAGES = int(os.environ.get("VIT_FASHION_IMAGES", "500"))
"""Of the test images, how many ``evaluation_data`` gives: noisy runs take time; 2500 at most."""


class Attention(nn.Module):
    """Multi-head self-attention with one linear layer each for queries, keys, values, outputs."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.projection = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._split(f(x)) for f in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.projection(mixed.transpose(-3, -2).flatten(-2))


class Encoder(nn.Module):
    """Attention and two linear layers around a GELU, each after a norm and beside a shortcut."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Maps ``float32 [N, 1, 28, 28]`` images in [0, 1] to ``[N, 10]`` logits.

    16 patches of 7 x 7 pixels and a class token, from which the logits are taken.
    """

    def __init__(
        self, dim: int = 64, heads: int = 4, hidden: int = 128, depth: int = 8, patch: int = 7
    ) -> None:
        super().__init__()
        tokens = (28 // patch) ** 2 + 1
        self.patches = nn.Conv2d(1, dim, kernel_size=patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)
        self.encoders = nn.ModuleList(Encoder(dim, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for encoder in self.encoders:
            x = encoder(x)
        return self.head(self.norm(x[:, 0]))


# -- data -----------------------------------------------------------------------------------------


def _folders() -> list[Path]:
    named = os.environ.get("IMCC_DATA")
    return ([Path(named) / "fashion-mnist"] if named else []) + [DEBIAN]


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(images.copy()).to(torch.float32).div(255.0).unsqueeze(1)
    return pixels, torch.from_numpy(labels.copy()).to(torch.int64)


def _idx(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """The files of the data set: 16 and 8 bytes of header, then one byte per pixel and label."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return _tensors(pixels, np.frombuffer(labels, np.uint8, offset=8))


def _packed(file: Path) -> tuple[Tensor, Tensor]:
    arrays = np.load(file)
    return _tensors(arrays["x"], arrays["y"])


@cache
def sample() -> tuple[Tensor, Tensor]:
    """The first 512 training images and labels, which lie beside this file."""
    return _packed(SAMPLE)


@cache
def train_split() -> tuple[Tensor, Tensor]:
    """The 60,000 training images and labels."""
    for folder in _folders():
        if (folder / "train-images-idx3-ubyte.gz").exists():
            return _idx(folder, "train")
    raise FileNotFoundError(
        "the 60,000 training images are in none of "
        f"{', '.join(map(str, _folders()))}; apt-get install dataset-fashion-mnist (docs/data.md)"
    )


@cache
def test_split() -> tuple[Tensor, Tensor]:
    """The first 2500 test images and labels."""
    for folder in _folders():
        if (folder / "fmnist_t10k_first2500.npz").exists():
            return _packed(folder / "fmnist_t10k_first2500.npz")
        if (folder / "t10k-images-idx3-ubyte.gz").exists():
            images, labels = _idx(folder, "t10k")
            return images[:2500], labels[:2500]
    raise FileNotFoundError(
        f"the test images are in none of {', '.join(map(str, _folders()))} (docs/data.md)"
    )


# -- what imcc looks for --------------------------------------------------------------------------


def model() -> nn.Module:
    """The trained network in evaluation mode."""
    network = VisionTransformer()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval()


def example_inputs() -> tuple[Tensor, ...]:
    """One training image; it fixes the shape and the dtype of the input."""
    images, _ = sample()
    return (images[:1],)


def calibration_data() -> Tensor:
    """Training images, from which activation ranges are taken. The set is in random order."""
    images, _ = sample()
    return images[:CALIBRATION_SAMPLES]


def evaluation_data() -> tuple[Tensor, Tensor]:
    """The first TEST_IMAGES test images and their labels."""
    images, labels = test_split()
    return images[:TEST_IMAGES], labels[:TEST_IMAGES]


def metric(outputs: Tensor, targets: Tensor) -> float:
    """Accuracy: the fraction of images whose largest logit is at the label."""
    return (outputs.argmax(dim=-1) == targets).to(torch.float64).mean().item()


def training_data() -> list[tuple[Tensor, Tensor]]:
    """The training split as batches of (images, labels)."""
    images, labels = train_split()
    return list(zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))


def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of the logits against the labels of the batch."""
    _, labels = batch
    return functional.cross_entropy(outputs, labels)
