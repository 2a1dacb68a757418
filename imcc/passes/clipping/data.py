"""Calibration data that a search runs on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from imcc.ir.dialects.core import tensor
from imcc.ir.module import Function


def first_samples(
    batches: Sequence[tuple[Any, ...]], function: Function, samples: int
) -> list[tuple[Any, ...]]:
    """The first samples of calibration data; whole batches where the batch size is fixed."""
    made: list[tuple[Any, ...]] = []
    for batch in batches:
        if samples <= 0:
            break
        axes = [tensor(value).batch_axis for value in function.inputs]
        sizes = [x.shape[a] for x, a in zip(batch, axes, strict=False) if a is not None]
        if function.fixed_batch is None and sizes:
            count = min(samples, int(sizes[0]))
            batch = tuple(
                x if a is None else x.narrow(a, 0, count) for x, a in zip(batch, axes, strict=False)
            )
        made.append(tuple(batch))
        samples -= int(sizes[0]) if sizes else 1
    return made
