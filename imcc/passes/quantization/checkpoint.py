"""Finished blocks on disk, so that a killed run goes on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.passes.quantization.blocks import Block, Layer
from imcc.passes.quantization.grid import Coded, Grid, WeightFormat
from imcc.passes.quantization.scaling import Fold

IDENTITY = "run"


@dataclass(frozen=True)
class Solution:
    """What quantising a block found: codes by layer, and constants that changed with scales."""

    coded: dict[Layer, Coded]
    folds: list[Fold]


class BlockCheckpoint:
    """A folder with one safetensors file for each finished block of one run.

    ``identity`` is a hash over everything that the result depends on; a folder of another run is
    refused.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as wrong:
            raise error(codes.OUTPUT, f"checkpoint folder {folder}: {wrong}") from None

    def write(self, index: int, block: Block, found: Solution) -> None:
        """Keep a block's solution: written beside and renamed, so that it is whole or absent."""
        from safetensors.torch import save_file

        position = {op: number for number, op in enumerate(block.ops)}
        tensors: dict[str, Tensor] = {}
        for layer, coded in found.coded.items():
            base = f"layer.{position[layer]}"
            tensors[f"{base}.codes"] = coded.codes
            tensors[f"{base}.scale"] = coded.grid.scale
            tensors[f"{base}.zero_point"] = coded.grid.zero_point
        for number, fold in enumerate(found.folds):
            tensors[f"fold.{number:04}.{position[fold.op]}.{fold.operand}"] = fold.tensor
        path = self._path(index)
        beside = path.with_suffix(f".{os.getpid()}.part")
        plain = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()
        }
        try:
            save_file(plain, str(beside), metadata={IDENTITY: self.identity})
            beside.replace(path)
        except OSError as wrong:
            beside.unlink(missing_ok=True)
            raise error(codes.OUTPUT, f"checkpoint {path}: {wrong}") from None

    def read(
        self, index: int, block: Block, formats: Mapping[Layer, WeightFormat]
    ) -> Solution | None:
        """The solution kept for a block, or None; raises a diagnostic for another run's file."""
        from safetensors import SafetensorError, safe_open

        path = self._path(index)
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                same = (file.metadata() or {}).get(IDENTITY) == self.identity
                names = file.keys() if same else ()
                held = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as wrong:
            raise error(
                codes.ARTIFACT, f"checkpoint {path} cannot be read: {wrong}", help="delete the file"
            ) from None
        if not same:
            raise error(
                codes.BAD_OPTION,
                f"{path} was made by a run with other options, weights, data or seed",
                help="choose another checkpoint folder, or delete this one",
            )
        position = {op: number for number, op in enumerate(block.ops)}
        coded: dict[Layer, Coded] = {}
        for layer, form in formats.items():
            base = f"layer.{position[layer]}"
            grid = Grid(form, held[f"{base}.scale"], held[f"{base}.zero_point"])
            coded[layer] = Coded(held[f"{base}.codes"], grid)
        folds: list[Fold] = []
        for name in sorted(name for name in held if name.startswith("fold.")):
            _, _, number, operand = name.split(".")
            folds.append(Fold(block.ops[int(number)], operand, held[name]))
        return Solution(coded, folds)

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:04}.safetensors"
