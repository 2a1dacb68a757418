"""Cuts through a report, where its numbers come from, and the schedule as a trace."""

import io
import itertools
import json

import pytest
import torch
from torch import nn

import imcc
from imcc.backends.crossbar import CrossbarBackend
from imcc.cli.main import main
from imcc.ir.cost import OpCost
from imcc.ir.diagnostics import DiagnosticError
from imcc.report.by import CUTS, print_rows
from imcc.report.costs import op_entries
from imcc.report.trace import trace_events, trace_text
from imcc.report.why import print_why, why


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.stem(x).flatten(1)).softmax(-1)


@pytest.fixture(scope="module")
def compiled():
    torch.manual_seed(0)
    data = torch.rand(4, 1, 8, 8)
    return imcc.compile(Net(), (data[:1],), calibration=[(data,)], name="net")


@pytest.fixture(scope="module")
def artifact(compiled, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "net"
    compiled.save(path)
    return str(path)


# -- why -------------------------------------------------------------------------------------------


def known(terms):
    return sum(term.value for term in terms if term.value is not None)


@pytest.mark.parametrize("entry", ["inference", "deploy"])
def test_every_number_is_the_sum_of_its_reasons(compiled, entry):
    point = compiled.report()["entry_points"][entry]
    for kind in ("energy_pj", "latency_ns", "area_um2"):
        made = why(compiled, f"@{entry}.{kind}")
        assert made.value == point[kind]
        assert known(made.terms) == pytest.approx(point[kind])
        for layer in point["layers"]:
            key = "busy_ns" if kind == "latency_ns" else kind
            made = why(compiled, f"@{entry}.{layer['name']}.{kind}")
            assert made.value == layer[key]
            assert known(made.terms) == pytest.approx(layer[key] or 0.0)
    for name, held in point["components"].items():
        for kind in ("energy_pj", "area_um2"):
            made = why(compiled, f"@{entry}.{name}.{kind}")
            assert made.value == held[kind]
            assert known(made.terms) == pytest.approx(held[kind] or 0.0)


def test_reasons_end_at_figures_with_unit_node_and_source(compiled):
    made = why(compiled, "stem.0.energy_pj")
    (convert,) = [term for term in made.terms if term.name == "adc.convert"]
    # 64 positions, 8 input bits, 4 columns of 4 slices in pairs; a conversion for each.
    assert convert.count == 64 * 8 * 4 * 4 * 2
    assert convert.figure["value"] == 1.37 and convert.figure["unit"] == "pJ per conversion"
    assert convert.figure["node_nm"] == 32 and "Murmann" in convert.figure["source"]
    assert convert.value == convert.count * 1.37


def test_a_scope_is_the_sum_of_its_layers(compiled):
    made = why(compiled, "stem.energy_pj")
    assert [term.name for term in made.terms] == ["stem.0", "stem.1", "stem.2"]
    assert made.value == pytest.approx(known(made.terms))


def test_unknown_cost_is_said_and_not_zero(monkeypatch):
    def without_softmax(self, op, cost, target):
        return OpCost(unknown="no figure") if op.name == "nn.softmax" else cost

    monkeypatch.setattr(CrossbarBackend, "with_transfers", without_softmax)
    data = torch.rand(4, 1, 8, 8)
    compiled = imcc.compile(Net(), (data[:1],), calibration=[(data,)], name="net")
    layers = compiled.report()["entry_points"]["inference"]["layers"]
    (name,) = [layer["name"] for layer in layers if layer["energy_pj"] is None]
    made = why(compiled, f"{name}.energy_pj")
    assert made.value is None and "nn.softmax" in made.how
    shown = io.StringIO()
    print_why(made, shown)
    assert "unknown" in shown.getvalue()


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("stm.0.energy_pj", "stem.0.energy_pj"),
        ("stem.0.energie_pj", "stem.0.energy_pj"),
        ("stem.0", "stem.0.energy_pj"),
        ("@inferense.energy_pj", "@inference"),
        ("adc.latency_ns", "adc.energy_pj"),
        ("addc.energy_pj", "adc.energy_pj"),
    ],
)
def test_a_wrong_name_brings_the_nearest(compiled, path, suggestion):
    with pytest.raises(DiagnosticError) as failed:
        why(compiled, path)
    (item,) = failed.value.diagnostics
    assert item.code.id == "IMC801" and suggestion in item.suggestions


def test_why_in_the_terminal(artifact, capsys):
    assert main(["report", artifact, "--why", "stem.0.energy_pj"]) == 0
    shown = capsys.readouterr().out
    assert "adc.convert" in shown and "1.37 pJ per conversion" in shown
    assert "[1] regression over the Murmann ADC survey" in shown
    assert main(["report", artifact, "--why", "latency_ns", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["unit"] == "ns" and data["value"] == sum(item["value"] for item in data["terms"])


# -- ops and cuts ----------------------------------------------------------------------------------


def test_ops_add_up_to_their_layers(compiled):
    for entry, point in compiled.report()["entry_points"].items():
        energy, busy = {}, {}
        for item in op_entries(compiled, entry):
            busy[item.layer] = busy.get(item.layer, 0.0) + item.busy_ns
            energy[item.layer] = energy.get(item.layer, 0.0) + (item.energy_pj or 0.0)
        assert busy == pytest.approx({item["name"]: item["busy_ns"] for item in point["layers"]})
        assert energy == pytest.approx(
            {item["name"]: item["energy_pj"] or 0.0 for item in point["layers"]}
        )


def test_cuts_agree_with_the_report(compiled):
    report = compiled.report()
    point = report["entry_points"]["inference"]
    rows = {cut: make(compiled, "inference") for cut, make in CUTS.items()}
    assert [row["layer"] for row in rows["layer"]] == [item["name"] for item in point["layers"]]
    assert {row["component"] for row in rows["component"]} == set(point["components"])
    assert len(rows["tile"]) == point["resources"]["tiles"]
    assert sum(row["crossbars"] for row in rows["tile"]) == point["resources"]["crossbars"]
    assert [row["changes"] for row in rows["pass"]] == [
        item["changes"] for item in report["passes"]
    ]
    assert [row["start_ns"] for row in rows["op"]] == sorted(row["start_ns"] for row in rows["op"])
    for cut, made in rows.items():
        shown = io.StringIO()
        print_rows(f"By {cut}", made, shown)
        assert len(shown.getvalue().splitlines()) >= len(made) + 3


def test_cuts_in_the_terminal(artifact, capsys):
    assert main(["report", artifact, "--by", "tile"]) == 0
    assert "stem.0" in capsys.readouterr().out
    assert main(["report", artifact, "--by", "op", "--entry", "deploy", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["op"] for row in rows} == {"xbar.program"}
    assert main(["report", artifact, "--by", "op", "--entry", "deply"]) == 1
    assert "'deploy'" in capsys.readouterr().err
    assert main(["report", artifact, "--by", "op", "--why", "energy_pj"]) == 2


def test_a_target_without_hardware_has_no_tiles_and_unknown_costs(capsys):
    made = imcc.compile(nn.ReLU(), (torch.rand(1, 4),), target="reference")
    assert CUTS["tile"](made, "inference") == []
    (item,) = op_entries(made, "inference")
    assert item.energy_pj is None and item.start_ns is None and item.unknown
    assert [event["ph"] for event in trace_events(made)["traceEvents"]] == ["M"]


# -- trace -----------------------------------------------------------------------------------------


def test_the_trace_holds_the_schedule_in_microseconds(compiled):
    made = trace_events(compiled)
    assert made["displayTimeUnit"] == "ns" and "microseconds" in made["otherData"]["units"]
    slices = [event for event in made["traceEvents"] if event["ph"] == "X"]
    expected = [
        (f"{item.layer}: {item.op.name}", item.start_ns / 1000, item.busy_ns / 1000)
        for entry in ("inference", "deploy")
        for item in op_entries(compiled, entry)
        if item.busy_ns
    ]
    assert sorted((item["name"], item["ts"], item["dur"]) for item in slices) == sorted(expected)
    point = compiled.report()["entry_points"]["inference"]
    last = max(item["ts"] + item["dur"] for item in slices if item["pid"] == 1)
    assert last == pytest.approx(point["latency_ns"] / 1000)


def test_slices_of_one_thread_do_not_overlap(compiled):
    threads = {}
    for event in trace_events(compiled)["traceEvents"]:
        if event["ph"] == "X":
            threads.setdefault((event["pid"], event["tid"]), []).append(event)
    assert len(threads) > 3
    for held in threads.values():
        ends = [event["ts"] + event["dur"] for event in held]
        assert all(end <= later["ts"] + 1e-9 for end, later in zip(ends, held[1:], strict=False))


def test_power_times_time_is_energy(compiled):
    events = trace_events(compiled)["traceEvents"]
    counter = [event for event in events if event["ph"] == "C" and event["pid"] == 1]
    steps = itertools.pairwise(counter)
    # mW times us is nJ.
    energy = sum(one["args"]["mW"] * (two["ts"] - one["ts"]) * 1e3 for one, two in steps)
    point = compiled.report()["entry_points"]["inference"]
    assert energy == pytest.approx(point["energy_pj"] - point["leakage_pj"], rel=1e-6)
    assert counter[-1]["args"]["mW"] == pytest.approx(0.0, abs=1e-6)


def test_the_trace_file_is_written_once(artifact, compiled, tmp_path, capsys):
    path = tmp_path / "new" / "trace.json"
    assert main(["report", artifact, "--trace", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert path.read_text() == trace_text(compiled)
    assert main(["report", artifact, "--trace", str(path)]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["report", artifact, "--trace", str(path), "--force"]) == 0
    assert main(["report", artifact, "--trace", str(tmp_path)]) == 1
    assert list(path.parent.iterdir()) == [path]
