"""Folders of dumped modules: IR text, with weights in a file beside it.

A weights file is written only where no earlier file of the folder holds what a module needs, so
that many dumps of a large model share their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.ir.module import Module
from imcc.ir.text.printer import print_module

if TYPE_CHECKING:
    from imcc.ir.semantics.resources import ResourceStore


class DumpFolder:
    """A folder that modules are written to, each under a stem of its own."""

    def __init__(
        self,
        path: Path,
        ours: Callable[[str], bool] | None = None,
        kept: Collection[str] = (),
    ) -> None:
        """Make the folder.

        ``ours`` tells by the name which files in it may be replaced; they are removed, but for
        those ``kept``. Raises ``OUTPUT`` if the folder holds anything else, or cannot be made.
        """
        self.path = path
        self._weights: dict[str, dict[str, str | None]] = {}
        try:
            held = sorted(item.name for item in path.iterdir()) if path.exists() else []
            foreign = [name for name in held if ours is None or not ours(name)]
            if foreign:
                raise error(
                    codes.OUTPUT,
                    f"{path} holds {foreign[0]}, which imcc did not dump there",
                    help="choose a new or empty folder",
                )
            path.mkdir(parents=True, exist_ok=True)
            for name in held:
                if name not in kept:
                    (path / name).unlink()
        except OSError as wrong:
            raise unwritable(path, wrong) from None

    def keep(self, file: str, held: dict[str, str | None]) -> None:
        """Say that a weights file exists already, with the hashes of the tensors in it."""
        self._weights[file] = held

    def write(self, stem: str, module: Module, resources: ResourceStore | None) -> Path:
        """Write ``stem.imc``, and ``stem.safetensors`` where no file holds its weights yet."""
        file = module.resource_file
        try:
            if resources is not None:
                file = self._write_weights(stem, module, resources)
            text = print_module(module, resource_file=file)
            made = self.path / f"{stem}.imc"
            made.write_text(text, encoding="utf-8")
        except OSError as wrong:
            raise unwritable(self.path, wrong) from None
        return made

    def write_text(self, name: str, text: str) -> Path:
        """Write another file of the folder."""
        made = self.path / name
        try:
            made.write_text(text, encoding="utf-8")
        except OSError as wrong:
            raise unwritable(made, wrong) from None
        return made

    def _write_weights(self, stem: str, module: Module, resources: ResourceStore) -> str | None:
        wanted = {
            item.name: item.sha256 for item in module.resources.values() if item.name in resources
        }
        if not wanted:
            return None
        for file, held in self._weights.items():
            # A resource without a hash may change unseen.
            if all(
                digest is not None and held.get(name) == digest for name, digest in wanted.items()
            ):
                return file
        file = f"{stem}.safetensors"
        resources.save(self.path / file, wanted)
        self._weights[file] = wanted
        return file


def unwritable(path: Path, wrong: OSError) -> DiagnosticError:
    """The diagnostic for a file or folder that cannot be written."""
    return error(
        codes.OUTPUT,
        f"cannot write {path}: {wrong.strerror or wrong}",
        help="choose a folder that you may write, with space left",
    )
