"""Models of cells: moments against samples, order of effects, faults, tables, drivers."""

import math

import pytest
import torch

from imcc.backends.crossbar.cells import array_columns, program
from imcc.backends.crossbar.dialect import MatrixType
from imcc.backends.crossbar.noise import CellScale, find_noise_model, noise_model_names
from imcc.backends.crossbar.simulate import levels
from imcc.backends.targets import find_target
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.semantics.draws import Draws

CELL = CellScale(g_max_us=25.0, g_min=0.1, read_time_s=1000.0)
TABLE = [[2.5, 3.0, 0.5, 0.0], [25.0, 24.0, 1.0, 0.0], [2.5, 3.5, 0.6, 1e4], [25.0, 20.0, 2.0, 1e4]]
PARAMETERS = {
    "none": {},
    "gaussian_write": {"sigma_fraction": 0.05},
    "gaussian_read": {"sigma_fraction": 0.02},
    "proportional_write": {"sigma_fraction": 0.4},
    "proportional_read": {"sigma_fraction": 0.1},
    "gaussian_variation": {"sigma_fraction": 0.1},
    "clipformer_write": {"gamma": 5.0, "sigma_fraction": 0.1},
    "power_law_drift": {"exponent": 0.05, "exponent_deviation": 0.02, "reference_s": 20.0},
    "pcm_write": {},
    "pcm_drift": {},
    "pcm_read": {},
    "table_write": {"rows": TABLE},
}


def model(name, cell=CELL, **changes):
    kind = find_noise_model(name)
    return kind.create(kind.Keys(model=name, **{**PARAMETERS[name], **changes}), cell)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
@pytest.mark.parametrize("g", [0.1, 0.4, 1.0])
def test_moments_agree_with_samples(name, g):
    count = 200_000
    made = model(name)
    normal = torch.randn(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = made.sample(torch.full((count,), g, dtype=torch.float64), normal)
    mean, variance = (
        float(item[0]) for item in made.moments(torch.tensor([g], dtype=torch.float64))
    )
    assert drawn.min() >= 0
    error = math.sqrt(max(variance, 1e-20) / count)
    assert float(drawn.mean()) == pytest.approx(mean, abs=5 * error + 1e-6)
    assert float(drawn.var()) == pytest.approx(variance, rel=0.05, abs=1e-10)


def test_every_installed_model_is_checked():
    assert set(noise_model_names()) >= set(PARAMETERS)


@pytest.mark.parametrize("g", [0.2, 0.9, 1.0])
def test_bounded_clipformer_noise(g):
    count = 200_000
    made = model("clipformer_write", bounded=True)
    normal = torch.randn(count, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = made.sample(torch.full((count,), g, dtype=torch.float64), normal)
    mean, variance = (
        float(item[0]) for item in made.moments(torch.tensor([g], dtype=torch.float64))
    )
    assert drawn.max() <= 1
    assert float(drawn.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / count))
    assert float(drawn.var()) == pytest.approx(variance, rel=0.03)


def test_clipformer_form_by_hand():
    made = model("clipformer_write")
    g = torch.tensor([0.1, 0.55, 1.0])
    expected = 5 * 0.1 * torch.sqrt((g - 0.1) * 0.9)
    assert torch.allclose(made.sample(g, torch.ones(3)) - g, expected)


def test_phase_change_memory_by_hand():
    assert float(model("pcm_write").deviation(torch.tensor(1.0))) == pytest.approx(1.05538 / 25)
    later = CellScale(25.0, 0.05, 20.0 * (math.e - 1))
    drift = model("pcm_drift", later)
    # After e times 20 s the factor is exp(-nu); nu is 0.049 at g_max and 0.1 at its bound.
    made = drift.sample(torch.tensor([1.0, 1e-3]), torch.zeros(2))
    assert made.tolist() == pytest.approx([math.exp(-0.049), 1e-3 * math.exp(-0.1)])
    read = model("pcm_read", CellScale(25.0, 0.05, 0.0))
    expected = 0.0088 * math.sqrt(math.log((20 + 250e-9) / 500e-9))
    assert float(read.deviation(torch.tensor(1.0))) == pytest.approx(expected)


def test_table_is_linear_between_states_and_times(tmp_path):
    made = model("table_write", CellScale(25.0, 0.1, 0.0))
    g = torch.tensor([0.0, 0.1, 0.55, 1.0], dtype=torch.float64)
    assert (made.mean(g) * 25).tolist() == pytest.approx([3.0, 3.0, 13.5, 24.0])
    assert (made.deviation(g) * 25).tolist() == pytest.approx([0.5, 0.5, 0.75, 1.0])
    half = model("table_write", CellScale(25.0, 0.1, math.sqrt(10001) - 1))
    assert (half.mean(g) * 25).tolist() == pytest.approx([3.25, 3.25, 12.625, 22.0])


def target_with_table(folder, text, overrides=()):
    (folder / "cells.csv").write_text(text)
    base = find_target("rram").text
    start, end = base.index("[device.write_noise]"), base.index("[device.variation]")
    table = '[device.write_noise]\nmodel = "table_write"\npath = "cells.csv"\n\n'
    file = folder / "mine.toml"
    file.write_text(base[:start] + table + base[end:])
    return find_target(str(file), overrides)


def test_csv_is_read_into_the_target(tmp_path):
    # The mark in front is what spreadsheets save.
    text = "\ufeffstate, mean,deviation,time\n0.1,0.11,0.01,0\n1.0,0.95,0.05,0\n"
    target = target_with_table(tmp_path, text)
    assert target.data["device"]["write_noise"]["rows"] == [
        [0.1, 0.11, 0.01, 0],
        [1, 0.95, 0.05, 0],
    ]
    # The canonical text holds the numbers, so the target no longer needs the file.
    (tmp_path / "cells.csv").unlink()
    copy = tmp_path / "elsewhere.toml"
    copy.write_text(target.text)
    assert find_target(str(copy)).sha256 == target.sha256
    mean, variance = target.write_noise.moments(torch.tensor([1.0]).double())
    assert (float(mean), float(variance)) == pytest.approx((0.95, 0.0025))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("state,mean,deviation\n1,1,1\n", ["cells.csv", "no column 'time'"]),
        ("stat,mean,deviation,time\n1,1,1,0\n", ["no column 'state'", "stat"]),
        ("state,mean,deviation,time\n1,1,x,0\n", ["not four numbers", "microsiemens"]),
        ("state,mean,deviation,time\n1,1,-1,0\n", ["cells.csv:2", "deviation is -1", "at least 0"]),
        ("state,mean,deviation,time\n1,1,1,1e300\n", ["cells.csv:2", "time is 1e+300"]),
        (
            "state,mean,deviation,time\n1,1,0,0\n1,2,0,0\n",
            ["cells.csv:3", "twice", "first on line 2"],
        ),
        ("state,mean,deviation,time\n1,1,nan,0\n", ["cells.csv:2", "not four numbers"]),
        ("state,mean,deviation,time\n", ["cells.csv", "no row"]),
    ],
)
def test_bad_csv_is_refused(tmp_path, text, words):
    with pytest.raises(DiagnosticError) as caught:
        target_with_table(tmp_path, text)
    shown = "\n".join(item.render() for item in caught.value.diagnostics)
    for word in words:
        assert word in shown


# -- programming -----------------------------------------------------------------------------------

KIND = MatrixType(200, 16, 1, 8, True, 2, 4, "differential", 128, 128)


def programmed(*overrides, trials=4, seed=5):
    target = find_target("rram", ["device.write_noise.sigma_fraction=0.0", *overrides])
    weights = torch.randint(-127, 128, (1, 16, 200), generator=torch.Generator().manual_seed(0))
    ideal = levels(weights, KIND)
    made = program(KIND, ideal, target, Draws(seed, tuple(range(trials)), (0,)), "w")
    return ideal, made, target


def test_ideal_devices_hold_their_levels():
    ideal, made, target = programmed()
    assert target.cells_are_exact
    assert torch.equal(made.levels, ideal.expand_as(made.levels))


def test_stuck_cells_have_their_share_and_a_map():
    ideal, made, _ = programmed("device.stuck.off_fraction=0.1", "device.stuck.on_fraction=0.02")
    rest = ideal.expand_as(made.levels)
    off = ((made.levels == 0) & (rest > 0)).sum() / (rest > 0).sum()
    on = ((made.levels == 3) & (rest < 3)).sum() / (rest < 3).sum()
    assert float(off) == pytest.approx(0.1, abs=0.01) and float(on) == pytest.approx(
        0.02, abs=0.004
    )
    assert not torch.equal(made.levels[0], made.levels[1])
    fixed = ["device.stuck.off_fraction=0.1", "device.stuck.map_seed=3"]
    first = programmed(*fixed, seed=1)[1].levels
    second = programmed(*fixed, seed=2)[1].levels
    assert torch.equal(first[0], first[3]) and torch.equal(first[0], second[1])


def test_drift_needs_time_and_pcm_loses_conductance():
    drift = ["device.drift.model=pcm_drift"]
    assert programmed(*drift)[2].cells_are_exact
    ideal, made, _ = programmed(*drift, "device.read_time_s=86400.0")
    top = made.levels[0][ideal == 3]
    # Level 3 is g_max: a factor (86420 / 20)^-0.049 of the whole conductance, in steps of 0.3.
    expected = ((86420 / 20) ** -0.049 - 0.1) / 0.3
    assert float(top.mean()) == pytest.approx(expected, rel=0.02)


def test_verify_corrects_the_spread_between_devices():
    spread = ["device.variation.model=gaussian_variation", "device.variation.sigma_fraction=0.1"]
    noise = "device.write_noise.sigma_fraction=0.02"
    ideal, made, _ = programmed(*spread, noise)
    error = (made.levels - ideal)[:, ideal == 3]
    # 10 % of g_max and 2 % of the range, in levels of 0.3 g_max.
    assert float(error.var()) == pytest.approx((0.1 / 0.3) ** 2 + (0.02 * 3) ** 2, rel=0.05)
    ideal, made, target = programmed(*spread, noise, "device.write_noise.verify=true")
    assert target.write_noise.verified
    assert float((made.levels - ideal).abs().max()) <= 0.02 * 3 + 1e-3


def test_drivers_and_converters_are_off_by_their_own():
    ideal, made, _ = programmed("dac.offset_lsb=0.05", "adc.offset_lsb=0.5")
    ratio = made.levels[0] / ideal
    columns = array_columns(KIND)[0]
    for row in range(3):
        seen = ratio[0, 0, row, columns]
        seen = seen[ideal[0, 0, row, columns] > 0]
        # One driver for all columns of a crossbar.
        assert float(seen.std()) < 1e-3
    offsets = made.converter_offsets[0, 0, 0]
    assert torch.equal(offsets[:8], offsets[:1].expand(8)) and offsets[8] != offsets[7]
    assert float(made.converter_offsets.std()) == pytest.approx(0.5, rel=0.2)
    ideal, made, _ = programmed("dac.offset_lsb=0.5", "dac.bits=4")
    assert torch.equal(made.levels, ideal.expand_as(made.levels))
    variance = 0.25 * (ideal**2).sum(-2)
    assert float((made.constant**2).mean()) == pytest.approx(float(variance.mean()), rel=0.5)


def test_columns_of_crossbars_are_a_partition():
    for encoding, usable in (("differential", 128), ("sign_arrays", 128), ("bias_column", 127)):
        cells = 8 if encoding != "bias_column" else 4
        kind = MatrixType(64, 100, 1, 8, True, 2, 4, encoding, 128, 128)
        parts = array_columns(kind)
        assert len(parts) == kind.column_tiles
        assert sorted(column for part in parts for column in part) == list(
            range(100 * cells + kind.bias_columns)
        )
        assert max(map(len, parts)) <= 128 and kind.usable_columns == usable
