"""Adapted states at rest, beside the initial ones in the same artifact.

One safetensors file holds the states as they are, those that were good last, and the record of the
adaptation; the manifest names it. A new state is a new file; it counts from the moment at which the
manifest is replaced, so that an interruption leaves the state before or the one after.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from imcc.backends.api import Backend, Target
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.ir.module import Module
from imcc.runtime.adaptation import AdaptationRecord
from imcc.runtime.executor import Device

_NOW, _GOOD = "now", "good"
_RECORD = "imcc.adaptation"
PREFIX = "adapted-"


@dataclass(frozen=True)
class Adapted:
    """States of one device after adaptation, those of its lowest running loss, and the record."""

    states: Mapping[str, Any]
    good: Mapping[str, Any]
    record: AdaptationRecord

    @property
    def device(self) -> Device:
        """The device that adapted."""
        return Device(**self.record.device)


def write_adapted(folder: Path, adapted: Adapted, backend: Backend) -> str:
    """Write the file of adapted states into ``folder``; returns its name."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for part, states in ((_NOW, adapted.states), (_GOOD, adapted.good)):
        if part == _GOOD and states is adapted.states:
            continue
        for name, value in states.items():
            for key, tensor in backend.state_tensors(value).items():
                tensors[f"{part}/{name}/{key}"] = tensor.detach().cpu().contiguous().clone()
    record = adapted.record
    # Never over a file that the manifest may name.
    number, made = 0, f"{PREFIX}{record.samples}-{record.status}.safetensors"
    while (folder / made).exists():
        number += 1
        made = f"{PREFIX}{record.samples}-{record.status}-{number}.safetensors"
    text = json.dumps(record.to_json())
    save_file(tensors, str(folder / made), metadata={_RECORD: text})
    with (folder / made).open("rb") as file:
        os.fsync(file.fileno())
    return made


def read_adapted(path: Path, module: Module, backend: Backend, target: Target) -> Adapted:
    """Read what :func:`write_adapted` wrote; raises ``ARTIFACT``."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(_RECORD, "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        record = TypeAdapter(AdaptationRecord).validate_python(json.loads(text))
        TypeAdapter(Device).validate_python(record.device)
    except (OSError, SafetensorError, ValueError, TypeError, ValidationError) as wrong:
        raise _broken(path, str(wrong).splitlines()[0]) from None
    found: dict[str, dict[str, dict[str, Tensor]]] = {_NOW: {}, _GOOD: {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        state, _, key = rest.rpartition("/")
        if part not in found or state not in module.states:
            raise _broken(path, f"{name!r} is no state of the program")
        found[part].setdefault(state, {})[key] = tensor
    made: dict[str, dict[str, Any]] = {}
    for part, states in found.items():
        made[part] = {}
        for state, parts in states.items():
            kind = module.states[state].type
            try:
                made[part][state] = backend.restore_state(kind, parts, target)
            except (KeyError, ValueError, RuntimeError) as wrong:
                raise _broken(path, f"state {state!r} cannot be restored: {wrong}") from None
    return Adapted(made[_NOW], made[_GOOD] or made[_NOW], record)


def _broken(path: Path, reason: str) -> DiagnosticError:
    return error(
        codes.ARTIFACT,
        f"{path} holds no adapted states of this program",
        reason=reason,
        help="compile the model again and adapt anew",
    )


def update_zip(path: Path, folder: Path, pack: Any) -> None:
    """Replace an archive by a folder's contents, whole or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".zip", dir=path.parent)
    os.close(descriptor)
    work = Path(name)
    try:
        pack(folder, work)
        shutil.copymode(path, work)
        os.replace(work, path)
    finally:
        work.unlink(missing_ok=True)
