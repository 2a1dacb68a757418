"""Rules of ``quant``: the integer meaning, evaluated exactly, with straight-through gradients.

Codes are integer-valued floats. A product is computed in float32 while every partial sum stays
below 2^24 and in float64 (exact to 2^53) otherwise, so the forward value *is* the integer meaning.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imcc.ir.dialects import quant
from imcc.ir.dialects.core import tensor
from imcc.ir.rules import EVAL
from imcc.ir.semantics.interpreter import EvalContext
from imcc.ir.semantics.nn import convolve
from imcc.ir.types import QuantType

EXACT_FLOAT32 = 2**24


def round_straight_through(x: Tensor) -> Tensor:
    """``round(x)``, ties to even, with gradient 1."""
    return x + (torch.round(x) - x).detach() if x.requires_grad else torch.round(x)


def along_axis(values: Tensor, axis: int | None, rank: int) -> Tensor:
    """Reshape a vector so that it broadcasts along ``axis`` of a tensor with ``rank`` axes."""
    if axis is None or values.dim() == 0:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def expand_groups(values: Tensor, element: QuantType, shape: tuple[int, ...]) -> Tensor:
    """Scales or zero points of codes with ``shape``, expanded so that they broadcast."""
    if element.group is None:
        return along_axis(values, element.axis, len(shape))
    runs = values.repeat_interleave(element.group, dim=-1)[..., : shape[-1]]
    if element.axis is None:
        return runs
    middle = [1] * (len(shape) - 2)
    return runs.reshape(shape[0], *middle, shape[-1])


def quantise(x: Tensor, scale: Tensor, zero_point: Tensor | None, element: QuantType) -> Tensor:
    """Codes of ``x``: ``clamp(round(x / scale) + zero_point, minimum, maximum)``."""
    shape = tuple(x.shape)
    made = round_straight_through(x / expand_groups(scale, element, shape))
    if zero_point is not None:
        made = made + expand_groups(zero_point.to(made.dtype), element, shape)
    return made.clamp(element.minimum, element.maximum)


def dequantise(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, element: QuantType
) -> Tensor:
    """Real values of codes: ``(codes - zero_point) * scale``."""
    shape = tuple(codes.shape)
    if zero_point is not None:
        codes = codes - expand_groups(zero_point.to(codes.dtype), element, shape)
    return codes.to(scale.dtype) * expand_groups(scale, element, shape)


@EVAL.register(quant.Quantize)
def _quantize(
    op: quant.Quantize, ctx: EvalContext, *, x: Tensor, scale: Tensor, zero_point: Tensor | None
) -> Tensor:
    element = tensor(op.y).quant
    if ctx.unrounded:
        shape = tuple(x.shape)
        shift = 0 if zero_point is None else expand_groups(zero_point.to(x.dtype), element, shape)
        return x / expand_groups(scale, element, shape) + shift
    return quantise(x, scale, zero_point, element)


@EVAL.register(quant.Dequantize)
def _dequantize(
    op: quant.Dequantize, ctx: EvalContext, *, x: Tensor, scale: Tensor, zero_point: Tensor | None
) -> Tensor:
    return dequantise(x, scale, zero_point, tensor(op.x).quant)


@EVAL.register(quant.FakeQuantize)
def _fake_quantize(op: quant.FakeQuantize, ctx: EvalContext, *, x: Tensor) -> Tensor:
    if ctx.unrounded:
        return x
    low = x.detach().amin(-1, keepdim=True).clamp(max=0)
    high = x.detach().amax(-1, keepdim=True).clamp(min=0)
    element = QuantType(op.bits, op.symmetric, None, None, op.symmetric)
    steps = element.maximum if op.symmetric else element.maximum - element.minimum
    width = torch.maximum(-low, high) if op.symmetric else high - low
    scale = torch.where(width > 0, width / steps, torch.ones_like(width))
    zero = torch.zeros_like(scale) if op.symmetric else torch.round(-low / scale)
    held = round_straight_through(x / scale) + zero
    # Inside the range by construction: clamping would only cut the gradient of the extremes.
    return (held - zero) * scale


def _exact(
    op: quant.Linear | quant.Conv,
    x: Tensor,
    weight: Tensor,
    zero_point: Tensor | None,
    weight_zero_point: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Input and weight less their zero points, in a type whose sums of products are exact."""
    terms = weight[0].numel()
    largest = quant.largest_product_sum(tensor(op.x).quant, tensor(op.weight).quant, terms)
    dtype = torch.float32 if largest < EXACT_FLOAT32 else torch.float64
    x = x.to(dtype)
    if zero_point is not None:
        x = x - zero_point.to(dtype)
    weight = weight.to(dtype)
    if weight_zero_point is not None:
        element, shape = tensor(op.weight).quant, tuple(weight.shape)
        weight = weight - expand_groups(weight_zero_point.to(dtype), element, shape)
    return x, weight


@EVAL.register(quant.Linear)
def _linear(
    op: quant.Linear,
    ctx: EvalContext,
    *,
    x: Tensor,
    weight: Tensor,
    x_zero_point: Tensor | None,
    weight_zero_point: Tensor | None,
) -> Tensor:
    x, weight = _exact(op, x, weight, x_zero_point, weight_zero_point)
    group = tensor(op.weight).quant.group
    if group is None:
        return torch.nn.functional.linear(x, weight)
    runs, short = -(-weight.shape[1] // group), -weight.shape[1] % group
    x = torch.nn.functional.pad(x, (0, short)).reshape(*x.shape[:-1], runs, group)
    weight = torch.nn.functional.pad(weight, (0, short)).reshape(len(weight), runs, group)
    # [..., groups, 1, group] x [groups, group, N], so that no product of all pairs is held.
    made = x.unsqueeze(-2) @ weight.permute(1, 2, 0)
    return made.squeeze(-2).transpose(-1, -2)


@EVAL.register(quant.Conv)
def _conv(
    op: quant.Conv,
    ctx: EvalContext,
    *,
    x: Tensor,
    weight: Tensor,
    x_zero_point: Tensor | None,
    weight_zero_point: Tensor | None,
) -> Tensor:
    # Codes are shifted by the zero point first, so zero padding is padding with the zero point.
    x, weight = _exact(op, x, weight, x_zero_point, weight_zero_point)
    return convolve(x, weight, None, op.stride, op.padding, op.dilation, op.groups)


@EVAL.register(quant.Matmul)
def _matmul(
    op: quant.Matmul,
    ctx: EvalContext,
    *,
    a: Tensor,
    b: Tensor,
    a_zero_point: Tensor | None,
    b_zero_point: Tensor | None,
) -> Tensor:
    largest = quant.largest_product_sum(tensor(op.a).quant, tensor(op.b).quant, a.shape[-1])
    dtype = torch.float32 if largest < EXACT_FLOAT32 else torch.float64
    factors = []
    for codes, zero in ((a, a_zero_point), (b, b_zero_point)):
        wide = codes.to(dtype)
        factors.append(wide if zero is None else wide - zero.to(dtype))
    return factors[0] @ factors[1]


@EVAL.register(quant.RescaleGroups)
def _rescale_groups(
    op: quant.RescaleGroups, ctx: EvalContext, *, acc: Tensor, scale: Tensor, bias: Tensor | None
) -> Tensor:
    made = (acc.to(torch.float64) * scale.to(torch.float64)).sum(-1)
    if bias is not None:
        made = made + bias.to(torch.float64)
    return made.to(scale.dtype)


@EVAL.register(quant.Rescale)
def _rescale(
    op: quant.Rescale, ctx: EvalContext, *, acc: Tensor, scale: Tensor, bias: Tensor | None
) -> Tensor:
    # float64 keeps accumulators beyond 24 bits exact until the one rounding to the result.
    made = acc.to(torch.float64) * along_axis(scale.to(torch.float64), op.axis, acc.dim())
    if bias is not None:
        made = made + along_axis(bias.to(torch.float64), op.axis, acc.dim())
    return made.to(scale.dtype)
