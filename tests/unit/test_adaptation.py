"""On-line adaptation of compiled programs: streams, storage, interruptions, what can go wrong."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import imcc
from imcc.backends.api import Wear, find_backend
from imcc.backends.targets import find_target
from imcc.cli.main import main
from imcc.driver.adapting import labelled_data
from imcc.driver.compiled import CompiledModel, load_artifact_model
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.runtime import artifact as artifacts
from imcc.runtime.adaptation import Adaptation, AdaptationOptions, verdict
from imcc.runtime.artifact import load_artifact
from imcc.runtime.executor import Device

CLASSES = 4
PASSES = 'insert-feedback{{rule="{rule}" learning_rate={rate}{more}}}, canonicalize, dead-code'


def samples(count, seed=0):
    """Points whose largest of the first coordinates is their class, as a new user turns them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    return x, (x[:, :CLASSES] + 0.5 * x[:, CLASSES:]).argmax(1)


@cache
def _compiled(rule, rate, more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    passes = PASSES.format(rule=rule, rate=rate, more=more)
    return imcc.compile(model, (torch.zeros(1, 8),), target="reference", passes=passes)


def compiled(rule="dfa", rate=0.1, more=""):
    made = _compiled(rule, rate, more)
    return CompiledModel(made.module, made.resources, made.target, made.signature, made.report_data)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapt") / "artifact"
    compiled().save(path)
    return path


@pytest.fixture
def artifact(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "artifact"))


def states(path):
    return load_artifact(path).adapted.states


@pytest.mark.parametrize("rule", ["dfa", "bp", "dfa-shared"])
@pytest.mark.parametrize("batch", [1, 8])
def test_adaptation_learns_from_a_stream(rule, batch):
    made = compiled(rule, rate=0.05 * batch**0.5)
    options = AdaptationOptions(batch=batch, passes=2, every=100)
    record = imcc.adapt(made, samples(300), evaluation=samples(200, seed=1), options=options)
    assert record.status == "finished" and record.samples == 600 - 600 % batch
    assert record.steps == record.samples // batch
    assert record.before < 0.45 and record.after > 0.7
    assert record.during[-1] == (600 // 100 * 100, record.after)
    outputs = made(samples(200, seed=1)[0])
    assert float((outputs.argmax(1) == samples(200, seed=1)[1]).double().mean()) == record.after


def test_what_adapts_is_kept_beside_the_initial_state(artifact):
    x, labels = samples(64)
    before = load_artifact_model(artifact)(x)
    weights = (artifact / "weights.safetensors").read_bytes()
    record = imcc.adapt(artifact, (x, labels), options=AdaptationOptions(batch=4))
    assert (artifact / "weights.safetensors").read_bytes() == weights
    after = imcc.load(artifact)(x)
    assert not torch.equal(before, after)
    assert torch.equal(imcc.load(artifact, initial=True)(x), before)
    assert imcc.load(artifact).adapted.record == record
    again = artifact.with_name("again")
    imcc.load(artifact).save(again)
    assert torch.equal(imcc.load(again)(x), after)


def test_a_zip_adapts_as_a_folder_does(artifact, tmp_path):
    data = samples(64)
    packed = tmp_path / "packed.zip"
    load_artifact_model(artifact).save(packed)
    for path in (artifact, packed):
        imcc.adapt(path, data)
    found = states(artifact)
    assert all(torch.equal(value, found[name]) for name, value in states(packed).items())


def test_only_chosen_layers_adapt():
    made = compiled(more=' layers=["2.*"]')
    imcc.adapt(made, samples(40))
    assert set(made.adapted.states) == {"2.weight", "2.bias"}


@pytest.mark.parametrize("stop", [7, 101])
def test_an_interrupted_run_goes_on_to_the_same_end(artifact, tmp_path, monkeypatch, stop):
    whole = Path(shutil.copytree(artifact, tmp_path / "whole"))
    data, held_out = samples(150), samples(50, seed=1)
    options = AdaptationOptions(batch=2, every=16, shuffled=True)
    wanted = imcc.adapt(whole, data, evaluation=held_out, options=options)
    learn, seen = Adaptation.step, []

    def interrupted(self, inputs, labels, first_sample=0):
        seen.append(first_sample)
        if first_sample >= stop:
            raise KeyboardInterrupt
        return learn(self, inputs, labels, first_sample)

    monkeypatch.setattr(Adaptation, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imcc.adapt(artifact, data, evaluation=held_out, options=options)
    monkeypatch.setattr(Adaptation, "step", learn)
    if stop > 16:
        held = load_artifact(artifact).adapted.record
        assert held.status == "running" and held.samples == stop // 16 * 16
        with pytest.raises(DiagnosticError, match=r"interrupted .* differs in batch"):
            imcc.adapt(artifact, data, options=replace(options, batch=1))
        with pytest.raises(DiagnosticError, match="differs in data"):
            imcc.adapt(artifact, samples(150, seed=5), options=options)
    record = imcc.adapt(artifact, data, evaluation=held_out, options=options)
    assert record == wanted
    for name, value in states(whole).items():
        assert torch.equal(value, states(artifact)[name])


@pytest.mark.parametrize("where", ["write_adapted", "_sha256", "replace"])
def test_an_interruption_in_the_middle_of_a_write_leaves_the_state_before(
    artifact, monkeypatch, where
):
    options = AdaptationOptions(every=16)
    data = samples(48)
    real = getattr(artifacts.os if where == "replace" else artifacts, where)
    second = {
        "write_adapted": lambda given: given[1].record.samples == 32,
        "_sha256": lambda given: given[0].name.startswith("adapted-32"),
        "replace": lambda given: (artifact / "adapted-32-running.safetensors").exists(),
    }[where]

    def fails(*given):
        if second(given):
            if where == "write_adapted":
                (artifact / "adapted-32-running.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patched:
        patched.setattr(artifacts.os if where == "replace" else artifacts, where, fails)
        with pytest.raises(KeyboardInterrupt):
            imcc.adapt(artifact, data, options=options)
    assert load_artifact(artifact).adapted.record.samples == 16
    record = imcc.adapt(artifact, data, options=options)
    assert record.status == "finished" and record.samples == 48
    assert len(list(artifact.glob("adapted-*.safetensors"))) == 1
    assert load_artifact(artifact).adapted.record.samples == 48


def test_an_adapted_artifact_asks_where_to_start(artifact):
    data = samples(40)
    with pytest.raises(DiagnosticError, match="no adapted state"):
        imcc.adapt(artifact, data, start="adapted")
    imcc.adapt(artifact, data)
    first = states(artifact)["0.weight"]
    with pytest.raises(DiagnosticError, match="adapted already"):
        imcc.adapt(artifact, data)
    imcc.adapt(artifact, data, start="initial")
    assert torch.equal(states(artifact)["0.weight"], first)
    for _ in range(3):
        imcc.adapt(artifact, data, start="adapted")
        following = states(artifact)["0.weight"]
        assert not torch.equal(following, first)
        first = following


def test_a_diverging_run_keeps_the_last_good_state(tmp_path):
    x, labels = samples(400)
    made = compiled("bp", rate=0.1)
    path = tmp_path / "artifact"
    made.save(path)
    # After 200 good samples the inputs grow a thousandfold.
    x[200:] *= 1000
    options = AdaptationOptions(every=50)
    record = imcc.adapt(path, (x, labels), options=options, evaluation=samples(200, seed=1))
    assert record.status == "diverged" and 200 < record.samples < 260
    assert 0 < record.good_samples <= 200
    assert record.after > record.before + 0.2
    wrong = verdict(record)
    assert wrong.code == codes.DIVERGED and "lowest loss was kept" in wrong.help
    good = compiled("bp", rate=0.1)
    imcc.adapt(good, (x, labels), options=AdaptationOptions(samples=record.good_samples - 1))
    for name, value in good.adapted.states.items():
        assert torch.equal(states(path)[name], value)


def test_an_update_that_is_not_finite_diverges():
    made = compiled("bp", rate=1e30)
    record = imcc.adapt(made, samples(64))
    assert record.status == "diverged"
    assert all(bool(torch.isfinite(value).all()) for value in made.adapted.states.values())


def test_a_stream_stops_by_its_own_accuracy_or_for_want_of_progress():
    made = compiled("bp", rate=0.1)
    options = AdaptationOptions(stop_accuracy=0.8, window=20, passes=10)
    record = imcc.adapt(made, samples(200), options=options)
    assert record.status == "stopped" and record.samples < 2000
    assert sum(right for _, right in record.recent) / 20 >= 0.8
    still = compiled("bp", rate=0.0)
    record = imcc.adapt(still, samples(200), options=AdaptationOptions(patience=60, passes=5))
    assert record.status == "stopped" and "no lower loss in" in record.reason


def test_worn_cells_end_the_run(monkeypatch):
    """On a device whose every cell is written by every update and endures ten writes."""
    learn, updates = Adaptation.step, []

    def step(self, *given):
        updates.append(given)
        return learn(self, *given)

    def wear(self):
        count = len(updates)
        return Wear(100, 100 * count, count, 100 * (count > 10))

    monkeypatch.setattr(Adaptation, "step", step)
    monkeypatch.setattr(Adaptation, "wear", wear)
    made = compiled()
    record = imcc.adapt(made, samples(200), options=AdaptationOptions(every=1))
    assert record.status == "worn" and record.samples == 11
    assert record.writes == {"cells": 100, "writes": 1100, "most": 11, "worn": 100}
    assert verdict(record).code == codes.WORN
    options = AdaptationOptions(every=1, worn=1.0)
    assert imcc.adapt(made, samples(50), options=options, start="initial").status == "finished"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y - 1), "sample .* has the label -1, the model has 4 outputs"),
        (lambda x, y: (x, y + 4), r"has the label [4-7], the model has 4 outputs"),
        (lambda x, y: (x, y.double()), "labels are torch.float64"),
        (lambda x, y: (x, y[:5]), r"expected int64 \[20\]"),
        (lambda x, y: (x.clone().fill_(float("nan")), y), "NaN or infinity"),
        (lambda x, y: (x[:0], y[:0]), "batch is empty"),
    ],
)
def test_samples_that_cannot_be_learned_from_are_refused(change, message):
    made = compiled()
    with pytest.raises(DiagnosticError, match=message):
        imcc.adapt(made, change(*samples(20)))
    assert made.adapted is None


def test_a_live_sample_that_is_not_finite_leaves_the_state():
    made = compiled()
    adaptation = Adaptation(made.executor, Device())
    x, labels = samples(2)
    adaptation.step([x[:1]], labels[:1])
    before = dict(adaptation.states)
    x[1, 3] = float("inf")
    with pytest.raises(DiagnosticError, match="NaN or infinity"):
        adaptation.step([x[1:]], labels[1:], 1)
    assert adaptation.states == before


def test_a_program_without_the_entry_point_is_refused():
    made = imcc.compile(nn.Linear(8, 4), (torch.zeros(1, 8),), target="reference")
    with pytest.raises(DiagnosticError, match="no entry point @adapt"):
        imcc.adapt(made, samples(4))


@pytest.mark.parametrize("options", [{"batch": 0}, {"every": -1}, {"divergence": 1.0}])
def test_options_without_meaning_are_refused(options):
    with pytest.raises(DiagnosticError, match="must be"):
        AdaptationOptions(**options)


def test_damaged_adapted_states_are_refused(artifact):
    imcc.adapt(artifact, samples(8))
    (name,) = [item.name for item in artifact.glob("adapted-*")]
    (artifact / name).write_bytes(b"no tensors")
    with pytest.raises(DiagnosticError, match="not what the manifest says"):
        load_artifact(artifact)


# -- crossbars ------------------------------------------------------------------------------------


@cache
def mapped(more=""):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    passes = find_backend("crossbar").pipeline(find_target("rram"))
    feedback = f'fold-batch-norm, insert-feedback{{rule="dfa" learning_rate=0.1{more}}},'
    return imcc.compile(
        model,
        (torch.zeros(1, 8),),
        target="rram",
        passes=passes.replace("fold-batch-norm,", feedback),
        calibration=samples(64)[0],
    )


def on_crossbars(overrides=()):
    made = mapped()
    target = find_target("rram", overrides)
    return CompiledModel(made.module, made.resources, target, made.signature, made.report_data)


def test_crossbars_adapt_and_say_what_it_cost():
    made = on_crossbars()
    options = AdaptationOptions(batch=8, passes=2, every=160)
    record = imcc.adapt(made, samples(160), evaluation=samples(80, seed=1), options=options)
    assert record.after > record.before + 0.3
    point = made.report_data["entry_points"]["adapt"]
    writes = record.writes["writes"]
    assumed = point["components"]["cell_write"]["energy_pj"]
    pulse_pj = made.target.keys.components.cell_write.energy_pj
    wanted = 320 * (point["energy_pj"] - assumed) + writes * pulse_pj
    assert writes > 0 and record.energy_pj == pytest.approx(wanted)
    assert record.latency_ns == pytest.approx(320 * point["latency_ns"])


def test_crossbars_go_on_where_they_were(tmp_path, monkeypatch):
    data, options = samples(64), AdaptationOptions(batch=4, every=16)
    whole, parts = tmp_path / "whole.zip", tmp_path / "parts"
    for path in (whole, parts):
        on_crossbars().save(path)
    wanted = imcc.adapt(whole, data, options=options)
    learn = Adaptation.step

    def interrupted(self, inputs, labels, first_sample=0):
        if first_sample >= 36:
            raise KeyboardInterrupt
        return learn(self, inputs, labels, first_sample)

    with monkeypatch.context() as patched:
        patched.setattr(Adaptation, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            imcc.adapt(parts, data, options=options)
    record = imcc.adapt(parts, data, options=options)
    assert (record.samples, record.writes, record.recent) == (64, wanted.writes, wanted.recent)
    x = samples(40, seed=1)[0]
    assert torch.equal(imcc.load(parts)(x), imcc.load(whole)(x))


def test_one_device_adapts_and_no_other():
    made = on_crossbars()
    imcc.adapt(made, samples(8), device=Device(seed=3, trial=2))
    x = samples(4)[0]
    assert (made.seed, made.trial) == (3, 2) and made(x).shape == (4, CLASSES)
    with pytest.raises(DiagnosticError, match="one device adapted"):
        made.executor.run([x], trials=(0,), seed=3)


def test_cells_that_endure_little_end_the_run():
    made = on_crossbars(["device.endurance_cycles=3"])
    record = imcc.adapt(made, samples(200), options=AdaptationOptions(every=1))
    assert record.status == "worn" and record.writes["most"] == 3
    assert record.samples < 100


# -- command line ---------------------------------------------------------------------------------

DATA = """
import torch

def adaptation_data():
    x = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))
    return x, (x[:, :4] + 0.5 * x[:, 4:]).argmax(1)

def evaluation_data():
    x = torch.randn(80, 8, generator=torch.Generator().manual_seed(1))
    return x, (x[:, :4] + 0.5 * x[:, 4:]).argmax(1)
"""


def test_the_command_adapts_prints_and_plots(artifact, tmp_path, capsys):
    data, plot = tmp_path / "wearer.py", tmp_path / "curve.svg"
    data.write_text(DATA)
    given = ["adapt", str(artifact), "--data", str(data), "--passes", "2"]
    assert main([*given, "--plot", str(plot)]) == 0
    shown = capsys.readouterr().out
    assert "finished: 240 samples" in shown and "held-out accuracy after" in shown
    assert plot.read_text().startswith("<svg") and "polyline" in plot.read_text()
    assert main(given) == 1
    assert "adapted already" in capsys.readouterr().err
    assert main([*given, "--start", "initial", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["after"] > record["before"] and record["energy_pj"] is None
    assert record["running"][-1][0] == 224


def test_the_command_takes_arrays(artifact, tmp_path, capsys):
    x, labels = samples(30)
    file, short = tmp_path / "samples.npz", tmp_path / "short.npz"
    np.savez(file, input=x.numpy(), labels=labels.numpy().astype(np.uint8))
    np.savez(short, input=x.numpy())
    given = ["adapt", str(artifact), "--data", str(file), "--json"]
    assert main([*given, "--evaluation", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["before"] is not None
    with pytest.raises(DiagnosticError, match="no array 'labels'"):
        labelled_data(short, ["input"])


def test_the_command_says_that_a_run_diverged(tmp_path, capsys):
    path, data = tmp_path / "artifact", tmp_path / "wearer.py"
    compiled("bp", rate=1e30).save(path)
    data.write_text(DATA)
    assert main(["adapt", str(path), "--data", str(data)]) == 1
    assert "IMC706" in capsys.readouterr().err
