"""Activities seen by a smartphone at the waist: six classes, thirty wearers, six axes at 50 Hz.

The data are those of UCI's HAPT set in the folder that ``IMCC_DATA`` names (``docs/data.md``).
Twenty-one wearers train the network; nine are new to it. Of a new one, the first half of each
activity of a recording adapts the network and the second measures it: between the two recordings
the phone was put on anew, once by the experimenter and once by the wearer as they liked (Anguita
et al., ESANN 2013), so that one would say little about the other. Postural transitions are left
out, as they are in UCI's HAR set.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from network import FOLDER, LABELLED, Windows, cut, divided, metric, shuffled, trained
from torch import Tensor, nn

__all__ = ["metric"]

CLASSES = 6
WEIGHTS = FOLDER / "hapt.safetensors"
NEW_WEARERS = (2, 4, 9, 10, 12, 13, 18, 20, 24)
"""The subjects of the test set of UCI's HAR, whose wearers these are."""
WEARER = 9


@cache
def windows() -> Windows:
    """All windows of the six basic activities."""
    folder = os.environ.get("IMCC_DATA")
    if folder is None:
        raise FileNotFoundError("IMCC_DATA names no folder with hapt/hapt_int16.npz")
    held = np.load(Path(folder) / "hapt" / "hapt_int16.npz")
    samples = torch.from_numpy((held["x"] * held["scale"]).astype(np.float32))
    # 1 to 6 are activities, 7 to 12 postural transitions, -1 is unlabelled.
    named = held["y"].astype(np.int64) - 1
    labels = torch.from_numpy(np.where(named < CLASSES, named, -1))
    ends = np.cumsum(held["length"])
    return cut(
        [
            (samples[end - length : end], labels[end - length : end], int(user))
            for end, length, user in zip(ends, held["length"], held["user"], strict=True)
        ]
    )


def _known() -> Windows:
    held = windows()
    return held[~torch.isin(held.subject, torch.tensor(NEW_WEARERS))]


def _of(wearer: int) -> tuple[Windows, Windows]:
    """The first half of a wearer's windows of each activity and recording, and the second half."""
    held = windows()
    return divided(held[held.subject == wearer], 0.5, by_label=True)


def training_windows() -> Windows:
    """The first four fifths of each recording of the known wearers."""
    return divided(_known(), 0.8)[0]


def known_windows() -> Windows:
    """The last fifth of each recording of the known wearers: what training did not see."""
    return divided(_known(), 0.8)[1]


def adaptation_windows(wearer: int = WEARER, seed: int = 0) -> Windows:
    """At most 200 labelled windows of a new wearer, in random order."""
    return shuffled(_of(wearer)[0], LABELLED, seed)


def test_windows(wearer: int = WEARER) -> Windows:
    """The later half of a new wearer's windows, of each activity and recording."""
    return _of(wearer)[1]


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
