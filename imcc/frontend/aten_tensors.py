"""Arithmetic, shapes and structure of tensors: what their aten ops become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from imcc.frontend.convert import SAME_VALUE, Const, Converter
from imcc.frontend.rules import Argument, aten_rule, check_same_dtype
from imcc.ir.dialects import core
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim
from imcc.ir.ops import Value

# -- arithmetic -----------------------------------------------------------------------------------


def _pair(c: Converter, a: Any, b: Any) -> tuple[Value, Value]:
    """Both operands as values; a Python number becomes a constant of the other's type."""
    for item in (a, b):
        if not isinstance(item, (Value, Const, int, float)):
            raise c.refuse(f"operand {item} is not a tensor or a number")
    if isinstance(a, (Value, Const)):
        left = c.value(a)
        return left, c.value(b) if isinstance(b, (Value, Const)) else c.number(b, left)
    right = c.value(b)
    return c.number(a, right), right


def _scaled(c: Converter, x: Any, alpha: float) -> Any:
    if alpha == 1:
        return x
    if isinstance(x, (int, float)):
        return x * alpha
    left, right = _pair(c, x, alpha)
    return c.emit(core.Multiply(a=left, b=right)).y


@aten_rule("add.Tensor", "add.Scalar")
def _add(c: Converter, x: Any, other: Any, alpha: float = 1) -> Value:
    left, right = _pair(c, x, _scaled(c, other, alpha))
    return c.emit(core.Add(a=left, b=right)).y


@aten_rule("sub.Tensor", "sub.Scalar")
def _sub(c: Converter, x: Any, other: Any, alpha: float = 1) -> Value:
    left, right = _pair(c, x, _scaled(c, other, alpha))
    return c.emit(core.Subtract(a=left, b=right)).y


@aten_rule("rsub.Tensor", "rsub.Scalar")
def _rsub(c: Converter, x: Any, other: Any, alpha: float = 1) -> Value:
    left, right = _pair(c, other, _scaled(c, x, alpha))
    return c.emit(core.Subtract(a=left, b=right)).y


@aten_rule("mul.Tensor", "mul.Scalar")
def _mul(c: Converter, x: Any, other: Any) -> Value:
    left, right = _pair(c, x, other)
    return c.emit(core.Multiply(a=left, b=right)).y


@aten_rule("div.Tensor", "div.Scalar")
def _div(c: Converter, x: Any, other: Any) -> Value:
    left, right = _pair(c, x, other)
    return c.emit(core.Divide(a=left, b=right)).y


@aten_rule("neg")
def _neg(c: Converter, x: Any) -> Value:
    return _mul(c, x, -1.0)


@aten_rule("reciprocal")
def _reciprocal(c: Converter, x: Any) -> Value:
    return _div(c, 1.0, x)


# -- structure ------------------------------------------------------------------------------------


def _reshaped(c: Converter, x: Value, shape: tuple[Dim, ...]) -> Value:
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
    return _reshaped(c, c.value(x), c.shape())


@aten_rule("expand")
def _expand(c: Converter, x: Argument, **_: Any) -> Value:
    held = c.value(x)
    if tensor(held).shape != c.shape():
        raise c.refuse(
            f"repeats {tensor(held)} to another shape",
            help="elementwise ops broadcast on their own: leave the expansion out",
        )
    return held


def _permuted(c: Converter, x: Value, axes: Sequence[int]) -> Value:
    rank = tensor(x).rank
    return c.emit(core.Permute(x=x, axes=tuple(axis % rank for axis in axes))).y


@aten_rule("permute")
def _permute(c: Converter, x: Argument, dims: Sequence[int]) -> Value:
    return _permuted(c, c.value(x), dims)


@aten_rule("transpose.int")
def _transpose(c: Converter, x: Argument, dim0: int, dim1: int) -> Value:
    held = c.value(x)
    axes = list(range(tensor(held).rank))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return _permuted(c, held, axes)


@aten_rule("t", "numpy_T")
def _t(c: Converter, x: Argument) -> Value:
    held = c.value(x)
    return _permuted(c, held, list(reversed(range(tensor(held).rank))))


def _sliced(c: Converter, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
    size = tensor(x).shape[axis]
    if start == 0 and step == 1 and stop == size:
        return x
    return c.emit(core.Slice(x=x, axis=axis, start=start, stop=stop, step=step)).y


@aten_rule("slice.Tensor")
def _slice(c: Converter, x: Argument, dim: int, start: Any, end: Any, step: Any) -> Value:
    held = c.value(x)
    axis = dim % tensor(held).rank
    size = tensor(held).shape[axis]
    first = 0 if start is None else start
    if not isinstance(size, int):
        whole = end is None or (isinstance(end, int) and end >= 2**62)
        if first == 0 and step == 1 and whole:
            return held
        raise c.refuse("slices the batch axis", help="treat all samples of a batch alike")
    last = size if end is None else end
    if not (type(first) is int and type(last) is int and type(step) is int):
        raise c.refuse("the limits of the slice depend on the batch size")
    low, high, _ = slice(first, last, step).indices(size)
    return _sliced(c, held, axis, low, high, step)


@aten_rule("select.int")
def _select(c: Converter, x: Argument, dim: int, index: Any) -> Value:
    held = c.value(x)
    axis = dim % tensor(held).rank
    size = tensor(held).shape[axis]
    if not isinstance(size, int) or type(index) is not int:
        raise c.refuse("selects along the batch axis", help="treat all samples of a batch alike")
    at = index % size
    return _reshaped(c, _sliced(c, held, axis, at, at + 1), c.shape())


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
            raise c.refuse("splits the batch axis", help="treat all samples of a batch alike")
        made.append(_sliced(c, held, axis, start, start + size))
        start += size
    return tuple(made)


@aten_rule("unbind.int")
def _unbind(c: Converter, x: Argument, dim: int) -> tuple[Value, ...]:
    held = c.value(x)
    axis = dim % tensor(held).rank
    return tuple(
        _reshaped(c, _sliced(c, held, axis, index, index + 1), c.shape(index))
        for index in range(c.pieces())
    )


@aten_rule("cat", "concat")
def _cat(c: Converter, tensors: Sequence[Argument], dim: int) -> Value:
    held = [c.value(item) for item in tensors]
    if len(held) == 1:
        return held[0]
    return c.emit(core.Concat(inputs=tuple(held), axis=dim % tensor(held[0]).rank)).y


@aten_rule("stack")
def _stack(c: Converter, tensors: Sequence[Argument], dim: int) -> Value:
    held = [c.value(item) for item in tensors]
    shape = list(c.shape())
    axis = dim % len(shape)
    shape[axis] = 1
    return _cat(c, [_reshaped(c, item, tuple(shape)) for item in held], axis)


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


@aten_rule("_to_copy", "to.dtype", "to.dtype_layout", "to.device")
def _to(c: Converter, x: Argument, dtype: Any = None, **_: Any) -> Argument:
    if isinstance(x, Value):
        check_same_dtype(c, x, dtype)
    return x
