"""Tables of costs: rows add up to totals, what has no figure is marked, lines fit the terminal."""

import functools
import io
import re
import types

import pytest
import torch
from torch import nn

import imcc
from imcc.report.by import CUTS, print_rows
from imcc.report.compare import compare, print_compare
from imcc.report.overview import print_report
from imcc.report.tables import quantity

SCALE = {"fJ": 1e-3, "pJ": 1.0, "nJ": 1e3, "uJ": 1e6, "um2": 1.0, "mm2": 1e6}


class Net(nn.Module):
    def __init__(self, wide=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.blocks = nn.Sequential(*(nn.Linear(128, 128) for _ in range(wide)))
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        return self.head(self.blocks(torch.sigmoid(self.conv(x)).flatten(1)))


@functools.cache
def report_of(target, *settings, wide=0):
    torch.manual_seed(0)
    data = torch.rand(4, 3, 8, 8)
    made = imcc.compile(
        Net(wide),
        (data[:1],),
        target=target,
        overrides=settings,
        calibration=[(data,)],
        name="net",
    )
    return made.report()


class Screen(io.StringIO):
    def isatty(self):
        return True


def shown(report, monkeypatch, width=100):
    monkeypatch.setenv("COLUMNS", str(width))
    screen = Screen()
    print_report(report, screen)
    return re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())


def rows_of(text, title):
    """Cells of the rows of a table, the last one being its total."""
    lines = text.split(f"{title}", 1)[1].splitlines()
    start = next(number for number, line in enumerate(lines) if "───" in line)
    made = []
    for line in lines[start + 1 :]:
        cells = re.split(r"\s{2,}", line.strip())
        if cells != [""]:
            made.append(cells)
        if cells[0] == "total":
            return made
    raise AssertionError(f"{title} has no total")


def number(cell):
    value, _, unit = cell.removeprefix(">= ").partition(" ")
    return float(value) * SCALE[unit] if unit in SCALE else 0.0


@pytest.mark.parametrize("target", ["rram", "spikesim"])
def test_components_add_up_to_the_total(target, monkeypatch):
    report = report_of(target)
    text = shown(report, monkeypatch)
    *rows, total = rows_of(text, "Components")
    for column in (1, 2, 4):
        parts = sum(number(row[column]) for row in rows)
        assert parts == pytest.approx(number(total[column]), rel=2e-3)
    assert number(total[1]) + number(total[2]) == pytest.approx(report["energy_pj"], rel=2e-3)
    assert sum(float(row[3].split()[0]) for row in rows if row[3] != "-") == pytest.approx(
        100, abs=0.1 * len(rows)
    )


@pytest.mark.parametrize("wide", [0, 10])
def test_layers_with_leakage_add_up_to_the_total(wide, monkeypatch):
    report = report_of("rram", wide=wide)
    rows = rows_of(shown(report, monkeypatch), "Costliest layers")
    *parts, total = rows
    leakage = report["entry_points"]["inference"]["leakage_pj"]
    (idle,) = [row for row in parts if row[0] == "of no layer"]
    assert number(idle[1]) == pytest.approx(leakage, rel=1e-3) and leakage > 0
    assert any(row[0] == f"{wide + 4 - 8} more" for row in parts) == (wide > 4)
    assert sum(number(row[1]) for row in parts) == pytest.approx(report["energy_pj"], rel=2e-3)
    assert sum(number(row[-1]) for row in parts) == pytest.approx(report["area_um2"], rel=2e-3)
    assert number(total[1]) == pytest.approx(report["energy_pj"], rel=1e-3)


def test_layers_that_share_tiles_do_not_add_up_and_say_so(monkeypatch):
    report = report_of("rram", "hierarchy.share_tiles=true", "digital.per='tile'")
    text = shown(report, monkeypatch)
    assert "areas add up to more than the total: layers share hardware" in text


def test_sums_without_some_figures_are_marked(monkeypatch):
    report = report_of("spikesim")
    text = shown(report, monkeypatch)
    point = report["entry_points"]["inference"]
    # What is listed and what the table shows without a figure are the same components.
    listed = re.search(r"energy in @inference of (.*)", text)[1].split(", ")
    dark = [row[0] for row in rows_of(text, "Components")[:-1] if row[1] == "unknown"]
    assert sorted(listed) == sorted(dark) == ["lookup", "row_driver"]
    assert len(point["unknown"]) == 2
    assert re.search(r"@inference +>= [\d.]+ nJ .* >= [\d.]+ mm2", text)
    assert re.search(r"TOPS, at most \S+ TOPS/W, at most \S+ TOPS/mm2", text)
    assert re.search(r"EDP at least .* EDAP at least", text)
    assert re.search(r"  energy +[\d.]+ nJ +>= ", text)
    area = re.search(r"    area of (.*)", text)[1].split(", ")
    assert sorted(area) == sorted(point["provenance"]["area_unknown"])


def test_a_component_that_nothing_happens_in_takes_no_energy():
    report = report_of("spikesim")
    for name, point in report["entry_points"].items():
        for held in point["components"].values():
            assert (held["energy_pj"] is None) <= any(held["events"].values()), name
    deploy = report["entry_points"]["deploy"]
    assert deploy["components"]["lookup"]["energy_pj"] == 0.0
    assert "energy of component lookup" not in deploy["unknown"]


def test_the_interval_of_a_pipeline_stands_beside_its_latency(monkeypatch):
    report = report_of("isaac")
    point = report["entry_points"]["inference"]
    assert 0 < point["interval_ns"] < point["latency_ns"]
    assert point["interval_ns"] == point["merit"]["interval_ns"]
    text = shown(report, monkeypatch)
    times = [re.escape(quantity(point[key], "ns")) for key in ("latency_ns", "interval_ns")]
    assert re.search(rf"@inference .* {' +'.join(times)}", text)
    assert "set by crossbar 0 (conv)" in text
    sequential = report_of("rram")["entry_points"]["inference"]
    assert sequential["interval_ns"] == sequential["latency_ns"]


@pytest.mark.parametrize("width", [80, 100])
def test_rows_and_titles_fit_the_terminal(width, monkeypatch):
    report = report_of("spikesim", "activity.source='profiled'")
    text = shown(report, monkeypatch, width)
    assert max(map(len, text.splitlines())) <= width
    lines = [line.strip() for line in text.splitlines()]
    assert "As spikesim computes it, 1 time step" in lines
    assert "Rows that inputs drive, counted on 4 samples" in lines
    wide = shown(report, monkeypatch, 200)
    for title in ("Costliest layers", "Components"):
        assert rows_of(text, title) == rows_of(wide, title)


def test_sources_of_components_stand_below_their_table():
    report = report_of("spikesim")
    held = report["entry_points"]["inference"]["components"]
    compiled = types.SimpleNamespace(report_data=report)
    screen = io.StringIO()
    print_rows("By component", CUTS["component"](compiled, "inference"), screen)
    lines = screen.getvalue().splitlines()
    rows = [line.split() for line in lines if line.split() and line.split()[0] in held]
    assert len(rows) == len(held) and max(map(len, lines)) <= 100
    (shift,) = [row for row in rows if row[0] == "shift_add"]
    assert any(line.startswith(f"  {shift[-1]} SpikeSim: DIFF") for line in lines)
    # What is not on the chip has no area that could be unknown.
    (pins,) = [row for row in rows if row[0] == "off_chip"]
    assert "unknown" not in pins
    assert "unknown" in next(row for row in rows if row[0] == "row_driver")


def test_comparison_names_what_sums_leave_out():
    made = compare(report_of("rram"), report_of("spikesim"))
    screen = io.StringIO()
    print_compare(made, screen)
    text = " ".join(screen.getvalue().split())
    assert "spikesim: energy is without that of lookup, row_driver" in text
    assert "rram: area is without that of row_driver, column_driver, shift_add" in text
    assert "rram: energy" not in text
