"""What graph rules look at: numbers behind constants, factors of a product, merged axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from imcc.ir.dialects import core
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim, product
from imcc.ir.ops import Op, Value
from imcc.ir.semantics.resources import ResourceStore


@dataclass(frozen=True)
class Numbers:
    """Reads constants of one element."""

    resources: ResourceStore

    def of(self, value: Value | None) -> float | None:
        """The number that a value is, wherever it is used; None if it is no constant number."""
        op = value.owner if value is not None else None
        while isinstance(op, core.Expand | core.Reshape | core.Cast):
            op = op.x.owner
        if not isinstance(op, core.Constant) or op.value not in self.resources:
            return None
        held = self.resources.get(op.value)
        return float(held.reshape(-1)[0]) if held.numel() == 1 and not held.is_meta else None

    def mask(
        self, value: Value, *, inverted: bool = False
    ) -> Literal["all", "causal", "some", "other"]:
        """What a constant mask lets through; "some" with the promise that no query sees nothing."""
        op = value.owner
        while isinstance(op, core.Expand | core.Reshape):
            op = op.x.owner
        if not isinstance(op, core.Constant) or op.value not in self.resources:
            return "other"
        held = self.resources.get(op.value)
        return mask_kind(~held if inverted else held)

    def split(self, a: Value, b: Value) -> tuple[Value, float] | None:
        """The operand that is no number, and the number; None unless just one of them is."""
        left, right = self.of(a), self.of(b)
        if left is None and right is not None:
            return a, right
        if right is None and left is not None:
            return b, left
        return None

    def factors(self, value: Value) -> tuple[float, list[Value]]:
        """A product taken apart: the product of its numbers, and its other factors."""
        op = value.owner
        if isinstance(op, core.Divide):
            below = self.of(op.b)
            if below:
                number, rest = self.factors(op.a)
                return number / below, rest
        if not isinstance(op, core.Multiply):
            return 1.0, [value]
        number, rest = 1.0, []
        for side in (op.a, op.b):
            known = self.of(side)
            if known is not None:
                number *= known
                continue
            inner, values = self.factors(side)
            number *= inner
            rest += values
        return number, rest


def close(value: Value, found: float, wanted: float) -> bool:
    """Whether a number of the model equals a known one up to the rounding of its element type."""
    tolerance = 1e-13 if tensor(value).element == "f64" else 1e-6
    return abs(found - wanted) <= tolerance * abs(wanted)


def is_power(value: Value, base: Value, exponent: int, numbers: Numbers) -> bool:
    """Whether a value is ``base ^ exponent``, written as a power or as products."""
    number, rest = numbers.factors(value)
    if number != 1.0:
        return False
    total = 0
    for item in rest:
        op = item.owner
        if item is base:
            total += 1
        elif isinstance(op, core.Power) and op.a is base:
            total += int(numbers.of(op.b) or 0)
        else:
            return False
    return total == exponent


def merged_leading(value: Value, kept: int) -> tuple[Value, int] | None:
    """The tensor in front of a reshape that merges leading axes, and how many it merges.

    The last ``kept`` axes stay as they are; the first axis holds what stood in front of them.
    """
    op = value.owner
    if not isinstance(op, core.Reshape):
        return None
    before, after = tensor(op.x).shape, tensor(value).shape
    lead = len(before) - (len(after) - 1)
    if lead < 2 or len(after) - 1 < kept or before[lead:] != after[1:]:
        return None
    return (op.x, lead) if product(before[:lead]) == after[0] else None


def merged_both(value: Value) -> core.Reshape | None:
    """Of a reshape to ``[rows, columns]`` that merges two or more axes into each, the second half.

    It leaves the axes in front apart: ``[T, B, H, D]`` to ``[T, B, H * D]``.
    """
    op = value.owner
    if not isinstance(op, core.Reshape) or tensor(value).rank != 2:
        return None
    before, (rows, columns) = tensor(op.x).shape, tensor(value).shape
    for lead in range(2, len(before) - 1):
        if product(before[:lead]) == rows and product(before[lead:]) == columns:
            return core.Reshape(x=op.x, shape=(*before[:lead], columns), scope=op.scope)
    return None


def splits(fine: tuple[Dim, ...], coarse: tuple[Dim, ...]) -> bool:
    """Whether runs of neighbours in ``fine`` multiply to the sizes of ``coarse``, in order."""
    place = 0
    for size in coarse:
        run: Dim = 1
        while run != size:
            if place == len(fine):
                return False
            run = product([run, fine[place]])
            place += 1
    return place == len(fine)


def same_or_one(shape: tuple[Dim, ...], other: tuple[Dim, ...]) -> bool:
    """Whether every axis of ``shape`` is that of ``other`` or 1, trailing axes aligned."""
    if len(shape) > len(other):
        return False
    return all(
        size in (1, wanted) for size, wanted in zip(reversed(shape), reversed(other), strict=False)
    )


def swapped(x: Value) -> core.Permute:
    """``x`` with its last two axes exchanged."""
    axes = list(range(tensor(x).rank))
    axes[-1], axes[-2] = axes[-2], axes[-1]
    return core.Permute(x=x, axes=tuple(axes))


def single_use(op: Op) -> bool:
    """Whether the op's only result has one user, so that nothing else sees it."""
    return sum(op.result.users.values()) == 1


def mask_kind(mask: Tensor) -> Literal["all", "causal", "some", "other"]:
    """What a mask lets through: everything, keys up to the query, some for each query; or else.

    Truth values say what is seen; numbers are added to scores, so that very low ones hide.
    """
    if mask.is_meta or mask.dim() < 2:
        return "other"
    floating = mask.is_floating_point()
    seen = mask == 0 if floating else mask.bool()
    if floating and not bool((seen | (mask <= torch.finfo(mask.dtype).min / 2)).all()):
        return "other"
    if bool(seen.all()):
        return "all"
    length, keys = mask.shape[-2:]
    if length == keys and bool((seen == torch.ones_like(seen).tril()).all()):
        return "causal"
    # Where every query sees a key, the lowest number and a hidden key mean the same.
    some = bool(seen.any(-1).all()) or (floating and bool(torch.isneginf(mask[~seen]).all()))
    return "some" if some or not floating else "other"
