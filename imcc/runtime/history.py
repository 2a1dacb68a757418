"""How a program came about: its text after each pass that changed it, and every rewrite.

Lines of text are kept once, however many stages and rewrites show them, so that the history of
2,000 ops through a dozen passes stays a few megabytes. Lines are not indented; ``stages[0]`` is the
program as captured. Excerpts of the user's source around each op's place travel along, so that a
viewer needs no other file.
"""

from __future__ import annotations

import json
import linecache
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imcc.ir import codes
from imcc.ir.diagnostics import Location, error
from imcc.ir.module import Module
from imcc.ir.text import print_module
from imcc.passes.infrastructure import Instrument, Pass, PassContext, PassRecord

HISTORY_VERSION = 1
EXCERPT_LINES = 4
"""Lines of source kept on each side of a place."""
MAX_LINE_CHARACTERS = 300
MAX_STAGE_LINES = 5_000_000


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Rewrite(_Part):
    """One step of a pass: the rule, what it did, ops before and after as numbers of lines."""

    rule: str
    kind: str
    function: str
    before: list[int]
    after: list[int]
    note: str = ""


class Refusal(_Part):
    """A match that a rule refused, and why."""

    rule: str
    op: int
    reason: str


class Stage(_Part):
    """The program after a pass; ``program`` is runs ``[first, count]`` of lines.

    ``pass`` is empty for the program as captured. ``program`` is null where the pass changed
    nothing.
    """

    pass_: str = Field(alias="pass")
    phase: str
    seconds: float
    program: list[tuple[int, int]] | None
    rewrites: list[Rewrite]
    refusals: list[Refusal]


class History(_Part):
    """All stages, the table of lines, and excerpts of sources as file, line number, text."""

    history_version: int = Field(ge=HISTORY_VERSION, le=HISTORY_VERSION)
    lines: list[str]
    stages: list[Stage]
    sources: dict[str, dict[int, str]]

    def text(self, stage: int) -> str:
        """The program after a stage, unindented; of the last change where it changed nothing."""
        shown = next(item for item in reversed(self.stages[: stage + 1]) if item.program)
        runs = shown.program or []
        return "".join(
            line + "\n" for first, count in runs for line in self.lines[first : first + count]
        )

    def to_json(self) -> str:
        """JSON, the same for the same history."""
        data = self.model_dump(by_alias=True)
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), sort_keys=True) + "\n"


def parse_history(text: str, file: Path) -> History:
    """Read and check a history; raises an ``ARTIFACT`` diagnostic that says what is wrong."""
    try:
        made = History.model_validate_json(text)
    except ValidationError as wrong:
        places = [
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in wrong.errors()[:5]
        ]
        raise _broken(file, "; ".join(places)) from None
    count = len(made.lines)
    if not made.stages or made.stages[0].program is None:
        raise _broken(file, "it has no first stage")
    for number, stage in enumerate(made.stages):
        runs = stage.program or []
        if any(first < 0 or size < 1 or first + size > count for first, size in runs):
            raise _broken(file, f"stages.{number}.program names lines that are not there")
        if sum(size for _, size in runs) > MAX_STAGE_LINES:
            raise _broken(file, f"stages.{number}.program has more than {MAX_STAGE_LINES} lines")
        for rewrite in stage.rewrites:
            if any(not 0 <= line < count for line in (*rewrite.before, *rewrite.after)):
                raise _broken(file, f"stages.{number}.rewrites name lines that are not there")
        if any(not 0 <= refusal.op < count for refusal in stage.refusals):
            raise _broken(file, f"stages.{number}.refusals name lines that are not there")
    return made


def _broken(file: Path, reason: str) -> Exception:
    return error(
        codes.ARTIFACT,
        f"{file} is not a history of version {HISTORY_VERSION}",
        reason=reason,
        help="compile the model again",
    )


@dataclass
class HistoryRecorder(Instrument):
    """Keeps a history of the passes that run.

    Made with the module as captured; called after each pass. Printing the module after each pass
    that changed it is all it costs.
    """

    module: Module
    stages: list[Stage] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Record the first stage."""
        self._places = {place for op in self.module.walk() for place in op.loc}
        self._add("", 0.0, self.module, True, (), ())

    def after(self, item: Pass, record: PassRecord, module: Module, context: PassContext) -> None:
        """Record the stage after a pass."""
        journal = record.journal
        self._places.update(place for change in journal.changes for place in change.loc)
        rewrites = [
            Rewrite(
                rule=change.rule,
                kind=change.kind,
                function=change.function,
                before=[self._number(text) for text in change.before],
                after=[self._number(text) for text in change.after],
                note=change.note,
            )
            for change in journal.changes
        ]
        refusals = [
            Refusal(rule=rule, op=self._number(text), reason=reason)
            for rule, text, reason in journal.refusals
        ]
        self._add(record.text, record.seconds, module, record.changed, rewrites, refusals)

    def history(self, *, excerpts: bool = True) -> History:
        """What was recorded so far; without ``excerpts`` no file of the user's is read."""
        return History(
            history_version=HISTORY_VERSION,
            lines=list(self._numbers),
            stages=list(self.stages),
            sources=_excerpts(self._places) if excerpts else {},
        )

    def _add(
        self,
        text: str,
        seconds: float,
        module: Module,
        changed: bool,
        rewrites: Sequence[Rewrite],
        refusals: Sequence[Refusal],
    ) -> None:
        program = None
        if changed:
            program = _runs(
                self._number(line.strip()) for line in print_module(module).rstrip("\n").split("\n")
            )
        self.stages.append(
            Stage.model_construct(
                pass_=text,
                phase=module.phase,
                seconds=seconds,
                program=program,
                rewrites=list(rewrites),
                refusals=list(refusals),
            )
        )

    def _number(self, line: str) -> int:
        return self._numbers.setdefault(line, len(self._numbers))


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    made: list[tuple[int, int]] = []
    for number in numbers:
        if made and made[-1][0] + made[-1][1] == number:
            made[-1] = (made[-1][0], made[-1][1] + 1)
        else:
            made.append((number, 1))
    return made


def _excerpts(places: Iterable[Location]) -> dict[str, dict[int, str]]:
    wanted: dict[str, set[int]] = {}
    for place in places:
        around = range(max(1, place.line - EXCERPT_LINES), place.line + EXCERPT_LINES + 1)
        wanted.setdefault(place.file, set()).update(around)
    made: dict[str, dict[int, str]] = {}
    for file in sorted(wanted):
        source = linecache.getlines(file)
        found = {
            line: source[line - 1].rstrip()[:MAX_LINE_CHARACTERS]
            for line in sorted(wanted[file])
            if line <= len(source)
        }
        if found:
            made[file] = found
    return made
