"""Elementary functions, comparisons, choices and reductions: what their aten ops become."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from imcc.frontend import tables
from imcc.frontend.aten_tensors import pair
from imcc.frontend.convert import Argument, Converter, MaskParts, Rule
from imcc.frontend.rules import aten_rule
from imcc.ir.dialects import core, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.ops import Value
from imcc.ir.semantics.resources import ELEMENT_OF

# -- elementary functions -------------------------------------------------------------------------


def _unary_rule(function: Any) -> Rule:
    def rule(c: Converter, x: Argument, **_: Any) -> Value:
        return c.emit(core.Unary(x=c.value(x), function=function)).y

    return rule


for _name in core.Unary.spec().attributes["function"].kind.choices:
    aten_rule(str(_name))(_unary_rule(_name))


@aten_rule("neg")
def _neg(c: Converter, x: Argument) -> Value:
    left, right = pair(c, -1, c.value(x))
    return c.emit(core.Multiply(a=left, b=right)).y


@aten_rule("reciprocal")
def _reciprocal(c: Converter, x: Argument) -> Value:
    left, right = pair(c, 1.0, c.value(x))
    return c.emit(core.Divide(a=left, b=right)).y


@aten_rule("square")
def _square(c: Converter, x: Argument) -> Value:
    return _pow(c, x, 2)


@aten_rule("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def _pow(c: Converter, x: Any, exponent: Any) -> Value:
    left, right = pair(c, x, exponent)
    return c.emit(core.Power(a=left, b=right)).y


@aten_rule("log1p")
def _log1p(c: Converter, x: Argument) -> Value:
    left, right = pair(c, c.value(x), 1.0)
    return c.emit(core.Unary(x=c.emit(core.Add(a=left, b=right)).y, function="log")).y


@aten_rule("softplus")
def _softplus(c: Converter, x: Argument, beta: float, threshold: float) -> Value:
    """``log(1 + exp(beta x)) / beta``, as ``max(x, 0) + log(1 + exp(-|beta x|)) / beta``."""
    held = c.value(x)
    size = c.emit(core.Unary(x=held, function="abs")).y
    falling = c.emit(core.Multiply(a=size, b=c.number(-float(beta), held))).y
    grown = c.emit(core.Unary(x=falling, function="exp")).y
    rest = _log1p(c, grown)
    if beta != 1:
        rest = c.emit(core.Divide(a=rest, b=c.number(float(beta), held))).y
    return c.emit(core.Add(a=c.emit(nn.Relu(x=held)).y, b=rest)).y


@aten_rule("elu")
def _elu(c: Converter, x: Argument, alpha: float, scale: float, input_scale: float) -> Value:
    """``scale * (x if x > 0 else alpha * (exp(input_scale * x) - 1))``."""
    held = c.value(x)
    below = c.emit(nn.Clamp(x=held, minimum=None, maximum=0.0)).y
    if input_scale != 1:
        below = c.emit(core.Multiply(a=below, b=c.number(float(input_scale), held))).y
    grown = c.emit(core.Unary(x=below, function="exp")).y
    less = c.emit(core.Subtract(a=grown, b=c.number(1.0, held))).y
    if alpha != 1:
        less = c.emit(core.Multiply(a=less, b=c.number(float(alpha), held))).y
    made = c.emit(core.Add(a=c.emit(nn.Relu(x=held)).y, b=less)).y
    return made if scale == 1 else c.emit(core.Multiply(a=made, b=c.number(float(scale), held))).y


@aten_rule("prelu", "_prelu_kernel")
def _prelu(c: Converter, x: Argument, weight: Argument) -> Value:
    """``max(x, 0) + weight * min(x, 0)``; one weight for each channel (axis 1)."""
    held, slope = c.value(x), c.value(weight)
    rank, count = tensor(held).rank, tensor(slope).shape
    if tensor(slope).rank == 1:
        shape = (*count, *[1] * (rank - 2)) if rank > 1 else count
        slope = c.emit(core.Reshape(x=slope, shape=shape)).y if shape != count else slope
    below = c.emit(nn.Clamp(x=held, minimum=None, maximum=0.0)).y
    scaled = c.emit(core.Multiply(a=below, b=slope)).y
    return c.emit(core.Add(a=c.emit(nn.Relu(x=held)).y, b=scaled)).y


@aten_rule("mish")
def _mish(c: Converter, x: Argument) -> Value:
    """``x * tanh(log(1 + exp(x)))``."""
    held = c.value(x)
    inner = c.emit(nn.Tanh(x=_softplus(c, held, 1.0, 20.0))).y
    return c.emit(core.Multiply(a=held, b=inner)).y


@aten_rule("log_sigmoid")
def _log_sigmoid(c: Converter, x: Argument) -> Value:
    """``-log(1 + exp(-x))``."""
    return _neg(c, _softplus(c, _neg(c, x), 1.0, 20.0))


@aten_rule("glu")
def _glu(c: Converter, x: Argument, dim: int) -> Value:
    """The first half of an axis times the sigmoid of the second."""
    held = c.value(x)
    axis = dim % tensor(held).rank
    size = tensor(held).shape[axis]
    if not isinstance(size, int):
        raise c.refuse("halves an axis of symbolic size")
    first = c.emit(core.Slice(x=held, axis=axis, start=0, stop=size // 2)).y
    second = c.emit(core.Slice(x=held, axis=axis, start=size // 2, stop=size)).y
    return c.emit(core.Multiply(a=first, b=c.emit(nn.Sigmoid(x=second)).y)).y


# -- comparison and choice ------------------------------------------------------------------------


def _compare_rule(relation: Any) -> Rule:
    def rule(c: Converter, x: Any, other: Any) -> Value:
        left, right = pair(c, x, other)
        return c.emit(core.Compare(a=left, b=right, relation=relation)).y

    return rule


for _short, _relation in (
    ("eq", "equal"),
    ("ne", "not_equal"),
    ("lt", "less"),
    ("le", "less_equal"),
    ("gt", "greater"),
    ("ge", "greater_equal"),
):
    aten_rule(f"{_short}.Tensor", f"{_short}.Scalar")(_compare_rule(_relation))


def _condition(c: Converter, x: Any) -> Value:
    """Truth values; a number holds where it is not 0."""
    held = c.truth(x) if isinstance(x, bool) else c.value(x)
    return held if tensor(held).element == "i1" else c.emit(core.Cast(x=held, to="i1")).y


@aten_rule("__and__.Tensor", "bitwise_and.Tensor", "logical_and", "__and__.Scalar", forms=True)
def _and(c: Converter, x: Any, other: Any) -> Any:
    pieces = [x, other]
    for one, two in (pieces, reversed(pieces)):
        if isinstance(one, tables.Relations) and not one.rows and isinstance(two, Value):
            shown = c.shape()
            return two if tensor(two).shape == shown else c.expand(two, shown)
    values = [_condition(c, item) for item in pieces]
    made = c.emit(core.Where(condition=values[0], a=values[1], b=c.truth(False))).y
    for one, two in (values, reversed(values)):
        parts = c.masks.get(one)
        if parts is not None and parts.rest is None:
            c.masks[made] = MaskParts(parts.relations, two)
    return made


@aten_rule("__or__.Tensor", "bitwise_or.Tensor", "logical_or")
def _or(c: Converter, x: Any, other: Any) -> Value:
    held = [_condition(c, item) for item in (x, other)]
    return c.emit(core.Where(condition=held[0], a=c.truth(True), b=held[1])).y


@aten_rule("bitwise_not", "logical_not")
def _not(c: Converter, x: Any) -> Value:
    held = _condition(c, x)
    return c.emit(core.Compare(a=held, b=c.truth(False), relation="equal")).y


@aten_rule("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(c: Converter, condition: Any, x: Any, other: Any) -> Value:
    left, right = chosen(c, x, other)
    return c.emit(core.Where(condition=_condition(c, condition), a=left, b=right)).y


def chosen(c: Converter, x: Any, other: Any) -> tuple[Value, Value]:
    """Both alternatives of a choice; two numbers take the result's element type."""
    numbers = [isinstance(item, (bool, int, float)) for item in (x, other)]
    if all(numbers):
        element = c.element()
        return c.number_of(x, element), c.number_of(other, element)
    return pair(c, x, other)


@aten_rule("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(c: Converter, x: Argument, mask: Argument, value: Any) -> Value:
    filled, kept = pair(c, value, c.value(x))
    return c.emit(core.Where(condition=_condition(c, mask), a=filled, b=kept)).y


def _extremum_rule(relation: Any) -> Rule:
    def rule(c: Converter, x: Any, other: Any) -> Value:
        left, right = pair(c, x, other)
        holds = c.emit(core.Compare(a=left, b=right, relation=relation)).y
        return c.emit(core.Where(condition=holds, a=left, b=right)).y

    return rule


aten_rule("maximum", "max.other")(_extremum_rule("greater"))
aten_rule("minimum", "min.other")(_extremum_rule("less"))


# -- reductions -----------------------------------------------------------------------------------

Reduction = Callable[..., "nn.Sum | nn.Max"]


def _axes(x: Value, dim: Any) -> tuple[int, ...]:
    rank = tensor(x).rank
    given = range(rank) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return tuple(sorted(axis % rank - rank for axis in given))


@aten_rule("sum", "sum.dim_IntList")
def _sum(
    c: Converter, x: Argument, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Value:
    held = c.converted(c.value(x), c.element())
    return c.emit(nn.Sum(x=held, axes=_axes(held, dim), keepdim=keepdim)).y


@aten_rule("amax", "max")
def _amax(c: Converter, x: Argument, dim: Any = None, keepdim: bool = False) -> Value:
    held = c.value(x)
    return c.emit(nn.Max(x=held, axes=_axes(held, dim), keepdim=keepdim)).y


@aten_rule("amin", "min")
def _amin(c: Converter, x: Argument, dim: Any = None, keepdim: bool = False) -> Value:
    return _neg(c, _amax(c, _neg(c, x), dim, keepdim))


@aten_rule("max.dim")
def _max_dim(c: Converter, x: Argument, dim: int, keepdim: bool) -> tuple[Value | None, ...]:
    return (_amax(c, x, dim, keepdim), None)


@aten_rule("var.correction", "var.dim", "std.correction", "std.dim")
def _variance(
    c: Converter,
    x: Argument,
    dim: Any = None,
    correction: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
) -> Value:
    """Mean square distance to the mean, with ``n - correction`` in place of n."""
    held = c.value(x)
    axes = _axes(held, dim)
    count = math.prod(
        size if isinstance(size, int) else 0 for size in (tensor(held).shape[axis] for axis in axes)
    )
    if not count:
        raise c.refuse("takes the variance over an axis of symbolic size")
    less = float(int(unbiased) if unbiased is not None else 1 if correction is None else correction)
    mean = c.emit(nn.Mean(x=held, axes=axes, keepdim=True)).y
    away = c.emit(core.Subtract(a=held, b=mean)).y
    square = c.emit(core.Multiply(a=away, b=away)).y
    made = c.emit(nn.Mean(x=square, axes=axes, keepdim=keepdim)).y
    if less:
        made = c.emit(core.Multiply(a=made, b=c.number(count / (count - less), made))).y
    if c.operation().startswith("std"):
        made = c.emit(core.Unary(x=made, function="sqrt")).y
    return made


@aten_rule("linalg_vector_norm", "norm.ScalarOpt_dim")
def _norm(
    c: Converter,
    x: Argument,
    ord: float = 2,
    p: float | None = None,
    dim: Any = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> Value:
    order = ord if p is None else p
    held = c.value(x)
    axes = _axes(held, dim)
    if order == 1:
        size = c.emit(core.Unary(x=held, function="abs")).y
        return c.emit(nn.Sum(x=size, axes=axes, keepdim=keepdim)).y
    if order != 2:
        raise c.refuse(f"a norm of order {order} is not supported", help="use order 1 or 2")
    square = c.emit(core.Multiply(a=held, b=held)).y
    total = c.emit(nn.Sum(x=square, axes=axes, keepdim=keepdim)).y
    return c.emit(core.Unary(x=total, function="sqrt")).y


@aten_rule("cumsum")
def _cumsum(c: Converter, x: Argument, dim: int, dtype: Any = None) -> Value:
    held = c.converted(c.value(x), c.element())
    rank = tensor(held).rank
    return c.emit(core.CumulativeSum(x=held, axis=dim % rank - rank)).y


# -- element types --------------------------------------------------------------------------------


@aten_rule("_to_copy", "to.dtype", "to.dtype_layout", "to.device", "type_as")
def _to(c: Converter, x: Argument, dtype: torch.dtype | None = None, **_: Any) -> Value:
    held = c.value(x)
    wanted = c.element()
    if wanted not in ELEMENT_OF.values():
        raise c.refuse(f"converts {tensor(held).element} to {dtype}")
    return c.converted(held, wanted)
