"""Rules of ``core``. Axes and shapes are those of the types; ``B`` is bound to trials * batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects import core
from imcc.ir.dims import evaluate
from imcc.ir.rules import EVAL
from imcc.ir.semantics.interpreter import EvalContext, run_time_value
from imcc.ir.semantics.resources import TORCH_DTYPES


@EVAL.register(core.Constant)
def _constant(op: core.Constant, ctx: EvalContext) -> Tensor:
    return run_time_value(ctx.resources.get(op.value), op.y.type)


@EVAL.register(core.Reshape)
def _reshape(op: core.Reshape, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return x.reshape([evaluate(dim, ctx.symbols) for dim in op.shape])


@EVAL.register(core.Permute)
def _permute(op: core.Permute, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return x.permute(op.axes)


@EVAL.register(core.Expand)
def _expand(op: core.Expand, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return x.expand([evaluate(dim, ctx.symbols) for dim in op.shape])


@EVAL.register(core.Iota)
def _iota(op: core.Iota, ctx: EvalContext) -> Tensor:
    return torch.arange(evaluate(op.size, ctx.symbols))


@EVAL.register(core.Slice)
def _slice(op: core.Slice, ctx: EvalContext, *, x: Tensor) -> Tensor:
    stop = evaluate(op.stop, ctx.symbols)
    if stop > x.shape[op.axis]:
        raise DiagnosticError(
            op.diagnostic(
                codes.BAD_INPUT,
                f"needs {stop} elements of axis {op.axis}, which has {x.shape[op.axis]}",
                reason="the model has no more of them, such as embeddings of positions",
                help="shorten the input",
            )
        )
    index = [slice(None)] * x.dim()
    index[op.axis] = slice(op.start, stop, op.step)
    return x[tuple(index)]


@EVAL.register(core.Gather)
def _gather(op: core.Gather, ctx: EvalContext, *, x: Tensor, index: Tensor) -> Tensor:
    size = x.shape[op.axis]
    low, high = (int(item) for item in torch.aminmax(index)) if index.numel() else (0, 0)
    if low < -size or high >= size:
        raise DiagnosticError(
            op.diagnostic(
                codes.BAD_INPUT,
                f"indices run from {low} to {high}, the axis has {size} elements",
                help="check that the inputs lie in the model's vocabulary",
            )
        )
    flat = index.reshape(-1)
    made = x.index_select(op.axis, torch.where(flat < 0, flat + size, flat))
    return made.reshape(*x.shape[: op.axis], *index.shape, *x.shape[op.axis + 1 :])


@EVAL.register(core.Concat)
def _concat(op: core.Concat, ctx: EvalContext, *, inputs: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(inputs, dim=op.axis)


@EVAL.register(core.Pad)
def _pad(op: core.Pad, ctx: EvalContext, *, x: Tensor) -> Tensor:
    # torch lists pairs from the last axis to the first.
    pairs = zip(reversed(op.before), reversed(op.after), strict=True)
    return functional.pad(x, [size for pair in pairs for size in pair], value=op.value)


@EVAL.register(core.Add)
def _add(op: core.Add, ctx: EvalContext, *, a: Tensor, b: Tensor) -> Tensor:
    return a + b


@EVAL.register(core.Subtract)
def _subtract(op: core.Subtract, ctx: EvalContext, *, a: Tensor, b: Tensor) -> Tensor:
    return a - b


@EVAL.register(core.Multiply)
def _multiply(op: core.Multiply, ctx: EvalContext, *, a: Tensor, b: Tensor) -> Tensor:
    return a * b


@EVAL.register(core.Divide)
def _divide(op: core.Divide, ctx: EvalContext, *, a: Tensor, b: Tensor) -> Tensor:
    return a / b


@EVAL.register(core.Power)
def _power(op: core.Power, ctx: EvalContext, *, a: Tensor, b: Tensor) -> Tensor:
    # A number as exponent takes torch's shorter ways, such as x * x for a square.
    return torch.pow(a, b.item()) if b.dim() == 0 and not b.requires_grad else torch.pow(a, b)


_COMPARE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "equal": torch.eq,
    "not_equal": torch.ne,
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
}


@EVAL.register(core.Compare)
def _compare(op: core.Compare, ctx: EvalContext, *, a: Tensor, b: Tensor) -> Tensor:
    return _COMPARE[op.relation](a, b)


@EVAL.register(core.Where)
def _where(op: core.Where, ctx: EvalContext, *, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@EVAL.register(core.Unary)
def _unary(op: core.Unary, ctx: EvalContext, *, x: Tensor) -> Tensor:
    made: Tensor = getattr(torch, op.function)(x)
    return made


@EVAL.register(core.Cast)
def _cast(op: core.Cast, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return x.to(TORCH_DTYPES[op.to])


@EVAL.register(core.CumulativeSum)
def _cumulative_sum(op: core.CumulativeSum, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return x.cumsum(op.axis, dtype=x.dtype)
