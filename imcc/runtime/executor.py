"""The executor: deploys a program once for each set of trials, then runs inference in batches.

R trials are folded into the leading axis of a batch, trial-major (row ``r * B + b``). Chunks bound
memory; since draws are keyed by (seed, stream, trial, sample), results do not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from imcc.backends.api import Backend, Target
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.ir.dims import Monomial
from imcc.ir.module import Module
from imcc.ir.ops import Op
from imcc.ir.semantics.draws import Draws
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.types import TensorType, Type
from imcc.passes.infrastructure import Progress, no_progress

MAX_FOLDED = 512
"""Rows (trials times samples) that run together at most."""


@dataclass(frozen=True)
class Device:
    """One device: the seed and the number of the trial that its noise is drawn by, or none."""

    seed: int = 0
    trial: int = 0
    noisy: bool = True


@dataclass
class Executor:
    """Runs the entry points of one module on one target.

    ``backend`` and ``target`` None run the neutral meaning (a captured module, for instance).
    ``adapted`` are states that on-line adaptation left, and the device that adapted.
    """

    module: Module
    resources: ResourceStore
    target: Target | None = None
    backend: Backend | None = None
    adapted: tuple[Device, Mapping[str, Any]] | None = None
    _deployed: dict[Any, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Load the backend's rules."""
        if self.backend is not None:
            self.backend.load_rules()

    def run(
        self,
        inputs: Sequence[Tensor],
        *,
        trials: Sequence[int] = (0,),
        seed: int = 0,
        noisy: bool = True,
        first_sample: int = 0,
        progress: Progress = no_progress,
    ) -> list[Tensor]:
        """Outputs of ``@inference``, each ``[R, ...]`` with the batch where the types have it.

        The batch B is the first axis of the inputs, or the second behind the time axis (an input
        without a batch axis is handed to every chunk whole). An axis ``c*B`` holds the c rows of a
        sample together. A program of a fixed batch size takes batches of that size,
        and its trials run one after another. ``trials`` are the numbers of the trials to run;
        sample b has the number ``first_sample + b``. With ``noisy`` false nothing is drawn and one
        trial runs.
        """
        batch = self.batch_size(inputs)
        if not noisy:
            trials = tuple(trials)[:1]
        parts: list[list[list[Tensor]]] = []
        total = len(trials) * batch
        done = 0
        # Trials fold into the batch, and so does a part of it: not where its size is fixed.
        fixed = self.module.function("inference").fixed_batch is not None
        folded = 1 if fixed else max(1, MAX_FOLDED // max(1, min(batch, 64)))
        for group in _runs(tuple(trials), folded):
            row: list[list[Tensor]] = []
            for start, stop in _chunks(batch, batch if fixed else max(1, MAX_FOLDED // len(group))):
                progress(done, total, "run")
                samples = tuple(range(first_sample + start, first_sample + stop))
                draws = Draws(seed, group, samples) if noisy else None
                row.append(self._call(inputs, start, stop, batch, group, seed, draws))
                done += len(group) * (stop - start)
            parts.append(row)
        progress(total, total, "run")
        axes = [axis for axis, _ in self._output_axes()]
        return [
            torch.cat([torch.cat([part[i] for part in row], dim=axis + 1) for row in parts], dim=0)
            for i, axis in enumerate(axes)
        ]

    def _call(
        self,
        inputs: Sequence[Tensor],
        start: int,
        stop: int,
        batch: int,
        group: tuple[int, ...],
        seed: int,
        draws: Draws | None,
    ) -> list[Tensor]:
        count = stop - start
        folded = [
            self._fold(given, index, start, stop, len(group)) for index, given in enumerate(inputs)
        ]
        with torch.no_grad():
            made = evaluate_function(
                self.module.function("inference"),
                folded,
                resources=self.resources,
                states=self._states(group, seed, draws is not None),
                backend=self.backend.name if self.backend is not None else None,
                target=self.target,
                draws=draws,
                trials=len(group),
            )
        parts: list[Tensor] = []
        axes = zip(made.outputs, self._output_axes(), strict=True)
        for number, (output, (axis, factor)) in enumerate(axes):
            rows = len(group) * count * factor
            if output.dim() <= axis or output.shape[axis] != rows:
                raise self._no_batch(number, output, rows)
            trials = output.unflatten(axis, (len(group), count * factor))
            parts.append(trials.movedim(axis, 0))
        return parts

    def _output_axes(self) -> list[tuple[int, int]]:
        """Batch axis of each output and the rows there for one sample."""
        results = self.module.function("inference").results
        return [_batch_axis(item.type) or (0, 1) for item in results if item.state is None]

    def _no_batch(self, number: int, output: Tensor, rows: int) -> DiagnosticError:
        function = self.module.function("inference")
        last = next(op for op in function.ops if op.terminator)
        made = [
            value
            for value, declared in zip(last.operands, function.results, strict=True)
            if declared.state is None
        ][number]
        whole = [v.name for i, v in enumerate(function.inputs) if self._place(i) is None]
        return error(
            codes.UNSUPPORTED_FORM,
            f"output {number} of shape {list(output.shape)} has no batch axis of {rows}",
            model=made.owner.loc if isinstance(made.owner, Op) else (),
            reason=f"{', '.join('%' + name for name in whole)}: the first axis of these inputs had "
            "another size in example_inputs than the first input's, so that it is no batch"
            if whole and len(whole) < len(function.inputs)
            else "",
            help="let the model return tensors whose first axis is the batch",
        )

    def _fold(self, given: Tensor, index: int, start: int, stop: int, trials: int) -> Tensor:
        place = self._place(index)
        if place is None:
            return given
        axis, factor = place
        part = given.narrow(axis, start * factor, (stop - start) * factor)
        return torch.cat([part] * trials, dim=axis) if trials > 1 else part

    def _place(self, index: int) -> tuple[int, int] | None:
        """Batch axis of an input and the rows there for one sample, if it has one."""
        return _batch_axis(self.module.function("inference").inputs[index].type)

    def batch_size(self, inputs: Sequence[Tensor]) -> int:
        """Samples in a call's inputs; raises ``BAD_INPUT`` for inputs that do not fit together."""
        wanted = self.module.function("inference").inputs
        if len(inputs) != len(wanted):
            names = ", ".join(f"%{value.name}" for value in wanted)
            raise error(
                codes.BAD_INPUT,
                f"the program takes {len(wanted)} inputs ({names}), {len(inputs)} given",
            )
        for value, given in zip(wanted, inputs, strict=True):
            if given.is_floating_point() and not bool(torch.isfinite(given).all()):
                raise error(
                    codes.BAD_INPUT,
                    f"input %{value.name} holds NaN or infinity",
                    help="a quantised program would turn them into ordinary codes; clean the input",
                )
        sizes: set[int] = set()
        for index, given in enumerate(inputs):
            place = self._place(index)
            if place is not None and given.dim() > place[0]:
                sizes.add(int(given.shape[place[0]]) // place[1])
        if len(sizes) > 1:
            raise error(codes.BAD_INPUT, f"inputs have different batch sizes {sorted(sizes)}")
        if not sizes:
            return int(inputs[0].shape[0]) if inputs and inputs[0].dim() else 1
        (size,) = sizes
        if size == 0:
            raise error(codes.BAD_INPUT, "the batch is empty")
        return size

    def deployed(self, device: Device) -> dict[str, Any]:
        """States of one device as the deploy functions leave them."""
        return self._deploy((device.trial,), device.seed, device.noisy)

    def _states(self, group: tuple[int, ...], seed: int, noisy: bool) -> Mapping[str, Any]:
        """States that inference starts from: as deployed, then as adapted."""
        states = self._deploy(group, seed, noisy)
        if self.adapted is None:
            return states
        device, adapted = self.adapted
        same = group == (device.trial,) and (seed, noisy) == (device.seed, device.noisy)
        if not same and not all(isinstance(value, Tensor) for value in adapted.values()):
            asked = f"seed {seed}, trials {list(group)}, {'noisy' if noisy else 'without noise'}"
            raise error(
                codes.USAGE,
                f"one device adapted (seed {device.seed}, trial {device.trial}, "
                f"{'noisy' if device.noisy else 'without noise'}); asked was for {asked}",
                help="cells are adapted on one device: ask for that one, or for the initial state",
            )
        return {**states, **adapted}

    def _deploy(self, group: tuple[int, ...], seed: int, noisy: bool) -> dict[str, Any]:
        """States after the deploy functions ran for these trials; the last set is kept."""
        key = (group, seed, noisy)
        if key not in self._deployed:
            states: dict[str, Any] = {}
            for name in self.backend.deploy_functions if self.backend is not None else ():
                function = self.module.functions.get(name)
                if function is None:
                    continue
                states = evaluate_function(
                    function,
                    (),
                    resources=self.resources,
                    states=states,
                    backend=self.backend.name if self.backend is not None else None,
                    target=self.target,
                    draws=Draws(seed, group, (0,)) if noisy else None,
                    trials=len(group),
                ).states
            self._deployed = {key: states}
        return self._deployed[key]


def _batch_axis(kind: Type) -> tuple[int, int] | None:
    """The axis of a type that holds the batch, and how many rows a sample has there."""
    axis = kind.batch_axis if isinstance(kind, TensorType) else None
    if axis is None or not isinstance(kind, TensorType):
        return None
    size = kind.shape[axis]
    return (axis, size.coefficient) if isinstance(size, Monomial) else None


def _runs(trials: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(trials), size):
        yield trials[start : start + size]


def _chunks(batch: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, batch, size):
        yield start, min(batch, start + size)
