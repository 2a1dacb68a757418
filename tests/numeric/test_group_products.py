"""Weights with groups of scales and zero points: integer products, and on crossbars."""

import pytest
import torch

import imcc
from imcc.frontend.capture import capture
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects import quant
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline
from imcc.runtime.executor import Executor

QUIET = (
    "device.write_noise.sigma_fraction=0.0",
    "device.read_noise.sigma_fraction=0.0",
    "adc.bits=12",
)
WEIGHTS = (
    "bits=4 group=32",
    'bits=3 group=32 scheme="asymmetric"',
    'bits=2 scheme="asymmetric"',
    'bits=4 scheme="asymmetric" granularity="tensor"',
)
TAIL = "integer-arithmetic, dead-code, map-crossbars, calibrate-adc, place, schedule"


def layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(100, 24), torch.nn.ReLU(), torch.nn.Linear(24, 10)
    ).eval()


def convolutions():
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, groups=4)
    ).eval()


def quantised(model, x, passes):
    captured = capture(model, (x,))
    context = PassContext(resources=captured.resources, calibration=[(x,)])
    run_pipeline(captured.module, parse_pipeline(passes), context)
    return captured.module, Executor(captured.module, captured.resources)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_integer_products_are_those_of_the_dequantised_weights(weights):
    model, x = layers(), torch.randn(16, 100)
    head = f"canonicalize, calibrate-activations, quantize-weights{{{weights}}}"
    _, before = quantised(model, x, head)
    module, after = quantised(model, x, f"{head}, integer-arithmetic")
    assert sum(isinstance(op, quant.Linear) for op in module.walk()) == 2
    wanted, made = before.run([x])[0], after.run([x])[0]
    assert (made - wanted).norm() / wanted.norm() < 1e-6


@pytest.mark.parametrize("weights", WEIGHTS)
def test_quiet_crossbars_give_the_integer_products(weights):
    model, x = layers(), torch.randn(16, 100)
    head = f"canonicalize, calibrate-activations, quantize-weights{{{weights}}}"
    wanted = quantised(model, x, head)[1].run([x])[0][0]
    made = imcc.compile(model, x, passes=f"{head}, {TAIL}", calibration=[(x,)], overrides=QUIET)(x)
    assert (made - wanted).norm() / wanted.norm() < 1e-6


def test_asymmetric_convolutions_run_on_crossbars():
    model, x = convolutions(), torch.randn(4, 3, 8, 8)
    head = 'canonicalize, calibrate-activations, quantize-weights{bits=4 scheme="asymmetric"}'
    module, executor = quantised(model, x, f"{head}, integer-arithmetic")
    assert all(
        op.weight_zero_point is not None for op in module.walk() if isinstance(op, quant.Conv)
    )
    wanted = quantised(model, x, head)[1].run([x])[0][0]
    assert (executor.run([x])[0][0] - wanted).norm() / wanted.norm() < 1e-6
    made = imcc.compile(model, x, passes=f"{head}, {TAIL}", calibration=[(x,)], overrides=QUIET)(x)
    assert (made - wanted).norm() / wanted.norm() < 1e-6


def test_groups_cost_reads_in_turn_and_multiplications():
    # Three groups of a column share a crossbar and are driven one after another.
    x = torch.randn(16, 96)
    torch.manual_seed(0)
    model = torch.nn.Linear(96, 16).eval()
    found = {}
    for weights in ("bits=4", "bits=4 group=32"):
        made = imcc.compile(
            model,
            x,
            passes=f"canonicalize, calibrate-activations, quantize-weights{{{weights}}}, {TAIL}",
            calibration=[(x,)],
        )
        report = made.report()
        found[weights] = report["entry_points"]["inference"]
    plain, grouped = (found[key] for key in ("bits=4", "bits=4 group=32"))
    assert grouped["resources"]["crossbars"] == plain["resources"]["crossbars"] == 1
    reads = [item["components"]["adc"]["events"]["adc.convert"] for item in (plain, grouped)]
    assert reads[1] == 3 * reads[0]
    assert grouped["latency_ns"] > 2 * plain["latency_ns"]


def test_sparse_hardware_refuses_groups_by_name():
    x = torch.randn(16, 96)
    with pytest.raises(DiagnosticError, match="one scale for each output channel"):
        imcc.compile(
            torch.nn.Linear(96, 16).eval(),
            x,
            target="loas",
            passes="canonicalize, calibrate-activations, quantize-weights{bits=4 group=32}, "
            "integer-arithmetic, dead-code, compress-spikes",
            calibration=[(x,)],
        )
