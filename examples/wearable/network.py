"""A spiking convolutional network for six-axis motion sensors, and windows cut from recordings.

Three stages of convolution, normalisation, leaky neurons and average pooling run along the
sensor's own time axis: a sample of the sensor is a time step of the neurons. Shapes, threshold,
leak and kernel are those of the SFCN in Intelligent-Computing-Lab-Yale/SNN_HAR
(models/backbones.py); two things differ. snnTorch's neurons subtract the threshold in the step
after a spike, undiminished by the leak, where SNN_HAR's leak what is left after the subtraction;
and gradients use the arctangent surrogate of the same height (1) in place of a triangle.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import snntorch
import torch
from safetensors.torch import load_file
from snntorch import surrogate
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent

AXES = 6
WINDOW = 128
"""Samples of a window: 2.56 s at 50 Hz; windows overlap by half."""
CHANNELS = (32, 64, 128)
LABELLED = 200
"""Windows that a new wearer labels: 200 of them, half overlapping, are 257 s of wear."""


class Neurons(nn.Module):
    """Leaky integrate-and-fire neurons whose time is the last axis of ``[B, channels, T]``."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron = snntorch.Leaky(
            beta=0.75,
            threshold=0.5,
            reset_mechanism="subtract",
            spike_grad=surrogate.atan(alpha=2.0),
        )

    def forward(self, x: Tensor) -> Tensor:
        membrane = self.neuron.init_leaky()
        spikes = []
        for step in range(x.shape[-1]):
            fired, membrane = self.neuron(x[..., step], membrane)
            spikes.append(fired)
        return torch.stack(spikes, dim=-1)


def stage(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, normalisation, neurons, pooling: halves the time axis."""
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, kernel_size=8, padding=4, bias=False),
        nn.BatchNorm1d(outputs),
        Neurons(),
        nn.AvgPool1d(2, padding=1),
    )


class WearableNetwork(nn.Module):
    """Maps windows ``float32 [N, 6, 128]`` to scores ``[N, classes]``."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        first, second, third = CHANNELS
        self.stage1 = stage(AXES, first)
        self.dropout = nn.Dropout(0.35)
        self.stage2 = stage(first, second)
        self.stage3 = stage(second, third)
        steps = WINDOW
        for _ in CHANNELS:
            # A kernel of 8 with padding 4 adds a step; pooling by 2 with padding 1 follows.
            steps = (steps + 1) // 2 + 1
        self.classifier = nn.Linear(third * steps, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.stage1(x))
        return self.classifier(self.stage3(self.stage2(x)).flatten(1))


def trained(classes: int, weights: Path) -> nn.Module:
    """The network in evaluation mode, with the weights that ``train.py`` wrote."""
    network = WearableNetwork(classes)
    if not weights.is_file():
        raise FileNotFoundError(f"no {weights.name}: run `python train.py {weights.stem}` first")
    # Neurons have constants (threshold, leak) that are no weights.
    network.load_state_dict(load_file(weights), strict=False)
    return network.eval()


@dataclass(frozen=True)
class Windows:
    """Labelled windows: ``x`` float32 ``[N, 6, 128]``, ``y`` int64 ``[N]``, who wore the sensor.

    ``recording`` numbers the recordings, ``start`` is the window's place in its recording.
    """

    x: Tensor
    y: Tensor
    subject: Tensor
    recording: Tensor
    start: Tensor

    def __getitem__(self, chosen: Tensor) -> Windows:
        return Windows(
            self.x[chosen],
            self.y[chosen],
            self.subject[chosen],
            self.recording[chosen],
            self.start[chosen],
        )

    def __len__(self) -> int:
        return len(self.y)


def cut(recordings: list[tuple[Tensor, Tensor, int]]) -> Windows:
    """Windows of recordings ``(samples [T, 6], label of each sample, subject)``.

    A window that holds samples of several labels, or of none (-1), is left out.
    """
    x, y, subject, recording, start = [], [], [], [], []
    for number, (samples, labels, wearer) in enumerate(recordings):
        cuts = samples.unfold(0, WINDOW, WINDOW // 2)
        named = labels.unfold(0, WINDOW, WINDOW // 2)
        same = (named == named[:, :1]).all(1) & (named[:, 0] >= 0)
        count = int(same.sum())
        x.append(cuts[same])
        y.append(named[same, 0])
        subject.append(torch.full((count,), wearer))
        recording.append(torch.full((count,), number))
        start.append(torch.nonzero(same)[:, 0] * (WINDOW // 2))
    return Windows(
        torch.cat(x).float().contiguous(),
        torch.cat(y).long(),
        torch.cat(subject),
        torch.cat(recording),
        torch.cat(start),
    )


def divided(held: Windows, share: float, *, by_label: bool = False) -> tuple[Windows, Windows]:
    """The windows of the first ``share`` of each recording, and those behind it.

    ``by_label`` divides the windows of each label in a recording by their number. A window of the
    first part that overlaps one of the second is in neither.
    """
    late = torch.zeros(len(held), dtype=torch.bool)
    for number in held.recording.unique():
        rows = held.recording == number
        if not by_label:
            late |= rows & (held.start > share * held.start[rows].max())
            continue
        for label in held.y[rows].unique():
            places = torch.nonzero(rows & (held.y == label))[:, 0]
            late[places[round(share * len(places)) :]] = True
    overlapping = torch.zeros_like(late)
    overlapping[:-1] = late[1:] & (held.start[1:] - held.start[:-1] < WINDOW)
    return held[~late & ~overlapping], held[late]


def shuffled(windows: Windows, count: int | None = None, seed: int = 0) -> Windows:
    """Windows in random order, the first ``count`` of them."""
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    return windows[order[:count]]


def metric(outputs: Tensor, targets: Tensor) -> float:
    """Accuracy: the share of windows whose largest score is at the label."""
    return (outputs.argmax(dim=-1) == targets).to(torch.float64).mean().item()
