"""Trains the spiking digits network, prunes it, and writes ``spiking_digits.safetensors``.

Two minutes on two CPU cores. In three steps the smallest weights of each layer are set to zero and
stay zero while the rest is trained on. The seeds, the split and the algorithms are fixed, so a run
on the same machine and versions gives the same weights.
"""

from __future__ import annotations

import math

import torch
from model import (
    BATCH_SIZE,
    WEIGHTS,
    SpikingDigits,
    evaluation_data,
    loss,
    metric,
    train_split,
)
from safetensors.torch import save_file
from torch import Tensor, nn

SEED = 0
EPOCHS = 45
PRUNE_AT = {12: 0.6, 16: 0.85, 20: 1.0}
"""Epochs before which weights are pruned, and the share of the final sparsity."""
SPARSITY = {"conv1": 0.5, "conv2": 0.9, "conv3": 0.9, "classifier": 0.75}
PEAK_LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-3


def shifted(images: Tensor) -> Tensor:
    """Shifts each image by up to one pixel in each direction."""
    made = torch.zeros_like(images)
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    for index, (row, column) in enumerate(torch.randint(0, 3, (len(images), 2)).tolist()):
        made[index] = padded[index, :, row : row + 8, column : column + 8]
    return made


def masks(network: SpikingDigits, share: float) -> dict[str, Tensor]:
    """Which weights stay: the largest of each layer by magnitude."""
    made = {}
    for name, sparsity in SPARSITY.items():
        weight = network.get_submodule(name).weight.detach()
        kept = torch.ones(weight.numel())
        order = torch.argsort(weight.abs().flatten(), stable=True)
        kept[order[: int(share * sparsity * weight.numel())]] = 0.0
        made[name] = kept.reshape(weight.shape)
    return made


def train() -> SpikingDigits:
    """Trains from scratch on the training split and returns the network in evaluation mode."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    images, labels = train_split()
    network = SpikingDigits()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    steps = math.ceil(len(images) / BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * steps
    )
    kept: dict[str, Tensor] = {}
    for epoch in range(EPOCHS):
        if epoch in PRUNE_AT:
            kept = masks(network, PRUNE_AT[epoch])
        network.train()
        total = 0.0
        for index in torch.randperm(len(images)).split(BATCH_SIZE):
            batch = shifted(images[index]), labels[index]
            optimizer.zero_grad()
            value = loss(network(batch[0]), batch)
            value.backward()
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                for name, mask in kept.items():
                    network.get_submodule(name).weight.mul_(mask)
            total += value.item() * len(index)
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3d}  training loss {total / len(images):.4f}")
    return network.eval()


def main() -> None:
    """Trains, reports both accuracies and saves the weights."""
    network = train()
    with torch.no_grad():
        for name, (images, labels) in (("train", train_split()), ("held-out", evaluation_data())):
            print(f"{name:8s}  accuracy {metric(network(images), labels):.4f} of {len(labels)}")
    weights = {name: network.get_submodule(name).weight.detach() for name in SPARSITY}
    for name, weight in weights.items():
        print(f"{name:10s}  {float((weight == 0).double().mean()):.3f} of {weight.numel()} are 0")
    save_file({f"{name}.weight": weight for name, weight in weights.items()}, WEIGHTS)
    print(f"wrote {WEIGHTS.name}, {WEIGHTS.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
