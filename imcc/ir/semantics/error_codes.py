"""Rules of ``learn`` for errors as integer codes: exact integers, run-time scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from imcc.ir.dialects import learn
from imcc.ir.dialects.core import tensor
from imcc.ir.dialects.quant import largest_product_sum
from imcc.ir.rules import EVAL
from imcc.ir.semantics.interpreter import EvalContext
from imcc.ir.semantics.nn import convolve
from imcc.ir.semantics.pull_back import pull_back
from imcc.ir.semantics.quant import EXACT_FLOAT32, along_axis


@EVAL.register(learn.QuantizeError)
def _quantize_error(
    op: learn.QuantizeError, ctx: EvalContext, *, x: Tensor
) -> tuple[Tensor, Tensor]:
    top = tensor(op.codes).quant.maximum
    largest = x.abs().amax(tuple(range(x.dim() - op.axes, x.dim())), keepdim=True)
    # frexp is exact: 2^exponent is the smallest power of two above the quotient.
    mantissa, exponent = torch.frexp(largest / top)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    scale = torch.where(largest > 0, scale, torch.ones_like(scale))
    return torch.round(x / scale).clamp(-top, top), scale


@EVAL.register(learn.TransposedProduct)
def _transposed_product(
    op: learn.TransposedProduct, ctx: EvalContext, *, x: Tensor, weight: Tensor
) -> Tensor:
    terms = weight.shape[0] * math.prod(weight.shape[2:])
    largest = largest_product_sum(tensor(op.x).quant, tensor(op.weight).quant, terms)
    dtype = torch.float32 if largest < EXACT_FLOAT32 else torch.float64
    x, weight = x.to(dtype), weight.to(dtype)
    if not op.size:
        return x @ weight
    spatial = len(op.size)
    shape = (*x.shape[: x.dim() - 1 - spatial], weight.shape[1] * op.groups, *op.size)
    window = (op.stride, op.padding, op.dilation, op.groups)
    return _adjoint_at_zero(lambda held: convolve(held, weight, None, *window), shape, x)


@EVAL.register(learn.StochasticQuantize)
def _stochastic(
    op: learn.StochasticQuantize, ctx: EvalContext, *, x: Tensor, scale: Tensor
) -> Tensor:
    element = tensor(op.y).quant
    steps = x / along_axis(scale, op.axis, x.dim())
    share: Tensor | float = 0.5
    if ctx.draws is not None:
        # Calls are told apart by the number of their first sample.
        stream = f"{op.stream}/{ctx.draws.samples[0]}"
        share = torch.special.ndtr(ctx.draws.per_trial(stream, tuple(x.shape))[0].to(x.dtype))
    return torch.floor(steps + share).clamp(element.minimum, element.maximum)


@EVAL.register(learn.Fold)
def _fold(op: learn.Fold, ctx: EvalContext, *, x: Tensor) -> Tensor:
    spatial = len(op.size)
    channels = x.shape[-1] // math.prod(op.kernel)
    shape = (*x.shape[: x.dim() - 1 - spatial], channels, *op.size)
    return _adjoint_at_zero(lambda held: _windows(op, held), shape, x)


def _windows(op: learn.Fold, x: Tensor) -> Tensor:
    """Windows ``[..., spatial', C prod(kernel)]`` of ``[..., C, size]``."""
    spatial = len(op.size)
    pads = [size for p in reversed(op.padding) for size in (p, p)]
    made = torch.nn.functional.pad(x, pads)
    first = made.dim() - spatial
    for axis in range(spatial):
        reach = op.dilation[axis] * (op.kernel[axis] - 1) + 1
        made = made.unfold(first + axis, reach, op.stride[axis])
        made = made[..., :: op.dilation[axis]]
    # [..., C, spatial', kernel] to [..., spatial', C, kernel].
    return made.movedim(first - 1, first - 1 + spatial).flatten(-1 - spatial)


def _adjoint_at_zero(
    compute: Callable[[Tensor], Tensor], shape: Sequence[int], dy: Tensor
) -> Tensor:
    """What the transpose of a linear map gives for ``dy``."""
    return pull_back(compute, torch.zeros(tuple(shape), dtype=dy.dtype), dy)
