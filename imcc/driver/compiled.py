"""What compilation gives: a callable program with its IR, report and target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imcc.backends.api import Target, find_backend
from imcc.driver.signature import Signature
from imcc.ir.module import Module
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.infrastructure import PassRecord
from imcc.runtime.adapted import Adapted
from imcc.runtime.artifact import Artifact, load_artifact, save_artifact
from imcc.runtime.executor import Executor
from imcc.runtime.history import History


@dataclass
class CompiledModel:
    """A compiled program: called like the model it came from, noisy and seeded.

    ``module`` is the IR of the last phase, ``records`` say which passes ran, ``history`` holds
    the program after each of them. Each call reads
    fresh noise: samples are numbered on from call to call, and :meth:`reset` starts over.
    ``trial`` chooses the device instance, whose write noise stays the same between calls.
    ``adapted`` are states that on-line adaptation left; ``seed``, ``trial`` and ``noisy`` are then
    those of the device that adapted.
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
    history: History | None = None
    adapted: Adapted | None = None
    _next_sample: int = 0

    def __post_init__(self) -> None:
        """Make the executor."""
        backend = find_backend(self.target.backend)
        self.executor = Executor(self.module, self.resources, self.target, backend)
        if self.adapted is not None:
            device = self.adapted.device
            self.seed, self.trial, self.noisy = device.seed, device.trial, device.noisy
            self.executor.adapted = (device, self.adapted.states)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Run inference; arguments and result are structured as the model's."""
        inputs = self.signature.flatten(self.signature.bind(arguments, keywords))
        outputs = self.executor.run(
            inputs,
            trials=(self.trial,),
            seed=self.seed,
            noisy=self.noisy,
            first_sample=self._next_sample,
        )
        self._next_sample += self.executor.batch_size(inputs)
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
        """Write an artifact, a folder or a ``.zip`` by the name of ``path``.

        Raises ``OUTPUT`` if it exists and ``force`` is false, or cannot be written.
        """
        artifact = Artifact(
            self.module,
            self.resources,
            self.target,
            self.report_data,
            extra or {},
            self.history,
            self.adapted,
        )
        save_artifact(artifact, Path(path), force=force)


def load_artifact_model(path: Path, *, initial: bool = False) -> CompiledModel:
    """Load an artifact, a folder or a zip, and execute nothing in it; raises ``ARTIFACT``.

    ``initial`` leaves adapted states aside.
    """
    held = load_artifact(path)
    signature = Signature.from_json(held.report.get("signature"), held.module)
    seed = held.report.get("seed")
    return CompiledModel(
        held.module,
        held.resources,
        held.target,
        signature,
        held.report,
        seed=seed if isinstance(seed, int) else 0,
        history=held.history,
        adapted=None if initial else held.adapted,
    )
