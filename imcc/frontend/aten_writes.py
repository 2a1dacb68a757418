"""Writes into a part of a tensor (``y[:, 1:] = z``), which the exporter gives as new tensors."""

from __future__ import annotations

from typing import Any

from imcc.frontend.aten_tensors import reshaped
from imcc.frontend.convert import Argument, Const, Converter
from imcc.frontend.rules import aten_rule
from imcc.ir.dialects import core
from imcc.ir.dialects.core import tensor
from imcc.ir.ops import Value


@aten_rule("fill.Scalar", "fill.Tensor")
def _fill(c: Converter, x: Argument, value: Any) -> Value:
    given = c.value(value) if isinstance(value, (Value, Const)) else c.number(value, c.value(x))
    return c.expand(c.converted(given, c.element()), c.shape())


@aten_rule("copy")
def _copy(c: Converter, x: Argument, src: Argument, non_blocking: bool = False) -> Value:
    return c.expand(c.converted(c.value(src), c.element()), c.shape())


@aten_rule("slice_scatter")
def _slice_scatter(
    c: Converter, x: Argument, src: Argument, dim: int, start: Any, end: Any, step: Any
) -> Value:
    """``x`` with ``src`` in place of ``x[start:end]`` of one axis."""
    held, part = c.value(x), c.value(src)
    axis = dim % tensor(held).rank
    if tensor(part).shape == tensor(held).shape:
        return part
    size = tensor(held).shape[axis]
    last = size if end is None else end
    first = 0 if start is None else start
    if not (type(size) is int and type(first) is int and type(last) is int):
        raise c.refuse(
            "writes to a part of an axis of symbolic size",
            help="treat all samples of a batch alike",
        )
    low, high, stride = slice(first, last, step).indices(size)
    if stride != 1:
        raise c.refuse("writes to every other element", help="write to a whole range")
    return _between(c, held, part, axis, low, high)


@aten_rule("select_scatter")
def _select_scatter(c: Converter, x: Argument, src: Argument, dim: int, index: Any) -> Value:
    """``x`` with ``src`` in place of ``x[index]`` of one axis."""
    held, part = c.value(x), c.value(src)
    axis = dim % tensor(held).rank
    size = tensor(held).shape[axis]
    if type(size) is not int or type(index) is not int:
        raise c.refuse("writes to one sample", help="treat all samples of a batch alike")
    shape = tensor(part).shape
    wide = reshaped(c, part, (*shape[:axis], 1, *shape[axis:]))
    at = index % size
    return _between(c, held, wide, axis, at, at + 1)


@aten_rule("index_put")
def _index_put(
    c: Converter, x: Argument, indices: Any, values: Argument, accumulate: bool = False
) -> Value:
    """``x[mask] = number`` is a choice; which places another index names depends on its values."""
    held = c.value(x)
    mask = c.value(indices[0]) if len(indices) == 1 and indices[0] is not None else None
    given = c.value(values)
    whole = mask is not None and tensor(mask).shape == tensor(held).shape
    if accumulate or mask is None or not whole or tensor(mask).element != "i1":
        raise c.refuse("writes to places that an index names", help="use torch.where")
    if tensor(given).rank:
        raise c.refuse(
            "writes one value for each place that a mask chooses", help="use torch.where"
        )
    filled = c.converted(given, c.element())
    return c.emit(core.Where(condition=mask, a=filled, b=held)).y


def _between(c: Converter, x: Value, part: Value, axis: int, low: int, high: int) -> Value:
    size = tensor(x).shape[axis]
    pieces = [part]
    if low > 0:
        pieces.insert(0, c.sliced(x, axis, 0, low))
    if isinstance(size, int) and high < size:
        pieces.append(c.sliced(x, axis, high, size))
    if len(pieces) == 1:
        return part
    return c.emit(core.Concat(inputs=tuple(pieces), axis=axis)).y
