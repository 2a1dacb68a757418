"""Shoulder exercises seen by a smartwatch: seven classes, ten wearers, six axes at 50 Hz.

The data come from the package seglearn (David M. Burns, BSD-3-Clause, see ``watch_f16.LICENSE``).
Seven wearers train the network; the other three are new to it. Of a new wearer, the first half of
each series adapts the network and the second half measures it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from network import FOLDER, LABELLED, Windows, cut, divided, metric, shuffled, trained
from torch import Tensor, nn

__all__ = ["metric"]

CLASSES = 7
WEIGHTS = FOLDER / "watch.safetensors"
NEW_WEARERS = (8, 9, 10)
WEARER = 8


@cache
def windows() -> Windows:
    """All windows; a series holds repetitions of one exercise, done with one arm."""
    held = np.load(FOLDER / "watch_f16.npz")
    samples = torch.from_numpy(held["X"].astype(np.float32))
    ends = np.cumsum(held["L"])
    recordings = []
    for number, (end, length) in enumerate(zip(ends, held["L"], strict=True)):
        part = samples[end - length : end]
        label = torch.full((len(part),), int(held["y"][number]))
        recordings.append((part, label, int(held["subject"][number])))
    return cut(recordings)


def _known() -> Windows:
    held = windows()
    return held[~torch.isin(held.subject, torch.tensor(NEW_WEARERS))]


def _of(wearer: int) -> Windows:
    held = windows()
    return held[held.subject == wearer]


def training_windows() -> Windows:
    """The first four fifths of each series of the known wearers."""
    return divided(_known(), 0.8)[0]


def known_windows() -> Windows:
    """The last fifth of each series of the known wearers: what training did not see."""
    return divided(_known(), 0.8)[1]


def adaptation_windows(wearer: int = WEARER, seed: int = 0) -> Windows:
    """At most 200 labelled windows of a new wearer, in random order."""
    return shuffled(divided(_of(wearer), 0.5)[0], LABELLED, seed)


def test_windows(wearer: int = WEARER) -> Windows:
    """The second half of each series of a new wearer."""
    return divided(_of(wearer), 0.5)[1]


def model() -> nn.Module:
    """The network, trained on the known wearers."""
    return trained(CLASSES, WEIGHTS)


def example_inputs() -> tuple[Tensor, ...]:
    """One window; it fixes the shape and the dtype of the input."""
    return (training_windows().x[:1],)


def calibration_data() -> Tensor:
    """Windows of known wearers, on which ranges are set."""
    return shuffled(training_windows(), 64).x


def adaptation_data() -> tuple[Tensor, Tensor]:
    """The labelled windows of a new wearer."""
    held = adaptation_windows()
    return held.x, held.y


def evaluation_data() -> tuple[Tensor, Tensor]:
    """Windows of the same wearer that adaptation does not see."""
    held = test_windows()
    return held.x, held.y
