"""Pipelines: text to passes and back, and running them with checks between.

After each pass the module is verified, so that a pass that breaks it is named at once. What ran,
how long it took and what it changed comes back as :class:`PassRecord` items.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources as package_files
from typing import TYPE_CHECKING, Any

from imcc.ir import codes
from imcc.ir.diagnostics import (
    Diagnostic,
    DiagnosticCollector,
    DiagnosticError,
    Location,
    error,
    text_window,
)
from imcc.ir.module import Module
from imcc.ir.rewriting import Journal
from imcc.ir.verifier import verify
from imcc.passes.infrastructure.base import Pass
from imcc.passes.infrastructure.context import PassContext
from imcc.passes.infrastructure.registry import find_pass

if TYPE_CHECKING:
    from lark import Lark

    from imcc.passes.infrastructure.instruments import Instrument


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
        if isinstance(wrong.orig_exc, DiagnosticError):
            raise DiagnosticError(
                item.at(window=text_window(text, item.text.line, item.text.column))
                for item in wrong.orig_exc.diagnostics
                if item.text is not None
            ) from None
        raise error(codes.BAD_PIPELINE, f"pipeline: {wrong.orig_exc}") from None
    wrongs = DiagnosticCollector()
    made: list[Pass] = []
    for name, options in named:
        try:
            values = {str(key): value for key, value in options.items()}
            made.append(find_pass(str(name)).from_options(values))
        except DiagnosticError as wrong:
            for item in wrong.diagnostics:
                wrongs.add(_placed(item, text, (*options, name)))
    wrongs.raise_errors()
    return tuple(made)


def _placed(item: Diagnostic, text: str, tokens: Sequence[Any]) -> Diagnostic:
    """The diagnostic with the place of the first of the tokens whose word it names."""
    if item.text is not None:
        return item
    named = [token for token in tokens if f"{token!s}" in re.split(r"[^\w-]+", item.message)]
    place = named[0] if named else tokens[-1]
    return item.at(
        text=Location("<pipeline>", place.line, place.column),
        window=text_window(text, place.line, place.column),
    )


def print_pipeline(passes: Sequence[Pass]) -> str:
    """The text that parses to these passes."""
    return ", ".join(map(str, passes))


def run_pipeline(
    module: Module,
    passes: Sequence[Pass],
    context: PassContext,
    *,
    instruments: Sequence[Instrument] = (),
) -> list[PassRecord]:
    """Run passes in order on ``module``; ``instruments`` watch each of them.

    Raises :class:`DiagnosticError` if a pass lacks what it needs, if the module is in the wrong
    phase, or if the module no longer verifies after a pass (then the diagnostics name the pass).
    """
    records: list[PassRecord] = []
    for watch in instruments:
        watch.start(passes, module, context)
    for item in passes:
        _check_needs(item, module, context)
        context.journal = Journal()
        context.progress(len(records), len(passes), item.name)
        for watch in instruments:
            watch.before(item, module, context)
        try:
            with context.timing.span(str(item)) as span:
                verifying = _run(item, module, context)
            seconds = span.seconds - verifying
            record = PassRecord(str(item), seconds, context.journal, module.phase)
            for watch in instruments:
                watch.after(item, record, module, context)
        except Exception as wrong:
            if not isinstance(wrong, DiagnosticError):
                wrong.add_note(f"raised by the pass {item}; --reproducer DIR keeps what reruns it")
            for watch in instruments:
                watch.failed(item, wrong, module, context)
            raise
        records.append(record)
    context.progress(len(passes), len(passes), "done")
    return records


def _run(item: Pass, module: Module, context: PassContext) -> float:
    """Run one pass and verify what it made; returns the seconds that verifying took."""
    item.run(module, context)
    if item.ensures_phase is not None and module.phase != item.ensures_phase:
        context.rewriter(module, item.name).set_phase(item.ensures_phase)
    with context.timing.span("verify") as span:
        try:
            verify(module)
        except DiagnosticError as broken:
            first = Diagnostic(
                codes.PASS_FAILED,
                f"after the pass {item} the module does not verify",
                help="this is a defect of the pass; report it with the module and this message",
            )
            raise DiagnosticError([first, *broken.diagnostics]) from broken
    return span.seconds


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
                    raise error(
                        codes.BAD_OPTION,
                        f"option {key} is given twice",
                        text=Location("<pipeline>", key.line, key.column),
                    )
                made[key] = value
            return made

        def option(self, items: list[Any]) -> Any:
            return (items[0], items[1])

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

    setattr(Build, "pass", lambda self, items: (items[0], items[1] if items[1:] else {}))
    grammar = package_files.files("imcc.passes.infrastructure").joinpath("pipeline.lark")
    return Lark(
        grammar.read_text(),
        parser="lalr",
        start="pipeline",
        transformer=Build(),
        maybe_placeholders=False,
    )
