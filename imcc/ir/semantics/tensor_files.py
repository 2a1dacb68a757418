"""Tensors by name in ``.npz`` and ``.safetensors`` files: inputs of a call, calibration batches.

Calibration batches are one file: ``<name>`` for a single batch, or ``<number>.<name>`` for several,
``0.x``, ``1.x`` and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imcc.ir import codes
from imcc.ir.diagnostics import error, nearest


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Everything in the file by name; raises ``BAD_DATA`` if it cannot be read."""
    if not path.is_file():
        beside = [item.name for item in path.parent.glob("*")] if path.parent.is_dir() else []
        raise error(
            codes.BAD_DATA, f"{path} does not exist", suggestions=nearest(path.name, beside)
        )
    if path.suffix not in (".npz", ".safetensors"):
        raise error(
            codes.BAD_DATA,
            f"{path} is neither .npz nor .safetensors",
            help="write arrays with numpy.savez or tensors with safetensors",
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except Exception as wrong:
        raise error(
            codes.BAD_DATA,
            f"{path} cannot be read ({type(wrong).__name__}): it is damaged or holds objects",
            help="give an .npz or .safetensors file with one array for each input",
        ) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``.npz`` or ``.safetensors`` by the suffix; raises ``OSError``."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: value.clone() for name, value in plain.items()}, str(path))
    else:
        arrays = {name: value.numpy() for name, value in plain.items()}
        np.savez(path, allow_pickle=False, **arrays)


def read_inputs(path: Path, names: Sequence[str]) -> list[Tensor]:
    """Tensors by the program's input names, or in the file's order where all names differ."""
    held = read_tensors(path)
    if set(names) <= set(held):
        return [held[name] for name in names]
    absent = [name for name in names if name not in held]
    if len(held) != len(names) or len(absent) != len(names):
        raise error(
            codes.BAD_DATA,
            f"{path} holds {', '.join(sorted(held)) or 'nothing'}; the program takes "
            f"{', '.join(names)}",
            suggestions=nearest(absent[0], held),
            help="name the arrays like the inputs, for instance "
            f"numpy.savez(file, {absent[0]}=array)",
        )
    return list(held.values())


def write_batches(path: Path, names: Sequence[str], batches: Sequence[Sequence[Tensor]]) -> None:
    """Write calibration batches, each a tuple of tensors by position."""
    tensors = {
        f"{number}.{name}": value
        for number, batch in enumerate(batches)
        for name, value in zip(names, batch, strict=True)
    }
    write_tensors(path, tensors)


def read_batches(path: Path, names: Sequence[str]) -> list[tuple[Tensor, ...]]:
    """Calibration batches as tuples by position; raises ``BAD_DATA`` for missing inputs."""
    held = read_tensors(path)
    numbers = {name.partition(".")[0] for name in held}
    if not all(number.isdigit() for number in numbers):
        return [tuple(read_inputs(path, names))]
    batches: list[tuple[Tensor, ...]] = []
    for number in sorted(numbers, key=int):
        absent = [name for name in names if f"{number}.{name}" not in held]
        if absent:
            raise error(
                codes.BAD_DATA,
                f"{path}: batch {number} lacks the input {absent[0]!r}",
                suggestions=nearest(f"{number}.{absent[0]}", held),
                help=f"the program takes {', '.join(names)}",
            )
        batches.append(tuple(held[f"{number}.{name}"] for name in names))
    return batches
