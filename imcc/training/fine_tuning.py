"""Variation-aware fine-tuning: training through the noisy simulator of a target."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from imcc.backends.api import Target
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.ir.module import Module, Resource
from imcc.ir.semantics.resources import ResourceStore, tensor_sha256
from imcc.passes.infrastructure import Progress, no_progress
from imcc.training.checkpoint import TrainingCheckpoint, TrainingState
from imcc.training.program import NoisyProgram, trainable

Batch = tuple[Sequence[Tensor], Any]
"""Inputs of ``@inference``, and what the loss gets beside the outputs."""

Loss = Callable[[list[Tensor], Any], Tensor]
"""``loss(outputs, batch)``: a scalar with a gradient."""


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune: ``steps`` of AdamW (Loshchilov and Hutter, ICLR 2019), a batch each.

    The learning rate stays, or falls to 0 along half a cosine. Gradients are scaled down to a norm
    of at most ``clip_norm`` (None: not). With ``noise`` false devices are ideal, which is plain
    quantisation-aware training. ``seed`` sets the order of the batches and every draw of noise: a
    new device in each step, keyed by the step's number.

    ``reads``: ``simulated`` runs the target's simulator, converters and all. ``linear`` leaves
    converters out: products are those of the weights that the drawn cells hold, plus the read noise
    of the sum, many times faster. Gradients are the same kind in both.
    """

    steps: int = 200
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float | None = 1.0
    noise: bool = True
    reads: Literal["simulated", "linear"] = "simulated"
    seed: int = 0
    save_every: int = 25

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name, fine in (
            ("steps", self.steps >= 1),
            ("learning_rate", 0 < self.learning_rate < math.inf),
            ("weight_decay", 0 <= self.weight_decay < math.inf),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0),
            ("save_every", self.save_every >= 1),
        ):
            if not fine:
                raise error(
                    codes.BAD_OPTION,
                    f"{name} is {getattr(self, name)}",
                    help="give a positive number",
                )

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning gives.

    ``module`` is the program that was given, its resources declared with their new hashes, and
    ``resources`` its tensors. ``trained`` names what changed; ``untouched`` what was to be trained
    but has no part in the lowered program, or only through a pass that cannot be differentiated.
    ``losses`` are those of each step.
    """

    module: Module
    resources: ResourceStore
    trained: tuple[str, ...]
    untouched: tuple[str, ...]
    losses: tuple[float, ...]


def fine_tune(
    module: Module,
    resources: ResourceStore,
    batches: Sequence[Batch],
    loss: Loss,
    recipe: Recipe | None = None,
    *,
    target: Target,
    passes: str | None = None,
    calibration: Sequence[tuple[Any, ...]] | None = None,
    names: Sequence[str] | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress = no_progress,
) -> FineTuned:
    """Train the float weights of a program through its target's noisy simulator.

    ``module`` is a program before quantisation (phase ``captured``, or ``optimized`` with float
    weights), which is left as it is: a copy is lowered by ``passes`` (None: what the target's own
    pipeline still has to do), with ranges from ``calibration`` (input tuples). ``names`` are the
    resources to train, by default all floating ones but running statistics. A batch is
    ``(inputs, anything)``; ``loss(outputs, anything)`` gets the outputs of ``@inference``.

    There is no dropout, and batch norms use their running statistics, which do not change: the
    program is the one of inference. With ``checkpoint``, a folder, a run that was stopped goes on
    from its last saved step and ends with the same bits; that promise holds for one device type and
    number of threads.

    Raises :class:`DiagnosticError` for a loss that is not finite (NUMERIC), a loss or data of
    another form (BAD_DATA), a checkpoint of another run (BAD_OPTION), and what lowering raises.
    """
    recipe = recipe if recipe is not None else Recipe()
    if not batches:
        raise error(codes.BAD_DATA, "training_data() returned nothing")
    program = NoisyProgram.lower(
        module,
        resources,
        target,
        passes=passes,
        calibration=calibration,
        seed=recipe.seed,
        linear_reads=recipe.reads == "linear",
        progress=progress,
    )
    wanted = tuple(names) if names is not None else trainable(module)
    trained = program.reached(wanted)
    if not trained:
        raise error(
            codes.UNSUPPORTED_FORM,
            "the lowered program has no weight that can be trained",
            reason="its codes do not follow from float weights by a differentiable rule"
            if wanted
            else "the program has no float weights",
            help="start from a captured program, and round weights to nearest in the passes of a "
            'training: quantize-weights{init="rtn" rounding="nearest"}',
        )
    weights = {name: resources.get(name).detach().clone().requires_grad_() for name in trained}
    state = TrainingState.start(weights, recipe.learning_rate, recipe.weight_decay)
    keeper: TrainingCheckpoint | None = None
    if checkpoint is not None:
        identity = _identity(program, weights, batches, loss, recipe)
        keeper = TrainingCheckpoint(Path(checkpoint), identity)
        keeper.restore(state)
    order = _Order(len(batches), recipe.seed)
    for step in range(len(state.losses), recipe.steps):
        _step(program, state, batches[order.batch(step)], loss, recipe, step)
        done = step + 1
        progress(done, recipe.steps, f"train, loss {state.losses[-1]:.4g}")
        if keeper is not None and (done % recipe.save_every == 0 or done == recipe.steps):
            keeper.save(state)
    made, store = _with(module, resources, state.weights)
    untouched = tuple(name for name in wanted if name not in weights)
    return FineTuned(made, store, trained, untouched, tuple(state.losses))


def _step(
    program: NoisyProgram,
    state: TrainingState,
    batch: Batch,
    loss: Loss,
    recipe: Recipe,
    step: int,
) -> None:
    """One step: a device is drawn, one batch runs on it, the optimiser follows the gradient."""
    inputs, rest = batch
    outputs = program.run(
        state.weights,
        inputs,
        seed=recipe.seed,
        trial=step,
        noisy=recipe.noise,
        linear_reads=recipe.reads == "linear",
    )
    made = scalar_loss(loss, outputs, rest)
    value = float(made.detach())
    if not math.isfinite(value):
        raise error(
            codes.NUMERIC,
            f"the training loss is {value} at step {step}",
            help=f"lower the learning rate (it is {recipe.rate(step):.3g}), or check the data and "
            "loss() for numbers that are not finite",
        )
    state.optimizer.zero_grad()
    made.backward()  # type: ignore[no-untyped-call]
    parameters = list(state.weights.values())
    gradients = [item for item in parameters if item.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(
        gradients, recipe.clip_norm if recipe.clip_norm is not None else math.inf
    )
    if not bool(torch.isfinite(norm)):
        raise error(
            codes.NUMERIC,
            f"the gradient of the training loss is {float(norm)} at step {step}",
            help="the loss is finite but its slope is not: look for a square root or logarithm of "
            "0 in loss()",
        )
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    state.optimizer.step()
    state.losses.append(value)


def scalar_loss(loss: Loss, outputs: list[Tensor], batch: Any) -> Tensor:
    """What the user's loss gives; raises :class:`DiagnosticError` unless it is one number."""
    help_line = "write it as:\ndef loss(outputs, batch):\n    return " + (
        "torch.nn.functional.cross_entropy(outputs, batch[1])"
    )
    try:
        made = loss(outputs, batch)
    except DiagnosticError:
        raise
    except Exception as wrong:
        raise error(
            codes.BAD_DATA,
            f"loss(outputs, batch) failed: {type(wrong).__name__}: {wrong}",
            help=help_line,
        ) from wrong
    if not isinstance(made, Tensor) or made.numel() != 1:
        found = type(made).__name__
        if isinstance(made, Tensor):
            found = f"a tensor of shape {list(made.shape)}"
        raise error(
            codes.BAD_DATA,
            f"loss(outputs, batch) returned {found}, not a scalar",
            help=help_line,
        )
    if torch.is_grad_enabled() and not made.requires_grad:
        raise error(
            codes.BAD_DATA,
            "the loss has no gradient",
            reason="it does not depend on the outputs, or the target's rules compute without "
            "gradients",
            help=help_line,
        )
    return made


class _Order:
    """The batch of each step: every epoch runs through all batches in an order of its own."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._order = -1, torch.arange(count)

    def batch(self, step: int) -> int:
        """The number of the batch of a step; depends on nothing but step and seed."""
        epoch, place = divmod(step, self.count)
        if epoch != self._epoch:
            digest = hashlib.blake2b(f"{self.seed}/{epoch}".encode(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
            self._order = torch.randperm(self.count, generator=generator)
            self._epoch = epoch
        return int(self._order[place])


def _with(
    module: Module, resources: ResourceStore, weights: dict[str, Tensor]
) -> tuple[Module, ResourceStore]:
    """The program with other numbers: names, shapes and ops stay, hashes change."""
    made = module.clone()
    new = {name: tensor.detach().clone() for name, tensor in weights.items()}
    for name, tensor in new.items():
        held: Resource = made.resources[name]
        made.resources[name] = dataclasses.replace(held, sha256=tensor_sha256(tensor))
    return made, resources.bind(new)


def _identity(
    program: NoisyProgram,
    weights: dict[str, Tensor],
    batches: Sequence[Batch],
    loss: Loss,
    recipe: Recipe,
) -> str:
    """What the result depends on: program, target, recipe, first weights, training data, loss.

    Where the model's file lies and what it is called play no part.
    """
    from torch.utils._pytree import tree_leaves

    from imcc.ir.text import print_module

    fixed = dataclasses.replace(recipe, save_every=1)
    digest = hashlib.sha256(f"{fixed} {program.target.sha256}".encode())
    # Behind the format's version and the module's name.
    program_text = print_module(program.module, locations=False).split("\n", 2)[2]
    digest.update(program_text.encode())
    digest.update(_source(loss).encode())
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor_sha256(tensor)}".encode())
    for batch in batches:
        for item in tree_leaves(batch):
            shown = tensor_sha256(item) if isinstance(item, Tensor) else repr(item)
            digest.update(shown.encode())
    return digest.hexdigest()


def _source(loss: Loss) -> str:
    """The text of a loss, of its code where there is no text; wrappers are looked through."""
    loss = inspect.unwrap(loss)
    try:
        return inspect.getsource(loss)
    except (OSError, TypeError):
        code = getattr(loss, "__code__", None)
        return repr((code.co_code, code.co_consts, code.co_names)) if code else repr(type(loss))
