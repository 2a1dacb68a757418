"""Hypothesis strategies: valid modules for property tests of imcc and of plugins."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from imcc.ir.diagnostics import Location
from imcc.ir.dialects import core, nn, quant
from imcc.ir.dims import Monomial
from imcc.ir.module import Function, FunctionResult, Module, Resource
from imcc.ir.ops import Op, Value
from imcc.ir.types import TensorType

_SCOPES = st.sampled_from(["", "fc", "blocks.0.attn", "blocks.1", 'weird "name"', "äöü"])


@st.composite
def modules(draw: Any, max_ops: int = 12) -> Module:
    """A valid captured module with a symbolic batch.

    Elementwise and structural ops, matrix products with constant weights, activations, and values
    quantised and back; values are ``[B, features]``.
    """
    module = Module("made")
    batch = Monomial(1, ("B",))
    function = Function("inference")
    module.add_function(function)
    features = draw(st.integers(1, 8))
    kind = TensorType((batch, features), "f32")
    values: list[Value] = [function.add_argument(kind, "x")]
    for index in range(draw(st.integers(0, max_ops))):
        scope = draw(_SCOPES)
        loc = tuple(
            Location(draw(st.sampled_from(["a.py", 'with "quotes".py', "ü.py"])), line)
            for line in draw(st.lists(st.integers(1, 10**6), max_size=2))
        )
        made = _op(draw, module, function, values, index, scope, loc)
        values.extend(function.append(made).results)
    outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    function.results = [FunctionResult(value.type) for value in outputs]
    function.append(core.Return(values=tuple(outputs)))
    return module


def _op(
    draw: Any,
    module: Module,
    function: Function,
    values: list[Value],
    index: int,
    scope: str,
    loc: tuple[Location, ...],
) -> Op:
    x = draw(st.sampled_from(values))
    kind = core.tensor(x)
    width = kind.shape[1]
    if not isinstance(width, int):
        raise TypeError("strategies keep the second axis concrete")
    choice = draw(st.integers(0, 9))
    if choice == 0:
        return core.Add(a=x, b=x, scope=scope, loc=loc)
    if choice == 1:
        other = draw(st.sampled_from([v for v in values if v.type is x.type]))
        return core.Multiply(a=x, b=other, scope=scope, loc=loc)
    if choice == 2:
        start = draw(st.integers(0, width - 1))
        stop = draw(st.integers(start + 1, width))
        step = draw(st.integers(1, 3))
        return core.Slice(x=x, axis=1, start=start, stop=stop, step=step, scope=scope, loc=loc)
    if choice == 3:
        return core.Concat(inputs=(x, x), axis=1, scope=scope, loc=loc)
    if choice == 4:
        low, high = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        fill = draw(st.floats(allow_nan=False, width=32))
        return core.Pad(x=x, before=(0, low), after=(0, high), value=fill, scope=scope, loc=loc)
    if choice == 5:
        bias = _constant(module, function, f"b.{index}", (width,))
        return core.Subtract(a=x, b=bias, scope=scope, loc=loc)
    if choice == 6:
        outputs = draw(st.integers(1, 8))
        weight = _constant(module, function, f"w.{index}", (outputs, width))
        added: Value | None = None
        if draw(st.booleans()):
            added = _constant(module, function, f"b.{index}", (outputs,))
        return nn.Linear(x=x, weight=weight, bias=added, scope=scope, loc=loc)
    if choice == 7:
        activation = draw(st.sampled_from([nn.Relu, nn.Sigmoid, nn.Gelu, nn.Hardswish]))
        made: Op = activation(x=x, scope=scope, loc=loc)
        return made
    if choice == 8:
        low = draw(st.floats(-4, 0, width=32))
        return nn.Clamp(x=x, minimum=low, maximum=-low, scope=scope, loc=loc)
    scale = _constant(module, function, f"s.{index}", ())
    bits, signed = draw(st.integers(2, 16)), draw(st.booleans())
    codes = quant.Quantize(x=x, scale=scale, bits=bits, signed=signed, scope=scope, loc=loc)
    function.append(codes)
    return quant.Dequantize(x=codes.y, scale=scale, scope=scope, loc=loc)


def _constant(module: Module, function: Function, name: str, shape: tuple[int, ...]) -> Value:
    resource = module.add_resource(Resource(name, TensorType(shape, "f32")))
    constant = core.Constant.of(resource.name, resource.type)
    function.append(constant)
    return constant.y
