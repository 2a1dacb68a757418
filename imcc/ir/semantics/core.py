"""Rules of ``core``. Axes and shapes are those of the types; ``B`` is bound to trials * batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from imcc.ir.dialects import core
from imcc.ir.dims import evaluate
from imcc.ir.rules import EVAL
from imcc.ir.semantics.interpreter import EvalContext, run_time_value


@EVAL.register(core.Constant)
def _constant(op: core.Constant, ctx: EvalContext) -> Tensor:
    return run_time_value(ctx.resources.get(op.value), op.y.type)


@EVAL.register(core.Reshape)
def _reshape(op: core.Reshape, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return x.reshape([evaluate(dim, ctx.symbols) for dim in op.shape])


@EVAL.register(core.Permute)
def _permute(op: core.Permute, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return x.permute(op.axes)


@EVAL.register(core.Slice)
def _slice(op: core.Slice, ctx: EvalContext, *, x: Tensor) -> Tensor:
    index = [slice(None)] * x.dim()
    index[op.axis] = slice(op.start, op.stop, op.step)
    return x[tuple(index)]


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
