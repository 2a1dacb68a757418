"""Trains the vision transformer and writes ``vit_fashion.safetensors`` next to this file.

About six minutes on a free CPU core; it needs the 60,000 training images (docs/data.md). The
seeds and the algorithms are fixed, so a run on the same machine and torch version gives the same
weights. The test images choose nothing: they are looked at once, at the end.
"""

from __future__ import annotations

import time

import torch
from model import (
    BATCH_SIZE,
    WEIGHTS,
    VisionTransformer,
    loss,
    metric,
    test_split,
    train_split,
)
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

SEED = 0
EPOCHS = 6
PEAK_LEARNING_RATE = 3e-3
WARM_UP = 0.15
"""Share of the steps in which the learning rate rises."""
WEIGHT_DECAY = 0.05
SHIFT = 2
"""Pixels by which a batch is shifted at most."""


def augment(images: Tensor) -> Tensor:
    """Mirrors half of the images, and shifts all of them by the same few pixels."""
    mirrored = torch.rand(len(images)) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    row, column = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
    padded = functional.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT))
    return padded[:, :, row : row + 28, column : column + 28]


def accuracy(network: VisionTransformer, images: Tensor, labels: Tensor) -> float:
    """Accuracy in pieces: a sample of the test images at a time."""
    with torch.no_grad():
        outputs = torch.cat([network(piece) for piece in images.split(500)])
    return metric(outputs, labels)


def train() -> VisionTransformer:
    """Trains from scratch on the training split and returns the network in evaluation mode."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    images, labels = train_split()
    network = VisionTransformer()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    steps = len(images) // BATCH_SIZE
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * steps, pct_start=WARM_UP
    )
    for epoch in range(EPOCHS):
        begin, total = time.perf_counter(), 0.0
        for index in torch.randperm(len(images))[: steps * BATCH_SIZE].split(BATCH_SIZE):
            batch = augment(images[index]), labels[index]
            optimizer.zero_grad()
            value = loss(network(batch[0]), batch)
            value.backward()
            optimizer.step()
            scheduler.step()
            total += value.item()
        seconds = time.perf_counter() - begin
        print(
            f"epoch {epoch + 1:2d}  training loss {total / steps:.4f}  {seconds:.0f} s", flush=True
        )
        # A run that is broken off leaves what it has.
        save_file(network.state_dict(), WEIGHTS)
    return network.eval()


def main() -> None:
    """Trains, reports the accuracies and saves the weights."""
    network = train()
    for name, (images, labels) in (("training", train_split()), ("test", test_split())):
        images, labels = images[:2500], labels[:2500]
        print(f"{name:8s}  accuracy {accuracy(network, images, labels):.4f} of {len(labels)}")
    print(f"wrote {WEIGHTS.name}, {WEIGHTS.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
