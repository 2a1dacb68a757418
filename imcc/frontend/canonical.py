"""One spelling for what models write in several ways: graph rules, applied once after capture.

The rules know patterns of ops, not names of models. What they do not know stays as it is: it is
computed all the same, only not as one op.
"""

from __future__ import annotations

import math
from typing import Any

from imcc.frontend.attention import recognise_attention, repeated_heads
from imcc.frontend.convert import MaskParts
from imcc.frontend.patterns import (
    Numbers,
    close,
    is_power,
    merged_both,
    merged_leading,
    splits,
    swapped,
)
from imcc.ir.dialects import core, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim, Monomial, product
from imcc.ir.module import Function, Module
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter, RewriteRule, apply_rules, rewrite_rule
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.canonicalize import identity, permute_of_permute, reshape_of_reshape
from imcc.passes.dead_code import DeadCode
from imcc.passes.infrastructure import PassContext


def canonicalise(module: Module, resources: ResourceStore, masks: dict[Value, MaskParts]) -> None:
    """Apply the rules to a captured module; drop what nothing needs any more.

    ``masks`` says what truth values that depend on positions consist of.
    """
    rewriter = Rewriter(module, rule="capture")
    numbers = Numbers(resources)
    structure = (product_of_merged, layer_of_merged, elementwise_of_merged, transpose_of_merged)
    tidy = (identity, reshape_of_reshape, permute_of_permute)
    norms = (_rms_norm(numbers), rms_norm_weight, _silu(), _gelu(numbers))
    apply_rules(module, (*structure, *tidy, *norms), rewriter)
    # What the rules above left without a reader would count as one of the scores.
    DeadCode().run(module, PassContext(resources=resources))
    attention = (recognise_attention(numbers, masks), repeated_heads, transpose_of_merged)
    apply_rules(module, (*attention, *tidy), rewriter)
    for function in module.functions.values():
        _batch_in_front(function, rewriter)
    apply_rules(module, tidy, rewriter)
    DeadCode().run(module, PassContext(resources=resources))


# -- norms and activations ------------------------------------------------------------------------


def _rms_norm(numbers: Numbers) -> RewriteRule:
    @rewrite_rule(core.Multiply, core.Divide)
    def rms_norm(op: Op, rewriter: Rewriter) -> bool:
        """``x * rsqrt(mean(x^2) + eps)`` is ``nn.rms_norm``; so is ``x / sqrt(...)``."""
        if not isinstance(op, core.Multiply | core.Divide):
            return False
        function = "rsqrt" if isinstance(op, core.Multiply) else "sqrt"
        sides = [(op.a, op.b)] if isinstance(op, core.Divide) else [(op.a, op.b), (op.b, op.a)]
        for x, root in sides:
            owner = root.owner
            if not isinstance(owner, core.Unary) or owner.function != function:
                continue
            inner, eps = owner.x, 0.0
            if isinstance(inner.owner, core.Add):
                split = numbers.split(inner.owner.a, inner.owner.b)
                if split is None:
                    continue
                inner, eps = split
            mean = inner.owner
            if not isinstance(mean, nn.Mean) or not mean.keepdim or eps < 0:
                continue
            count = len(mean.axes)
            sizes = [size for size in tensor(x).shape[-count:] if isinstance(size, int)]
            trailing = sorted(mean.axes) == list(range(-count, 0)) and len(sizes) == count
            if trailing and is_power(mean.x, x, 2, numbers):
                made = nn.RmsNorm(x=x, normalized_shape=tuple(sizes), eps=eps)
                rewriter.replace(op, [made], made.y)
                return True
        return False

    return rms_norm


@rewrite_rule(core.Multiply)
def rms_norm_weight(op: Op, rewriter: Rewriter) -> bool:
    """A factor of the normalised shape is the weight of ``nn.rms_norm``."""
    if not isinstance(op, core.Multiply):
        return False
    for normed, weight in ((op.a, op.b), (op.b, op.a)):
        inner = normed.owner
        if not isinstance(inner, nn.RmsNorm) or inner.weight is not None:
            continue
        if tensor(weight).shape == inner.normalized_shape:
            made = nn.RmsNorm(
                x=inner.x,
                weight=weight,
                normalized_shape=inner.normalized_shape,
                eps=inner.eps,
            )
            rewriter.replace(op, [made], made.y)
            return True
    return False


def _silu() -> RewriteRule:
    @rewrite_rule(core.Multiply)
    def silu(op: Op, rewriter: Rewriter) -> bool:
        """``x * sigmoid(x)`` is ``nn.silu``."""
        if not isinstance(op, core.Multiply):
            return False
        for x, gate in ((op.a, op.b), (op.b, op.a)):
            if isinstance(gate.owner, nn.Sigmoid) and gate.owner.x is x:
                made = nn.Silu(x=x)
                rewriter.replace(op, [made], made.y)
                return True
        return False

    return silu


def _gelu(numbers: Numbers) -> RewriteRule:
    @rewrite_rule(core.Multiply)
    def gelu(op: Op, rewriter: Rewriter) -> bool:
        """``x / 2 * (1 + erf(x / sqrt(2)))`` is ``nn.gelu``, and so is its form with a tanh."""
        if not isinstance(op, core.Multiply):
            return False
        number, rest = numbers.factors(op.y)
        if number != 0.5 or len(rest) != 2:
            return False
        for x, gate in (rest, rest[::-1]):
            if not isinstance(gate.owner, core.Add):
                continue
            split = numbers.split(gate.owner.a, gate.owner.b)
            if split is None or split[1] != 1.0:
                continue
            form = _gate_of(split[0], x, numbers)
            if form is not None:
                made = nn.Gelu(x=x, approximate="tanh" if form == "tanh" else "none")
                rewriter.replace(op, [made], made.y)
                return True
        return False

    return gelu


def _gate_of(value: Value, x: Value, numbers: Numbers) -> str | None:
    op = value.owner
    if isinstance(op, core.Unary) and op.function == "erf":
        number, rest = numbers.factors(op.x)
        return "erf" if rest == [x] and close(x, number, math.sqrt(0.5)) else None
    if not isinstance(op, nn.Tanh):
        return None
    number, rest = numbers.factors(op.x)
    if not close(x, number, math.sqrt(2.0 / math.pi)):
        return None
    # x + c x^3, or x * (1 + c x^2)
    for power, kept in ((3, [item for item in rest if item is not x]), (2, None)):
        inner = kept if kept is not None else [item for item in rest if item is not x]
        if len(inner) != 1 or len(rest) != (1 if power == 3 else 2):
            continue
        total = inner[0].owner
        if not isinstance(total, core.Add):
            continue
        for one, cubic in ((total.a, total.b), (total.b, total.a)):
            first = one is x if power == 3 else numbers.of(one) == 1.0
            factor, values = numbers.factors(cubic)
            count = _count_of(values, x, numbers)
            if first and count == power and close(x, factor, 0.044715):
                return "tanh"
    return None


def _count_of(values: list[Value], x: Value, numbers: Numbers) -> int:
    """The exponent n where all values together are ``x ^ n``; 0 if they are not."""
    total = 0
    for item in values:
        if item is x:
            total += 1
            continue
        op = item.owner
        exponent = numbers.of(op.b) if isinstance(op, core.Power) and op.a is x else None
        if exponent is None or exponent != int(exponent):
            return 0
        total += int(exponent)
    return total


# -- merged leading axes --------------------------------------------------------------------------


@rewrite_rule(nn.Linear)
def layer_of_merged(op: Op, rewriter: Rewriter) -> bool:
    """A layer of merged leading axes is a layer of the axes, merged afterwards.

    One reshape may merge the axes of heads behind them too, as ``nn.MultiheadAttention`` does.
    """
    if not isinstance(op, nn.Linear):
        return False
    new: list[Op] = []
    found = merged_leading(op.x, 1)
    x = found[0] if found is not None else None
    if x is None:
        apart = merged_both(op.x)
        if apart is None:
            return False
        new.append(apart)
        x = apart.y
    layer = nn.Linear(x=x, weight=op.weight, bias=op.bias, scope=op.scope)
    made = core.Reshape(x=layer.y, shape=tensor(op.y).shape)
    rewriter.replace(op, [*new, layer, made], made.y)
    return True


@rewrite_rule(nn.Matmul)
def product_of_merged(op: Op, rewriter: Rewriter) -> bool:
    """A product of two tensors with the same merged leading axes is one of the axes."""
    if not isinstance(op, nn.Matmul):
        return False
    left, right = merged_leading(op.a, 2), merged_leading(op.b, 2)
    if left is None or right is None:
        return False
    (a, count), (b, other) = left, right
    leads = tensor(a).shape[:count], tensor(b).shape[:other]
    new: list[Op] = []
    if leads[0] != leads[1]:
        # One of the two may split an axis further, as heads repeated for their groups do.
        if splits(leads[1], leads[0]):
            new.append(core.Reshape(x=b, shape=(*leads[0], *tensor(b).shape[-2:])))
            b = new[0].result
        elif splits(leads[0], leads[1]):
            new.append(core.Reshape(x=a, shape=(*leads[1], *tensor(a).shape[-2:])))
            a = new[0].result
        else:
            return False
    product_ = nn.Matmul(a=a, b=b)
    made = core.Reshape(x=product_.y, shape=tensor(op.y).shape)
    rewriter.replace(op, [*new, product_, made], made.y)
    return True


@rewrite_rule(core.Permute)
def transpose_of_merged(op: Op, rewriter: Rewriter) -> bool:
    """The transpose of matrices behind merged or split leading axes is one in front of them."""
    if not isinstance(op, core.Permute) or not isinstance(op.x.owner, core.Reshape):
        return False
    rank, inner = len(op.axes), op.x.owner
    before, after = tensor(inner.x).shape, tensor(op.x).shape
    if rank < 3 or op.axes != (*range(rank - 2), rank - 1, rank - 2):
        return False
    if len(before) < 3 or before[-2:] != after[-2:]:
        return False
    turned = swapped(inner.x)
    made = core.Reshape(x=turned.y, shape=tensor(op.y).shape)
    rewriter.replace(op, [turned, made], made.y)
    return True


_ELEMENTWISE = (core.Add, core.Subtract, core.Multiply, core.Divide, core.Where, nn.Softmax)


@rewrite_rule(*_ELEMENTWISE)
def elementwise_of_merged(op: Op, rewriter: Rewriter) -> bool:
    """An elementwise op between products sees their axes as they are, merged afterwards."""
    shape = tensor(op.result).shape
    if isinstance(op, nn.Softmax) and -op.axis >= len(shape):
        return False
    found = [merged_leading(value, len(shape) - 1) for value in op.operands]
    whole = [item for item in found if item is not None]
    if not whole or len({(tensor(x).shape[:n], n) for x, n in whole}) > 1:
        return False
    feeds = any(isinstance(user, nn.Matmul) for user in op.result.users)
    if not feeds and not any(_from_product(x) for x, _ in whole):
        return False
    given: dict[str, Value] = {}
    for (declared, value), item in zip(op.named_operands(), found, strict=True):
        # What has no merged axis broadcasts over all of them.
        if item is None and tensor(value).rank >= len(shape):
            return False
        given[declared.name] = value if item is None else item[0]
    fields: dict[str, Any] = {**given, **op.attributes}
    inner = type(op)(**fields)
    made = core.Reshape(x=inner.result, shape=shape)
    rewriter.replace(op, [inner, made], made.y)
    return True


def _from_product(value: Value) -> bool:
    op = value.owner
    while isinstance(op, _ELEMENTWISE):
        first = op.a if not isinstance(op, nn.Softmax) else op.x
        op = first.owner
    return isinstance(op, nn.Matmul)


# -- the batch ------------------------------------------------------------------------------------


def _batch_in_front(function: Function, rewriter: Rewriter) -> None:
    """Layers whose first axis is ``4*B`` see the batch as an axis of its own: ``[B, 4, ...]``.

    Only where the batch is the outer factor, so that the rows of a sample stay together.
    """
    outer: set[Value] = {
        value for value in function.inputs if tensor(value).shape[:1] == (Monomial(1, ("B",)),)
    }
    for op in list(function.ops):
        if op.terminator:
            continue
        if _keeps_batch_outer(op, outer):
            outer.update(op.results)
        if not isinstance(op, nn.Linear | nn.Conv) or op.x not in outer:
            continue
        rows = _rows_of_a_sample(tensor(op.x).shape[0])
        if rows is None:
            continue
        x = tensor(op.x)
        apart = core.Reshape(x=op.x, shape=(Monomial(1, ("B",)), rows, *x.shape[1:]))
        fields = {**op.attributes, "weight": op.weight, "bias": op.bias, "scope": op.scope}
        layer = type(op)(x=apart.y, **fields)
        made = core.Reshape(x=layer.result, shape=tensor(op.result).shape)
        outer.update((apart.y, layer.result, made.y))
        rewriter.replace(op, [apart, layer, made], made.y)


def _rows_of_a_sample(size: Dim) -> Dim | None:
    if not isinstance(size, Monomial) or "B" not in size.symbols:
        return None
    rest = list(size.symbols)
    rest.remove("B")
    rows = product([size.coefficient, *(Monomial(1, (symbol,)) for symbol in rest)])
    return None if rows == 1 or "B" in rest else rows


def _keeps_batch_outer(op: Op, outer: set[Value]) -> bool:
    """Whether the first axis of the result still has the batch as its outer factor."""
    held = [value for value in op.operands if "B" in _symbols(tensor(value).shape)]
    if not held or any(value not in outer for value in held):
        return False
    if isinstance(op, core.Permute):
        return op.axes[0] == 0
    first = tensor(op.results[0]).shape[:1] if op.results else ()
    return bool(first) and "B" in _symbols(first)


def _symbols(shape: tuple[Dim, ...]) -> set[str]:
    return {symbol for size in shape if isinstance(size, Monomial) for symbol in size.symbols}
