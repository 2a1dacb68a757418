"""Rules of ``nn``: torch's own kernels, with leading axes flattened where torch wants one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from imcc.ir.dialects import nn
from imcc.ir.rules import EVAL
from imcc.ir.semantics.interpreter import EvalContext

_CONV: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_MAX_POOL: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
_AVG_POOL: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_ADAPTIVE_AVG_POOL: dict[int, Callable[..., Tensor]] = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}


def with_one_batch(x: Tensor, spatial: int, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Run ``compute`` on ``x [..., C, spatial]`` with its leading axes flattened to one."""
    leading = x.shape[: -spatial - 1]
    made = compute(x.reshape(math.prod(leading), *x.shape[-spatial - 1 :]))
    return made.reshape(*leading, *made.shape[1:])


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """Convolution of ``[..., C, spatial]`` with ``[N, C / groups, kernel]``, zero padding."""
    compute = _CONV[len(stride)]
    given = (tuple(stride), tuple(padding), tuple(dilation), groups)
    return with_one_batch(x, len(stride), lambda flat: compute(flat, weight, bias, *given))


@EVAL.register(nn.Linear)
def _linear(
    op: nn.Linear, ctx: EvalContext, *, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    return functional.linear(x, weight, bias)


@EVAL.register(nn.Conv)
def _conv(
    op: nn.Conv, ctx: EvalContext, *, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    return convolve(x, weight, bias, op.stride, op.padding, op.dilation, op.groups)


@EVAL.register(nn.BatchNorm)
def _batch_norm(
    op: nn.BatchNorm,
    ctx: EvalContext,
    *,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    return with_one_batch(
        x,
        -op.axis - 1,
        lambda flat: functional.batch_norm(flat, mean, var, weight, bias, False, 0.0, op.eps),
    )


@EVAL.register(nn.LayerNorm)
def _layer_norm(
    op: nn.LayerNorm, ctx: EvalContext, *, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    return functional.layer_norm(x, list(op.normalized_shape), weight, bias, op.eps)


@EVAL.register(nn.RmsNorm)
def _rms_norm(op: nn.RmsNorm, ctx: EvalContext, *, x: Tensor, weight: Tensor | None) -> Tensor:
    axes = tuple(range(-len(op.normalized_shape), 0))
    made = x * torch.rsqrt(x.pow(2).mean(axes, keepdim=True) + op.eps)
    return made if weight is None else weight * made


@EVAL.register(nn.Matmul)
def _matmul(op: nn.Matmul, ctx: EvalContext, *, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@EVAL.register(nn.Attention)
def _attention(
    op: nn.Attention,
    ctx: EvalContext,
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
) -> Tensor:
    length, keys = query.shape[-2], key.shape[-2]
    if op.normalise == "none":
        key, value = (item.repeat_interleave(op.groups, -3) for item in (key, value))
        scores = query @ key.transpose(-1, -2) * op.scale
        if mask is not None:
            scores = scores.masked_fill(~mask, 0) if mask.dtype == torch.bool else scores * mask
        return (scores.tril() if op.causal else scores) @ value
    if mask is not None and op.causal:
        seen = torch.ones(length, keys, dtype=torch.bool).tril()
        # torch takes a mask or its causal form, not both.
        mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -math.inf)
    leading = query.shape[:-3]
    query, key, value = (
        item.reshape(math.prod(leading), *item.shape[-3:]) for item in (query, key, value)
    )
    if mask is not None:
        # Heads stay an axis of their own, whatever the mask leaves to broadcasting.
        mask = (
            mask.expand(*leading, query.shape[1], length, keys).reshape(
                -1, query.shape[1], length, keys
            )
            if mask.dim() > 4 or len(leading) > 1
            else mask
        )
    made = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=op.causal and mask is None,
        scale=op.scale,
        enable_gqa=op.groups > 1,
    )
    return made.reshape(*leading, *made.shape[1:])


def largest_pool(op: nn.Pool, x: Tensor, dilation: Sequence[int]) -> Tensor:
    """The largest of each window."""
    compute = _MAX_POOL[len(op.kernel)]
    given = (op.kernel, op.stride, op.padding, dilation, op.ceil_mode)
    return with_one_batch(x, len(op.kernel), lambda flat: compute(flat, *given))


def average_pool(op: nn.Pool, x: Tensor, count_include_pad: bool) -> Tensor:
    """The mean of each window."""
    compute = _AVG_POOL[len(op.kernel)]
    given = (op.kernel, op.stride, op.padding, op.ceil_mode, count_include_pad)
    return with_one_batch(x, len(op.kernel), lambda flat: compute(flat, *given))


@EVAL.register(nn.MaxPool)
def _max_pool(op: nn.MaxPool, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return largest_pool(op, x, op.dilation)


@EVAL.register(nn.AvgPool)
def _avg_pool(op: nn.AvgPool, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return average_pool(op, x, op.count_include_pad)


@EVAL.register(nn.AdaptiveAvgPool)
def _adaptive_avg_pool(op: nn.AdaptiveAvgPool, ctx: EvalContext, *, x: Tensor) -> Tensor:
    compute = _ADAPTIVE_AVG_POOL[len(op.output)]
    return with_one_batch(x, len(op.output), lambda flat: compute(flat, op.output))


@EVAL.register(nn.Mean)
def _mean(op: nn.Mean, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return x.mean(dim=op.axes, keepdim=op.keepdim)


@EVAL.register(nn.Sum)
def _sum(op: nn.Sum, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return x.sum(dim=op.axes, keepdim=op.keepdim, dtype=x.dtype)


@EVAL.register(nn.Max)
def _max(op: nn.Max, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return x.amax(dim=op.axes, keepdim=op.keepdim)


@EVAL.register(nn.Relu)
def _relu(op: nn.Relu, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return torch.relu(x)


@EVAL.register(nn.Clamp)
def _clamp(op: nn.Clamp, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return x.clamp(op.minimum, op.maximum)


@EVAL.register(nn.LeakyRelu)
def _leaky_relu(op: nn.LeakyRelu, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, op.negative_slope)


@EVAL.register(nn.Sigmoid)
def _sigmoid(op: nn.Sigmoid, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@EVAL.register(nn.Tanh)
def _tanh(op: nn.Tanh, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return torch.tanh(x)


@EVAL.register(nn.Gelu)
def _gelu(op: nn.Gelu, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=op.approximate)


@EVAL.register(nn.Silu)
def _silu(op: nn.Silu, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return functional.silu(x)


@EVAL.register(nn.Hardswish)
def _hardswish(op: nn.Hardswish, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return functional.hardswish(x)


@EVAL.register(nn.Hardsigmoid)
def _hardsigmoid(op: nn.Hardsigmoid, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return functional.hardsigmoid(x)


@EVAL.register(nn.Softmax)
def _softmax(op: nn.Softmax, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return torch.softmax(x, dim=op.axis)
