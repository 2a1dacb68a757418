"""Adjoint rules of normalisations, activations, integrators, and of what moves elements."""

from __future__ import annotations

from collections.abc import Sequence, Set

from imcc.ir import codes
from imcc.ir.adjoints import Emit, Gradients, fields_of, one_gradient, summed
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects import core, learn, nn, quant, snn
from imcc.ir.dialects.core import tensor
from imcc.ir.ops import Op, Value
from imcc.ir.rules import ADJOINT

Given = Sequence[Value | None]


def _input_only(op: Op, wanted: Set[str]) -> None:
    """Refuse gradients of parameters: only weights of matrix ops adapt."""
    if wanted != {"x"}:
        raise DiagnosticError(
            op.diagnostic(
                codes.NO_RULE,
                f"no gradient passes to its {', '.join(sorted(wanted - {'x'}))}",
                help="only weights and biases of linear layers and convolutions adapt",
            )
        )


@ADJOINT.register(nn.LayerNorm, nn.RmsNorm)
def _norm(
    op: nn.LayerNorm | nn.RmsNorm, emit: Emit, gradients: Given, wanted: Set[str]
) -> Gradients:
    _input_only(op, wanted)
    made = learn.NormGradient(
        x=op.x,
        dy=one_gradient(gradients),
        weight=op.weight,
        normalized_shape=op.normalized_shape,
        eps=op.eps,
        centred=isinstance(op, nn.LayerNorm),
    )
    return {"x": emit(made).result}


@ADJOINT.register(nn.BatchNorm)
def _batch_norm(op: nn.BatchNorm, emit: Emit, gradients: Given, wanted: Set[str]) -> Gradients:
    _input_only(op, wanted)
    made = learn.BatchNormGradient(
        dy=one_gradient(gradients), var=op.var, weight=op.weight, axis=op.axis, eps=op.eps
    )
    return {"x": emit(made).result}


@ADJOINT.register(nn.Gelu, nn.Silu, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid)
def _activation(
    op: nn.Gelu | nn.Silu | nn.Sigmoid | nn.Tanh | nn.Hardswish | nn.Hardsigmoid,
    emit: Emit,
    gradients: Given,
    wanted: Set[str],
) -> Gradients:
    function = op.name.removeprefix("nn.")
    if isinstance(op, nn.Gelu) and op.approximate == "tanh":
        function = "gelu_tanh"
    made = learn.ActivationGradient.build(
        {"x": op.x, "dy": one_gradient(gradients)},
        {"function": function},
        (tensor(op.x),),
        (),
        "",
        (),
    )
    return {"x": emit(made).result}


@ADJOINT.register(nn.Clamp)
def _clamp(op: nn.Clamp, emit: Emit, gradients: Given, wanted: Set[str]) -> Gradients:
    made = learn.ClampGradient(
        x=op.x, dy=one_gradient(gradients), minimum=op.minimum, maximum=op.maximum
    )
    return {"x": emit(made).result}


@ADJOINT.register(nn.Softmax)
def _softmax(op: nn.Softmax, emit: Emit, gradients: Given, wanted: Set[str]) -> Gradients:
    made = learn.SoftmaxGradient(y=op.y, dy=one_gradient(gradients), axis=op.axis)
    return {"x": emit(made).result}


@ADJOINT.register(nn.Sum)
def _sum(op: nn.Sum, emit: Emit, gradients: Given, wanted: Set[str]) -> Gradients:
    return {"x": emit(learn.Spread(dy=one_gradient(gradients), x=op.x, axes=op.axes)).result}


@ADJOINT.register(nn.Matmul)
def _matmul(op: nn.Matmul, emit: Emit, gradients: Given, wanted: Set[str]) -> Gradients:
    dy, made = one_gradient(gradients), Gradients()
    if "a" in wanted:
        made["a"] = summed(emit, emit(nn.Matmul(a=dy, b=_turned(emit, op.b))).result, op.a)
    if "b" in wanted:
        made["b"] = summed(emit, emit(nn.Matmul(a=_turned(emit, op.a), b=dy)).result, op.b)
    return made


def _turned(emit: Emit, value: Value) -> Value:
    rank = tensor(value).rank
    axes = (*range(rank - 2), rank - 1, rank - 2)
    return emit(core.Permute(x=value, axes=axes)).result


@ADJOINT.register(nn.Attention)
def _attention(op: nn.Attention, emit: Emit, gradients: Given, wanted: Set[str]) -> Gradients:
    raise DiagnosticError(
        op.diagnostic(
            codes.NO_RULE,
            "no gradient passes through attention as a whole",
            help="run decompose-attention before insert-feedback",
        )
    )


@ADJOINT.register(quant.FakeQuantize)
def _fake(op: quant.FakeQuantize, emit: Emit, gradients: Given, wanted: Set[str]) -> Gradients:
    return {"x": one_gradient(gradients)}


@ADJOINT.register(quant.Quantize, quant.Dequantize)
def _codes(
    op: quant.Quantize | quant.Dequantize, emit: Emit, gradients: Given, wanted: Set[str]
) -> Gradients:
    raise DiagnosticError(
        op.diagnostic(
            codes.NO_RULE,
            "no gradient passes through codes",
            help="run insert-feedback before the passes that quantise",
        )
    )


@ADJOINT.register(snn.LeakyIntegrator)
def _integrator(
    op: snn.LeakyIntegrator, emit: Emit, gradients: Given, wanted: Set[str]
) -> Gradients:
    dy, dv = gradients
    _input_only(op, wanted)
    return {"x": emit(learn.IntegratorGradient(dy=dy, dv=dv, **fields_of(op))).result}


# -- what moves elements ---------------------------------------------------------------------------


@ADJOINT.register(core.Slice)
def _slice(op: core.Slice, emit: Emit, gradients: Given, wanted: Set[str]) -> Gradients:
    made = learn.SliceGradient(
        x=op.x, dy=one_gradient(gradients), axis=op.axis, start=op.start, step=op.step
    )
    return {"x": emit(made).result}


@ADJOINT.register(core.Concat)
def _concat(op: core.Concat, emit: Emit, gradients: Given, wanted: Set[str]) -> Gradients:
    dy, made = one_gradient(gradients), Gradients()
    axis, start = op.axis % tensor(op.y).rank, 0
    for index, value in enumerate(op.inputs):
        stop = start + int(str(tensor(value).shape[axis]))
        if f"inputs.{index}" in wanted:
            part = core.Slice(x=dy, axis=axis, start=start, stop=stop)
            made[f"inputs.{index}"] = emit(part).result
        start = stop
    return made


@ADJOINT.register(core.Pad)
def _pad(op: core.Pad, emit: Emit, gradients: Given, wanted: Set[str]) -> Gradients:
    made = one_gradient(gradients)
    for axis, (low, high) in enumerate(zip(op.before, op.after, strict=True)):
        if low or high:
            stop = low + int(str(tensor(op.x).shape[axis]))
            made = emit(core.Slice(x=made, axis=axis, start=low, stop=stop)).result
    return {"x": made}


@ADJOINT.register(core.Expand)
def _expand(op: core.Expand, emit: Emit, gradients: Given, wanted: Set[str]) -> Gradients:
    return {"x": summed(emit, one_gradient(gradients), op.x)}


@ADJOINT.register(core.Where)
def _where(op: core.Where, emit: Emit, gradients: Given, wanted: Set[str]) -> Gradients:
    dy, made = one_gradient(gradients), Gradients()
    cast = core.Cast.build(
        {"x": op.condition},
        {"to": str(tensor(dy).element)},
        (tensor(op.condition).with_element(tensor(dy).element),),
        (),
        "",
        (),
    )
    chosen = emit(core.Multiply(a=dy, b=emit(cast).result)).result
    if "a" in wanted:
        made["a"] = summed(emit, chosen, op.a)
    if "b" in wanted:
        made["b"] = summed(emit, emit(core.Subtract(a=dy, b=chosen)).result, op.b)
    return made


@ADJOINT.register(core.Divide)
def _divide(op: core.Divide, emit: Emit, gradients: Given, wanted: Set[str]) -> Gradients:
    made = Gradients()
    share = emit(core.Divide(a=one_gradient(gradients), b=op.b)).result
    if "a" in wanted:
        made["a"] = summed(emit, share, op.a)
    if "b" in wanted:
        whole = emit(core.Multiply(a=share, b=op.y)).result
        made["b"] = emit(learn.SumTo(dy=whole, like=op.b, factor=-1.0)).result
    return made
