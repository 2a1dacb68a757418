"""Trains a wearable network: ``python train.py watch`` or ``python train.py hapt``.

A few minutes on one CPU core. The seed, the splits and the algorithms are fixed, so a run on the
same machine and versions gives the same weights.
"""

from __future__ import annotations

import importlib
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from network import FOLDER, WearableNetwork, Windows, metric
from safetensors.torch import save_file
from torch.nn import functional

SEED = 0
BATCH_SIZE = 64
EPOCHS = {"watch": 24, "hapt": 8}
PEAK_LEARNING_RATE = 3e-3


def train(held: Windows, classes: int, epochs: int) -> WearableNetwork:
    """Trains from scratch and returns the network in evaluation mode."""
    torch.manual_seed(SEED)
    network = WearableNetwork(classes)
    optimizer = torch.optim.AdamW(network.parameters())
    steps = epochs * math.ceil(len(held) / BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=steps
    )
    network.train()
    start = time.process_time()
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(held)).split(BATCH_SIZE):
            optimizer.zero_grad()
            value = functional.cross_entropy(network(held.x[index]), held.y[index])
            value.backward()
            optimizer.step()
            scheduler.step()
            total += value.item() * len(index)
        spent = time.process_time() - start
        print(f"epoch {epoch + 1:3d}  loss {total / len(held):.4f}  {spent:.0f} s", flush=True)
    return network.eval()


def accuracy(network: WearableNetwork, held: Windows) -> float:
    """Share of windows that the network classifies as labelled."""
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in held.x.split(256)])
    return metric(outputs, held.y)


def make(name: str, weights: Path | None = None) -> Path:
    """Trains the network of ``watch.py`` or ``hapt.py`` and writes its weights."""
    data: Any = importlib.import_module(name)
    network = train(data.training_windows(), data.CLASSES, EPOCHS[name])
    for what, held in (("training", data.training_windows()), ("known", data.known_windows())):
        print(f"{what:12s} accuracy {accuracy(network, held):.4f} of {len(held)} windows")
    for wearer in data.NEW_WEARERS:
        held = data.test_windows(wearer)
        print(f"wearer {wearer:5d} accuracy {accuracy(network, held):.4f} of {len(held)} windows")
    made = weights or data.WEIGHTS
    # Neurons keep their constants as buffers; they are part of the program, not of the training.
    kept = {
        key: value
        for key, value in network.state_dict().items()
        if ".neuron." not in key and "num_batches" not in key
    }
    save_file(kept, made)
    print(f"wrote {made.name}, {made.stat().st_size / 1024:.0f} KiB")
    return made


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in EPOCHS:
        sys.exit(f"usage: python train.py {'|'.join(EPOCHS)}   (in {FOLDER.name}/)")
    make(sys.argv[1])
