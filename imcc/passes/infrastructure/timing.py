"""Where the time went: nested spans, as a list, a tree and JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Span:
    """A named stretch of wall time with the stretches inside it, in order."""

    name: str
    seconds: float = 0.0
    children: list[Span] = field(default_factory=list)

    @property
    def own_seconds(self) -> float:
        """Time that no child accounts for."""
        return max(0.0, self.seconds - sum(child.seconds for child in self.children))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; children in the order they ran."""
        made: dict[str, Any] = {"name": self.name, "seconds": self.seconds}
        if self.children:
            made["children"] = [child.to_json() for child in self.children]
        return made


class Timing:
    """Collects spans; ``with timing.span("name")`` nests as calls do.

    Passes may open spans of their own steps through ``context.timing``.
    """

    def __init__(self) -> None:
        self.root = Span("total")
        self._open = [self.root]

    @contextmanager
    def span(self, name: str) -> Iterator[Span]:
        """Measure the block under ``name``, also where it raises."""
        made = Span(name)
        self._open[-1].children.append(made)
        self._open.append(made)
        start = time.perf_counter()
        try:
            yield made
        finally:
            made.seconds = time.perf_counter() - start
            self._open.pop()
            if len(self._open) == 1:
                self.root.seconds = sum(child.seconds for child in self.root.children)

    def to_json(self) -> dict[str, Any]:
        """The tree as plain JSON data."""
        return self.root.to_json()

    def as_list(self) -> str:
        """One line for each name, longest own time first; spans of one name add up."""
        total = self.root.seconds
        seconds: dict[str, float] = {}
        calls: dict[str, int] = {}
        for item in _walk(self.root):
            if item is not self.root:
                seconds[item.name] = seconds.get(item.name, 0.0) + item.own_seconds
                calls[item.name] = calls.get(item.name, 0) + 1
        order = sorted(seconds, key=lambda name: -seconds[name])
        lines = [
            _line(name if calls[name] == 1 else f"{name}  ({calls[name]} times)", spent, total)
            for name in order
            for spent in (seconds[name],)
        ]
        return "\n".join([*lines, _line("total", total, total)])

    def as_tree(self) -> str:
        """Every span indented below the one that it ran in, with its whole time."""
        total = self.root.seconds
        return "\n".join(
            _line("  " * depth + item.name, item.seconds, total)
            for item, depth in _depths(self.root, 0)
        )


def _line(name: str, seconds: float, total: float) -> str:
    share = 100 * seconds / total if total else 0.0
    return f"{seconds * 1e3:10.2f} ms {share:5.1f} %  {name}"


def _walk(item: Span) -> Iterator[Span]:
    yield item
    for child in item.children:
        yield from _walk(child)


def _depths(item: Span, depth: int) -> Iterator[tuple[Span, int]]:
    yield item, depth
    for child in item.children:
        yield from _depths(child, depth + 1)
