"""What passes promise about results, measured: outputs before a pass against outputs after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imcc.ir import codes
from imcc.ir.diagnostics import error, nearest
from imcc.passes.infrastructure import Contract, Exact, WithinTolerance


@dataclass(frozen=True)
class Worst:
    """Where outputs differ most: output and index in it, values before and after."""

    output: int
    index: tuple[int, ...]
    before: float
    after: float
    note: str = ""

    @property
    def difference(self) -> float:
        """``|after - before|``; infinite where only one of them is a number."""
        gap = abs(self.after - self.before)
        return math.inf if math.isnan(gap) else gap

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; values that are not finite as text."""
        return {
            "output": self.output,
            "index": list(self.index),
            "before": _plain(self.before),
            "after": _plain(self.after),
            "difference": _plain(self.difference),
            "note": self.note or None,
        }

    def __str__(self) -> str:
        if self.note:
            return f"output {self.output}: {self.note}"
        place = "".join(f"[{i}]" for i in self.index)
        return f"output {self.output}{place}: {self.before:.9g} became {self.after:.9g}"


@dataclass(frozen=True)
class Measured:
    """A promise against two sets of outputs: the measure, what it may be, whether it holds.

    ``worst`` is None where nothing differs.
    """

    metric: str
    value: float
    bound: float
    worst: Worst | None

    @property
    def holds(self) -> bool:
        """Whether the promise is kept; a measure that is not a number breaks it."""
        return self.value <= self.bound

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "metric": self.metric,
            "value": _plain(self.value),
            "bound": self.bound,
            "holds": self.holds,
            "worst": self.worst.to_json() if self.worst is not None else None,
        }


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def relative_rms(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """``rms(y' - y) / rms(y)`` of the worst output; 0 where nothing differs."""
    made = 0.0
    for y, changed in zip(before, after, strict=True):
        error_rms = float((_double(changed) - _double(y)).square().mean().sqrt())
        rms = float(_double(y).square().mean().sqrt())
        if error_rms != 0.0:
            made = max(made, error_rms / rms if rms else math.inf, key=_nan_last)
    return made


def relative_largest(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """``max|y' - y| / max|y|`` of the worst output; 0 where nothing differs."""
    made = 0.0
    for y, changed in zip(before, after, strict=True):
        gap = float((_double(changed) - _double(y)).abs().max())
        top = float(_double(y).abs().max())
        if gap != 0.0:
            made = max(made, gap / top if top else math.inf, key=_nan_last)
    return made


METRICS: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor]], float]] = {
    "relative_rms": relative_rms
}
"""Metrics that ``Approximate`` may name: ``metric(outputs before, outputs after)``."""


def measure(promise: Contract, before: Sequence[Tensor], after: Sequence[Tensor]) -> Measured:
    """Measure a promise; shapes and element types must always stay.

    ``Exact`` counts values that differ (0 and -0 are equal, as are two NaN). Raises a diagnostic
    for a metric that nobody declared in :data:`METRICS`.
    """
    changed = _form(before, after)
    if changed is not None:
        return Measured("form of outputs", math.inf, 0.0, changed)
    worst = _worst(before, after)
    if isinstance(promise, Exact):
        differing = sum(int(_differs(y, new).sum()) for y, new in zip(before, after, strict=True))
        return Measured("values that differ", float(differing), 0.0, worst)
    if isinstance(promise, WithinTolerance):
        value = relative_largest(before, after)
        return Measured("relative_largest", value, promise.relative, worst)
    metric = METRICS.get(promise.metric)
    if metric is None:
        raise error(
            codes.NO_RULE,
            f"nobody declares how the metric {promise.metric!r} is measured",
            suggestions=nearest(promise.metric, METRICS),
            help="add it to imcc.runtime.promises.METRICS",
        )
    return Measured(promise.metric, metric(before, after), promise.bound, worst)


def _form(before: Sequence[Tensor], after: Sequence[Tensor]) -> Worst | None:
    if len(before) != len(after):
        note = f"there were {len(before)} outputs, now there are {len(after)}"
        return Worst(0, (), math.nan, math.nan, note)
    for number, (y, new) in enumerate(zip(before, after, strict=True)):
        if y.shape != new.shape or y.dtype != new.dtype:
            note = f"{y.dtype} {list(y.shape)} became {new.dtype} {list(new.shape)}"
            return Worst(number, (), math.nan, math.nan, note)
    return None


def _double(value: Tensor) -> Tensor:
    return value.detach().to(torch.float64)


def _differs(y: Tensor, new: Tensor) -> Tensor:
    both_nan = torch.isnan(_double(y)) & torch.isnan(_double(new))
    return (y != new) & ~both_nan


def _worst(before: Sequence[Tensor], after: Sequence[Tensor]) -> Worst | None:
    found: Worst | None = None
    for number, (y, new) in enumerate(zip(before, after, strict=True)):
        different = _differs(y, new)
        if not bool(different.any()):
            continue
        gap = (_double(new) - _double(y)).abs().nan_to_num(math.inf, math.inf)
        gap = torch.where(different, gap, torch.full_like(gap, -1.0))
        flat = int(gap.argmax())
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), gap.shape))
        here = Worst(number, index, float(y[index]), float(new[index]))
        if found is None or here.difference > found.difference:
            found = here
    return found


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
