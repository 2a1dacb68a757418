"""Weight quantisation: grids, searches, GPTQ, TesseraQ, block streaming, checkpoints, plans."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imcc.frontend.capture import capture
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects import nn as ops
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline
from imcc.passes.quantization.blocks import constant_weight, split_blocks
from imcc.passes.quantization.gptq import gptq_codes
from imcc.passes.quantization.grid import Grid, WeightFormat
from imcc.passes.quantization.moments import InputMoments, output_error, unfold
from imcc.passes.quantization.reconstruction import (
    BlockLoss,
    Recipe,
    Rounding,
    fit,
    inverse_stretched_sigmoid,
    stretched_sigmoid,
)
from imcc.passes.quantization.scaling import clipped_grid
from imcc.passes.quantization.sensitivity import spend
from imcc.passes.quantization.streams import ActivationStore, Streams

QUICK = "iterations=15 rounds=6 batch=16 learning_rate=0.02"


class Residual(nn.Module):
    """Norm, widen, ReLU, narrow, add: two layers that a channel scale can move between."""

    def __init__(self, size):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.up = nn.Linear(size, 2 * size)
        self.down = nn.Linear(2 * size, size)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(*[Residual(24) for _ in range(3)], nn.Linear(24, 5))
    with torch.no_grad():
        for block in model[:3]:
            block.norm.weight.mul_(torch.linspace(0.2, 4.0, 24))
    mix = torch.randn(24, 24) / 5
    data = [(torch.randn(64, 24) @ mix,) for _ in range(2)]
    return capture(model, data[0]), data


def quantised(network, options, **context):
    captured, data = network
    module, store = captured.module.clone(), captured.resources.copy()
    held = PassContext(resources=store, calibration=data, **context)
    run_pipeline(module, parse_pipeline(f"quantize-weights{{{options}}}"), held)
    return module, store, held


def outputs(module, store, data):
    with torch.no_grad():
        return torch.cat(
            [evaluate_function(module.function(), b, resources=store).outputs[0] for b in data]
        )


def error_of(network, options):
    captured, data = network
    exact = outputs(captured.module, captured.resources, data)
    module, store, _ = quantised(network, options)
    return float((outputs(module, store, data) - exact).square().mean() / exact.square().mean())


# -- grids ----------------------------------------------------------------------------------------


@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group=st.sampled_from([None, 3, 4, 7, 32]),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_codes_are_the_nearest_on_the_grid(bits, symmetric, group, seed):
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(seed))
    form = WeightFormat(bits, symmetric, group=group)
    grid = Grid.fit(form, weight)
    made = grid.nearest(weight).double()
    element = form.element
    every = torch.arange(element.minimum, element.maximum + 1, dtype=torch.float64)
    scale = grid.expanded(grid.scale, weight.shape).expand(3, 10).double()
    zero = grid.expanded(grid.zero_point, weight.shape).expand(3, 10).double()
    points = (every - zero[..., None]) * scale[..., None]
    best = (points - weight.double()[..., None]).abs().amin(-1)
    assert torch.allclose((made - weight.double()).abs(), best, atol=1e-6)


def test_a_weight_on_the_grid_stays():
    form = WeightFormat(3, False, group=8)
    grid = Grid.fit(form, torch.randn(4, 20))
    weight = grid.real(torch.randint(0, 8, (4, 3, 8)).float(), torch.Size((4, 20)))
    held = Rounding(weight, grid, tune_scale=True)
    held.harden(0.8)
    made, after = held.finish()
    assert torch.equal(after.scale, grid.scale)
    assert torch.equal(after.real(made, weight.shape), weight)
    # The frozen scale reproduces the codes by plain rounding in float32.
    assert torch.equal(grid.codes(after.real(made, weight.shape)), grid.codes(weight))


def test_rows_round_trip_with_a_short_last_group():
    weight = torch.randn(5, 13)
    form = WeightFormat(4, group=4)
    assert form.rows(weight).shape == (5, 4, 4)
    assert torch.equal(form.unrows(form.rows(weight), weight.shape), weight)
    tensor = torch.randn(2, 3, 3)
    whole = WeightFormat(4, per_tensor=True)
    assert whole.rows(tensor).shape == (1, 1, 18)
    assert torch.equal(whole.unrows(whole.rows(tensor), tensor.shape), tensor)


# -- moments and GPTQ -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "groups, stride, padding, dilation", [(1, 1, 0, 1), (2, 2, 1, 1), (1, 1, 2, 2)]
)
@pytest.mark.parametrize("spatial", [1, 2])
def test_unfolded_inputs_times_the_weight_are_the_convolution(
    groups, stride, padding, dilation, spatial
):
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[spatial]
    conv = kind(
        4, 6, 3, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False
    )
    x = torch.randn(2, 4, *[9] * spatial)
    layer = next(op for op in capture(conv, (x,)).module.walk() if isinstance(op, ops.Conv))
    columns = unfold(layer, x)
    rows = conv.weight.reshape(groups, 6 // groups, -1)
    made = torch.einsum("gtk,gnk->gtn", columns, rows)
    wanted = conv(x).reshape(2, groups, 6 // groups, -1).permute(1, 0, 3, 2).flatten(1, 2)
    assert torch.allclose(made, wanted, atol=1e-5)


def linear_layer(rows, columns):
    module = capture(nn.Linear(columns, rows), (torch.randn(3, columns),)).module
    return next(op for op in module.walk() if isinstance(op, ops.Linear))


def correlated(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, size, generator=generator) @ torch.randn(size, size, generator=generator)
    return InputMoments((x.T @ x / 400)[None], x.abs().mean(0)[None], 400)


def test_gptq_lowers_the_output_error_and_equals_rounding_for_white_inputs():
    weight, layer = torch.randn(6, 32), linear_layer(6, 32)
    grid = Grid.fit(WeightFormat(3, False, group=8), weight)
    moments = correlated(32)
    found = grid.real(gptq_codes(layer, weight, grid, moments), weight.shape)
    nearest = output_error(layer, moments, grid.nearest(weight) - weight)
    assert output_error(layer, moments, found - weight) < 0.8 * nearest
    white = InputMoments(torch.eye(32)[None], torch.ones(1, 32), 1)
    assert torch.equal(gptq_codes(layer, weight, grid, white), grid.codes(weight))


def test_gptq_survives_inputs_that_are_always_zero():
    weight, layer, moments = torch.randn(4, 16), linear_layer(4, 16), correlated(16)
    moments.second[0, 3], moments.second[0, :, 3] = 0, 0
    grid = Grid.fit(WeightFormat(2), weight)
    assert gptq_codes(layer, weight, grid, moments).isfinite().all()


def test_clipping_never_errs_more_on_uncorrelated_inputs():
    weight, layer = torch.randn(8, 32), linear_layer(8, 32)
    form = WeightFormat(2, False, group=8)
    moments = InputMoments(torch.diag(torch.rand(32) + 0.1)[None], torch.ones(1, 32), 1)
    clipped = clipped_grid(layer, form, weight, moments).nearest(weight) - weight
    plain = Grid.fit(form, weight).nearest(weight) - weight
    assert output_error(layer, moments, clipped) < output_error(layer, moments, plain)


# -- rounding variables ---------------------------------------------------------------------------


def test_soft_weights_start_at_the_weight_and_harden_to_codes():
    weight = torch.randn(4, 12)
    grid = Grid.fit(WeightFormat(3, False), weight)
    held = Rounding(weight, grid, tune_scale=True)
    outside = (held.weight() - weight).abs()
    # Only what a rounded zero point leaves outside of the range may differ, by less than a step.
    assert (outside > 1e-5).float().mean() < 0.2 and (outside < grid.scale.amax()).all()
    held.harden(0.5)
    soft = (stretched_sigmoid(held.choice) - 0.5).abs() < 0.5
    assert soft.sum() <= 24
    found, after = held.finish()
    assert torch.equal(found, found.round()) and found.min() >= 0 and found.max() <= 7
    assert (
        found - torch.floor(grid.format.rows(weight) / grid.scale) - grid.zero_point
    ).abs().max() <= 1
    assert torch.allclose(held.weight(), after.real(found, weight.shape))


def test_the_stretched_sigmoid_inverts():
    y = torch.linspace(0, 1, 11)
    assert torch.allclose(stretched_sigmoid(inverse_stretched_sigmoid(y)), y, atol=1e-6)


def test_a_loss_that_is_not_finite_names_the_block():
    class Loss:
        streams = type("Streams", (), {"chunks": (None,)})()
        block = type("Block", (), {"name": "layers.7"})()

        def __call__(self, index, weights):
            return torch.tensor(float("nan"), requires_grad=True)

    with pytest.raises(DiagnosticError) as caught:
        fit(
            {"w": Rounding(torch.randn(2, 2), Grid.fit(WeightFormat(2), torch.randn(2, 2)), True)},
            Loss(),
            Recipe(3, 0.1, 0),
            lambda step, value: None,
        )
    assert caught.value.diagnostics[0].code is codes.NUMERIC
    assert "layers.7" in str(caught.value)


def test_scales_move_at_their_own_rate():
    torch.manual_seed(5)
    weight, target = torch.randn(4, 8), torch.randn(4, 8)

    class Loss:
        streams = type("Streams", (), {"chunks": (None,)})()
        block = type("Block", (), {"name": "layer"})()

        def __call__(self, index, weights):
            return (weights["w"] - target).square().sum()

    def moved(*rates):
        held = Rounding(weight, Grid.fit(WeightFormat(3), weight), True)
        choice, scale = (item.detach().clone() for item in held.parameters())
        fit({"w": held}, Loss(), Recipe(1, 0.1, 0, *rates), lambda step, value: None)
        after = list(held.parameters())
        return (after[0] - choice).abs().max().item(), (after[1] - scale).abs().max().item()

    # The first step of Adam is the rate.
    assert moved() == pytest.approx((0.1, 0.1), rel=0.01)
    assert moved(0.001) == pytest.approx((0.1, 0.001), rel=0.01)


# -- the pass -------------------------------------------------------------------------------------


def test_repeated_modules_are_blocks(network):
    captured, _ = network
    function = captured.module.function()
    blocks = split_blocks(function)
    assert [block.name for block in blocks] == ["0", "1", "2", "3"]
    assert [len(block.layers) for block in blocks] == [2, 2, 2, 1]
    assert len(split_blocks(function, "layer")) == 7
    assert len(split_blocks(function, "model")) == 1


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_each_method_beats_the_simpler_one(network, scheme):
    base = f'bits=3 group=8 scheme="{scheme}" '
    nearest = error_of(network, base)
    gptq = error_of(network, base + 'rounding="gptq"')
    tesseraq = error_of(network, base + f'rounding="tesseraq" {QUICK}')
    assert gptq < 0.8 * nearest
    assert tesseraq < 0.8 * gptq


def test_awq_and_learned_clipping_beat_plain_ranges(network):
    base = 'bits=3 group=8 scheme="asymmetric" '
    nearest = error_of(network, base)
    assert error_of(network, base + 'init="awq"') < nearest
    assert error_of(network, base + f'init="learned-clipping" {QUICK}') < nearest


def test_folded_scales_change_no_result_in_eight_bits(network):
    assert error_of(network, 'bits=8 init="awq"') < 2 * error_of(network, "bits=8")
    _, _, context = quantised(network, 'bits=2 scheme="asymmetric" init="awq"')
    rows = context.measurements["quantize-weights"]
    assert any(row["scale_exponents"] for row in rows)


def test_what_is_measured_is_what_the_module_computes(network):
    captured, data = network
    module, store, context = quantised(network, f'bits=2 rounding="tesseraq" {QUICK}')
    exact = outputs(captured.module, captured.resources, data)
    made = outputs(module, store, data)
    last = context.measurements["quantize-weights"][-1]
    share = float((made - exact).square().sum() / exact.square().sum())
    assert last["output_error"] == pytest.approx(share, rel=0.2)
    element = next(op for op in module.walk() if op.name == "quant.dequantize").x.type.element
    assert str(element) == "q<s2, axis=0>"


def test_a_seed_reproduces_codes_and_storage_does_not_matter(network):
    options = f'bits=2 rounding="tesseraq" {QUICK}'
    first, store, _ = quantised(network, options)
    _, other, _ = quantised(network, options + ' storage="disk"')
    for name in first.resources:
        assert torch.equal(store.get(name), other.get(name))
    quantised(network, options + ' activation_dtype="bf16"')


def test_a_run_that_was_stopped_resumes_to_the_same_result(network, tmp_path):
    options = f'bits=2 init="awq" scheme="asymmetric" rounding="tesseraq" {QUICK}'
    whole, store, _ = quantised(network, options)
    kept = f'{options} checkpoint="{tmp_path}"'

    def stop(done, total, what):
        if what.startswith("2: step 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantised(network, kept, progress=stop)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    resumed, other, context = quantised(network, kept)
    rows = context.measurements["quantize-weights"]
    assert [row.get("from_checkpoint", False) for row in rows] == [True, True, False, False]
    assert list(whole.resources) == list(resumed.resources)
    for name in whole.resources:
        assert torch.equal(store.get(name), other.get(name)), name
    with pytest.raises(DiagnosticError, match="other options"):
        quantised(network, kept, seed=1)


def test_data_that_overflows_is_named(network):
    captured, _ = network
    huge = [(torch.full((4, 24), 1e38),)]
    with pytest.raises(DiagnosticError, match="not finite"):
        quantised((captured, huge), 'bits=4 rounding="gptq"')


def test_calibration_data_is_asked_for_only_where_it_is_used(network):
    captured, _ = network
    quantised((captured, None), "bits=4")
    with pytest.raises(DiagnosticError, match="calibration"):
        quantised((captured, None), 'bits=4 rounding="gptq"')


# -- devices --------------------------------------------------------------------------------------


class OneDevice(TorchDispatchMode):
    """Refuses an op whose tensors lie on two devices, as a GPU does; copies are how they move."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "copy" not in func.__name__:
            held = [item for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
            assert len({item.device for item in held if item.dim()}) <= 1, func
        return func(*args, **(kwargs or {}))


class Attends(nn.Module):
    """Positions folded to a constant, numbers of the samples made at run time, a causal mask."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Embedding(6, 8)
        self.project = nn.Linear(8, 24)

    def forward(self, x):
        x = x + self.positions(torch.arange(x.shape[1]))
        x = x + torch.arange(x.shape[0]).float().reshape(-1, 1, 1)
        q, k, v = (part.unsqueeze(1) for part in self.project(x).chunk(3, -1))
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_a_block_runs_on_the_device_that_is_asked_for():
    captured = capture(Attends(), (torch.randn(2, 6, 8),))
    device, store = torch.device("meta"), captured.resources
    (block,) = split_blocks(captured.module.function(), "model")
    batch = (torch.randn(4, 6, 8),)
    with OneDevice(), device:
        streams = Streams(captured.module.function(), [batch], 2, ActivationStore(device=device))
        there = store.on(device)
        for chunk in streams.chunks:
            made = block.run(streams.float_inputs(chunk, block), there, chunk.symbols)
            # Nothing can be read back from this device: keep zeros of the same shape.
            made = {value: torch.zeros(held.shape, device="cpu") for value, held in made.items()}
            streams.put_float(chunk, made)
        soft = {
            layer.weight: Rounding(weight, Grid.fit(WeightFormat(2, group=4), weight), True)
            for layer in block.layers
            for weight in (there.get(constant_weight(layer).value),)
        }
        loss = BlockLoss(block, streams, there, 1.0)(0, {v: r.weight() for v, r in soft.items()})
        loss.backward()
    assert loss.device == device
    assert all(p.grad.device == device for item in soft.values() for p in item.parameters())
    assert all(
        held.device.type == "cpu" for c in streams.chunks for held in c.float_values.values()
    )


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "meta"])
def test_a_device_that_is_not_there_is_refused(network, name):
    with pytest.raises(DiagnosticError) as caught:
        quantised(network, f'bits=4 rounding="gptq" device="{name}"')
    assert caught.value.diagnostics[0].code is codes.BAD_OPTION
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ('granularity="tensor" group=8', "exclude each other"),
        ('plan_output="found.toml"', "needs a budget"),
        ('rounding="gptq" checkpoint=""', "folder is empty"),
        ('plan=""', "plan file is empty"),
    ],
)
def test_options_that_do_not_go_together_are_refused(network, options, message):
    with pytest.raises(DiagnosticError, match=message):
        quantised(network, f"bits=4 {options}")


def test_a_checkpoint_belongs_to_a_program(network, tmp_path):
    captured, data = network
    text = f'bits=3 rounding="gptq" checkpoint="{tmp_path / "kept"}"'
    quantised(network, text)
    module = captured.module.clone()
    context = PassContext(resources=captured.resources.copy(), calibration=data)
    passes = parse_pipeline(f"quantize-activations{{bits=4}}, quantize-weights{{{text}}}")
    with pytest.raises(DiagnosticError, match="other"):
        run_pipeline(module, passes, context)


# -- plans ----------------------------------------------------------------------------------------


def write_plan(tmp_path, text):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return f'bits=4 plan="{path}"'


def test_a_plan_mixes_formats(network, tmp_path):
    options = write_plan(
        tmp_path,
        '[[layer]]\npattern = "*.up.weight"\nbits = 2\ngroup = 8\nscheme = "asymmetric"\n'
        '[[layer]]\npattern = "3.*"\nskip = true\n',
    )
    module, _, _ = quantised(network, options)
    found = [str(op.x.type.element) for op in module.walk() if op.name == "quant.dequantize"]
    assert found == ["q<u2, axis=0, group=8, asymmetric>", "q<s4, axis=0>"] * 3


@pytest.mark.parametrize(
    "text, message",
    [
        ('[[layer]]\npattern = "*"\nbit = 3\n', r"layer\[0\].bit is unknown; did you mean bits"),
        ('[[layer]]\npattern = "*"\nbits = 9\n', r"bits is 9; allowed: 2 to 8"),
        ("[[layer]]\nbits = 3\n", r"needs a pattern"),
        ('[[layer]]\npattern = "encoder.*"\n', r"'encoder.\*' matches no weight"),
        ("layer = 3\n", r"layer\[0\] is no table"),
        ("[[layer", r"cannot be read"),
    ],
)
def test_a_wrong_plan_is_refused(network, tmp_path, text, message):
    with pytest.raises(DiagnosticError, match=message):
        quantised(network, write_plan(tmp_path, text))


# -- activations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_activations_are_rounded_token_by_token(network, scheme):
    captured, data = network
    module, store = captured.module.clone(), captured.resources.copy()
    run_pipeline(
        module, parse_pipeline(f'quantize-activations{{bits=4 scheme="{scheme}"}}'), PassContext()
    )
    found = [op for op in module.walk() if op.name == "quant.fake_quantize"]
    assert len(found) == 7
    whole = outputs(module, store, data[:1])
    alone = outputs(module, store, [(data[0][0][3:4] * 1,)])
    assert torch.allclose(whole[3:4], alone, atol=1e-5)
    exact = outputs(captured.module, captured.resources, data[:1])
    share = float((whole - exact).square().mean() / exact.square().mean())
    assert 1e-5 < share < 0.05


def test_weights_and_activations_are_fitted_together(network):
    captured, data = network
    exact = outputs(captured.module, captured.resources, data)

    def share(rounding):
        module, store = captured.module.clone(), captured.resources.copy()
        text = f'quantize-weights{{bits=3 rounding="{rounding}" {QUICK}}}'
        text = f"quantize-activations{{bits=4}}, {text}"
        run_pipeline(module, parse_pipeline(text), PassContext(resources=store, calibration=data))
        return float((outputs(module, store, data) - exact).square().mean())

    assert share("tesseraq") < 0.7 * share("nearest")


# -- budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_awq_folds_into_layers_that_a_plan_skips(network, tmp_path, rounding):
    options = write_plan(tmp_path, '[[layer]]\npattern = "*.up.weight"\nskip = true\n')
    text = f'{options} init="awq" rounding="{rounding}"'
    module, _, _ = quantised(network, text)
    assert len([op for op in module.walk() if op.name == "quant.dequantize"]) == 4
    assert error_of(network, text) < 0.1


def test_a_plan_that_was_found_keeps_what_was_fixed_and_skipped(network, tmp_path):
    given = write_plan(
        tmp_path,
        '[[layer]]\npattern = "0.up.weight"\nbits = 8\ngroup = 4\nscheme = "asymmetric"\n'
        '[[layer]]\npattern = "3.*"\nskip = true\n',
    )
    found = tmp_path / "found.toml"
    module, store, _ = quantised(network, f'{given} budget=4.0 plan_output="{found}"')
    elements = [str(op.x.type.element) for op in module.walk() if op.name == "quant.dequantize"]
    assert elements[0] == "q<u8, axis=0, group=4, asymmetric>" and len(elements) == 6
    again, other, _ = quantised(network, f'bits=2 plan="{found}"')
    assert list(module.resources) == list(again.resources)
    assert all(torch.equal(store.get(name), other.get(name)) for name in module.resources)
    with pytest.raises(DiagnosticError, match="does not hold what the plan fixes"):
        quantised(network, f"{given} budget=2.1")


def test_a_budget_spends_bits_where_they_help(network, tmp_path):
    plan = tmp_path / "found.toml"
    text = f'scheme="asymmetric" budget=3.0 plan_output="{plan}"'
    module, store, _ = quantised(network, text)
    found = [op for op in module.walk() if op.name == "quant.dequantize"]
    sizes = [store.get(op.x.owner.value).numel() for op in found]
    bits = [op.x.type.quant.bits for op in found]
    mean = sum(b * n for b, n in zip(bits, sizes, strict=True)) / sum(sizes)
    assert 2.7 < mean <= 3.0 and len(set(bits)) > 1
    assert error_of(network, text) < error_of(network, 'scheme="asymmetric" bits=3')
    again, other, _ = quantised(network, f'scheme="asymmetric" plan="{plan}"')
    assert list(module.resources) == list(again.resources)
    assert all(torch.equal(store.get(name), other.get(name)) for name in module.resources)


def test_spending_is_never_worse_than_equal_bits():
    errors = {
        name: {b: weight * 4.0**-b for b in range(2, 9)}
        for name, weight in [("a", 1.0), ("b", 30.0), ("c", 1000.0)]
    }
    sizes = {"a": 100, "b": 100, "c": 100}
    for budget in (2, 3.0, 4.5, 8):
        bits = spend(errors, sizes, budget)
        assert sum(bits.values()) <= 3 * budget
        assert sum(errors[n][b] for n, b in bits.items()) <= sum(
            errors[n][int(budget)] for n in errors
        )
    with pytest.raises(DiagnosticError, match="below the fewest"):
        spend(errors, sizes, 1.5)
