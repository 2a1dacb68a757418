"""``imcc run``: a metric over trials, or outputs for given inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from imcc.driver import CompiledModel
from imcc.driver.data import evaluation_set
from imcc.frontend.model_file import load_data_file
from imcc.ir.semantics.tensor_files import read_inputs
from imcc.passes.infrastructure import Progress
from imcc.runtime.output import check_new_file, new_file
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
    check_new_file(output, force=force)
    inputs = read_inputs(data, [value.name for value in made.module.function().inputs])
    outputs = made.executor.run(
        inputs, trials=range(trials), seed=seed, noisy=noisy, progress=progress
    )
    arrays: Any = {f"output{i}": value.numpy() for i, value in enumerate(outputs)}
    # numpy appends its suffix to names, not to open files.
    with new_file(output) as work, work.open("wb") as file:
        np.savez(file, **arrays)
    return {
        "written": str(output),
        "shapes": [list(value.shape) for value in outputs],
        "seed": seed,
        "noisy": noisy,
    }
