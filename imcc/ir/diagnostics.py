"""The one diagnostic type: what went wrong, where, why, and what to try.

A :class:`Diagnostic` names a stable code (:mod:`imcc.ir.codes`), the place in IR text and the
places in the user's model file, and carries a help line. Code that meets a user's error raises
:class:`DiagnosticError` with one or several diagnostics; nothing in imcc uses ``assert`` or a bare
exception for that purpose.
"""

from __future__ import annotations

import difflib
import linecache
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from imcc.ir.codes import CODES, Code

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a file: line and column count from 1; column 0 means the whole line."""

    file: str
    line: int
    column: int = 0

    def __str__(self) -> str:
        base = f"{self.file}:{self.line}"
        return f"{base}:{self.column}" if self.column else base


@dataclass(frozen=True)
class Diagnostic:
    """One message to the user.

    ``text`` is the place in IR text, a target file or another input file; ``model`` are the places
    in the user's model file. ``window`` is a few numbered lines around the fault. ``reason`` says
    why it is a fault, ``help`` what to try, ``suggestions`` the nearest valid names.
    """

    code: Code
    message: str
    severity: Severity = "error"
    text: Location | None = None
    model: tuple[Location, ...] = ()
    scope: str = ""
    window: str = ""
    reason: str = ""
    help: str = ""
    suggestions: tuple[str, ...] = ()

    def render(self) -> str:
        """The diagnostic as plain text, several lines, without a trailing newline."""
        lines = [f"{self.severity}[{self.code.id}]: {self.message}"]
        if self.text is not None:
            lines.append(f"  --> {self.text}")
        if self.window:
            lines.extend(f"  {line}" for line in self.window.splitlines())
        for place in self.model:
            scope = f" (in {self.scope})" if self.scope else ""
            lines.append(f"  in the model: {place}{scope}")
            source = linecache.getline(place.file, place.line).rstrip()
            if source:
                lines.append(f"    {place.line} | {source.strip()}")
        if self.scope and not self.model:
            lines.append(f"  in the model: scope {self.scope!r}")
        if self.reason:
            lines.append(f"  reason: {self.reason}")
        if self.suggestions:
            names = " or ".join(repr(name) for name in self.suggestions)
            lines.append(f"  did you mean {names}?")
        if self.help:
            first, *rest = self.help.splitlines()
            lines.append(f"  help: {first}")
            lines.extend(f"        {line}" for line in rest)
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The diagnostic as plain JSON data."""
        return {
            "code": self.code.id,
            "severity": self.severity,
            "message": self.message,
            "text": str(self.text) if self.text else None,
            "model": [str(place) for place in self.model],
            "scope": self.scope,
            "reason": self.reason,
            "help": self.help,
            "suggestions": list(self.suggestions),
        }

    def at(self, **changes: Any) -> Diagnostic:
        """A copy with the given fields replaced."""
        return replace(self, **changes)


class DiagnosticError(Exception):
    """A user's error, with one or more diagnostics. The CLI prints them and exits non-zero."""

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic]) -> None:
        """Keep the diagnostics in the order given."""
        if isinstance(diagnostics, Diagnostic):
            diagnostics = (diagnostics,)
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        super().__init__("\n".join(item.render() for item in self.diagnostics))


def error(code: Code, message: str, **fields: Any) -> DiagnosticError:
    """Build a :class:`DiagnosticError` with one error diagnostic; raise what it returns."""
    return DiagnosticError(Diagnostic(code, message, **fields))


@dataclass
class DiagnosticCollector:
    """Gathers diagnostics so that one run reports several of them."""

    limit: int = 20
    items: list[Diagnostic] = field(default_factory=list)

    def add(self, item: Diagnostic | DiagnosticError) -> None:
        """Keep a diagnostic; raise all of them once ``limit`` is reached."""
        if isinstance(item, DiagnosticError):
            self.items.extend(item.diagnostics)
        else:
            self.items.append(item)
        if len(self.items) >= self.limit:
            self.raise_errors()

    def raise_errors(self) -> None:
        """Raise :class:`DiagnosticError` if any error was gathered."""
        if any(item.severity == "error" for item in self.items):
            raise DiagnosticError(self.items)


def nearest(name: str, known: Iterable[str], count: int = 2) -> tuple[str, ...]:
    """The known names closest to ``name`` by edit distance, best first, possibly none."""
    return tuple(map(str, difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the end of a reason, empty where nothing is near."""
    close = nearest(name, known)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def text_window(source: str | Sequence[str], line: int, column: int = 0, around: int = 2) -> str:
    """Numbered lines around ``line`` (from 1) of ``source``, with a marker under ``column``.

    Long lines are cut so that a hostile input cannot flood the terminal.
    """
    lines = source.splitlines() if isinstance(source, str) else source
    first, last = max(1, line - around), min(len(lines), line + around)
    width = len(str(last))
    shown: list[str] = []
    for number in range(first, last + 1):
        content = lines[number - 1].replace("\t", " ")
        start = 0
        if number == line and column > 120:
            start = column - 60
        cut = content[start : start + 160]
        cut = "".join(char if char.isprintable() else "?" for char in cut)
        marker = ">" if number == line else " "
        shown.append(f"{marker} {number:>{width}} | {cut}")
        if number == line and column:
            shown.append(f"  {'':>{width}} | {' ' * (column - 1 - start)}^")
    return "\n".join(shown)


__all__ = [
    "CODES",
    "Code",
    "Diagnostic",
    "DiagnosticCollector",
    "DiagnosticError",
    "Location",
    "Severity",
    "did_you_mean",
    "error",
    "nearest",
    "text_window",
]
