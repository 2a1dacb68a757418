"""A small spiking VGG for 8 x 8 handwritten digits, in snnTorch, with pruned weights.

Pixels drive a first layer of neurons for four timesteps; every layer behind it sees spikes alone.
The module offers what ``imcc`` looks for in a model file. Run ``train.py`` in the same folder to
make the weights anew.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import snntorch
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from snntorch import surrogate
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = Path(__file__).resolve().parent / "spiking_digits.safetensors"

TIMESTEPS = 4
HELD_OUT = 360
SPLIT_SEED = 0
CALIBRATION_SAMPLES = 32
BATCH_SIZE = 64


def neurons() -> snntorch.Leaky:
    """Leaky integrate-and-fire neurons that lose half of their membrane in a step."""
    return snntorch.Leaky(beta=0.5, reset_mechanism="zero", spike_grad=surrogate.atan(alpha=2.0))


class SpikingDigits(nn.Module):
    """Maps ``float32 [N, 1, 8, 8]`` images in [0, 1] to ``[N, 10]`` currents, mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = neurons()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1, bias=False)
        self.lif1 = neurons()
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1, bias=False)
        self.lif2 = neurons()
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(32, 64, kernel_size=3, padding=1, bias=False)
        self.lif3 = neurons()
        self.pool3 = nn.MaxPool2d(2)
        self.classifier = nn.Linear(64 * 2 * 2, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.encode.init_leaky()
        first, second, third = (lif.init_leaky() for lif in (self.lif1, self.lif2, self.lif3))
        currents = []
        for _ in range(TIMESTEPS):
            # Twice the brightness: a pixel fires in each step from half of full white on.
            spikes, pixels = self.encode(2.0 * x, pixels)
            spikes, first = self.lif1(self.conv1(spikes), first)
            spikes, second = self.lif2(self.conv2(spikes), second)
            spikes, third = self.lif3(self.conv3(self.pool2(spikes)), third)
            currents.append(self.classifier(self.pool3(spikes).flatten(1)))
        return torch.stack(currents).mean(0)


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
    """The trained, pruned network in evaluation mode."""
    network = SpikingDigits()
    # Neurons have constants (threshold, leak) that are no weights.
    network.load_state_dict(load_file(WEIGHTS), strict=False)
    return network.eval()


def example_inputs() -> tuple[Tensor, ...]:
    """One image of the training split; it fixes the shape and the dtype of the input."""
    images, _ = train_split()
    return (images[:1],)


def calibration_data() -> Tensor:
    """Images of the training split, on which activity is counted."""
    images, _ = train_split()
    return images[:CALIBRATION_SAMPLES]


def evaluation_data() -> tuple[Tensor, Tensor]:
    """The held-out images and labels."""
    _, _, images, labels = _splits()
    return images, labels


def metric(outputs: Tensor, targets: Tensor) -> float:
    """Accuracy: the fraction of images whose largest current is at the label."""
    return (outputs.argmax(dim=-1) == targets).to(torch.float64).mean().item()


def training_data() -> list[tuple[Tensor, Tensor]]:
    """The training split as batches of (images, labels)."""
    images, labels = train_split()
    return list(zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))


def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of the currents against the labels of the batch."""
    _, labels = batch
    return functional.cross_entropy(outputs, labels)
