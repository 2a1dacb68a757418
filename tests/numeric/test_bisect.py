"""Bisection: a planted wrong rewrite is found by name, and its reproducer reproduces it."""

import json
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from imcc.backends.api import find_backend
from imcc.backends.targets import find_target
from imcc.cli.main import main
from imcc.driver.bisection import bisect
from imcc.driver.data import calibration_batches, evaluation_set
from imcc.frontend.capture import capture
from imcc.frontend.model_file import load_model_file
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects import nn
from imcc.ir.semantics.tensor_files import write_batches, write_tensors
from imcc.ir.text import print_module
from imcc.passes.fold_batch_norm import FoldBatchNorm
from imcc.passes.infrastructure import (
    Approximate,
    Exact,
    Pass,
    PassContext,
    WithinTolerance,
    parse_pipeline,
    registry,
)
from imcc.passes.quantize_weights import QuantizeWeights
from imcc.runtime.promises import measure

DIGITS = str(Path(__file__).parents[2] / "examples" / "digits_cnn" / "model.py")
NEUTRAL = "canonicalize, fold-batch-norm, dead-code, calibrate-activations, quantize-weights"


@dataclass(frozen=True)
class ForgetRelu(Pass):
    """A wrong rewrite: drops the second relu and calls that exact."""

    name: ClassVar[str] = "forget-relu"
    contract: ClassVar[Exact] = Exact()

    def run(self, module, context):
        rewriter = context.rewriter(module, self.name)
        found = [op for op in module.walk() if isinstance(op, nn.Relu)]
        rewriter.replace(found[1], [], found[1].x)


@pytest.fixture
def forget_relu(monkeypatch):
    """The pass, installed as a plugin would install it."""
    plugin = types.ModuleType("planted_plugin")
    plugin.ForgetRelu = ForgetRelu
    monkeypatch.setitem(sys.modules, "planted_plugin", plugin)
    monkeypatch.setitem(registry._modules(), "forget-relu", "planted_plugin")


@pytest.fixture(scope="module")
def digits():
    held = load_model_file(DIGITS)
    captured = capture(held.module, held.example_inputs)
    inputs, _ = evaluation_set(held.evaluation_data())
    calibration = calibration_batches(held.calibration_data())
    return (
        captured,
        [item[:40] for item in inputs],
        [tuple(item[:64] for item in calibration[0])],
    )


def context_of(digits, target=None):
    captured, _, calibration = digits
    context = PassContext(resources=captured.resources, calibration=calibration)
    if target is not None:
        context.target = find_target(target)
        context.backend = find_backend(context.target.backend)
    return context


@pytest.mark.parametrize("target", ["reference", "rram"])
def test_nothing_wrong_says_so(digits, target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    captured, inputs, _ = digits
    context = context_of(digits, target)
    passes = parse_pipeline(context.backend.pipeline(context.target))
    before = print_module(captured.module)
    found = bisect(captured.module, passes, context, inputs)
    assert found.culprit is None and found.diagnostic() is None and found.command == ""
    assert [item.text for item in found.passes] == [str(item) for item in passes]
    assert all(item.holds for item in found.passes)
    assert print_module(captured.module) == before
    assert list(tmp_path.iterdir()) == []
    if target == "rram":
        quantised = {item.text: item for item in found.passes}["quantize-weights"]
        assert 0 < quantised.measured.value <= 0.1
        assert found.passes[-1].total_relative_rms > 0


def test_planted_plugin_pass_is_found(digits, forget_relu, tmp_path):
    captured, inputs, _ = digits
    passes = parse_pipeline("canonicalize, fold-batch-norm, forget-relu, dead-code")
    found = bisect(captured.module, passes, context_of(digits), inputs, reproducer=tmp_path / "bad")
    assert found.culprit.text == "forget-relu"
    assert [item.holds for item in found.passes] == [True, True, False]
    (change,) = found.touched
    assert "nn.relu" in change.before[0] and change.scope
    assert found.culprit.measured.metric == "values that differ"
    worst = found.culprit.measured.worst
    assert worst.before != worst.after and len(worst.index) == 2
    shown = found.diagnostic().render()
    assert "forget-relu broke its promise (exact)" in shown
    assert "model.py" in shown and "- %" in shown and "imcc opt" in shown


def test_wrong_rewrite_in_a_pass_of_the_house_is_found(digits, monkeypatch, tmp_path):
    """A batch norm folded with the wrong sign of the mean breaks its tolerance."""
    captured, inputs, _ = digits
    original = FoldBatchNorm.run

    def wrong(self, module, context):
        original(self, module, context)
        rewriter = context.rewriter(module, "planted")
        conv = next(op for op in module.walk() if isinstance(op, nn.Conv) and op.bias is not None)
        store = context.weights()
        resource = conv.bias.owner.value
        made = rewriter.add_resource(store.put("flipped", -store.get(resource)))
        constant = type(conv.bias.owner).of(made.name, made.type)
        rewriter.set_operand(conv, "bias", rewriter.insert_before(conv, constant).y)

    monkeypatch.setattr(FoldBatchNorm, "run", wrong)
    context = context_of(digits, "rram")
    passes = parse_pipeline(context.backend.pipeline(context.target))
    found = bisect(captured.module, passes, context, inputs, reproducer=tmp_path / "bad")
    assert found.culprit.text == "fold-batch-norm"
    assert found.culprit.measured.metric == "relative_largest"
    assert any(change.rule == "planted" for change in found.touched)


def test_an_approximate_pass_beyond_its_bound_is_found(digits, monkeypatch, tmp_path):
    captured, inputs, _ = digits
    monkeypatch.setattr(QuantizeWeights, "promise", lambda self: Approximate(bound=1e-6))
    found = bisect(
        captured.module,
        parse_pipeline(NEUTRAL),
        context_of(digits),
        inputs,
        reproducer=tmp_path / "bad",
    )
    assert found.culprit.text == "quantize-weights"
    assert found.culprit.measured.value > 1e-6 and found.culprit.measured.bound == 1e-6


def test_the_printed_command_reproduces_the_failure(digits, forget_relu, tmp_path, capsys):
    captured, inputs, calibration = digits
    names = [value.name for value in captured.module.function().inputs]
    module = captured.module.clone()
    module.resource_file = "w.safetensors"
    captured.resources.save(tmp_path / "w.safetensors", module.resources)
    (tmp_path / "m.imc").write_text(print_module(module))
    write_tensors(tmp_path / "x.npz", dict(zip(names, inputs, strict=True)))
    write_batches(tmp_path / "c.safetensors", names, calibration)
    arguments = ["opt", str(tmp_path / "m.imc"), "--bisect", str(tmp_path / "x.npz")]
    arguments += ["--calibration", str(tmp_path / "c.safetensors"), "--target", "rram"]
    assert main([*arguments, "--passes", NEUTRAL]) == 0
    shown = capsys.readouterr()
    assert "all 5 passes kept their promises" in shown.err and shown.out.count("kept") == 5
    arguments += ["--passes", f"{NEUTRAL}, forget-relu", "--reproducer", str(tmp_path / "bad")]
    assert main([*arguments, "--json"]) == 1
    shown = capsys.readouterr()
    first = json.loads(shown.out)
    assert first["culprit"] == "forget-relu" and "IMC407" in shown.err
    held = json.loads((tmp_path / "bad" / "reproducer.json").read_text())
    assert held["command"] == first["command"] and held["pass"] == "forget-relu"
    words = shlex.split(first["command"])
    assert words[0] == "imcc"
    again = [*words[1:], "--json", "--reproducer", str(tmp_path / "again")]
    assert main(again) == 1
    second = json.loads(capsys.readouterr().out)
    assert [item["pass"] for item in second["passes"]] == ["forget-relu"]
    assert second["passes"][0]["measured"] == first["passes"][-1]["measured"]
    assert second["touched"] == first["touched"]


def test_a_pass_that_raises_is_the_culprit(digits, forget_relu, monkeypatch, tmp_path):
    captured, inputs, _ = digits

    def fail(self, module, context):
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(ForgetRelu, "run", fail)
    passes = parse_pipeline("canonicalize, forget-relu")
    found = bisect(captured.module, passes, context_of(digits), inputs, reproducer=tmp_path / "bad")
    assert found.culprit.text == "forget-relu" and found.culprit.measured is None
    assert "ZeroDivisionError" in found.diagnostic().reason


def test_what_a_pass_lacks_is_no_broken_promise(digits):
    captured, inputs, _ = digits
    context = PassContext(resources=captured.resources)
    with pytest.raises(DiagnosticError) as raised:
        bisect(captured.module, parse_pipeline(NEUTRAL), context, inputs)
    assert raised.value.diagnostics[0].code is codes.PASS_REQUIRES


# -- measuring -------------------------------------------------------------------------------------


def test_measures():
    y = torch.tensor([[1.0, -2.0], [0.0, float("nan")]])
    assert measure(Exact(), [y], [y.clone()]).holds
    moved = y.clone()
    moved[0, 1] = -2.5
    exact = measure(Exact(), [y], [moved])
    assert (exact.value, exact.holds, exact.worst.index) == (1.0, False, (0, 1))
    assert exact.worst.difference == 0.5
    y, moved = y[:1], moved[:1]
    assert measure(WithinTolerance(0.25), [y], [moved]).value == 0.25
    assert not measure(WithinTolerance(0.2), [y], [moved]).holds
    rms = measure(Approximate(0.3), [y], [moved])
    assert rms.value == pytest.approx((0.125 / 2.5) ** 0.5) and rms.holds
    assert not measure(Approximate(1e9), [torch.zeros(2)], [torch.ones(2)]).holds
    assert not measure(Approximate(1e9), [torch.ones(2)], [torch.full((2,), torch.nan)]).holds
    assert not measure(Approximate(1e9), [torch.ones(2)], [torch.ones(3)]).holds
    with pytest.raises(DiagnosticError, match="relative_rms"):
        measure(Approximate(0.1, "relative_rsm"), [y], [moved])
