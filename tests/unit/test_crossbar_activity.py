"""Costs follow the spikes and input bits that calibration data apply, counted by hand."""

import io

import pytest
import torch
from torch import nn

import imcc
from imcc.backends.api import find_backend
from imcc.backends.crossbar.dialect import DRIVEN_RUNS, INPUT_DENSITY, STEP_DENSITY, Mvm
from imcc.backends.targets import find_target
from imcc.ir import parse_module
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline
from imcc.report.overview import print_report

PROFILED = ("activity.source=profiled",)
SPIKING = """// imc 1
module @m phase("optimized") {
  resource @w : tensor<8x64xf32>
  func @inference(%x: spikes<4xBx64>) -> tensor<4xBx8xf32> {
    %w = core.constant {value = @w} : tensor<8x64xf32>
    %y = nn.linear %x, %w {scope = "fc"} : tensor<4xBx8xf32>
    core.return %y
  }
}
"""


def spiking(spikes, *settings):
    """Cost of the spiking layer whose calibration data are ``spikes [T, B, K]``; its read."""
    target = find_target("rram", [*settings, "array.rows=32", "array.columns=32"])
    backend = find_backend("crossbar")
    module = parse_module(SPIKING)
    generator = torch.Generator().manual_seed(0)
    context = PassContext(
        resources=ResourceStore({"w": torch.randn(8, 64, generator=generator)}),
        target=target,
        backend=backend,
        calibration=[(spikes,)],
        legality=backend.legal,
    )
    run_pipeline(module, parse_pipeline(backend.pipeline(target)), context)
    (read,) = (op for op in module.function().ops if isinstance(op, Mvm))
    return backend.cost(module, "inference", target), read, target


def some_spikes():
    generator = torch.Generator().manual_seed(1)
    dense = (torch.rand(4, 3, 64, generator=generator) < 0.5).float()
    # Half of the spikes of each step and sample, by number.
    half = dense.clone()
    for step in half.flatten(0, 1):
        places = step.nonzero()[:, 0]
        if len(places) % 2:
            step[places[-1]] = 0.0
        step[places[: len(places) // 2]] = 0.0
    even = dense.clone()
    for step in even.flatten(0, 1):
        places = step.nonzero()[:, 0]
        if len(places) % 2:
            step[places[-1]] = 0.0
    return even, half


def test_half_the_spikes_take_half_the_energy_of_drivers_and_cells():
    dense, half = some_spikes()
    assert half.sum() == dense.sum() / 2
    (one, read, target), (two, _, _) = (spiking(item, *PROFILED) for item in (dense, half))
    assert one.activity == two.activity == "profiled"
    # 8 codes of 8 bits are 8 x 8 cells in a row, over two crossbars of 32 columns.
    spikes = float(dense.sum()) / 3
    events = {name: count for layer in one.layers for name, count in layer.events.items()}
    assert events["row_driver.drive"] == pytest.approx(2 * spikes)
    assert events["cell_read.read"] == pytest.approx(64 * spikes)
    saved = spikes / 2 * (2 * target.energy_pj("row_driver") + 64 * target.energy_pj("cell_read"))
    assert one.energy_pj - two.energy_pj == pytest.approx(saved)
    assert one.latency_ns == two.latency_ns
    assert read.annotations[INPUT_DENSITY] == (pytest.approx(spikes / 256),)
    found = read.annotations[STEP_DENSITY]
    assert found == pytest.approx(tuple(dense.mean((1, 2)).tolist()))
    held = one.provenance["inputs"]["fc"]
    assert held["samples"] == 3 and held["density"] == pytest.approx(spikes / 256)


def test_idle_runs_are_converted_unless_the_target_leaves_them_out():
    spikes = torch.zeros(4, 1, 64)
    # Step 0 drives both runs of 32 rows, step 1 the second one, steps 2 and 3 none.
    spikes[0, 0, [3, 40]] = 1.0
    spikes[1, 0, 63] = 1.0
    kept, read, target = spiking(spikes, *PROFILED)
    assert read.annotations[DRIVEN_RUNS] == 3 / 8
    left, _, _ = spiking(spikes, *PROFILED, "activity.idle_reads=skip")
    conversions = [
        sum(layer.events.get("adc.convert", 0.0) for layer in item.layers) for item in (kept, left)
    ]
    assert conversions == [4 * 2 * 64, 3 / 8 * 4 * 2 * 64]
    each = sum(target.energy_pj(name) for name in ("adc", "column_driver", "shift_add"))
    assert kept.energy_pj - left.energy_pj == pytest.approx(5 / 8 * 512 * each)
    with pytest.raises(DiagnosticError, match="idle_reads"):
        find_target("rram", ["activity.idle_reads=skip", "adc.offset_lsb=0.5"])


def test_bits_of_windows_are_counted_with_their_padding():
    network = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    torch.manual_seed(0)
    data = torch.rand(2, 1, 4, 4)
    data[0, 0, 0, 0] = 1.0
    made = imcc.compile(network, (data[:1],), calibration=[(data,)], overrides=PROFILED)
    (read,) = (op for op in made.module.function().ops if isinstance(op, Mvm))
    codes = (data * 255).round().to(torch.int64)
    windows = nn.functional.unfold(codes.float(), 3, padding=1).to(torch.int64)
    expected = [float(((windows >> bit) & 1).double().mean()) for bit in range(8)]
    assert read.annotations[INPUT_DENSITY] == pytest.approx(tuple(expected))
    point = made.report()["entry_points"]["inference"]
    assert point["activity"] == "profiled"
    mean = sum(expected) / 8
    assert point["provenance"]["input_bit_density"] == pytest.approx(mean)
    assert point["components"]["cell_read"]["events"]["cell_read.read"] == pytest.approx(
        16 * 8 * mean * 9 * 16
    )
    shown = io.StringIO()
    print_report(made.report(), shown)
    assert f"{mean:.4f}" in shown.getvalue() and "Rows that inputs drive" in shown.getvalue()


def test_assumed_activity_says_so_and_cannot_pass_for_counted():
    network = nn.Linear(4, 2, bias=False)
    data = torch.rand(2, 4)
    made = imcc.compile(network, (data[:1],), calibration=[(data,)])
    point = made.report()["entry_points"]["inference"]
    assert point["activity"] == "assumed" and point["provenance"]["input_bit_density"] == 0.5
    assert "inputs" not in point["provenance"]
    with pytest.raises(DiagnosticError, match="assumed density") as wrong:
        find_backend("crossbar").cost(made.module, "inference", made.target, "profiled")
    assert "activity.source" in wrong.value.diagnostics[0].help


def test_inputs_of_run_time_matrices_are_counted():
    class Attention(nn.Module):
        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(q, k, v)

    torch.manual_seed(0)
    data = tuple(torch.randn(2, 2, 3, 4) for _ in range(3))
    made = imcc.compile(
        Attention(),
        tuple(item[:1] for item in data),
        calibration=[data],
        overrides=[*PROFILED, "dynamic.matrices=crossbar"],
    )
    point = made.report()["entry_points"]["inference"]
    assert point["activity"] == "profiled" and len(point["provenance"]["inputs"]) == 2
    assert all(0.1 < row["density"] < 0.9 for row in point["provenance"]["inputs"].values())
