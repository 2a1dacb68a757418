"""The interpreter computes what torch eager computes, for captured modules of many kinds."""

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from imcc.driver.signature import Signature
from imcc.frontend.capture import capture
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.text import parse_module

# Shrinking a failure would re-export the model a hundred times.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
EXAMPLE = Path(__file__).parents[2] / "examples" / "digits_cnn" / "model.py"


class Call(nn.Module):
    """A function as a module, with layers it may use."""

    def __init__(self, function, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, *inputs):
        return self.function(self, *inputs)


def run(captured, *inputs):
    signature = Signature.of(captured)
    flat = signature.flatten(inputs)
    made = evaluate_function(captured.module.function(), flat, resources=captured.resources)
    return signature.rebuild(made.outputs)


def randomise(module):
    """Statistics and affine parameters of norms that are not the neutral ones."""
    for item in module.modules():
        if isinstance(item, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(item.running_mean)
            nn.init.uniform_(item.running_var, 0.2, 3.0)
            if item.affine:
                nn.init.normal_(item.weight)
                nn.init.normal_(item.bias)
    return module.eval()


def check(module, *shape, batches=(1, 3), tolerance=1e-6):
    randomise(module)
    captured = capture(module, (torch.randn(1, *shape),))
    assert not any("batch" in item.message for item in captured.warnings)
    text = repr(captured.module)
    assert repr(parse_module(text)) == text
    for batch in batches:
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            torch.testing.assert_close(run(captured, x), module(x), rtol=tolerance, atol=tolerance)
    return captured


def names(captured):
    return [op.name for op in captured.module.function().ops if not op.terminator]


LAYERS = {
    "linear": (nn.Linear(6, 4), (6,)),
    "linear, sequence": (nn.Linear(6, 4, bias=False), (5, 6)),
    "conv1d": (nn.Conv1d(3, 5, 3, stride=2, padding=1), (3, 9)),
    "conv1d same, even kernel": (nn.Conv1d(3, 5, 4, padding="same"), (3, 9)),
    "conv2d": (nn.Conv2d(2, 4, 3, padding=1), (2, 7, 6)),
    "conv2d groups": (nn.Conv2d(4, 8, 3, groups=2, stride=(2, 1)), (4, 7, 6)),
    "conv2d depthwise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 7, 6)),
    "conv2d dilation": (nn.Conv2d(2, 4, 3, dilation=2, padding=(2, 0)), (2, 8, 7)),
    "conv2d same": (nn.Conv2d(2, 4, (3, 2), padding="same", dilation=(2, 1)), (2, 8, 7)),
    "conv2d valid": (nn.Conv2d(2, 4, 3, padding="valid"), (2, 8, 7)),
    "conv3d": (nn.Conv3d(2, 3, 2, stride=2), (2, 4, 6, 4)),
    "batch norm 1d": (nn.BatchNorm1d(5), (5,)),
    "batch norm 1d, length": (nn.BatchNorm1d(5, affine=False), (5, 7)),
    "batch norm 2d": (nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), (2, 6, 6)),
    "layer norm": (nn.LayerNorm((3, 4)), (2, 3, 4)),
    "layer norm, plain": (nn.LayerNorm(4, elementwise_affine=False), (3, 4)),
    "max pool": (nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), (2, 8, 7)),
    "max pool 1d, dilation": (nn.MaxPool1d(2, dilation=2), (2, 9)),
    "avg pool": (nn.AvgPool2d((3, 2), 2, padding=(1, 0), count_include_pad=False), (2, 8, 7)),
    "avg pool 1d": (nn.AvgPool1d(2), (2, 9)),
    "adaptive pool": (nn.AdaptiveAvgPool2d((3, 2)), (2, 8, 7)),
    "adaptive pool to one": (nn.AdaptiveAvgPool2d(1), (2, 8, 7)),
    "relu": (nn.ReLU(inplace=True), (5,)),
    "relu6": (nn.ReLU6(), (5,)),
    "hardtanh": (nn.Hardtanh(-0.5, 0.25), (5,)),
    "leaky relu": (nn.LeakyReLU(0.2), (5,)),
    "sigmoid": (nn.Sigmoid(), (5,)),
    "tanh": (nn.Tanh(), (5,)),
    "gelu": (nn.GELU(), (5,)),
    "gelu tanh": (nn.GELU(approximate="tanh"), (5,)),
    "silu": (nn.SiLU(), (5,)),
    "hardswish": (nn.Hardswish(), (5,)),
    "hardsigmoid": (nn.Hardsigmoid(), (5,)),
    "softmax": (nn.Softmax(dim=1), (5, 3)),
    "dropout": (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), (4,)),
    "flatten, unflatten": (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 6))), (3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    module, shape = LAYERS[name]
    check(module, *shape)


FUNCTIONS = {
    "clamp": (lambda x: x.clamp(-0.5), ["nn.clamp"]),
    "mean": (lambda x: x.mean((1, 2)), ["nn.mean"]),
    "mean, keepdim": (lambda x: x.mean(-1, keepdim=True), ["nn.mean"]),
    "scalars": (lambda x: (2.0 - x) * 0.5 / 3 + 1, None),
    "reciprocal": (lambda x: 1 / (x * x + 1), None),
    "alpha": (lambda x: torch.sub(torch.add(x, x, alpha=2), 3, alpha=2), None),
    "minus": (lambda x: -x, ["core.constant", "core.multiply"]),
    "view with batch": (lambda x: x.view(x.shape[0], -1), ["core.reshape"]),
    "merge batch": (lambda x: x.reshape(-1, x.shape[-1]), ["core.reshape"]),
    "squeeze": (lambda x: x.unsqueeze(1).squeeze(1), []),
    "permute": (lambda x: x.permute(0, 2, 1), ["core.permute"]),
    "transpose": (lambda x: x.transpose(-1, -2), ["core.permute"]),
    "slice": (lambda x: x[:, 1:-1, ::2], ["core.slice", "core.slice"]),
    "no slice": (lambda x: x[:, :], []),
    "select": (lambda x: x[:, -1], ["core.slice", "core.reshape"]),
    "chunk, cat": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), None),
    "split": (lambda x: x.split([1, 3], 1)[1], None),
    "unbind, stack": (lambda x: torch.stack(x.unbind(2), 1), None),
    "pad": (lambda x: functional.pad(x, (1, 2, 0, 1), value=0.5), ["core.pad"]),
    "softmax": (lambda x: functional.softmax(x, -1), ["nn.softmax"]),
    "no conversion": (lambda x: x.contiguous().float().clone().detach(), []),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name):
    function, expected = FUNCTIONS[name]
    captured = check(Call(lambda self, x: function(x)), 4, 5)
    if expected is not None:
        assert names(captured) == expected


def test_residual_network():
    block = Call(
        lambda self, x: functional.relu(x + self.bn(self.conv(functional.relu(x)))),
        conv=nn.Conv2d(4, 4, 3, padding=1, bias=False),
        bn=nn.BatchNorm2d(4),
    )
    network = nn.Sequential(nn.Conv2d(1, 4, 3), block, nn.AvgPool2d(2), nn.Flatten(1))
    check(network, 1, 8, 8)


def test_products_with_constant_matrices_are_linear():
    linear = nn.Linear(5, 3)
    table = torch.randn(5, 3)
    module = Call(
        lambda self, x: (
            x @ self.linear.weight.t()
            + torch.mm(x, self.table)
            + torch.addmm(self.linear.bias, x, self.table)
        ),
        linear=linear,
    )
    module.register_buffer("table", table)
    captured = check(module, 5, tolerance=1e-5)
    assert names(captured).count("nn.linear") == 3
    assert "linear.weight" in captured.module.resources
    # One constant matrix is stored once, transposed, however often it is used.
    assert captured.module.resources["table.transposed"].type.shape == (3, 5)
    assert len([name for name in captured.module.resources if name.startswith("table")]) == 1


def test_tables_built_in_forward_are_constants():
    captured = check(Call(lambda self, x: x * torch.arange(4.0).add(1)), 4)
    assert names(captured) == ["core.constant", "core.multiply"]


def test_leading_axes_and_trials():
    """A program captured for [B, ...] runs with trials folded into the batch."""
    module = randomise(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(1)))
    captured = capture(module, (torch.randn(1, 2, 5, 5),))
    x = torch.randn(2, 2, 5, 5)
    twice = evaluate_function(
        captured.module.function(), [x.repeat(4, 1, 1, 1)], resources=captured.resources, trials=4
    ).outputs[0]
    with torch.no_grad():
        torch.testing.assert_close(twice, module(x).repeat(4, 1), rtol=1e-6, atol=1e-6)


LEADING = """// imc 1
module @m phase("captured") {
  func @inference(%x: tensor<2xBx3x6x6xf32>, %w: tensor<4x3x3x3xf32>, %m: tensor<4xf32>,
                  %v: tensor<4xf32>) -> tensor<2xBx4x1x1xf32> {
    %c = nn.conv %x, %w {stride = [1, 1], padding = [0, 0], dilation = [1, 1]}
      : tensor<2xBx4x4x4xf32>
    %n = nn.batch_norm %c, %m, %v {axis = -3} : tensor<2xBx4x4x4xf32>
    %p = nn.max_pool %n {kernel = [2, 2], stride = [2, 2], padding = [0, 0], dilation = [1, 1]}
      : tensor<2xBx4x2x2xf32>
    %a = nn.avg_pool %p {kernel = [1, 1], stride = [1, 1], padding = [0, 0]}
      : tensor<2xBx4x2x2xf32>
    %y = nn.adaptive_avg_pool %a {output = [1, 1]} : tensor<2xBx4x1x1xf32>
    core.return %y
  }
}
"""


def test_time_and_batch_are_not_merged():
    from imcc.ir.semantics.resources import ResourceStore

    module = parse_module(LEADING)
    x, w = torch.randn(2, 3, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3)
    mean, var = torch.randn(4), torch.rand(4) + 0.5
    made = evaluate_function(
        module.function(), [x, w, mean, var], resources=ResourceStore()
    ).outputs[0]
    for time in range(2):
        y = functional.batch_norm(functional.conv2d(x[time], w), mean, var)
        y = functional.adaptive_avg_pool2d(functional.max_pool2d(y, 2), 1)
        torch.testing.assert_close(made[time], y, rtol=1e-5, atol=1e-5)
    made.sum().backward()
    assert x.grad.abs().sum() > 0


@settings(max_examples=5, deadline=None, phases=PHASES)
@given(
    channels=st.integers(1, 3),
    outputs=st.integers(1, 3),
    groups=st.integers(1, 2),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
)
def test_convolutions_of_any_form(
    channels, outputs, groups, kernel, stride, padding, dilation, size
):
    layer = nn.Conv2d(
        channels * groups, outputs * groups, kernel, stride, padding, dilation, groups
    )
    check(layer, channels * groups, *size, tolerance=1e-5)


@settings(max_examples=5, deadline=None, phases=PHASES)
@given(
    kernel=st.integers(2, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    ceil_mode=st.booleans(),
    size=st.integers(5, 9),
)
def test_pools_of_any_form(kernel, stride, padding, ceil_mode, size):
    module = Call(
        lambda self, x: torch.cat([self.most(x), self.mean(x)], 1),
        most=nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode),
        mean=nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil_mode),
    )
    check(module, 2, size, size)


def test_digits_example_is_captured_bit_equal():
    spec = importlib.util.spec_from_file_location("digits_cnn_capture", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    module = example.model()
    captured = capture(module, example.example_inputs(), name="digits")
    images, _ = example.evaluation_data()
    with torch.no_grad():
        assert torch.equal(run(captured, images), module(images))
    places = {place.file for op in captured.module.walk() for place in op.loc}
    assert {Path(place).name for place in places} == {"model.py"}
