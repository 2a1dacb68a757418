"""The state of a training on disk, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from imcc.ir import codes
from imcc.ir.diagnostics import error

FILE = "training.safetensors"
_RUN, _LOSSES = "run", "losses"
_FIRST, _SECOND = "exp_avg", "exp_avg_sq"


@dataclass
class TrainingState:
    """Weights by name, the optimiser, and the loss of each step that was done."""

    weights: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    losses: list[float] = field(default_factory=list)

    @classmethod
    def start(
        cls, weights: Mapping[str, Tensor], learning_rate: float, weight_decay: float
    ) -> TrainingState:
        """At step 0. Decay acts on matrices and filters alone, not on biases and norms."""
        groups = [
            {"params": [w for w in weights.values() if w.dim() >= 2], "weight_decay": weight_decay},
            {"params": [w for w in weights.values() if w.dim() < 2], "weight_decay": 0.0},
        ]
        held = [group for group in groups if group["params"]]
        return cls(dict(weights), torch.optim.AdamW(held, lr=learning_rate))


class TrainingCheckpoint:
    """One safetensors file in a folder: weights, the optimiser's moments, losses so far.

    ``identity`` is a hash over everything that the result depends on; a file of another run is
    refused.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as wrong:
            raise error(codes.OUTPUT, f"checkpoint folder {folder}: {wrong}") from None

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / FILE

    def save(self, state: TrainingState) -> None:
        """Write the state beside and rename, so that the file is whole at any time."""
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        for name, weight in state.weights.items():
            tensors[f"weight.{name}"] = weight
            held = state.optimizer.state.get(weight, {})
            for moment in (_FIRST, _SECOND):
                if moment in held:
                    tensors[f"{moment}.{name}"] = held[moment]
                    tensors[f"step.{name}"] = held["step"]
        plain = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        # Hexadecimal floats read back to the same bits.
        losses = json.dumps([value.hex() for value in state.losses])
        beside = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            save_file(plain, str(beside), metadata={_RUN: self.identity, _LOSSES: losses})
            beside.replace(self.path)
        except OSError as wrong:
            beside.unlink(missing_ok=True)
            raise error(codes.OUTPUT, f"checkpoint {self.path}: {wrong}") from None

    def restore(self, state: TrainingState) -> None:
        """Set the state to the one that was saved, if there is one; raises for another run's."""
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return
        try:
            with safe_open(str(self.path), framework="pt") as file:
                notes = file.metadata() or {}
                same = notes.get(_RUN) == self.identity
                held = {name: file.get_tensor(name) for name in (file.keys() if same else ())}
            losses = [float.fromhex(value) for value in json.loads(notes.get(_LOSSES, "[]"))]
        except (OSError, SafetensorError, ValueError, TypeError) as wrong:
            raise error(
                codes.ARTIFACT,
                f"checkpoint {self.path} cannot be read: {wrong}",
                help="delete the file",
            ) from None
        if not same:
            raise error(
                codes.BAD_OPTION,
                f"{self.path} was made by a run with other weights, data, options, target or seed",
                help="choose another checkpoint folder, or delete this one",
            )
        with torch.no_grad():
            for name, weight in state.weights.items():
                weight.copy_(held[f"weight.{name}"])
                if f"{_FIRST}.{name}" in held:
                    state.optimizer.state[weight] = {
                        "step": held[f"step.{name}"],
                        _FIRST: held[f"{_FIRST}.{name}"],
                        _SECOND: held[f"{_SECOND}.{name}"],
                    }
        state.losses = losses
