"""What each aten op becomes: one rule per op, keyed by the op's name and overload.

A rule gets the :class:`~imcc.frontend.convert.Converter` and the arguments by the names of the
op's schema (``self`` and ``input`` are called ``x``), defaults filled in. Tensors are IR values or
:class:`~imcc.frontend.convert.Const`; sizes are numbers. It returns the value, or a tuple of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from imcc.frontend.convert import SAME_VALUE, Const, Converter, Rule
from imcc.ir.dialects import core, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim
from imcc.ir.ops import Value
from imcc.ir.semantics.resources import ELEMENT_OF

Argument: TypeAlias = Value | Const

RULES: dict[str, Rule] = {}
"""Rules by target name, such as ``aten.conv2d`` or ``aten.add.Tensor``."""

HINTS: dict[str, str] = {
    "log_softmax": "leave it out of the model: the largest output stays the largest",
    "_log_softmax": "leave it out of the model: the largest output stays the largest",
    "argmax": "return the logits and take the argmax in metric()",
    "elu": "use ReLU, LeakyReLU, SiLU or GELU",
    "mish": "use SiLU, Hardswish or GELU",
    "prelu": "use LeakyReLU with a fixed slope",
    "group_norm": "use BatchNorm2d, which folds into the convolution, or LayerNorm",
    "native_group_norm": "use BatchNorm2d, which folds into the convolution, or LayerNorm",
    "adaptive_max_pool2d": "use MaxPool2d with a fixed kernel, or AdaptiveAvgPool2d",
    "conv_transpose2d": "use Conv2d",
    "sum": "use mean, and fold the factor into the next layer's weight",
    "bmm": "products of two activations are not supported",
    "scaled_dot_product_attention": "products of two activations are not supported",
    "lstm": "recurrent layers are not supported",
    "gru": "recurrent layers are not supported",
    "embedding": "compute the embedding outside of the model and pass its result in",
}
"""What to use instead, for ops that models often hold."""


def _rule(*targets: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        for target in targets:
            RULES[f"aten.{target}"] = rule
        return rule

    return add


def _rank(x: Argument) -> int:
    return tensor(x).rank if isinstance(x, Value) else x.tensor.dim()


def _spread(c: Converter, what: str, sizes: Sequence[Any] | int, count: int) -> tuple[int, ...]:
    """One integer for each of ``count`` axes; torch writes a single one for all."""
    given = [sizes] if isinstance(sizes, int) else list(sizes)
    if not all(type(size) is int for size in given) or len(given) not in (1, count):
        raise c.refuse(f"{what} must be {count} known numbers, found {given}")
    return tuple(given * count if len(given) == 1 else given)


# -- layers ---------------------------------------------------------------------------------------


@_rule("linear")
def _linear(c: Converter, x: Argument, weight: Argument, bias: Argument | None) -> Value:
    return c.emit(nn.Linear(x=c.value(x), weight=c.value(weight), bias=c.optional(bias))).y


def _product(c: Converter, x: Argument, other: Argument, bias: Argument | None) -> Value:
    if not isinstance(other, Const) or other.tensor.dim() != 2:
        raise c.refuse(
            "the right factor is not a constant matrix",
            reason="a product of two activations needs a matrix that is written at run time",
            help="only products with weights are supported",
        )
    weight = other.transpose
    if weight is None:
        made = other.tensor.t().contiguous()
        weight = Const(f"{other.name}.transposed", made, other.scope, other)
    return c.emit(nn.Linear(x=c.value(x), weight=c.value(weight), bias=c.optional(bias))).y


@_rule("mm", "matmul")
def _mm(c: Converter, x: Argument, mat2: Any = None, other: Any = None) -> Value:
    return _product(c, x, mat2 if other is None else other, None)


@_rule("addmm")
def _addmm(
    c: Converter, x: Argument, mat1: Argument, mat2: Argument, beta: float, alpha: float
) -> Value:
    if beta != 1 or alpha != 1:
        raise c.refuse(f"beta = {beta} and alpha = {alpha} must both be 1")
    if isinstance(x, Const) and x.tensor.dim() == 1:
        return _product(c, mat1, mat2, x)
    return c.emit(core.Add(a=_product(c, mat1, mat2, None), b=c.value(x))).y


@_rule("conv1d", "conv2d", "conv3d")
def _conv(
    c: Converter,
    x: Argument,
    weight: Argument,
    bias: Argument | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Value:
    count = _rank(weight) - 2
    return c.emit(
        nn.Conv(
            x=c.value(x),
            weight=c.value(weight),
            bias=c.optional(bias),
            stride=_spread(c, "stride", stride, count),
            padding=_spread(c, "padding", padding, count),
            dilation=_spread(c, "dilation", dilation, count),
            groups=groups,
        )
    ).y


@_rule("conv1d.padding", "conv2d.padding", "conv3d.padding")
def _conv_padding(
    c: Converter,
    x: Argument,
    weight: Argument,
    bias: Argument | None,
    stride: Any,
    padding: str,
    dilation: Any,
    groups: int,
) -> Value:
    kind = tensor(c.value(weight))
    count = kind.rank - 2
    before = after = [0] * count
    if padding == "same":
        steps = _spread(c, "dilation", dilation, count)
        total = [
            step * (size - 1)
            for step, size in zip(steps, kind.shape[2:], strict=True)
            if isinstance(size, int)
        ]
        before = [room // 2 for room in total]
        after = [room - low for room, low in zip(total, before, strict=True)]
    if before == after:
        return _conv(c, x, weight, bias, stride, before, dilation, groups)
    # An even kernel leaves one more zero behind the input than in front of it.
    held = c.value(x)
    lead = [0] * (tensor(held).rank - count)
    padded = c.emit(core.Pad(x=held, before=(*lead, *before), after=(*lead, *after))).y
    return _conv(c, padded, weight, bias, stride, [0] * count, dilation, groups)


@_rule("convolution")
def _convolution(c: Converter, transposed: bool, output_padding: Any, **arguments: Any) -> Value:
    if transposed:
        raise c.refuse("transposed convolutions are not supported", help="use a convolution")
    return _conv(c, **arguments)


@_rule("_native_batch_norm_legit_no_training")
def _batch_norm(
    c: Converter,
    x: Argument,
    weight: Argument | None,
    bias: Argument | None,
    running_mean: Argument,
    running_var: Argument,
    momentum: float,
    eps: float,
) -> tuple[Value | None, ...]:
    held = c.value(x)
    made = nn.BatchNorm(
        x=held,
        mean=c.value(running_mean),
        var=c.value(running_var),
        weight=c.optional(weight),
        bias=c.optional(bias),
        axis=1 - tensor(held).rank,
        eps=eps,
    )
    return (c.emit(made).y, None, None)


@_rule("batch_norm")
def _batch_norm_composite(
    c: Converter, training: bool, cudnn_enabled: bool, **arguments: Any
) -> Value | None:
    if training or arguments["running_mean"] is None:
        return _batch_norm_training(c)
    return _batch_norm(c, **arguments)[0]


@_rule("_native_batch_norm_legit", "_native_batch_norm_legit.no_stats", "native_batch_norm")
def _batch_norm_training(c: Converter, **_: Any) -> None:
    raise c.refuse(
        "normalises by the statistics of the batch",
        reason="a result would depend on the other samples of its batch",
        help="set track_running_stats=True, and do not force the layer into training mode",
    )


@_rule("layer_norm")
def _layer_norm(
    c: Converter,
    x: Argument,
    normalized_shape: Sequence[int],
    weight: Argument | None,
    bias: Argument | None,
    eps: float,
    cudnn_enable: bool = True,
) -> Value:
    made = nn.LayerNorm(
        x=c.value(x),
        weight=c.optional(weight),
        bias=c.optional(bias),
        normalized_shape=_spread(c, "normalized_shape", normalized_shape, len(normalized_shape)),
        eps=eps,
    )
    return c.emit(made).y


@_rule("native_layer_norm")
def _native_layer_norm(c: Converter, **arguments: Any) -> tuple[Value | None, ...]:
    return (_layer_norm(c, **arguments), None, None)


# -- pooling --------------------------------------------------------------------------------------


def _max_pool_rule(count: int, indices: bool) -> Rule:
    def rule(
        c: Converter,
        x: Argument,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        ceil_mode: bool,
    ) -> Any:
        made = nn.MaxPool(
            x=c.value(x),
            kernel=_spread(c, "kernel", kernel_size, count),
            stride=_spread(c, "stride", stride or kernel_size, count),
            padding=_spread(c, "padding", padding, count),
            dilation=_spread(c, "dilation", dilation, count),
            ceil_mode=ceil_mode,
        )
        value = c.emit(made).y
        return (value, None) if indices else value

    return rule


def _avg_pool_rule(count: int) -> Rule:
    def rule(
        c: Converter,
        x: Argument,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None = None,
    ) -> Value:
        if divisor_override is not None:
            raise c.refuse("divisor_override is not supported", help="leave it out")
        made = nn.AvgPool(
            x=c.value(x),
            kernel=_spread(c, "kernel", kernel_size, count),
            stride=_spread(c, "stride", stride or kernel_size, count),
            padding=_spread(c, "padding", padding, count),
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
        )
        return c.emit(made).y

    return rule


def _adaptive_rule(count: int) -> Rule:
    def rule(c: Converter, x: Argument, output_size: Any) -> Value:
        output = _spread(c, "output_size", output_size, count)
        return c.emit(nn.AdaptiveAvgPool(x=c.value(x), output=output)).y

    return rule


for _count in (1, 2, 3):
    _rule(f"max_pool{_count}d")(_max_pool_rule(_count, indices=False))
    _rule(f"max_pool{_count}d_with_indices")(_max_pool_rule(_count, indices=True))
    _rule(f"avg_pool{_count}d")(_avg_pool_rule(_count))
    _rule(f"adaptive_avg_pool{_count}d", f"_adaptive_avg_pool{_count}d")(_adaptive_rule(_count))


@_rule("mean", "mean.dim")
def _mean(
    c: Converter, x: Argument, dtype: Any = None, dim: Any = None, keepdim: bool = False
) -> Value:
    held = c.value(x)
    _same_dtype(c, held, dtype)
    rank = tensor(held).rank
    given = range(rank) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    axes = tuple(sorted(axis % rank - rank for axis in given))
    return c.emit(nn.Mean(x=held, axes=axes, keepdim=keepdim)).y


# -- activations ----------------------------------------------------------------------------------


def _same_dtype(c: Converter, x: Value, dtype: torch.dtype | None) -> None:
    if dtype is not None and ELEMENT_OF.get(dtype) != tensor(x).element:
        raise c.refuse(
            f"converts {tensor(x).element} to {dtype}",
            help="keep one floating-point type throughout the model",
        )


@_rule("relu")
def _relu(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Relu(x=c.value(x))).y


@_rule("relu6")
def _relu6(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Clamp(x=c.value(x), minimum=0.0, maximum=6.0)).y


@_rule("hardtanh")
def _hardtanh(c: Converter, x: Argument, min_val: float, max_val: float) -> Value:
    return _clamp(c, x, min_val, max_val)


@_rule("clamp", "clip", "clamp_min", "clamp_max")
def _clamp(c: Converter, x: Argument, min: Any = None, max: Any = None) -> Value:
    low, high = (None if limit is None else float(limit) for limit in (min, max))
    return c.emit(nn.Clamp(x=c.value(x), minimum=low, maximum=high)).y


@_rule("leaky_relu")
def _leaky_relu(c: Converter, x: Argument, negative_slope: float) -> Value:
    return c.emit(nn.LeakyRelu(x=c.value(x), negative_slope=float(negative_slope))).y


@_rule("sigmoid")
def _sigmoid(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Sigmoid(x=c.value(x))).y


@_rule("tanh")
def _tanh(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Tanh(x=c.value(x))).y


@_rule("gelu")
def _gelu(c: Converter, x: Argument, approximate: str) -> Value:
    form: Any = approximate
    return c.emit(nn.Gelu(x=c.value(x), approximate=form)).y


@_rule("silu")
def _silu(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Silu(x=c.value(x))).y


@_rule("hardswish")
def _hardswish(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Hardswish(x=c.value(x))).y


@_rule("hardsigmoid")
def _hardsigmoid(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Hardsigmoid(x=c.value(x))).y


@_rule("softmax.int", "_softmax")
def _softmax(
    c: Converter, x: Argument, dim: int, dtype: Any = None, half_to_float: bool = False
) -> Value:
    held = c.value(x)
    _same_dtype(c, held, dtype)
    rank = tensor(held).rank
    return c.emit(nn.Softmax(x=held, axis=dim % rank - rank)).y


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


@_rule("add.Tensor", "add.Scalar")
def _add(c: Converter, x: Any, other: Any, alpha: float = 1) -> Value:
    left, right = _pair(c, x, _scaled(c, other, alpha))
    return c.emit(core.Add(a=left, b=right)).y


@_rule("sub.Tensor", "sub.Scalar")
def _sub(c: Converter, x: Any, other: Any, alpha: float = 1) -> Value:
    left, right = _pair(c, x, _scaled(c, other, alpha))
    return c.emit(core.Subtract(a=left, b=right)).y


@_rule("rsub.Tensor", "rsub.Scalar")
def _rsub(c: Converter, x: Any, other: Any, alpha: float = 1) -> Value:
    left, right = _pair(c, other, _scaled(c, x, alpha))
    return c.emit(core.Subtract(a=left, b=right)).y


@_rule("mul.Tensor", "mul.Scalar")
def _mul(c: Converter, x: Any, other: Any) -> Value:
    left, right = _pair(c, x, other)
    return c.emit(core.Multiply(a=left, b=right)).y


@_rule("div.Tensor", "div.Scalar")
def _div(c: Converter, x: Any, other: Any) -> Value:
    left, right = _pair(c, x, other)
    return c.emit(core.Divide(a=left, b=right)).y


@_rule("neg")
def _neg(c: Converter, x: Any) -> Value:
    return _mul(c, x, -1.0)


@_rule("reciprocal")
def _reciprocal(c: Converter, x: Any) -> Value:
    return _div(c, 1.0, x)


# -- structure ------------------------------------------------------------------------------------


def _reshaped(c: Converter, x: Value, shape: tuple[Dim, ...]) -> Value:
    return x if tensor(x).shape == shape else c.emit(core.Reshape(x=x, shape=shape)).y


@_rule(
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


@_rule("expand")
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


@_rule("permute")
def _permute(c: Converter, x: Argument, dims: Sequence[int]) -> Value:
    return _permuted(c, c.value(x), dims)


@_rule("transpose.int")
def _transpose(c: Converter, x: Argument, dim0: int, dim1: int) -> Value:
    held = c.value(x)
    axes = list(range(tensor(held).rank))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return _permuted(c, held, axes)


@_rule("t", "numpy_T")
def _t(c: Converter, x: Argument) -> Value:
    held = c.value(x)
    return _permuted(c, held, list(reversed(range(tensor(held).rank))))


def _sliced(c: Converter, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
    size = tensor(x).shape[axis]
    if start == 0 and step == 1 and stop == size:
        return x
    return c.emit(core.Slice(x=x, axis=axis, start=start, stop=stop, step=step)).y


@_rule("slice.Tensor")
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


@_rule("select.int")
def _select(c: Converter, x: Argument, dim: int, index: Any) -> Value:
    held = c.value(x)
    axis = dim % tensor(held).rank
    size = tensor(held).shape[axis]
    if not isinstance(size, int) or type(index) is not int:
        raise c.refuse("selects along the batch axis", help="treat all samples of a batch alike")
    at = index % size
    return _reshaped(c, _sliced(c, held, axis, at, at + 1), c.shape())


@_rule(
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


@_rule("unbind.int")
def _unbind(c: Converter, x: Argument, dim: int) -> tuple[Value, ...]:
    held = c.value(x)
    axis = dim % tensor(held).rank
    return tuple(
        _reshaped(c, _sliced(c, held, axis, index, index + 1), c.shape(index))
        for index in range(c.pieces())
    )


@_rule("cat", "concat")
def _cat(c: Converter, tensors: Sequence[Argument], dim: int) -> Value:
    held = [c.value(item) for item in tensors]
    if len(held) == 1:
        return held[0]
    return c.emit(core.Concat(inputs=tuple(held), axis=dim % tensor(held[0]).rank)).y


@_rule("stack")
def _stack(c: Converter, tensors: Sequence[Argument], dim: int) -> Value:
    held = [c.value(item) for item in tensors]
    shape = list(c.shape())
    axis = dim % len(shape)
    shape[axis] = 1
    return _cat(c, [_reshaped(c, item, tuple(shape)) for item in held], axis)


@_rule("constant_pad_nd")
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


@_rule("pad")
def _pad(c: Converter, x: Argument, pad: Sequence[int], mode: str, value: float | None) -> Value:
    if mode != "constant":
        raise c.refuse(f"padding mode {mode!r} is not supported", help='use mode="constant"')
    return _constant_pad(c, x, pad, value)


# -- nothing to do --------------------------------------------------------------------------------


@_rule(*SAME_VALUE)
def _same(c: Converter, x: Argument, **_: Any) -> Argument:
    return x


@_rule("dropout", "feature_dropout", "alpha_dropout")
def _dropout(c: Converter, x: Argument, p: float, train: bool | None) -> Argument:
    if train:
        raise c.refuse(
            "dropout is active",
            reason="the model is captured for inference",
            help="write functional.dropout(x, p, training=self.training)",
        )
    return x


@_rule("_to_copy", "to.dtype", "to.dtype_layout", "to.device")
def _to(c: Converter, x: Argument, dtype: Any = None, **_: Any) -> Argument:
    if isinstance(x, Value):
        _same_dtype(c, x, dtype)
    return x
