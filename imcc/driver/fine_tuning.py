"""Fine-tuning a user's model through a target's noisy simulator: weights by their own names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from imcc._version import __version__
from imcc.backends.api import find_backend
from imcc.backends.targets import find_target
from imcc.driver.compiler import calibration_tensors, compile_file, start_from
from imcc.driver.data import as_inputs
from imcc.driver.options import CompileOptions
from imcc.driver.stages import Start
from imcc.driver.training import training_batches, training_loss
from imcc.frontend.model_file import ModelFile, load_model_file
from imcc.passes.infrastructure import Progress, no_progress
from imcc.runtime.output import check_new_file, new_file
from imcc.training import FineTuned, Recipe, fine_tune, trainable

NOTES = (
    "no dropout: what is trained is the program of inference",
    "batch norms use their running statistics, which stay as they are",
    "ranges of inputs and converters are those that calibration found before training",
)
"""What every training does, whatever the model does under torch's train()."""

AVERAGED = 10
"""Steps that the first and the last loss of a report are means over, at most half of all."""


@dataclass(frozen=True)
class Trained:
    """A fine-tuned model: ``state_dict`` under the user's names, and what was done."""

    state_dict: dict[str, Tensor]
    report_data: dict[str, Any]

    def report(self) -> dict[str, Any]:
        """Settings, losses, what was trained, and accuracy before and after if it was measured."""
        return dict(self.report_data)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the weights as safetensors; ``model.load_state_dict(load_file(path))`` reads them.

        Raises ``OUTPUT`` if the file exists and ``force`` is false, or cannot be written.
        """
        from safetensors.torch import save_file

        check_new_file(Path(path), force=force)
        with new_file(Path(path)) as beside:
            save_file({name: item.contiguous() for name, item in self.state_dict.items()}, beside)


def train_file(
    spec: str | ModelFile,
    options: CompileOptions,
    recipe: Recipe | None = None,
    progress: Progress = no_progress,
    *,
    data: str | Path | None = None,
    checkpoint: str | Path | None = None,
) -> Trained:
    """Fine-tune the network of a model file under the noise of ``options.target``.

    The file offers ``training_data()``, batches ``(inputs, ...)``, and ``loss(outputs, batch)``,
    beside what compiling needs. With ``options.trials`` accuracy is measured before and after. The
    network's own weights are left as they were. See :func:`imcc.training.fine_tune`.
    """
    held = spec if isinstance(spec, ModelFile) else load_model_file(spec, data)
    recipe = recipe if recipe is not None else Recipe(seed=options.seed)
    given = held.require("training_data", "training")
    loss = held.require("loss", "training")
    if options.trials:
        held.require("evaluation_data", "measuring what training does")
        held.require("metric", "measuring what training does")
    target = find_target(options.target, options.overrides)
    start = start_from(held.module, held.example_inputs, options, "model", held)
    calibration = held.calibration_data() if held.calibration_data is not None else None
    batches = training_batches(given(), start.signature, start.module.function().fixed_batch)
    options = dataclasses.replace(options, sweep=False)
    before = compile_file(held, options, progress) if options.trials else None
    made = fine_tune(
        start.module,
        start.resources,
        batches,
        training_loss(loss, start.signature),
        recipe,
        target=target,
        passes=options.passes,
        calibration=calibration_tensors(calibration, held.example_inputs, options, start.signature),
        names=_names(held.module, start),
        checkpoint=checkpoint,
        progress=progress,
    )
    weights = _state_dict(held.module, made)
    accuracy: dict[str, Any] | None = None
    if before is not None:
        after = _with_weights(held, weights, lambda: compile_file(held, options, progress))
        accuracy = {
            "before": before.report()["accuracy"],
            "after": after.report()["accuracy"],
        }
    backend = find_backend(target.backend)
    averaged = max(1, min(AVERAGED, len(made.losses) // 2))
    report = {
        "imcc_version": __version__,
        "model": {"name": start.model, "file": start.file},
        "target": {"name": target.name, "backend": target.backend, "sha256": target.sha256},
        "pipeline": options.passes if options.passes is not None else backend.pipeline(target),
        "recipe": dataclasses.asdict(recipe),
        "batches": len(batches),
        "loss": {
            "first": _mean(made.losses[:averaged]),
            "last": _mean(made.losses[-averaged:]),
            "averaged_steps": averaged,
            "steps": list(made.losses),
        },
        "trained": list(made.trained),
        "untouched": list(made.untouched),
        "notes": list(NOTES),
        "accuracy": accuracy,
    }
    return Trained(weights, report)


def train(
    model: nn.Module,
    example_inputs: Any,
    target: str = "rram",
    *,
    training_data: Any,
    loss: Callable[[Any, Any], Any],
    recipe: Recipe | None = None,
    passes: str | None = None,
    overrides: Sequence[str] = (),
    calibration: Any = None,
    evaluation: Any = None,
    metric: Callable[[Any, Any], Any] | None = None,
    trials: int = 0,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Progress = no_progress,
) -> Trained:
    """Fine-tune a PyTorch model under a target's noise; the model itself is not changed.

    ``training_data`` is a list of batches ``(inputs, ...)``, of which ``loss(outputs, batch)`` gets
    the whole. The other arguments are those of :func:`imcc.compile`; ``recipe`` says how long and
    how (:class:`imcc.training.Recipe`).
    """
    held = ModelFile(
        path=Path("model.py"),
        module=model,
        example_inputs=as_inputs(example_inputs),
        calibration_data=None if calibration is None else lambda: calibration,
        evaluation_data=None if evaluation is None else lambda: evaluation,
        metric=metric,
        training_data=lambda: training_data,
        loss=loss,
    )
    options = CompileOptions(target, tuple(overrides), passes, trials, seed)
    return train_file(held, options, recipe, progress, checkpoint=checkpoint)


def _names(model: nn.Module | ExportedProgram, start: Start) -> tuple[str, ...]:
    """Parameters that the user lets be trained, as far as the program has them."""
    if not isinstance(model, nn.Module):
        return trainable(start.module)
    wanted = [name for name, item in model.named_parameters() if item.requires_grad]
    return tuple(name for name in wanted if name in start.resources)


def _state_dict(model: nn.Module | ExportedProgram, made: FineTuned) -> dict[str, Tensor]:
    """The model's state with what was trained, each entry in memory of its own.

    Parameters that share their memory are one resource, under the first name.
    """
    state: dict[str, Tensor] = dict(model.state_dict())
    places = {state[name].data_ptr(): name for name in made.trained if name in state}
    weights: dict[str, Tensor] = {}
    for name, tensor in state.items():
        source = places.get(tensor.data_ptr())
        new = made.resources.get(source) if source is not None else tensor
        weights[name] = new.detach().clone().reshape(tensor.shape).to(tensor.dtype)
    return weights


def _with_weights(held: ModelFile, weights: dict[str, Tensor], run: Callable[[], Any]) -> Any:
    """What ``run`` gives while the network has other weights."""
    module: Any = held.module
    kept = {name: item.detach().clone() for name, item in module.state_dict().items()}
    module.load_state_dict(weights)
    try:
        return run()
    finally:
        module.load_state_dict(kept)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
