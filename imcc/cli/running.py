"""``imcc run``: a metric over trials, or outputs for given inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imcc.driver import CompiledModel
from imcc.driver.data import evaluation_set
from imcc.frontend.model_file import load_model_file
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.passes.infrastructure import Progress
from imcc.runtime.trials import run_trials


def run_metric(
    made: CompiledModel, model: str, trials: int, seed: int, noisy: bool, progress: Progress
) -> dict[str, Any]:
    """The metric of the model file over trials."""
    held = load_model_file(model)
    inputs, targets = evaluation_set(held.require("evaluation_data", "evaluation")())
    metric = held.require("metric", "evaluation")
    statistics = run_trials(
        made.executor,
        made.signature.flatten(inputs),
        targets,
        metric,
        trials=trials,
        seed=seed,
        noisy=noisy,
        rebuild=made.signature.rebuild,
        progress=progress,
    )
    target = made.target
    return {
        "target": target.name,
        "target_sha256": target.sha256,
        "seed": seed,
        "noisy": noisy,
        **statistics.to_json(),
    }


def run_data(
    made: CompiledModel,
    data: Path,
    output: Path,
    trials: int,
    seed: int,
    noisy: bool,
    force: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Outputs for inputs from a file, written as ``output0``, ``output1``... ``[R, B, ...]``."""
    if output.exists() and not force:
        raise error(codes.OUTPUT, f"{output} exists already", help="pass --force to replace it")
    inputs = _read_inputs(data, [value.name for value in made.module.function().inputs])
    outputs = made.executor.run(
        inputs, trials=range(trials), seed=seed, noisy=noisy, progress=progress
    )
    beside = output.with_name(f".{output.name}.part.npz")
    try:
        arrays: Any = {f"output{i}": value.numpy() for i, value in enumerate(outputs)}
        np.savez(beside, **arrays)
        beside.replace(output)
    except OSError as wrong:
        raise error(codes.OUTPUT, f"cannot write {output}: {wrong.strerror or wrong}") from None
    return {
        "written": str(output),
        "shapes": [list(value.shape) for value in outputs],
        "seed": seed,
        "noisy": noisy,
    }


def _read_inputs(path: Path, names: list[str]) -> list[Tensor]:
    """Tensors by the program's input names, or in the file's order where names differ."""
    if not path.is_file():
        raise error(codes.BAD_DATA, f"{path} does not exist")
    if path.suffix not in (".npz", ".safetensors"):
        raise error(
            codes.BAD_DATA,
            f"{path} is neither .npz nor .safetensors",
            help="write arrays with numpy.savez or tensors with safetensors",
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            held = load_file(str(path))
        else:
            with np.load(path, allow_pickle=False) as file:
                held = {name: torch.from_numpy(file[name]) for name in file.files}
    except Exception as wrong:
        raise error(
            codes.BAD_DATA,
            f"{path} cannot be read ({type(wrong).__name__}): it is damaged or holds objects",
            help="give an .npz or .safetensors file with one array for each input",
        ) from None
    if set(names) <= set(held):
        return [held[name] for name in names]
    if len(held) != len(names):
        raise error(codes.BAD_DATA, f"{path} holds {sorted(held)}, the program takes {names}")
    return list(held.values())
