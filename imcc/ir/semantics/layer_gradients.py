"""Rules of ``learn`` for normalisations, activations and integrators."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from imcc.ir.dialects import learn
from imcc.ir.rules import EVAL
from imcc.ir.semantics.interpreter import EvalContext
from imcc.ir.semantics.pull_back import pull_back
from imcc.ir.semantics.quant import along_axis
from imcc.ir.semantics.snn import run_integrator

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "hardsigmoid": functional.hardsigmoid,
    "hardswish": functional.hardswish,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


@EVAL.register(learn.NormGradient)
def _norm(
    op: learn.NormGradient, ctx: EvalContext, *, x: Tensor, dy: Tensor, weight: Tensor | None
) -> Tensor:
    axes = tuple(range(-len(op.normalized_shape), 0))
    g = dy if weight is None else dy * weight
    n = x - x.mean(axes, keepdim=True) if op.centred else x
    r = torch.rsqrt(n.square().mean(axes, keepdim=True) + op.eps)
    n = n * r
    inner = g - n * (g * n).mean(axes, keepdim=True)
    return r * (inner - g.mean(axes, keepdim=True) if op.centred else inner)


@EVAL.register(learn.BatchNormGradient)
def _batch_norm(
    op: learn.BatchNormGradient,
    ctx: EvalContext,
    *,
    dy: Tensor,
    var: Tensor,
    weight: Tensor | None,
) -> Tensor:
    factor = torch.rsqrt(var + op.eps)
    factor = factor if weight is None else factor * weight
    return dy * along_axis(factor, op.axis, dy.dim())


@EVAL.register(learn.ActivationGradient)
def _activation(op: learn.ActivationGradient, ctx: EvalContext, *, x: Tensor, dy: Tensor) -> Tensor:
    return pull_back(ACTIVATIONS[op.function], x, dy)


@EVAL.register(learn.ClampGradient)
def _clamp(op: learn.ClampGradient, ctx: EvalContext, *, x: Tensor, dy: Tensor) -> Tensor:
    inside = torch.ones_like(x, dtype=torch.bool)
    if op.minimum is not None:
        inside &= x >= op.minimum
    if op.maximum is not None:
        inside &= x <= op.maximum
    return torch.where(inside, dy, torch.zeros_like(dy))


@EVAL.register(learn.SoftmaxGradient)
def _softmax(op: learn.SoftmaxGradient, ctx: EvalContext, *, y: Tensor, dy: Tensor) -> Tensor:
    return y * (dy - (dy * y).sum(op.axis, keepdim=True))


@EVAL.register(learn.SliceGradient)
def _slice(op: learn.SliceGradient, ctx: EvalContext, *, x: Tensor, dy: Tensor) -> Tensor:
    axis = op.axis % x.dim()
    made = torch.zeros_like(x)
    index = op.start + op.step * torch.arange(dy.shape[axis])
    return made.index_copy(axis, index, dy)


@EVAL.register(learn.IntegratorGradient)
def _integrator(
    op: learn.IntegratorGradient,
    ctx: EvalContext,
    *,
    x: Tensor,
    start: Tensor | None,
    leaks: Tensor | None,
    gains: Tensor | None,
    rests: Tensor | None,
    dy: Tensor | None,
    dv: Tensor | None,
) -> Tensor:
    given = {"start": start, "leaks": leaks, "gains": gains, "rests": rests}

    def run(held: Tensor) -> Tensor:
        read, states = run_integrator(op, held, jump=op.read == "jump", **given)
        made = [y for y, gradient in ((read, dy), (states, dv)) if gradient is not None]
        return torch.stack(made)

    return pull_back(run, x, torch.stack([item for item in (dy, dv) if item is not None]))
