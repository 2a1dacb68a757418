"""A small residual CNN for 8 x 8 handwritten digits.

The module offers what ``imcc`` looks for in a model file: the network with its trained weights,
example inputs, calibration and training data from the training split, and held-out data with a
metric. Run ``train.py`` in the same folder to make the weights anew.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = Path(__file__).resolve().parent / "digits_cnn.safetensors"

HELD_OUT = 360
SPLIT_SEED = 0
CALIBRATION_SAMPLES = 128
BATCH_SIZE = 64


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around an identity shortcut; ReLU after the addition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(x + y)


class DigitsCNN(nn.Module):
    """Maps ``float32 [N, 1, 8, 8]`` images in [0, 1] to ``[N, 10]`` logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.pool1 = nn.MaxPool2d(2)
        self.block = ResidualBlock(32)
        self.pool2 = nn.MaxPool2d(2)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(32 * 2 * 2, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.stem(x))
        x = self.pool2(self.block(x))
        return self.classifier(x)


@cache
def _splits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    digits = load_digits()
    # The pixels are counts from 0 to 16.
    images = torch.from_numpy(digits.images).to(torch.float32).div(16.0).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    train, held_out = train_test_split(
        range(len(labels)), test_size=HELD_OUT, stratify=digits.target, random_state=SPLIT_SEED
    )
    return images[train], labels[train], images[held_out], labels[held_out]


def train_split() -> tuple[Tensor, Tensor]:
    """The 1437 images and labels that training and calibration may see."""
    images, labels, _, _ = _splits()
    return images, labels


def model() -> nn.Module:
    """The trained network in evaluation mode."""
    network = DigitsCNN()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval()


def example_inputs() -> tuple[Tensor, ...]:
    """One image of the training split; it fixes the shape and the dtype of the input."""
    images, _ = train_split()
    return (images[:1],)


def calibration_data() -> Tensor:
    """Images of the training split, from which activation ranges are taken."""
    images, _ = train_split()
    # The split is shuffled, so its head is a random sample.
    return images[:CALIBRATION_SAMPLES]


def evaluation_data() -> tuple[Tensor, Tensor]:
    """The held-out images and labels."""
    _, _, images, labels = _splits()
    return images, labels


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
