"""Rules of ``learn``. Gradients of windows and neurons are those of their neutral rules.

Errors as integer codes are in ``error_codes``, normalisations and activations in
``layer_gradients``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects import learn
from imcc.ir.rules import EVAL
from imcc.ir.semantics import error_codes as error_codes
from imcc.ir.semantics import layer_gradients as layer_gradients
from imcc.ir.semantics.interpreter import EvalContext
from imcc.ir.semantics.nn import average_pool, convolve, largest_pool
from imcc.ir.semantics.pull_back import pull_back
from imcc.ir.semantics.snn import run_neuron


@EVAL.register(learn.OutputError)
def _output_error(op: learn.OutputError, ctx: EvalContext, *, y: Tensor, labels: Tensor) -> Tensor:
    count = y.shape[1]
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= count):
        raise DiagnosticError(
            op.diagnostic(
                codes.BAD_DATA,
                f"labels reach from {int(labels.min())} to {int(labels.max())}, "
                f"the model has {count} outputs",
                help=f"labels are classes 0 to {count - 1}",
            )
        )
    wanted = torch.nn.functional.one_hot(labels, count).to(y.dtype)
    # Trials are folded into the batch: each of them averages over its own samples.
    batch = max(1, y.shape[0] // ctx.trials)
    if op.loss == "squared":
        return 2 * (y - wanted) / (batch * count)
    return (torch.softmax(y, -1) - wanted) / batch


@EVAL.register(learn.LinearWeightGradient)
def _linear_weight(
    op: learn.LinearWeightGradient, ctx: EvalContext, *, x: Tensor, dy: Tensor
) -> Tensor:
    return dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])


@EVAL.register(learn.LinearInputGradient)
def _linear_input(
    op: learn.LinearInputGradient, ctx: EvalContext, *, dy: Tensor, weight: Tensor
) -> Tensor:
    return dy @ weight


@EVAL.register(learn.ConvWeightGradient)
def _conv_weight(
    op: learn.ConvWeightGradient, ctx: EvalContext, *, x: Tensor, dy: Tensor, weight: Tensor
) -> Tensor:
    given = (op.stride, op.padding, op.dilation, op.groups)
    return pull_back(lambda held: convolve(x, held, None, *given), weight, dy)


@EVAL.register(learn.ConvInputGradient)
def _conv_input(
    op: learn.ConvInputGradient, ctx: EvalContext, *, dy: Tensor, weight: Tensor, x: Tensor
) -> Tensor:
    given = (op.stride, op.padding, op.dilation, op.groups)
    return pull_back(lambda held: convolve(held, weight, None, *given), x, dy)


@EVAL.register(learn.SumTo)
def _sum_to(op: learn.SumTo, ctx: EvalContext, *, dy: Tensor, like: Tensor) -> Tensor:
    made = dy.sum_to_size(like.shape)
    return made if op.factor == 1.0 else made * op.factor


@EVAL.register(learn.Spread)
def _spread(op: learn.Spread, ctx: EvalContext, *, dy: Tensor, x: Tensor) -> Tensor:
    shape = list(x.shape)
    for axis in op.axes:
        shape[axis] = 1
    return (dy.reshape(shape) * op.factor).expand(x.shape)


@EVAL.register(learn.ReluGradient)
def _relu(op: learn.ReluGradient, ctx: EvalContext, *, dy: Tensor, x: Tensor) -> Tensor:
    return torch.where(x > 0, dy, dy * op.negative_slope)


@EVAL.register(learn.MaxPoolGradient)
def _max_pool(op: learn.MaxPoolGradient, ctx: EvalContext, *, x: Tensor, dy: Tensor) -> Tensor:
    return pull_back(lambda held: largest_pool(op, held, op.dilation), x, dy)


@EVAL.register(learn.AvgPoolGradient)
def _avg_pool(op: learn.AvgPoolGradient, ctx: EvalContext, *, x: Tensor, dy: Tensor) -> Tensor:
    return pull_back(lambda held: average_pool(op, held, op.count_include_pad), x, dy)


@EVAL.register(learn.NeuronGradient)
def _neuron(
    op: learn.NeuronGradient,
    ctx: EvalContext,
    *,
    x: Tensor,
    start: Tensor | None,
    leaks: Tensor | None,
    gains: Tensor | None,
    rests: Tensor | None,
    thresholds: Tensor | None,
    dy: Tensor | None,
    dv: Tensor | None,
) -> Tensor:
    given = {"start": start, "leaks": leaks, "gains": gains, "rests": rests}

    def run(held: Tensor) -> Tensor:
        spikes, membranes = run_neuron(
            op, held, thresholds=thresholds, through_time=op.through_time, **given
        )
        made = [y for y, gradient in ((spikes, dy), (membranes, dv)) if gradient is not None]
        return torch.stack(made)

    return pull_back(run, x, torch.stack([item for item in (dy, dv) if item is not None]))


@EVAL.register(learn.Update)
def _update(op: learn.Update, ctx: EvalContext, *, weight: Tensor, dw: Tensor) -> Tensor:
    if not bool(torch.isfinite(dw).all()):
        raise DiagnosticError(
            op.diagnostic(
                codes.NUMERIC,
                "a weight update holds NaN or infinity",
                help="lower the learning rate, or clean the samples; the weights are as before",
            )
        )
    return weight - op.rate * dw
