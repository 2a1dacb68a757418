"""A program under its target's noise, as a differentiable function of float weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from imcc.backends.api import Backend, Target, find_backend
from imcc.ir.dialects import core, nn
from imcc.ir.module import Module
from imcc.ir.semantics.derivations import replay
from imcc.ir.semantics.draws import Draws
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.infrastructure import (
    PassContext,
    Progress,
    begin,
    no_progress,
    parse_pipeline,
    run_pipeline,
)


@dataclass(frozen=True)
class NoisyProgram:
    """A program lowered for a target, whose weights follow from float weights.

    Passes leave in the store how what they made follows from what was there
    (:mod:`imcc.ir.semantics.derivations`); a run replays that with the weights of the moment, lets
    the backend's deploy functions program the hardware anew, and runs ``@inference``. Gradients
    pass straight through rounding and converters, and take a device's deviations for given. Ranges
    of inputs and converters stay those that calibration found.
    """

    module: Module
    resources: ResourceStore
    target: Target
    backend: Backend

    @classmethod
    def lower(
        cls,
        module: Module,
        resources: ResourceStore,
        target: Target,
        *,
        passes: str | None = None,
        calibration: Sequence[tuple[Any, ...]] | None = None,
        seed: int = 0,
        linear_reads: bool = False,
        progress: Progress = no_progress,
    ) -> NoisyProgram:
        """Run ``passes`` on a copy of ``module``, None: the target's own, from the first one on.

        With ``linear_reads`` passes that set converters alone are left out: no run asks for them.
        """
        backend = find_backend(target.backend)
        lowered, store = module.clone(), resources.copy()
        context = PassContext(
            resources=store,
            target=target,
            backend=backend,
            calibration=calibration,
            seed=seed,
            legality=backend.legal,
            progress=progress,
        )
        begin(lowered, context)
        pipeline = parse_pipeline(passes if passes is not None else backend.pipeline(target))
        if linear_reads:
            pipeline = tuple(item for item in pipeline if not item.converters_only)
        run_pipeline(lowered, pipeline, context)
        backend.load_rules()
        return cls(lowered, store, target, backend)

    def run(
        self,
        weights: Mapping[str, Tensor],
        inputs: Sequence[Tensor],
        *,
        seed: int,
        trial: int,
        noisy: bool = True,
        linear_reads: bool = False,
    ) -> list[Tensor]:
        """Outputs of ``@inference`` on one drawn device, with gradients where weights have them.

        Draws have keys of their own: no trial of an evaluation repeats those of a training.
        """
        store = self.resources.bind(replay(self.resources.derivations, weights, self.resources))
        function = self.module.function("inference")
        batch = int(inputs[0].shape[0]) if inputs and inputs[0].dim() else 1
        keyed = _training_seed(seed)
        states: dict[str, Any] = {}
        for name in self.backend.deploy_functions:
            deploy = self.module.functions.get(name)
            if deploy is not None:
                states = evaluate_function(
                    deploy,
                    (),
                    resources=store,
                    states=states,
                    backend=self.backend.name,
                    target=self.target,
                    draws=Draws(keyed, (trial,), (0,)) if noisy else None,
                ).states
        return evaluate_function(
            function,
            inputs,
            resources=store,
            states=states,
            backend=self.backend.name,
            target=self.target,
            draws=Draws(keyed, (trial,), tuple(range(batch))) if noisy else None,
            linear_reads=linear_reads,
        ).outputs

    def reached(self, names: Sequence[str]) -> tuple[str, ...]:
        """Of some resources of the original program, those that this one's numbers follow from."""
        needed = set(_constants(self.module))
        for item in reversed(self.resources.derivations):
            if any(name in needed for name in item.made):
                needed.update(item.sources)
        return tuple(name for name in names if name in needed)


def trainable(module: Module) -> tuple[str, ...]:
    """Floating resources that ops read, without the running statistics of batch norms."""
    fixed: set[str] = set()
    for op in module.walk():
        if isinstance(op, nn.BatchNorm):
            for value in (op.mean, op.var):
                if isinstance(value.owner, core.Constant):
                    fixed.add(str(value.owner.value))
    floats = {"f32", "f64", "f16", "bf16"}
    return tuple(
        name
        for name in _constants(module)
        if name not in fixed and module.resources[name].type.element in floats
    )


def _constants(module: Module) -> list[str]:
    found = (str(op.value) for op in module.walk() if isinstance(op, core.Constant))
    return list(dict.fromkeys(found))


def _training_seed(seed: int) -> int:
    digest = hashlib.blake2b(f"training/{seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
