"""SpikeSim's closed form against its formulas computed by hand, and as a target."""

import io

import pytest
import torch
from torch import nn

import imcc
from imcc.backends.crossbar.spikesim import Layer, closed_form, cycle_energy_pj, pe_counts
from imcc.backends.targets import find_target
from imcc.ir.diagnostics import DiagnosticError
from imcc.report.overview import print_report

CHANNELS = (3, 64, 64, 128, 128, 256, 256)
OUTPUTS = (64, 64, 128, 128, 256, 256, 256)
HEIGHTS = (32, 32, 16, 16, 8, 8, 8)
OUT_HEIGHTS = (32, 16, 16, 8, 8, 8, 4)
VGG9 = [
    Layer(f"conv{number}", *sizes)
    for number, sizes in enumerate(zip(CHANNELS, OUTPUTS, HEIGHTS, OUT_HEIGHTS, strict=True))
]


def test_pe_and_tile_counts_of_vgg9():
    assert pe_counts(VGG9, 64) == [1, 1, 2, 4, 8, 16, 16]
    made = closed_form(VGG9, 5)
    assert (made["pes"], made["tiles"]) == (48, 6)
    assert closed_form(VGG9, 5, pes_per_tile=7)["tiles"] == 7


def test_energy_of_vgg9():
    # 157.12 + 4.64 + 5.096 + 8 (9 x 1.76423 + 8 x 2.125085) + 8 x 16 x 1.15e-6 + 1.6 + 397
    assert cycle_energy_pj(64, 3) == pytest.approx(828.4861472, rel=1e-9)
    # 1024 + 256 + 2 x 256 + 4 x 64 + 8 x 64 + 16 x 64 + 16 x 16 PE cycles, five times.
    assert closed_form(VGG9, 5)["energy_pj"] == pytest.approx(5 * 3840 * 828.4861472)
    sram = closed_form(VGG9, 5, device="sram")["energy_pj"]
    assert sram - closed_form(VGG9, 5)["energy_pj"] == pytest.approx(
        5 * 3840 * 8 * 9 * (671.089 - 1.76423)
    )


def test_area_of_vgg9():
    made = closed_form(VGG9, 5)
    # Only the first five of seven layers have membranes.
    assert made["membrane_area_um2"] == pytest.approx(139264 * 0.7391 * 22)
    pe = 9 * 26.2144 + 8 * (693.633 + 45.9)
    tile = 8 * 13411.41498 + 484.643999 + 0.7391 * 64 * 128 + 8 * pe + 433660
    assert made["area_um2"] == pytest.approx(6 * tile + (158720 + 139264) * 0.7391 * 22)


def test_latency_of_vgg9():
    # Three quarters of the first six layers and all of the last, with all output channels.
    cycles = 0.75 * (65536 + 16384 + 32768 + 8192 + 16384 + 16384) + 4096
    assert closed_form(VGG9, 5)["latency_ns"] == cycles * 5 * 104
    assert closed_form(VGG9, 5)["latency_ns"] == 62_832_640


def test_a_compiled_network_shows_both_models():
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    data = torch.rand(1, 3, 8, 8)
    made = imcc.compile(network, (data,), calibration=[(data,)], target="spikesim")
    point = made.report()["entry_points"]["inference"]
    layers = [Layer("0", 3, 64, 8, 8), Layer("2", 64, 128, 8, 4)]
    expected = closed_form(layers, 1)
    assert point["compatibility"] == expected
    assert expected["pes"] == 3 and point["resources"]["pes"] == 3
    shown = io.StringIO()
    print_report(made.report(), shown)
    assert "As spikesim computes it" in shown.getvalue() and "PEs" in shown.getvalue()


def test_decreasing_pe_counts_are_refused_where_asked_for():
    layers = [VGG9[-1], VGG9[0]]
    assert closed_form(layers, 5)["pes"] == 17
    with pytest.raises(DiagnosticError, match=r"16, 1"):
        closed_form(layers, 5, order="refuse")
    with pytest.raises(DiagnosticError, match="needs a convolution"):
        closed_form([], 5)


def test_the_target_takes_the_same_constants():
    target = find_target("spikesim")
    assert target.keys.compatibility.model == "spikesim"
    assert 4096 * target.energy_pj("cell_read") == pytest.approx(1.76423, rel=1e-5)
    assert target.energy_pj("adc") == 2.03084 and target.area_um2("adc") == 693.633
    assert target.crossbars_per_tile == 72
    assert target.area_um2("shift_add") * 576 == pytest.approx(8 * 13411.415, rel=1e-4)
