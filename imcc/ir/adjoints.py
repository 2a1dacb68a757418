"""Adjoint rules: the vector-Jacobian product of each op, written out as ops.

A rule is called as ``rule(op, emit, gradients, wanted)``: ``emit`` appends an op and returns it,
``gradients`` holds the gradient of each result (None where nothing reads it), ``wanted`` names the
operands whose gradient is asked for. It returns gradients by operand name; the i-th value of a
variadic operand is called ``name.i``. Rules of normalisations, activations and of what moves
elements are in ``layer_adjoints``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from typing import Any

from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects import core, learn, nn, snn
from imcc.ir.dialects.core import tensor
from imcc.ir.ops import Op, Value
from imcc.ir.rules import ADJOINT

Emit = Callable[[Op], Op]
Gradients = dict[str, Value]


def pull_back(op: Op, emit: Emit, gradients: Sequence[Value | None], wanted: Set[str]) -> Gradients:
    """Gradients of the wanted operands of ``op``; refuses an op without a rule by name."""
    rule = ADJOINT.find(op.name)
    if rule is None:
        raise DiagnosticError(
            op.diagnostic(
                codes.NO_RULE,
                "no gradient passes through this op: it has no adjoint rule",
                help="adapt only layers behind it, or replace the op in the model",
            )
        )
    made: Gradients = rule(op, emit, gradients, wanted)
    return made


def one_gradient(gradients: Sequence[Value | None]) -> Value:
    """The gradient of the only result."""
    (found,) = gradients
    if found is None:
        raise TypeError("an op was asked for gradients that nothing gave")
    return found


def summed(emit: Emit, gradient: Value, like: Value) -> Value:
    """The gradient summed over the axes along which ``like`` was repeated."""
    if tensor(gradient).shape == tensor(like).shape:
        return gradient
    return emit(learn.SumTo(dy=gradient, like=like)).result


@ADJOINT.register(nn.Linear)
def _linear(
    op: nn.Linear, emit: Emit, gradients: Sequence[Value | None], wanted: Set[str]
) -> Gradients:
    dy, made = one_gradient(gradients), Gradients()
    if "weight" in wanted:
        made["weight"] = emit(learn.LinearWeightGradient(x=op.x, dy=dy)).result
    if "bias" in wanted and op.bias is not None:
        made["bias"] = summed(emit, dy, op.bias)
    if "x" in wanted:
        made["x"] = emit(learn.LinearInputGradient(dy=dy, weight=op.weight)).result
    return made


@ADJOINT.register(nn.Conv)
def _conv(
    op: nn.Conv, emit: Emit, gradients: Sequence[Value | None], wanted: Set[str]
) -> Gradients:
    dy, made = one_gradient(gradients), Gradients()
    window: dict[str, Any] = {
        "stride": op.stride,
        "padding": op.padding,
        "dilation": op.dilation,
        "groups": op.groups,
    }
    if "weight" in wanted:
        found = learn.ConvWeightGradient(x=op.x, dy=dy, weight=op.weight, **window)
        made["weight"] = emit(found).result
    if "bias" in wanted and op.bias is not None:
        # Channels to the back, where the bias broadcasts.
        rank, spatial = tensor(dy).rank, len(op.stride)
        channel = rank - spatial - 1
        axes = (*range(channel), *range(channel + 1, rank), channel)
        moved = emit(core.Permute(x=dy, axes=axes)).result
        made["bias"] = summed(emit, moved, op.bias)
    if "x" in wanted:
        back = learn.ConvInputGradient(dy=dy, weight=op.weight, x=op.x, **window)
        made["x"] = emit(back).result
    return made


@ADJOINT.register(nn.Relu, nn.LeakyRelu)
def _relu(
    op: nn.Relu | nn.LeakyRelu,
    emit: Emit,
    gradients: Sequence[Value | None],
    wanted: Set[str],
) -> Gradients:
    slope = op.negative_slope if isinstance(op, nn.LeakyRelu) else 0.0
    made = learn.ReluGradient(dy=one_gradient(gradients), x=op.x, negative_slope=slope)
    return {"x": emit(made).result}


@ADJOINT.register(nn.MaxPool)
def _max_pool(
    op: nn.MaxPool, emit: Emit, gradients: Sequence[Value | None], wanted: Set[str]
) -> Gradients:
    made = learn.MaxPoolGradient(
        x=op.x,
        dy=one_gradient(gradients),
        kernel=op.kernel,
        stride=op.stride,
        padding=op.padding,
        ceil_mode=op.ceil_mode,
        dilation=op.dilation,
    )
    return {"x": emit(made).result}


@ADJOINT.register(nn.AvgPool)
def _avg_pool(
    op: nn.AvgPool, emit: Emit, gradients: Sequence[Value | None], wanted: Set[str]
) -> Gradients:
    made = learn.AvgPoolGradient(
        x=op.x,
        dy=one_gradient(gradients),
        kernel=op.kernel,
        stride=op.stride,
        padding=op.padding,
        ceil_mode=op.ceil_mode,
        count_include_pad=op.count_include_pad,
    )
    return {"x": emit(made).result}


@ADJOINT.register(nn.AdaptiveAvgPool)
def _adaptive(
    op: nn.AdaptiveAvgPool, emit: Emit, gradients: Sequence[Value | None], wanted: Set[str]
) -> Gradients:
    if any(size != 1 for size in op.output):
        raise DiagnosticError(
            op.diagnostic(
                codes.NO_RULE,
                f"no gradient passes through an adaptive pooling to {list(op.output)}",
                help="pool to size 1, or use a pooling with a fixed kernel",
            )
        )
    axes = tuple(range(-len(op.output), 0))
    return {"x": _spread(op.x, one_gradient(gradients), axes, emit)}


@ADJOINT.register(nn.Mean)
def _mean(
    op: nn.Mean, emit: Emit, gradients: Sequence[Value | None], wanted: Set[str]
) -> Gradients:
    return {"x": _spread(op.x, one_gradient(gradients), op.axes, emit)}


def _spread(x: Value, dy: Value, axes: tuple[int, ...], emit: Emit) -> Value:
    count = math.prod(int(str(tensor(x).shape[axis])) for axis in axes)
    return emit(learn.Spread(dy=dy, x=x, axes=axes, factor=1.0 / count)).result


@ADJOINT.register(core.Add, core.Subtract)
def _sum(
    op: core.Add | core.Subtract,
    emit: Emit,
    gradients: Sequence[Value | None],
    wanted: Set[str],
) -> Gradients:
    dy, made = one_gradient(gradients), Gradients()
    if "a" in wanted:
        made["a"] = summed(emit, dy, op.a)
    if "b" in wanted:
        if isinstance(op, core.Subtract):
            made["b"] = emit(learn.SumTo(dy=dy, like=op.b, factor=-1.0)).result
        else:
            made["b"] = summed(emit, dy, op.b)
    return made


@ADJOINT.register(core.Multiply)
def _product(
    op: core.Multiply, emit: Emit, gradients: Sequence[Value | None], wanted: Set[str]
) -> Gradients:
    dy, made = one_gradient(gradients), Gradients()
    for name, value, other in (("a", op.a, op.b), ("b", op.b, op.a)):
        if name in wanted:
            made[name] = summed(emit, emit(core.Multiply(a=dy, b=other)).result, value)
    return made


@ADJOINT.register(core.Reshape)
def _reshape(
    op: core.Reshape, emit: Emit, gradients: Sequence[Value | None], wanted: Set[str]
) -> Gradients:
    return {"x": emit(core.Reshape(x=one_gradient(gradients), shape=tensor(op.x).shape)).result}


@ADJOINT.register(core.Permute)
def _permute(
    op: core.Permute, emit: Emit, gradients: Sequence[Value | None], wanted: Set[str]
) -> Gradients:
    back = tuple(sorted(range(len(op.axes)), key=op.axes.__getitem__))
    return {"x": emit(core.Permute(x=one_gradient(gradients), axes=back)).result}


@ADJOINT.register(snn.LeakyIntegrateAndFire)
def _lif(
    op: snn.LeakyIntegrateAndFire,
    emit: Emit,
    gradients: Sequence[Value | None],
    wanted: Set[str],
) -> Gradients:
    dy, dv = gradients
    if wanted != {"x"}:
        raise DiagnosticError(
            op.diagnostic(
                codes.NO_RULE,
                "gradients pass from a neuron's spikes and membrane to its input, not to its start "
                "or its parameters",
                help="keep the neuron's parameters constant",
            )
        )
    return {"x": emit(learn.NeuronGradient(dy=dy, dv=dv, **fields_of(op))).result}


def fields_of(op: Op) -> dict[str, Any]:
    """Operands and attributes of an op by name."""
    given = {item.name: op.__dict__[item.name] for item in type(op).spec().operands}
    return {**given, **op.attributes}
