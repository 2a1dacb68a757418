"""Arithmetic, shapes and structure of tensors: what their aten ops become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from imcc.frontend.convert import SAME_VALUE, Argument, Const, Converter
from imcc.frontend.rules import aten_rule
from imcc.ir.dialects import core
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim
from imcc.ir.ops import Value
from imcc.ir.semantics.resources import ELEMENT_OF, TORCH_DTYPES
from imcc.ir.types import FLOATS

# -- arithmetic -----------------------------------------------------------------------------------


def pair(c: Converter, a: Any, b: Any) -> tuple[Value, Value]:
    """Both operands as values of one element type.

    A Python number becomes a constant of the other's type; of two tensors the one with fewer
    digits (a truth value, an integer) takes the element type of the other, as torch promotes.
    """
    for item in (a, b):
        if not isinstance(item, (Value, Const, int, float)):
            raise c.refuse(
                f"operand {item} is a size that depends on the input",
                help="only the element count of a tensor of known size can be a factor",
            )
    if isinstance(a, (Value, Const)) and isinstance(b, (Value, Const)):
        left, right = c.value(a), c.value(b)
        one, two = (TORCH_DTYPES[str(tensor(item).element)] for item in (left, right))
        if tensor(left).rank and tensor(right).rank:
            element = ELEMENT_OF[torch.promote_types(one, two)]
        else:
            element = ELEMENT_OF[torch.result_type(_like(left, one), _like(right, two))]
        return c.converted(left, element), c.converted(right, element)
    if isinstance(a, (Value, Const)):
        left = _for_number(c, c.value(a), b)
        return left, c.number(b, left)
    right = _for_number(c, c.value(b), a)
    return c.number(a, right), right


def _like(value: Value, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty([1] * tensor(value).rank, dtype=dtype, device="meta")


def _for_number(c: Converter, x: Value, number: Any) -> Value:
    """``x`` in the type of its result with a Python number: 1.5 turns integers into floats."""
    dtype = TORCH_DTYPES[str(tensor(x).element)]
    return c.converted(x, ELEMENT_OF[torch.result_type(_like(x, dtype), number)])


def _scaled(c: Converter, x: Any, alpha: float) -> Any:
    if alpha == 1:
        return x
    if isinstance(x, (int, float)):
        return x * alpha
    left, right = pair(c, x, alpha)
    return c.emit(core.Multiply(a=left, b=right)).y


@aten_rule("add.Tensor", "add.Scalar")
def _add(c: Converter, x: Any, other: Any, alpha: float = 1) -> Value:
    left, right = pair(c, x, _scaled(c, other, alpha))
    return c.emit(core.Add(a=left, b=right)).y


@aten_rule("sub.Tensor", "sub.Scalar")
def _sub(c: Converter, x: Any, other: Any, alpha: float = 1) -> Value:
    left, right = pair(c, x, _scaled(c, other, alpha))
    return c.emit(core.Subtract(a=left, b=right)).y


@aten_rule("rsub.Tensor", "rsub.Scalar")
def _rsub(c: Converter, x: Any, other: Any, alpha: float = 1) -> Value:
    left, right = pair(c, other, _scaled(c, x, alpha))
    return c.emit(core.Subtract(a=left, b=right)).y


@aten_rule("mul.Tensor", "mul.Scalar")
def _mul(c: Converter, x: Any, other: Any) -> Value:
    left, right = pair(c, x, other)
    return c.emit(core.Multiply(a=left, b=right)).y


@aten_rule("div.Tensor", "div.Scalar")
def _div(c: Converter, x: Any, other: Any) -> Value:
    left, right = pair(c, x, other)
    if str(tensor(left).element) not in FLOATS:
        # A true quotient of integers is a number of the default type.
        left, right = (c.converted(item, c.element()) for item in (left, right))
    return c.emit(core.Divide(a=left, b=right)).y


# -- structure ------------------------------------------------------------------------------------


def reshaped(c: Converter, x: Value, shape: tuple[Dim, ...]) -> Value:
    """``x`` under another shape; nothing happens to one that has it."""
    return x if tensor(x).shape == shape else c.emit(core.Reshape(x=x, shape=shape)).y


@aten_rule(
    "view",
    "_unsafe_view",
    "reshape",
    "flatten.using_ints",
    "unflatten.int",
    "unsqueeze",
    "squeeze",
    "squeeze.dim",
    "squeeze.dims",
)
def _reshape(c: Converter, x: Argument, **_: Any) -> Value:
    # The exporter has worked out the shape, -1 included.
    return reshaped(c, c.value(x), c.shape())


@aten_rule("expand")
def _expand(c: Converter, x: Argument, **_: Any) -> Value:
    return c.expand(c.value(x), c.shape())


def permuted(c: Converter, x: Value, axes: Sequence[int]) -> Value:
    """``x`` with its axes in another order; nothing happens if that is the same."""
    rank = tensor(x).rank
    order = tuple(axis % rank for axis in axes)
    return x if order == tuple(range(rank)) else c.emit(core.Permute(x=x, axes=order)).y


@aten_rule("permute")
def _permute(c: Converter, x: Argument, dims: Sequence[int]) -> Value:
    return permuted(c, c.value(x), dims)


@aten_rule("transpose.int")
def _transpose(c: Converter, x: Argument, dim0: int, dim1: int) -> Value:
    held = c.value(x)
    axes = list(range(tensor(held).rank))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return permuted(c, held, axes)


@aten_rule("t", "numpy_T")
def _t(c: Converter, x: Argument) -> Value:
    held = c.value(x)
    return permuted(c, held, list(reversed(range(tensor(held).rank))))


@aten_rule("slice.Tensor")
def _slice(c: Converter, x: Argument, dim: int, start: Any, end: Any, step: Any) -> Value:
    held = c.value(x)
    axis = dim % tensor(held).rank
    size = tensor(held).shape[axis]
    first = 0 if start is None else start
    if type(first) is not int or type(step) is not int:
        raise c.refuse("the start of the slice depends on the input's size")
    wanted = c.shape()[axis]
    if not isinstance(size, int):
        if wanted == size and first == 0 and step == 1:
            return held
        return _from_symbolic(c, held, axis, first, end, step, wanted)
    if not isinstance(wanted, int):
        # As many elements as a symbolic axis has.
        if first or step != 1:
            raise c.refuse(f"a slice of symbolic length starts at {first} with step {step}")
        return c.sliced(held, axis, 0, wanted)
    low, high, _ = slice(first, end if type(end) is int else size, step).indices(size)
    return c.sliced(held, axis, low, high, step)


def _from_symbolic(
    c: Converter, x: Value, axis: int, first: int, end: Any, step: int, wanted: Dim
) -> Value:
    """A known number of elements of a symbolic axis, from its front or from its end."""
    _not_the_batch(c, x, axis, "slices")
    if not isinstance(wanted, int) or (end is not None and type(end) is not int):
        raise c.refuse(
            f"slices an axis of symbolic size {tensor(x).shape[axis]} to size {wanted}",
            help="only a known number of elements can be taken",
        )
    if first >= 0 and step == 1:
        return c.sliced(x, axis, first, first + wanted)
    # Negative indices count from the end, wherever that is.
    order = Const(f"from_end.{first}.{wanted}", first + step * torch.arange(wanted))
    return c.emit(core.Gather(x=x, index=c.value(order), axis=axis)).y


def _not_the_batch(c: Converter, x: Value, axis: int, does: str) -> None:
    if "B" in getattr(tensor(x).shape[axis], "symbols", ()):
        raise c.refuse(f"{does} the batch axis", help="treat all samples of a batch alike")


@aten_rule("select.int")
def _select(c: Converter, x: Argument, dim: int, index: Any) -> Value:
    held = c.value(x)
    axis = dim % tensor(held).rank
    size = tensor(held).shape[axis]
    if type(index) is not int:
        raise c.refuse("the index depends on the input's size")
    if isinstance(size, int):
        at = index % size
        return reshaped(c, c.sliced(held, axis, at, at + 1), c.shape())
    _not_the_batch(c, held, axis, "selects along")
    return reshaped(c, _from_symbolic(c, held, axis, index, None, 1, 1), c.shape())


@aten_rule(
    "split.Tensor",
    "split.sizes",
    "split_with_sizes",
    "chunk",
    "unsafe_split.Tensor",
    "unsafe_chunk",
    "tensor_split.sections",
)
def _split(c: Converter, x: Argument, dim: int, **_: Any) -> tuple[Value, ...]:
    held = c.value(x)
    axis = dim % tensor(held).rank
    made: list[Value] = []
    start = 0
    for index in range(c.pieces()):
        size = c.shape(index)[axis]
        if not isinstance(size, int):
            _not_the_batch(c, held, axis, "splits")
            raise c.refuse("splits an axis of symbolic size")
        made.append(c.sliced(held, axis, start, start + size))
        start += size
    return tuple(made)


@aten_rule("unbind.int")
def _unbind(c: Converter, x: Argument, dim: int) -> tuple[Value, ...]:
    held = c.value(x)
    axis = dim % tensor(held).rank
    return tuple(
        reshaped(c, c.sliced(held, axis, index, index + 1), c.shape(index))
        for index in range(c.pieces())
    )


@aten_rule("cat", "concat")
def _cat(c: Converter, tensors: Sequence[Argument], dim: int) -> Value:
    given = [c.value(item) for item in tensors]
    # PyTorch passes over empty tensors of one axis, whatever the shapes beside them.
    held = [value for value in given if tensor(value).shape != (0,)] or given[:1]
    if len(held) == 1:
        return held[0]
    return c.emit(core.Concat(inputs=tuple(held), axis=dim % tensor(held[0]).rank)).y


@aten_rule("stack")
def _stack(c: Converter, tensors: Sequence[Argument], dim: int) -> Value:
    held = [c.value(item) for item in tensors]
    shape = list(c.shape())
    axis = dim % len(shape)
    shape[axis] = 1
    return _cat(c, [reshaped(c, item, tuple(shape)) for item in held], axis)


@aten_rule("constant_pad_nd")
def _constant_pad(c: Converter, x: Argument, pad: Sequence[int], value: float | None) -> Value:
    held = c.value(x)
    if any(type(size) is not int or size < 0 for size in pad):
        raise c.refuse(f"padding {list(pad)} must be known and not negative", help="slice instead")
    if not any(pad):
        return held
    rank = tensor(held).rank
    before, after = [0] * rank, [0] * rank
    for index in range(len(pad) // 2):
        before[-1 - index], after[-1 - index] = pad[2 * index], pad[2 * index + 1]
    made = core.Pad(x=held, before=tuple(before), after=tuple(after), value=float(value or 0.0))
    return c.emit(made).y


@aten_rule("pad")
def _pad(c: Converter, x: Argument, pad: Sequence[int], mode: str, value: float | None) -> Value:
    if mode != "constant":
        raise c.refuse(f"padding mode {mode!r} is not supported", help='use mode="constant"')
    return _constant_pad(c, x, pad, value)


# -- nothing to do --------------------------------------------------------------------------------


@aten_rule(*SAME_VALUE)
def _same(c: Converter, x: Argument, **_: Any) -> Argument:
    return x


@aten_rule("dropout", "feature_dropout", "alpha_dropout")
def _dropout(c: Converter, x: Argument, p: float, train: bool | None) -> Argument:
    if train:
        raise c.refuse(
            "dropout is active",
            reason="the model is captured for inference",
            help="write functional.dropout(x, p, training=self.training)",
        )
    return x
