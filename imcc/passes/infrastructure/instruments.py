"""Instruments watch a pipeline: print, dump, check and record what each pass did.

:func:`imcc.passes.infrastructure.pipeline.run_pipeline` calls them around every pass. They change
neither the module nor its numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError
from imcc.ir.module import Module, structural_difference
from imcc.ir.ops import Op, Value
from imcc.ir.text import parse_module, print_module
from imcc.passes.infrastructure.base import Pass
from imcc.passes.infrastructure.context import PassContext
from imcc.passes.infrastructure.dumps import DumpFolder
from imcc.passes.infrastructure.reproducer import write_reproducer

if TYPE_CHECKING:
    from imcc.ir.semantics.resources import ResourceStore
    from imcc.passes.infrastructure.pipeline import PassRecord


class Instrument:
    """Base of instruments; every hook does nothing by default."""

    def start(self, passes: Sequence[Pass], module: Module, context: PassContext) -> None:
        """Called once, before the first pass."""

    def before(self, item: Pass, module: Module, context: PassContext) -> None:
        """Called before each pass, after its needs were checked."""

    def after(self, item: Pass, record: PassRecord, module: Module, context: PassContext) -> None:
        """Called after each pass, once the module verified."""

    def failed(self, item: Pass, wrong: Exception, module: Module, context: PassContext) -> None:
        """Called where a pass raised or left a module that does not verify; ``wrong`` goes on."""


class PrintAfterChange(Instrument):
    """Writes the module's text after each pass that changed it."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write

    def after(self, item: Pass, record: PassRecord, module: Module, context: PassContext) -> None:
        """Write if the journal holds a change."""
        if record.changed:
            self.write(f"// after {record.text}\n{print_module(module)}")


class NumberedDumps(Instrument):
    """Writes ``00-input.imc`` and ``NN-pass.imc`` after the NN-th pass, if it changed anything."""

    _OURS = re.compile(r"[0-9]{2,}-[a-z0-9-]+\.(imc|safetensors)")

    def __init__(self, folder: Path) -> None:
        """Make the folder; raises ``OUTPUT`` if it holds other files than such dumps."""
        self.folder = DumpFolder(folder, lambda name: bool(self._OURS.fullmatch(name)))
        self.number = 0

    def start(self, passes: Sequence[Pass], module: Module, context: PassContext) -> None:
        """Dump the input."""
        self.number = 0
        self.folder.write("00-input", module, context.resources)

    def after(self, item: Pass, record: PassRecord, module: Module, context: PassContext) -> None:
        """Dump if the journal holds a change."""
        self.number += 1
        if record.changed:
            self.folder.write(f"{self.number:02d}-{item.name}", module, context.resources)


class VerifyEach(Instrument):
    """Checks after each pass what the verifier, which always runs, takes for granted.

    The text reads back to an equal module; every value's record of its users is right; the journal
    holds a change exactly if the text changed; the bytes of new resources match their hashes.
    """

    def __init__(self) -> None:
        self._text = ""
        self._hashed: dict[str, str | None] = {}

    def before(self, item: Pass, module: Module, context: PassContext) -> None:
        """Remember the text."""
        self._text = print_module(module)

    def after(self, item: Pass, record: PassRecord, module: Module, context: PassContext) -> None:
        """Raise ``PASS_FAILED`` with everything that is wrong."""
        found = [*_round_trip(module), *_users(module), *self._resources(module, context)]
        text = print_module(module)
        if (text != self._text) != record.changed:
            found.append(
                "the module changed but the journal holds no change"
                if not record.changed
                else "the journal holds changes but the module's text is the same"
            )
        if found:
            raise DiagnosticError(
                Diagnostic(
                    codes.PASS_FAILED,
                    f"after the pass {item}: {reason}",
                    help="passes change modules through context.rewriter(module) alone",
                )
                for reason in found
            )

    def _resources(self, module: Module, context: PassContext) -> list[str]:
        if context.resources is None:
            return []
        fresh = [
            item
            for item in module.resources.values()
            if item.sha256 is not None and self._hashed.get(item.name) != item.sha256
        ]
        self._hashed |= {item.name: item.sha256 for item in fresh}
        return context.resources.mismatches(fresh)


def _round_trip(module: Module) -> list[str]:
    try:
        different = structural_difference(module, parse_module(print_module(module), "<printed>"))
    except DiagnosticError as wrong:
        return [f"its text does not parse: {wrong.diagnostics[0].message}"]
    return [] if different is None else [f"its text reads back to another module: {different}"]


def _users(module: Module) -> list[str]:
    wrong: list[str] = []
    for function in module.functions.values():
        users: dict[Value, dict[Op, int]] = {}
        values = list(function.arguments)
        for op in function.ops:
            for value in op.operands:
                counts = users.setdefault(value, {})
                counts[op] = counts.get(op, 0) + 1
            values.extend(op.results)
        wrong.extend(
            f"the users of %{value.name} in @{function.name} are not recorded rightly"
            for value in values
            if value.users != users.get(value, {})
        )
    return wrong


class CrashReproducer(Instrument):
    """Where a pass raises or breaks the module, writes a folder that reruns it.

    A diagnostic that a pass raises on purpose (an op the target cannot run ...) is no crash. The
    folder is named in a note of the exception, or in the help of the diagnostic.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.command = ""
        self._before: Module | None = None
        self._resources: ResourceStore | None = None

    def before(self, item: Pass, module: Module, context: PassContext) -> None:
        """Keep the module as the pass finds it."""
        self._before = module.clone()
        self._resources = context.resources.copy() if context.resources is not None else None

    def failed(self, item: Pass, wrong: Exception, module: Module, context: PassContext) -> None:
        """Write the folder."""
        broken = isinstance(wrong, DiagnosticError)
        if self._before is None or (broken and not is_pass_failure(wrong)):
            return
        self.command = write_reproducer(
            self.folder, self._before, self._resources, item, context, reason=str(wrong)
        )
        wrong.add_note(f"{self.folder} holds what reruns it: {self.command}")


def is_pass_failure(wrong: BaseException) -> bool:
    """Whether the diagnostics say that a pass broke its module."""
    return isinstance(wrong, DiagnosticError) and any(
        item.code is codes.PASS_FAILED for item in wrong.diagnostics
    )
