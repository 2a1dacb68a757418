"""Pipelines: text to passes and back, and running them with checks between.

After each pass the module is verified, so that a pass that breaks it is named at once. What ran,
how long it took and what it changed comes back as :class:`PassRecord` items.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources as package_files
from typing import TYPE_CHECKING, Any

from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError, Location, error, text_window
from imcc.ir.module import Module
from imcc.ir.rewriting import Journal
from imcc.ir.verifier import verify
from imcc.passes.infrastructure.base import Pass
from imcc.passes.infrastructure.context import PassContext
from imcc.passes.infrastructure.registry import find_pass

if TYPE_CHECKING:
    from lark import Lark

AfterPass = Callable[["PassRecord", Module], None]


@dataclass(frozen=True)
class PassRecord:
    """One pass that ran: its text, wall time, journal, and whether the module changed."""

    text: str
    seconds: float
    journal: Journal
    phase: str

    @property
    def changed(self) -> bool:
        """Whether the pass changed anything."""
        return bool(self.journal.changes)


def parse_pipeline(text: str) -> tuple[Pass, ...]:
    """Passes of a pipeline text; raises :class:`DiagnosticError` for bad text, names or options."""
    from lark.exceptions import UnexpectedCharacters, UnexpectedInput, VisitError

    try:
        named: Any = _grammar().parse(text)
    except UnexpectedInput as wrong:
        column = max(wrong.column, 1) if wrong.column else len(text) + 1
        line = max(wrong.line, 1) if wrong.line else 1
        found = "the end"
        if isinstance(wrong, UnexpectedCharacters):
            found = repr(text[wrong.pos_in_stream or 0])
        elif getattr(getattr(wrong, "token", None), "type", "$END") != "$END":
            found = repr(str(wrong.token))  # type: ignore[attr-defined]
        raise error(
            codes.BAD_PIPELINE,
            f"pipeline: unexpected {found}",
            text=Location("<pipeline>", line, column),
            window=text_window(text, line, column),
            help='write `name, name{option=value option="text"}`',
        ) from None
    except VisitError as wrong:
        raise error(codes.BAD_PIPELINE, f"pipeline: {wrong.orig_exc}") from None
    return tuple(find_pass(name).from_options(options) for name, options in named)


def print_pipeline(passes: Sequence[Pass]) -> str:
    """The text that parses to these passes."""
    return ", ".join(map(str, passes))


def run_pipeline(
    module: Module,
    passes: Sequence[Pass],
    context: PassContext,
    *,
    after: Sequence[AfterPass] = (),
) -> list[PassRecord]:
    """Run passes in order on ``module``; instruments in ``after`` see each record.

    Raises :class:`DiagnosticError` if a pass lacks what it needs, if the module is in the wrong
    phase, or if the module no longer verifies after a pass (then the diagnostics name the pass).
    """
    records: list[PassRecord] = []
    for item in passes:
        _check_needs(item, module, context)
        context.journal = Journal()
        context.progress(len(records), len(passes), item.name)
        start = time.perf_counter()
        item.run(module, context)
        seconds = time.perf_counter() - start
        if item.ensures_phase is not None and module.phase != item.ensures_phase:
            context.rewriter(module, item.name).set_phase(item.ensures_phase)
        try:
            verify(module)
        except DiagnosticError as broken:
            first = Diagnostic(
                codes.PASS_FAILED,
                f"after the pass {item} the module does not verify",
                help="this is a defect of the pass; report it with the module and this message",
            )
            raise DiagnosticError([first, *broken.diagnostics]) from broken
        record = PassRecord(str(item), seconds, context.journal, module.phase)
        records.append(record)
        for instrument in after:
            instrument(record, module)
    context.progress(len(passes), len(passes), "done")
    return records


def _check_needs(item: Pass, module: Module, context: PassContext) -> None:
    if item.requires_phase is not None and module.phase != item.requires_phase:
        raise error(
            codes.PASS_REQUIRES,
            f"pass {item.name} needs phase {item.requires_phase!r}, the module is {module.phase!r}",
            help="run the passes that lead there first; `imcc passes` lists them",
        )
    needs = item.requires()
    if "weights" in needs:
        context.weights()
    if "calibration" in needs:
        context.calibration_batches()
    if "target" in needs and context.target is None:
        raise error(
            codes.PASS_REQUIRES,
            f"pass {item.name} needs a target",
            help="give one with --target",
        )


@lru_cache(maxsize=1)
def _grammar() -> Lark:
    from lark import Lark, Transformer

    class Build(Transformer[Any, Any]):
        def pipeline(self, items: list[Any]) -> Any:
            return [item for item in items if item is not None]

        def options(self, items: list[Any]) -> Any:
            made: dict[str, Any] = {}
            for key, value in items:
                if key in made:
                    raise DiagnosticError(
                        Diagnostic(codes.BAD_OPTION, f"option {key} is given twice")
                    )
                made[key] = value
            return made

        def option(self, items: list[Any]) -> Any:
            return (str(items[0]), items[1])

        def number(self, items: list[Any]) -> Any:
            text = str(items[0])
            return float(text) if any(mark in text for mark in ".eE") else int(text)

        def string(self, items: list[Any]) -> Any:
            return json.loads(items[0])

        def word(self, items: list[Any]) -> Any:
            word = str(items[0])
            return {"true": True, "false": False, "none": None}.get(word, word)

        def list(self, items: Any) -> Any:
            return tuple(item for item in items if item is not None)

    setattr(Build, "pass", lambda self, items: (str(items[0]), items[1] if items[1:] else {}))
    grammar = package_files.files("imcc.passes.infrastructure").joinpath("pipeline.lark")
    return Lark(
        grammar.read_text(),
        parser="lalr",
        start="pipeline",
        transformer=Build(),
        maybe_placeholders=False,
    )
