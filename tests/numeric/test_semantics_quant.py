"""The integer meaning of quantised ops against plain integer numpy, and their gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imcc.ir import parse_module, verify
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.quant import dequantise, quantise
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.types import QuantType


def run(body, inputs, arguments, result, resources=()):
    declared = "".join(f"  resource @{name} : {kind}\n" for name, kind, _ in resources)
    text = (
        f'// imc 1\nmodule @m phase("captured") {{\n{declared}'
        f"  func @inference({arguments}) -> {result} {{\n{body}\n    core.return %y\n  }}\n}}\n"
    )
    module = parse_module(text)
    verify(module)
    store = ResourceStore({name: value for name, _, value in resources})
    return evaluate_function(module.function(), inputs, resources=store).outputs[0]


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_linear_equals_integers(data):
    rows = data.draw(st.sampled_from([1, 7, 300, 3000]))
    signed = data.draw(st.booleans())
    zero = data.draw(st.one_of(st.none(), st.integers(0, 255)))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    low, high = (-127, 128) if signed else (0, 256)
    x = generator.integers(low, high, (2, rows))
    w = generator.integers(-127, 128, (3, rows))
    asymmetric = ", asymmetric" if zero is not None else ""
    kind = f"tensor<Bx{rows}xq<{'s' if signed else 'u'}8{asymmetric}>>"
    arguments = f"%x: {kind}" + (", %z: tensor<i32>" if zero is not None else "")
    inputs = [torch.tensor(x, dtype=torch.float32)]
    operand = ""
    if zero is not None:
        inputs.append(torch.tensor(zero, dtype=torch.int32))
        operand = ", x_zero_point=%z"
    wtype = f"tensor<3x{rows}xq<s8, axis=0>>"
    made = run(
        f"    %w = core.constant {{value = @w}} : {wtype}\n"
        f"    %y = quant.linear %x, %w{operand} : tensor<Bx3xi32>",
        inputs,
        arguments,
        "tensor<Bx3xi32>",
        [("w", wtype, torch.tensor(w, dtype=torch.int8))],
    )
    exact = (x - (zero or 0)).astype(np.int64) @ w.T.astype(np.int64)
    assert np.array_equal(made.numpy().astype(np.int64), exact)


def test_conv_pads_with_the_zero_point():
    generator = np.random.default_rng(0)
    x = torch.tensor(generator.integers(0, 256, (2, 3, 5, 5)), dtype=torch.float32)
    w = torch.tensor(generator.integers(-127, 128, (4, 3, 3, 3)), dtype=torch.int8)
    made = run(
        "    %w = core.constant {value = @w} : tensor<4x3x3x3xq<s8, axis=0>>\n"
        "    %y = quant.conv %x, %w, x_zero_point=%z {stride = [1, 1], padding = [1, 1], "
        "dilation = [1, 1]} : tensor<Bx4x5x5xi32>",
        [x, torch.tensor(9, dtype=torch.int32)],
        "%x: tensor<Bx3x5x5xq<u8, asymmetric>>, %z: tensor<i32>",
        "tensor<Bx4x5x5xi32>",
        [("w", "tensor<4x3x3x3xq<s8, axis=0>>", w)],
    )
    padded = torch.nn.functional.pad(x.double(), (1, 1, 1, 1), value=9.0) - 9.0
    exact = torch.nn.functional.conv2d(padded, w.double())
    assert torch.equal(made.double(), exact)


def test_rounding_is_to_even_and_codes_clamp():
    element = QuantType(8, False)
    x = torch.tensor([0.5, 1.5, 2.5, -3.0, 400.0])
    assert quantise(x, torch.tensor(1.0), None, element).tolist() == [0, 2, 2, 0, 255]


def test_straight_through_forward_equals_integer_meaning_and_passes_gradient():
    element = QuantType(8, True)
    x = torch.linspace(-3, 3, 101, requires_grad=True)
    scale = torch.tensor(0.01)
    soft = dequantise(quantise(x, scale, None, element), scale, None, element)
    hard = dequantise(quantise(x.detach(), scale, None, element), scale, None, element)
    assert torch.equal(soft.detach(), hard)
    soft.sum().backward()
    inside = x.detach().abs() < 1.27
    assert torch.allclose(x.grad[inside], torch.ones_like(x.grad[inside]))
    assert (x.grad[x.detach().abs() > 1.28] == 0).all()


@pytest.mark.parametrize("group,columns", [(4, 8), (4, 10), (64, 10)])
def test_groups_with_a_short_last_run(group, columns):
    element = QuantType(4, True, axis=0, group=group)
    runs = -(-columns // group)
    codes = torch.arange(-7, 7)[:columns].float().repeat(3, 1)
    scale = torch.rand(3, runs) + 0.1
    made = dequantise(codes, scale, None, element)
    for column in range(columns):
        expected = codes[:, column] * scale[:, column // group]
        assert torch.equal(made[:, column], expected)
