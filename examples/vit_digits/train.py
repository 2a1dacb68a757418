"""Trains the vision transformer and writes ``vit_digits.safetensors`` next to this file.

About a minute on a CPU core. The seeds and the algorithms are fixed, so a run on the same machine
and torch version gives the same weights. The test images choose nothing: they are looked at once,
at the end.
"""

from __future__ import annotations

import torch
from model import BATCH_SIZE, WEIGHTS, VisionTransformer, loss, metric, splits
from safetensors.torch import save_file

EPOCHS = 40
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.01


def main() -> None:
    """Trains from scratch, reports the accuracy on the test images and saves the weights."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    (images, labels), test = splits()
    network = VisionTransformer()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    steps = EPOCHS * -(-len(images) // BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=steps
    )
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images)).split(BATCH_SIZE):
            optimizer.zero_grad()
            value = loss(network(images[index]), (images[index], labels[index]))
            value.backward()
            optimizer.step()
            scheduler.step()
    network.eval()
    with torch.no_grad():
        print(f"test accuracy {metric(network(test[0]), test[1]):.4f} of {len(test[1])}")
    save_file(network.state_dict(), WEIGHTS)


if __name__ == "__main__":
    main()
