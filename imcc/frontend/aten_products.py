"""Products of two tensors and attention: what their aten ops become."""

from __future__ import annotations

import math
from typing import Any

from imcc.frontend import tables
from imcc.frontend.aten_tensors import permuted, reshaped
from imcc.frontend.convert import Argument, Const, Converter
from imcc.frontend.patterns import mask_kind
from imcc.frontend.rules import aten_rule
from imcc.ir.dialects import core, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim
from imcc.ir.ops import Value


@aten_rule("linear")
def _linear(c: Converter, x: Argument, weight: Argument, bias: Argument | None) -> Value:
    if isinstance(weight, Const) and weight.tensor.dim() == 1:
        weight = Const(weight.name, weight.tensor.reshape(1, -1), weight.scope)
        made = c.emit(nn.Linear(x=c.value(x), weight=c.value(weight), bias=None)).y
        return reshaped(c, made, c.shape())
    return c.emit(nn.Linear(x=c.value(x), weight=c.value(weight), bias=c.optional(bias))).y


def _product(c: Converter, x: Argument, other: Argument, bias: Argument | None = None) -> Value:
    """``x @ other``: a layer where the right factor is a constant matrix, else a product."""
    constant = isinstance(other, Const) and other.tensor.dim() == 2
    if isinstance(other, Const) and constant and not (isinstance(x, Const) and bias is None):
        weight = other.transpose
        if weight is None:
            turned = other.tensor.t().contiguous()
            weight = Const(f"{other.name}.transposed", turned, other.scope, other)
        return c.emit(nn.Linear(x=c.value(x), weight=c.value(weight), bias=c.optional(bias))).y
    left, right = c.value(x), c.value(other)
    vector = tensor(left).rank == 1, tensor(right).rank == 1
    if vector[0]:
        left = reshaped(c, left, (1, *tensor(left).shape))
    if vector[1]:
        right = reshaped(c, right, (*tensor(right).shape, 1))
    made = c.emit(nn.Matmul(a=left, b=right)).y
    if any(vector):
        made = reshaped(c, made, c.shape())
    return made if bias is None else c.emit(core.Add(a=made, b=c.value(bias))).y


@aten_rule("mm", "bmm", "matmul", "mv", "dot")
def _mm(c: Converter, x: Argument, **other: Any) -> Value:
    (right,) = other.values()
    return _product(c, x, right)


def _scaled(c: Converter, x: Value, factor: float) -> Value:
    return x if factor == 1 else c.emit(core.Multiply(a=x, b=c.number(float(factor), x))).y


@aten_rule("addmm")
def _addmm(
    c: Converter, x: Argument, mat1: Argument, mat2: Argument, beta: float, alpha: float
) -> Value:
    if beta == 1 and alpha == 1 and isinstance(x, Const) and x.tensor.dim() == 1:
        return _product(c, mat1, mat2, x)
    made = _scaled(c, _product(c, mat1, mat2), alpha)
    return c.emit(core.Add(a=_scaled(c, c.value(x), beta), b=made)).y


@aten_rule("baddbmm")
def _baddbmm(
    c: Converter, x: Argument, batch1: Argument, batch2: Argument, beta: float, alpha: float
) -> Value:
    made = _scaled(c, _product(c, batch1, batch2), alpha)
    if beta == 0:
        return made
    return c.emit(core.Add(a=_scaled(c, c.value(x), beta), b=made)).y


@aten_rule("einsum")
def _einsum(c: Converter, equation: str, tensors: list[Argument], path: Any = None) -> Value:
    """Two factors: axes of both that stay come first, then a product of two matrices."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    names = left.split(",")
    if len(names) != 2 or not arrow or "." in equation:
        raise c.refuse(f"the equation {equation!r} is not supported", help="write it as a matmul")
    a, b = (c.value(item) for item in tensors)
    one, two = names
    if any(len(set(item)) != len(item) for item in (one, two, result)):
        raise c.refuse(f"the equation {equation!r} repeats an axis of one factor")
    shared = [axis for axis in one if axis in two and axis in result]
    summed = [axis for axis in one if axis in two and axis not in result]
    rows = [axis for axis in one if axis not in two]
    columns = [axis for axis in two if axis not in one]
    if any(axis not in result for axis in (*rows, *columns)):
        raise c.refuse(f"the equation {equation!r} sums an axis of one factor alone")
    size: dict[str, Dim] = dict(zip(one, tensor(a).shape, strict=True))
    size.update(zip(two, tensor(b).shape, strict=True))

    def matrix(x: Value, given: str, order: list[list[str]]) -> Value:
        axes = [axis for group in order for axis in group]
        turned = permuted(c, x, [given.index(axis) for axis in axes])
        lead = tuple(size[axis] for axis in order[0])
        flat = [_volume([size[axis] for axis in group]) for group in order[1:]]
        return reshaped(c, turned, (*lead, *flat))

    made = c.emit(
        nn.Matmul(
            a=matrix(a, one, [shared, rows, summed]), b=matrix(b, two, [shared, summed, columns])
        )
    ).y
    axes = [*shared, *rows, *columns]
    made = reshaped(c, made, tuple(size[axis] for axis in axes))
    return permuted(c, made, [axes.index(axis) for axis in result])


def _volume(sizes: list[Dim]) -> Dim:
    from imcc.ir.dims import product

    return product(sizes)


@aten_rule("scaled_dot_product_attention", forms=True)
def _attention(
    c: Converter,
    query: Argument,
    key: Argument,
    value: Argument,
    attn_mask: Any,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Value:
    if dropout_p:
        raise c.refuse(
            "dropout is active",
            reason="the model is captured for inference",
            help="pass dropout_p=p if self.training else 0.0",
        )
    held = [c.value(item) for item in (query, key, value)]
    mask, causal = None, is_causal
    if attn_mask is not None:
        mask, also = split_mask(c, attn_mask)
        causal = causal or also
    shape = tensor(held[0]).shape
    width = shape[-1]
    if not isinstance(width, int):
        raise c.refuse("the width of a head is symbolic")
    # Heads are an axis of their own; leading axes of all three agree.
    single = len(shape) == 2 or not isinstance(shape[-3], int)
    if single:
        held = [_with_one_head(c, item) for item in held]
        if mask is not None and tensor(mask).rank > 2:
            mask = _with_one_head(c, mask)
    # Leading axes broadcast; the exporter knows their sizes.
    wide = c.shape()
    lead = wide[: -2 if single else -3]
    held = [c.expand(item, (*lead, *tensor(item).shape[-3:])) for item in held]
    made = c.emit(
        nn.Attention(
            query=held[0],
            key=held[1],
            value=held[2],
            mask=mask,
            scale=1.0 / math.sqrt(width) if scale is None else float(scale),
            causal=causal,
        )
    ).y
    return reshaped(c, made, c.shape())


def _with_one_head(c: Converter, x: Value) -> Value:
    shape = tensor(x).shape
    return reshaped(c, x, (*shape[:-2], 1, *shape[-2:]))


def split_mask(c: Converter, given: Any) -> tuple[Value | None, bool]:
    """What remains of a mask, and whether it is causal: later keys are hidden from a query.

    A mask that is constant is compared as a whole; one that depends on a symbolic length is
    taken apart into its relations between positions.
    """
    if isinstance(given, tables.Relations):
        causal, rest = given.without_causal()
        return (c.value(rest) if rest.rows else None), causal
    if isinstance(given, Const):
        return _constant_mask(c, given)
    held = c.value(given)
    seen = held
    while isinstance(seen.owner, core.Expand) and seen not in c.masks:
        seen = seen.owner.x
    parts = c.masks.get(seen)
    if parts is None:
        return seen, False
    causal, rest = parts.relations.without_causal()
    if not causal:
        return seen, False
    if not rest.rows:
        return parts.rest, True
    left = c.value(rest)
    if parts.rest is None:
        return left, True
    both = core.Where(condition=left, a=parts.rest, b=c.truth(False))
    return c.emit(both).y, True


def _constant_mask(c: Converter, given: Const) -> tuple[Value | None, bool]:
    kind = mask_kind(given.tensor)
    if kind in ("all", "causal"):
        return None, kind == "causal"
    if kind == "some" and given.tensor.is_floating_point():
        seen = (given.tensor == 0).contiguous()
        return c.value(Const(f"{given.name}.seen", seen, given.scope)), False
    return c.value(given), False
