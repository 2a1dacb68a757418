"""``imcc run``: a metric over trials, or outputs for given inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from imcc.driver import CompiledModel
from imcc.driver.data import evaluation_set
from imcc.frontend.model_file import load_data_file
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.semantics.tensor_files import read_inputs
from imcc.passes.infrastructure import Progress
from imcc.runtime.trials import run_trials


def run_metric(
    made: CompiledModel, model: str, trials: int, seed: int, noisy: bool, progress: Progress
) -> dict[str, Any]:
    """The metric of the model file over trials."""
    held = load_data_file(model)
    inputs, targets = evaluation_set(held.require("evaluation_data", "evaluation")())
    metric = held.require("metric", "evaluation")
    statistics = run_trials(
        made.executor,
        made.signature.tensors(inputs),
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
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as wrong:
        raise error(
            codes.OUTPUT, f"cannot create {output.parent}: {wrong.strerror or wrong}"
        ) from None
    inputs = read_inputs(data, [value.name for value in made.module.function().inputs])
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
