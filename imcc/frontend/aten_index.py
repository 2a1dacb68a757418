"""Indexing: embeddings, gathers, rolls and repetitions, and what their aten ops become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from imcc.frontend import tables
from imcc.frontend.aten_tensors import permuted, reshaped
from imcc.frontend.convert import Argument, Const, Converter
from imcc.frontend.rules import aten_rule
from imcc.ir.dialects import core
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim, quotient
from imcc.ir.ops import Value


@aten_rule("embedding")
def _embedding(c: Converter, weight: Argument, indices: Argument, **_: Any) -> Value:
    return c.emit(core.Gather(x=c.value(weight), index=c.value(indices), axis=0)).y


@aten_rule("index_select")
def _index_select(c: Converter, x: Argument, dim: int, index: Argument) -> Value:
    held = c.value(x)
    axis = dim % tensor(held).rank
    return c.emit(core.Gather(x=held, index=c.value(index), axis=axis)).y


@aten_rule("index.Tensor", "_unsafe_index.Tensor", forms=True)
def _index(c: Converter, x: Argument, indices: Sequence[Any]) -> Value:
    """One indexed axis is a gather; several become one by running numbers over their product.

    An index that only counts along an axis of its own takes that axis as it is.
    """
    held = c.value(x)
    given = [*indices, *[None] * (tensor(held).rank - len(indices))]
    used = [axis for axis, item in enumerate(given) if item is not None]
    for axis in used:
        kind = _element(given[axis])
        if kind not in ("i64", "i32"):
            raise c.refuse(
                f"indexes by {kind}",
                reason="how many elements are chosen depends on their values",
                help="multiply by the mask, or use torch.where",
            )
    held, given, used = _without_ones(c, held, given, used)
    if len(used) > 1:
        counted = _counted(c, held, given, used)
        if counted is not None:
            return counted
        return _flattened(c, held, given, used)
    (axis,) = used
    made = c.emit(core.Gather(x=held, index=c.value(given[axis]), axis=axis)).y
    return made if tensor(made).shape == c.shape() else c.expand(made, c.shape())


def _without_ones(
    c: Converter, x: Value, given: list[Any], used: list[int]
) -> tuple[Value, list[Any], list[int]]:
    """Adjacent indexed axes without those of size 1: whatever their index is, it is 0."""
    shape = tensor(x).shape
    if len(used) < 2 or used != list(range(used[0], used[-1] + 1)):
        return x, given, used
    kept = [axis for axis in used if shape[axis] != 1] or used[:1]
    left = [axis for axis in range(len(shape)) if axis in kept or axis not in used]
    if len(left) == len(shape):
        return x, given, used
    narrow = reshaped(c, x, tuple(shape[axis] for axis in left))
    return narrow, [given[axis] for axis in left], [left.index(axis) for axis in kept]


def _element(index: Any) -> str:
    if isinstance(index, tables.Relations):
        return "i1"
    if isinstance(index, tables.Table):
        return "i64"
    if isinstance(index, Const):
        return {torch.int64: "i64", torch.int32: "i32", torch.bool: "i1"}.get(
            index.tensor.dtype, str(index.tensor.dtype)
        )
    return str(tensor(index).element)


def _counted(c: Converter, x: Value, given: list[Any], used: list[int]) -> Value | None:
    """``x[i, j]`` with ``i`` counting along one axis and ``j`` along another: no gather at all."""
    shape = c.shape()
    if len(used) != tensor(x).rank:
        return None
    places: list[int] = []
    for axis in used:
        form = given[axis]
        if not isinstance(form, tables.Table) or form.offset:
            return None
        lead = len(shape) - len(form.sizes)
        along = [place for place, factor in enumerate(form.coefficients) if factor]
        one = len(along) == 1 and form.coefficients[along[0]] == 1
        if not one or c.dim(form.sizes[along[0]]) != tensor(x).shape[axis]:
            return None
        places.append(lead + along[0])
    if places != sorted(set(places)):
        return None
    wide: list[Dim] = [1] * len(shape)
    for axis, place in zip(used, places, strict=True):
        wide[place] = tensor(x).shape[axis]
    return c.expand(reshaped(c, x, tuple(wide)), shape)


def _flattened(c: Converter, x: Value, given: list[Any], used: list[int]) -> Value:
    """Adjacent indexed axes as one axis, with ``((i * size_j) + j) ...`` as index."""
    shape = tensor(x).shape
    first, last = used[0], used[-1]
    sizes = shape[first : last + 1]
    known = [size for size in sizes if isinstance(size, int)]
    if used != list(range(first, last + 1)) or len(known) != len(sizes):
        raise c.refuse(
            "indexes several axes at once",
            help="index one axis after the other, or flatten the axes first",
        )
    index: Value | None = None
    for axis in used:
        here = c.value(given[axis])
        if index is None:
            index = here
            continue
        size = shape[axis]
        if not isinstance(size, int):
            raise c.refuse("indexes an axis of symbolic size")
        scaled = c.emit(core.Multiply(a=index, b=c.number(size, index))).y
        index = c.emit(core.Add(a=scaled, b=here)).y
    total = 1
    for size in known:
        total *= size
    flat = reshaped(c, x, (*shape[:first], total, *shape[last + 1 :]))
    if index is None:
        raise c.refuse("has no index")
    return c.emit(core.Gather(x=flat, index=index, axis=first)).y


@aten_rule("gather", forms=True)
def _gather(c: Converter, x: Argument, dim: int, index: Argument, sparse_grad: bool) -> Value:
    """``y[i, j] = x[i, index[i, j]]``; an index that counts from 0 takes the axis as it is."""
    held = c.value(x)
    axis = dim % tensor(held).rank
    shape = c.shape()
    if isinstance(index, tables.Table):
        along = [place for place, factor in enumerate(index.coefficients) if factor]
        counts = along == [axis] and index.coefficients[axis] == 1 and not index.offset
        if counts:
            return c.sliced(held, axis, 0, shape[axis])
    size = tensor(held).shape
    known = [item for item in size if isinstance(item, int)]
    if len(known) < len(size) - 1 or not isinstance(size[axis], int):
        # The rows in front are counted by position; all but one of the sizes must be known.
        raise c.refuse("gathers along an axis of symbolic size")
    # Running numbers over all axes: the position in each, but the given index along this one.
    total: Value | None = None
    for place, extent in enumerate(size):
        if place == axis:
            step = c.value(index)
        else:
            wide: list[Dim] = [1] * len(size)
            wide[place] = shape[place]
            step = reshaped(c, c.positions(shape[place]), tuple(wide))
        if total is None:
            total = step
            continue
        if not isinstance(extent, int):
            raise c.refuse("gathers behind an axis of symbolic size")
        scaled = c.emit(core.Multiply(a=total, b=c.number(extent, total))).y
        total = c.emit(core.Add(a=scaled, b=step)).y
    flat = reshaped(c, held, (tensor(held).elements,))
    if total is None:
        raise c.refuse("has no axis")
    return c.emit(core.Gather(x=flat, index=total, axis=0)).y


@aten_rule("roll")
def _roll(c: Converter, x: Argument, shifts: Sequence[int], dims: Sequence[int]) -> Value:
    held = c.value(x)
    for shift, dim in zip(shifts, dims, strict=True):
        axis = dim % tensor(held).rank
        size = tensor(held).shape[axis]
        if not isinstance(size, int) or type(shift) is not int:
            raise c.refuse("rolls an axis of symbolic size")
        cut = -shift % size
        if cut:
            pieces = (c.sliced(held, axis, cut, size), c.sliced(held, axis, 0, cut))
            held = c.emit(core.Concat(inputs=pieces, axis=axis)).y
    return held


@aten_rule("flip")
def _flip(c: Converter, x: Argument, dims: Sequence[int]) -> Value:
    held = c.value(x)
    for dim in dims:
        axis = dim % tensor(held).rank
        size = tensor(held).shape[axis]
        if not isinstance(size, int):
            raise c.refuse("turns an axis of symbolic size around")
        order = Const(f"order.{size}", torch.arange(size - 1, -1, -1))
        held = c.emit(core.Gather(x=held, index=c.value(order), axis=axis)).y
    return held


@aten_rule("repeat", "tile")
def _repeat(c: Converter, x: Argument, **_: Any) -> Value:
    """Repetition of whole axes: each gets an axis of copies in front, then both become one."""
    held, shape = c.value(x), c.shape()
    kind = tensor(held)
    lead = len(shape) - kind.rank
    before: list[Dim] = []
    copies: list[Dim] = []
    for size, wanted in zip((*[1] * lead, *kind.shape), shape, strict=True):
        if size == wanted:
            before.append(size)
            copies.append(size)
            continue
        if size == 1:
            before.append(1)
            copies.append(wanted)
            continue
        count = quotient(wanted, size)
        if count is None:
            raise c.refuse(f"repeats an axis of size {size} to {wanted}")
        before += [1, size]
        copies += [count, size]
    made = c.expand(reshaped(c, held, tuple(before)), tuple(copies))
    return reshaped(c, made, shape)


@aten_rule("repeat_interleave.self_int")
def _repeat_interleave(c: Converter, x: Argument, repeats: Any, dim: int | None, **_: Any) -> Value:
    held, shape = c.value(x), c.shape()
    if dim is None or type(repeats) is not int:
        raise c.refuse("repeats elements of a flattened tensor", help="name the axis: dim=...")
    axis = dim % len(shape)
    size = tensor(held).shape
    apart = reshaped(c, held, (*size[: axis + 1], 1, *size[axis + 1 :]))
    made = c.expand(apart, (*size[: axis + 1], repeats, *size[axis + 1 :]))
    return reshaped(c, made, shape)


@aten_rule("movedim.int", "swapaxes", "swapdims")
def _swap(c: Converter, x: Argument, **given: int) -> Value:
    held = c.value(x)
    axes = list(range(tensor(held).rank))
    one, two = given.values()
    if c.operation().startswith("movedim"):
        axes.insert(two % len(axes), axes.pop(one % len(axes)))
    else:
        axes[one], axes[two] = axes[two], axes[one]
    return permuted(c, held, axes)


@aten_rule("pixel_shuffle")
def _pixel_shuffle(c: Converter, x: Argument, upscale_factor: int) -> Value:
    held = c.value(x)
    *lead, channels, height, width = tensor(held).shape
    if not isinstance(channels, int):
        raise c.refuse("shuffles an axis of symbolic size")
    r, n = upscale_factor, len(lead)
    apart = reshaped(c, held, (*lead, channels // (r * r), r, r, height, width))
    turned = permuted(c, apart, [*range(n), n, n + 3, n + 1, n + 4, n + 2])
    return reshaped(c, turned, c.shape())
