"""What compilation gives: a callable program with its IR, report and target."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.utils._pytree as pytree
from torch import Tensor

from imcc.backends.api import Target, find_backend
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.module import Module
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.infrastructure import PassRecord
from imcc.runtime.artifact import Artifact, load_artifact, save_artifact
from imcc.runtime.executor import Executor

if TYPE_CHECKING:
    from imcc.frontend.capture import Captured


@dataclass(frozen=True)
class Signature:
    """Structure of a model's arguments and outputs around the flat tensors of ``@inference``."""

    inputs: pytree.TreeSpec
    outputs: pytree.TreeSpec
    constants: Mapping[int, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, captured: Captured) -> Signature:
        """The signature that capture found."""
        return cls(captured.input_spec, captured.output_spec, captured.constant_outputs)

    def flatten(self, arguments: tuple[Any, ...]) -> list[Any]:
        """Tensor leaves of the arguments; raises ``BAD_INPUT`` for another structure."""
        leaves, spec = pytree.tree_flatten(arguments)
        if spec != self.inputs:
            raise error(
                codes.BAD_INPUT,
                f"{len(leaves)} inputs given, the model was compiled for {self.inputs.num_leaves}"
                if len(leaves) != self.inputs.num_leaves
                else f"arguments have the structure {spec}, compiled was {self.inputs}",
                help="pass the inputs as example_inputs() has them",
            )
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise error(
                    codes.BAD_INPUT,
                    f"inputs are tensors, found {type(leaf).__name__}",
                    help="convert arrays with torch.as_tensor(array)",
                )
        return leaves

    def rebuild(self, outputs: Sequence[Tensor]) -> Any:
        """What the model returns, from the program's outputs."""
        rest = iter(outputs)
        count = self.outputs.num_leaves
        leaves = [
            self.constants[index] if index in self.constants else next(rest)
            for index in range(count)
        ]
        return pytree.tree_unflatten(leaves, self.outputs)

    def to_json(self) -> dict[str, Any] | None:
        """Plain data, or None if a structure has types that only Python knows."""
        try:
            made = {
                "inputs": json.loads(pytree.treespec_dumps(self.inputs)),
                "outputs": json.loads(pytree.treespec_dumps(self.outputs)),
                "constants": {str(key): value for key, value in self.constants.items()},
            }
            json.dumps(made)
        except (TypeError, ValueError, NotImplementedError):
            return None
        return made

    @classmethod
    def from_json(cls, data: Any, module: Module) -> Signature:
        """Read back; without data, flat inputs and a flat output or tuple of outputs."""
        if isinstance(data, dict):
            try:
                constants = {int(key): value for key, value in dict(data["constants"]).items()}
                return cls(
                    pytree.treespec_loads(json.dumps(data["inputs"])),
                    pytree.treespec_loads(json.dumps(data["outputs"])),
                    constants,
                )
            except Exception as wrong:
                raise error(
                    codes.ARTIFACT,
                    f"the report's signature cannot be read: {type(wrong).__name__}: {wrong}",
                    help="compile the model again",
                ) from None
        function = module.function("inference")
        results = sum(1 for item in function.results if item.state is None)
        inputs = pytree.tree_structure(tuple(range(len(function.inputs))))
        outputs = pytree.tree_structure(0 if results == 1 else tuple(range(results)))
        return cls(inputs, outputs)


@dataclass
class CompiledModel:
    """A compiled program: called like the model it came from, noisy and seeded.

    ``module`` is the IR of the last phase, ``records`` say which passes ran. Each call reads
    fresh noise: samples are numbered on from call to call, and :meth:`reset` starts over.
    ``trial`` chooses the device instance, whose write noise stays the same between calls.
    """

    module: Module
    resources: ResourceStore
    target: Target
    signature: Signature
    report_data: dict[str, Any]
    records: tuple[PassRecord, ...] = ()
    noisy: bool = True
    seed: int = 0
    trial: int = 0
    _next_sample: int = 0

    def __post_init__(self) -> None:
        """Make the executor."""
        backend = find_backend(self.target.backend)
        self.executor = Executor(self.module, self.resources, self.target, backend)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Run inference; arguments and result are structured as the model's."""
        if keywords:
            raise error(
                codes.BAD_INPUT,
                f"keyword inputs ({', '.join(keywords)}) are not supported yet",
                help="pass the inputs by position, as in example_inputs()",
            )
        inputs = self.signature.flatten(arguments)
        outputs = self.executor.run(
            inputs,
            trials=(self.trial,),
            seed=self.seed,
            noisy=self.noisy,
            first_sample=self._next_sample,
        )
        self._next_sample += int(outputs[0].shape[1])
        return self.signature.rebuild([output[0] for output in outputs])

    def reset(self) -> None:
        """Number samples from 0 again, so that the next call repeats the first one's noise."""
        self._next_sample = 0

    def report(self) -> dict[str, Any]:
        """The report as plain data; ``docs/reference/report-schema.md`` describes it."""
        made: dict[str, Any] = json.loads(json.dumps(self.report_data))
        return made

    def save(
        self, path: str | Path, *, force: bool = False, extra: Mapping[str, bytes] | None = None
    ) -> None:
        """Write an artifact folder; raises ``OUTPUT`` if it exists and ``force`` is false."""
        artifact = Artifact(self.module, self.resources, self.target, self.report_data, extra or {})
        save_artifact(artifact, Path(path), force=force)


def load(path: str | Path) -> CompiledModel:
    """Load an artifact folder; raises ``ARTIFACT`` diagnostics. Nothing in it is executed."""
    held = load_artifact(Path(path))
    signature = Signature.from_json(held.report.get("signature"), held.module)
    seed = held.report.get("seed")
    return CompiledModel(
        held.module,
        held.resources,
        held.target,
        signature,
        held.report,
        seed=seed if isinstance(seed, int) else 0,
    )
