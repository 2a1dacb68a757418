"""Folders with the program at the end of each phase, to look at, edit and resume from.

::

    captured.imc optimized.imc mapped.imc placed.imc scheduled.imc   as far as the pipeline goes
    captured.safetensors ...       weights; a dump that needs no others names an earlier file
    calibration.safetensors        calibration inputs, where a pass of the pipeline needs them
    rram.toml                      the target with all its keys
    phases.json                    model, target, seed, pipeline, how the model is called
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from imcc._version import __version__
from imcc.backends.api import Target
from imcc.backends.targets import find_target
from imcc.driver.signature import Signature
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.ir.module import PHASES, Module
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.semantics.tensor_files import read_batches, write_batches
from imcc.ir.text import parse_module
from imcc.ir.verifier import verify
from imcc.passes.infrastructure import (
    Instrument,
    Pass,
    PassContext,
    PassRecord,
    by_phase,
    print_pipeline,
)
from imcc.passes.infrastructure.dumps import DumpFolder, unwritable

SETTINGS, CALIBRATION = "phases.json", "calibration.safetensors"
FORMAT_VERSION = 1
MAX_TEXT_BYTES = 1 << 30


class Settings(BaseModel):
    """What ``phases.json`` holds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: int = Field(ge=FORMAT_VERSION, le=FORMAT_VERSION)
    imcc_version: str
    model: str
    file: str | None
    target: str
    target_sha256: str
    seed: int
    pipeline: str
    signature: dict[str, Any] | None


class PhaseFolder(Instrument):
    """Writes the program at the end of each phase while a pipeline runs."""

    def __init__(
        self,
        path: Path,
        passes: Sequence[Pass],
        *,
        target: Target,
        seed: int,
        signature: Signature,
        model: str,
        file: str | None,
        inputs: Sequence[str],
        calibration: Sequence[Sequence[Tensor]] | None,
        resumed: Dump | None = None,
    ) -> None:
        """Make the folder; replaces what an earlier run left, up to the phase resumed from.

        ``inputs`` names the program's inputs, which name those of the calibration data too.
        Raises ``OUTPUT`` if the folder holds anything else.
        """
        last = {held[-1]: phase for phase, held in by_phase(passes).items() if held}
        self._ends = {id(item): phase for item, phase in last.items()}
        self._empty = [phase for phase, held in by_phase(passes).items() if not held]
        kept: set[str] = set()
        if resumed is not None and resumed.path.parent.resolve() == path.resolve():
            before = PHASES[: PHASES.index(resumed.module.phase) + 1]
            kept = {f"{phase}{suffix}" for phase in before for suffix in (".imc", ".safetensors")}
        again = (path / SETTINGS).is_file()
        self._folder = DumpFolder(path, lambda name: again and _ours(name), kept)
        if resumed is not None and kept and resumed.module.resource_file is not None:
            held = {item.name: item.sha256 for item in resumed.module.resources.values()}
            self._folder.keep(Path(resumed.module.resource_file).name, held)
        settings = Settings(
            format_version=FORMAT_VERSION,
            imcc_version=__version__,
            model=model,
            file=file,
            target=target.name,
            target_sha256=target.sha256,
            seed=seed,
            pipeline=print_pipeline(passes),
            signature=signature.to_json(),
        )
        self._folder.write_text(SETTINGS, json.dumps(settings.model_dump(), indent=2) + "\n")
        self._folder.write_text(f"{target.name}.toml", target.text)
        needed = any("calibration" in item.requires() for item in passes)
        if needed and calibration:
            try:
                write_batches(path / CALIBRATION, inputs, calibration)
            except OSError as wrong:
                raise unwritable(path / CALIBRATION, wrong) from None

    def write(self, module: Module, resources: ResourceStore) -> None:
        """Write the module under the name of its phase."""
        self._folder.write(module.phase, module, resources)

    def start(self, passes: Sequence[Pass], module: Module, context: PassContext) -> None:
        """Write a phase that no pass leads to."""
        if module.phase in self._empty and context.resources is not None:
            self.write(module, context.resources)

    def after(self, item: Pass, record: PassRecord, module: Module, context: PassContext) -> None:
        """Write if this pass is the last of its phase."""
        if id(item) in self._ends and context.resources is not None:
            self.write(module, context.resources)


def _ours(name: str) -> bool:
    stem, dot, suffix = name.rpartition(".")
    if name in (SETTINGS, CALIBRATION) or suffix == "toml":
        return True
    return bool(dot) and stem in PHASES and suffix in ("imc", "safetensors")


@dataclass(frozen=True)
class Dump:
    """A dumped program, verified, with its weights and what its folder says about it.

    ``settings`` and ``target`` are None for a file that stands alone.
    """

    path: Path
    module: Module
    resources: ResourceStore
    settings: Settings | None
    target: Target | None

    @classmethod
    def read(cls, path: Path) -> Dump:
        """Read ``path`` and the files beside it; raises a diagnostic for what is wrong."""
        try:
            if path.stat().st_size > MAX_TEXT_BYTES:
                raise _broken(path, f"it is larger than {MAX_TEXT_BYTES} bytes")
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise _broken(path, "it is not UTF-8 text") from None
        except OSError as wrong:
            raise _broken(path, wrong.strerror or str(wrong)) from None
        module = parse_module(text, str(path))
        verify(module)
        if "inference" not in module.functions:
            raise _broken(path, "it has no entry point @inference")
        resources = ResourceStore()
        if module.resource_file is not None:
            file = path.parent / Path(module.resource_file).name
            if file.is_file():
                resources = ResourceStore.load(file, module)
        settings = _settings(path.parent / SETTINGS)
        target = None
        if settings is not None:
            file = path.parent / f"{Path(settings.target).name}.toml"
            target = find_target(file)
        return cls(path, module, resources, settings, target)

    def signature(self) -> Signature:
        """How the model is called; flat inputs and outputs for a file that stands alone."""
        data = self.settings.signature if self.settings is not None else None
        return Signature.from_json(data, self.module)

    def calibration(self) -> list[tuple[Tensor, ...]] | None:
        """The calibration batches of the folder, or None if it has none."""
        file = self.path.parent / CALIBRATION
        if self.settings is None or not file.is_file():
            return None
        return read_batches(file, [value.name for value in self.module.function().inputs])

    def captured(self) -> Dump:
        """The program as captured, of the same folder; itself if the folder holds none."""
        file = self.path.parent / "captured.imc"
        if self.settings is None or self.module.phase == "captured" or not file.is_file():
            return self
        return Dump.read(file)


def _settings(file: Path) -> Settings | None:
    if not file.is_file():
        return None
    try:
        return Settings.model_validate_json(file.read_bytes())
    except (ValidationError, OSError) as wrong:
        reason = str(wrong)
        if isinstance(wrong, ValidationError):
            reason = "; ".join(
                f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in wrong.errors()[:5]
            )
        raise _broken(file, reason) from None


def _broken(path: Path, reason: str) -> DiagnosticError:
    return error(
        codes.ARTIFACT,
        f"{path} cannot be read",
        reason=reason,
        help="`imcc compile MODEL.py --dump-phases DIR` writes such files",
    )
