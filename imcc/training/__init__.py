"""Training through a simulator: variation-aware fine-tuning of a program's float weights."""

from imcc.training.fine_tuning import Batch, FineTuned, Loss, Recipe, fine_tune, scalar_loss
from imcc.training.program import NoisyProgram, trainable

__all__ = [
    "Batch",
    "FineTuned",
    "Loss",
    "NoisyProgram",
    "Recipe",
    "fine_tune",
    "scalar_loss",
    "trainable",
]
