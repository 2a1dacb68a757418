"""Layers, pooling and activations: what their aten ops become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from imcc.frontend.aten_tensors import reshaped
from imcc.frontend.convert import Argument, Converter, Rule
from imcc.frontend.rules import aten_rule
from imcc.ir.dialects import core, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.ops import Value
from imcc.ir.semantics.resources import TORCH_DTYPES


def _rank(c: Converter, x: Argument) -> int:
    return tensor(c.value(x)).rank


def _spread(c: Converter, what: str, sizes: Sequence[Any] | int, count: int) -> tuple[int, ...]:
    """One integer for each of ``count`` axes; torch writes a single one for all."""
    given = [sizes] if isinstance(sizes, int) else list(sizes)
    if not all(type(size) is int for size in given) or len(given) not in (1, count):
        raise c.refuse(f"{what} must be {count} known numbers, found {given}")
    return tuple(given * count if len(given) == 1 else given)


# -- layers ---------------------------------------------------------------------------------------


@aten_rule("conv1d", "conv2d", "conv3d")
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
    count = _rank(c, weight) - 2
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


@aten_rule("conv1d.padding", "conv2d.padding", "conv3d.padding")
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


@aten_rule("convolution")
def _convolution(c: Converter, transposed: bool, output_padding: Any, **arguments: Any) -> Value:
    if transposed:
        raise c.refuse("transposed convolutions are not supported", help="use a convolution")
    return _conv(c, **arguments)


@aten_rule("_native_batch_norm_legit_no_training")
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


@aten_rule("batch_norm")
def _batch_norm_composite(
    c: Converter, training: bool, cudnn_enabled: bool, **arguments: Any
) -> Value | None:
    if training or arguments["running_mean"] is None:
        return _batch_norm_training(c)
    return _batch_norm(c, **arguments)[0]


@aten_rule("_native_batch_norm_legit", "_native_batch_norm_legit.no_stats", "native_batch_norm")
def _batch_norm_training(c: Converter, **_: Any) -> None:
    raise c.refuse(
        "normalises by the statistics of the batch",
        reason="a result would depend on the other samples of its batch",
        help="set track_running_stats=True, and do not force the layer into training mode",
    )


@aten_rule("layer_norm")
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


@aten_rule("native_layer_norm")
def _native_layer_norm(c: Converter, **arguments: Any) -> tuple[Value | None, ...]:
    return (_layer_norm(c, **arguments), None, None)


@aten_rule("rms_norm")
def _rms_norm(
    c: Converter,
    x: Argument,
    normalized_shape: Sequence[int],
    weight: Argument | None,
    eps: float | None,
) -> Value:
    held = c.value(x)
    made = nn.RmsNorm(
        x=held,
        weight=c.optional(weight),
        normalized_shape=_spread(c, "normalized_shape", normalized_shape, len(normalized_shape)),
        eps=torch.finfo(TORCH_DTYPES[str(tensor(held).element)]).eps if eps is None else eps,
    )
    return c.emit(made).y


@aten_rule("group_norm")
def _group_norm(
    c: Converter,
    x: Argument,
    num_groups: int,
    weight: Argument | None,
    bias: Argument | None,
    eps: float,
    cudnn_enabled: bool = True,
) -> Value:
    """A layer norm of each group as one axis, then a factor and a shift for each channel."""
    held = c.value(x)
    batch, channels, *spatial = tensor(held).shape
    sizes = [size for size in (channels, *spatial) if isinstance(size, int)]
    if len(sizes) != 1 + len(spatial):
        raise c.refuse("normalises over an axis of symbolic size")
    width = math.prod(sizes) // num_groups
    apart = reshaped(c, held, (batch, num_groups, width))
    normed = c.emit(nn.LayerNorm(x=apart, normalized_shape=(width,), eps=eps)).y
    made = reshaped(c, normed, tensor(held).shape)
    wide = (sizes[0], *[1] * len(spatial))
    if weight is not None:
        made = c.emit(core.Multiply(a=made, b=reshaped(c, c.value(weight), wide))).y
    if bias is not None:
        made = c.emit(core.Add(a=made, b=reshaped(c, c.value(bias), wide))).y
    return made


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
    aten_rule(f"max_pool{_count}d")(_max_pool_rule(_count, indices=False))
    aten_rule(f"max_pool{_count}d_with_indices")(_max_pool_rule(_count, indices=True))
    aten_rule(f"avg_pool{_count}d")(_avg_pool_rule(_count))
    aten_rule(f"adaptive_avg_pool{_count}d")(_adaptive_rule(_count))
    if _count > 1:
        aten_rule(f"_adaptive_avg_pool{_count}d")(_adaptive_rule(_count))


@aten_rule("mean", "mean.dim")
def _mean(
    c: Converter, x: Argument, dtype: Any = None, dim: Any = None, keepdim: bool = False
) -> Value:
    held = c.converted(c.value(x), c.element())
    rank = tensor(held).rank
    given = range(rank) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    axes = tuple(sorted(axis % rank - rank for axis in given))
    return c.emit(nn.Mean(x=held, axes=axes, keepdim=keepdim)).y


# -- activations ----------------------------------------------------------------------------------


@aten_rule("relu")
def _relu(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Relu(x=c.value(x))).y


@aten_rule("relu6")
def _relu6(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Clamp(x=c.value(x), minimum=0.0, maximum=6.0)).y


@aten_rule("hardtanh")
def _hardtanh(c: Converter, x: Argument, min_val: float, max_val: float) -> Value:
    return _clamp(c, x, min_val, max_val)


@aten_rule("clamp", "clip", "clamp_min", "clamp_max")
def _clamp(c: Converter, x: Argument, min: Any = None, max: Any = None) -> Value:
    low, high = (None if limit is None else float(limit) for limit in (min, max))
    return c.emit(nn.Clamp(x=c.value(x), minimum=low, maximum=high)).y


@aten_rule("leaky_relu")
def _leaky_relu(c: Converter, x: Argument, negative_slope: float) -> Value:
    return c.emit(nn.LeakyRelu(x=c.value(x), negative_slope=float(negative_slope))).y


@aten_rule("sigmoid")
def _sigmoid(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Sigmoid(x=c.value(x))).y


@aten_rule("tanh")
def _tanh(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Tanh(x=c.value(x))).y


@aten_rule("gelu")
def _gelu(c: Converter, x: Argument, approximate: str) -> Value:
    form: Any = approximate
    return c.emit(nn.Gelu(x=c.value(x), approximate=form)).y


@aten_rule("silu")
def _silu(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Silu(x=c.value(x))).y


@aten_rule("hardswish")
def _hardswish(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Hardswish(x=c.value(x))).y


@aten_rule("hardsigmoid")
def _hardsigmoid(c: Converter, x: Argument) -> Value:
    return c.emit(nn.Hardsigmoid(x=c.value(x))).y


@aten_rule("softmax.int", "_softmax")
def _softmax(
    c: Converter, x: Argument, dim: int, dtype: Any = None, half_to_float: bool = False
) -> Value:
    held = c.converted(c.value(x), c.element())
    rank = tensor(held).rank
    return c.emit(nn.Softmax(x=held, axis=dim % rank - rank)).y


@aten_rule("log_softmax.int", "_log_softmax")
def _log_softmax(
    c: Converter, x: Argument, dim: int, dtype: Any = None, half_to_float: bool = False
) -> Value:
    """``x - max - log(sum(exp(x - max)))``."""
    held = c.converted(c.value(x), c.element())
    axes = (dim % tensor(held).rank - tensor(held).rank,)
    low = c.emit(core.Subtract(a=held, b=c.emit(nn.Max(x=held, axes=axes, keepdim=True)).y)).y
    grown = c.emit(core.Unary(x=low, function="exp")).y
    total = c.emit(nn.Sum(x=grown, axes=axes, keepdim=True)).y
    return c.emit(core.Subtract(a=low, b=c.emit(core.Unary(x=total, function="log")).y)).y
