"""A small model through Python and the command line: artifacts, corruption, seeds, exit codes."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import imcc
from imcc.cli.main import main
from imcc.ir.diagnostics import DiagnosticError
from imcc.runtime.executor import Executor

MODEL = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3))

def example_inputs():
    return (torch.zeros(1, 20),)

def calibration_data():
    return [(torch.rand(32, 20, generator=torch.Generator().manual_seed(1)),)]

def evaluation_data():
    generator = torch.Generator().manual_seed(2)
    inputs = torch.rand(30, 20, generator=generator)
    return inputs, model()(inputs).argmax(-1)

def metric(outputs, targets):
    return (outputs.argmax(-1) == targets).double().mean()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    (path / "model.py").write_text(MODEL)
    status = main(["compile", str(path / "model.py"), "-o", str(path / "out"), "--trials", "3"])
    assert status == 0
    return path


@pytest.fixture
def artifact(folder, tmp_path):
    import shutil

    return shutil.copytree(folder / "out", tmp_path / "out")


def test_outputs_survive_saving_bit_for_bit(artifact, tmp_path):
    first = imcc.load(artifact)
    x = torch.rand(7, 20)
    wanted = first(x)
    first.save(tmp_path / "again")
    second = imcc.load(tmp_path / "again")
    assert torch.equal(second(x), wanted)
    assert not torch.equal(second(x), wanted), "the next call reads fresh noise"
    second.reset()
    assert torch.equal(second(x), wanted)


def test_numbers_do_not_depend_on_batching_or_trials(artifact):
    held = imcc.load(artifact)
    executor: Executor = held.executor
    x = torch.rand(9, 20)
    (whole,) = executor.run([x], trials=(0, 1, 2), seed=5)
    for trial in range(3):
        (left,) = executor.run([x[:4]], trials=(trial,), seed=5)
        (right,) = executor.run([x[4:]], trials=(trial,), seed=5, first_sample=4)
        assert torch.equal(torch.cat([left, right], dim=1)[0], whole[trial])
    (other,) = executor.run([x], trials=(0,), seed=6)
    assert not torch.equal(other[0], whole[0])


def test_report_has_the_documented_keys(artifact):
    report = json.loads((artifact / "report.json").read_text())
    assert report["schema_version"] == 1
    point = report["entry_points"]["inference"]
    for key in ("energy_pj", "latency_ns", "area_um2", "resources"):
        assert report[key] == point[key]
    assert set(report["entry_points"]) == {"inference", "deploy"}
    layers = sum(layer["energy_pj"] for layer in point["layers"])
    assert layers + point["leakage_pj"] == pytest.approx(point["energy_pj"])
    components = sum(data["energy_pj"] or 0.0 for data in point["components"].values())
    assert components + point["leakage_pj"] == pytest.approx(point["energy_pj"])
    accuracy = report["accuracy"]
    assert accuracy["noisy"]["trials"] == 3 and len(accuracy["noisy"]["per_trial"]) == 3
    assert accuracy["write_noise_sweep"][0]["sigma_fraction"] == 0.0


def test_run_reproduces_the_report(folder, capsys):
    report = json.loads((folder / "out" / "report.json").read_text())
    arguments = ["run", str(folder / "out"), "--model", str(folder / "model.py"), "--trials", "3"]
    assert main([*arguments, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["per_trial"] == report["accuracy"]["noisy"]["per_trial"]


USAGES = [
    (["nonsense"], 2, "IMC801"),
    (["compile"], 2, "IMC801"),
    (["compile", "no.py", "--trials", "-1"], 2, "IMC801"),
    (["compile", "no.py"], 1, "IMC301"),
    (["opt", "no.imc"], 1, "IMC801"),
    (["ops", "nn.cnv"], 1, "nn.conv"),
    (["passes", "dead-cod"], 1, "dead-code"),
    (["targets", "rramm"], 1, "rram"),
    (["targets", "rram", "--set", "adc.bitz=6"], 1, "bits"),
    (["targets", "rram", "--set", "adc.bits=0"], 1, "IMC502"),
    (["explain", "IMC999"], 1, "IMC801"),
    (["run", "nowhere", "--model", "x.py"], 1, "IMC601"),
    (["run", "nowhere"], 2, "--model"),
]


@pytest.mark.parametrize("arguments,status,found", USAGES, ids=lambda value: str(value)[:40])
def test_wrong_command_lines(arguments, status, found, capsys):
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert found in captured.err and captured.out == ""


@pytest.mark.parametrize("command", ["ops", "passes", "targets", "explain"])
def test_listings_are_json_too(command, capsys):
    assert main([command]) == 0
    assert capsys.readouterr().out.strip()
    assert main([command, "--json"]) == 0
    items = json.loads(capsys.readouterr().out)
    name = items[0].get("name", items[0].get("code"))
    assert main([command, name]) == 0
    assert main([command, name, "--json"]) == 0


def test_light_commands_load_nothing_heavy(tmp_path):
    text = tmp_path / "m.imc"
    text.write_text(
        '// imc 1\nmodule @m phase("captured") {\n'
        "  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx4xf32> {\n"
        "    %y = nn.relu %x : tensor<Bx4xf32>\n    core.return %x\n  }\n}\n"
    )
    probe = (
        "import sys, imcc.ir\n"
        "from imcc.cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "assert main(['ops']) == 0\n"
        f"assert main(['opt', {str(text)!r}, '--passes', 'canonicalize, dead-code']) == 0\n"
        "heavy = [n for n in ('torch', 'numpy', 'networkx') if n in sys.modules]\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True)


def test_missing_calibration_says_what_to_write(tmp_path, capsys):
    (tmp_path / "m.py").write_text(MODEL.replace("def calibration_data", "def other"))
    assert main(["compile", str(tmp_path / "m.py")]) == 1
    assert "def calibration_data():" in capsys.readouterr().err
    with pytest.raises(DiagnosticError, match="calibration"):
        imcc.compile(nn.Linear(4, 2), torch.zeros(1, 4))


def test_reference_target_is_the_model():
    model = nn.Sequential(nn.Linear(8, 4), nn.Tanh())
    made = imcc.compile(model, torch.zeros(1, 8), target="reference")
    x = torch.rand(5, 8)
    assert torch.equal(made(x), model(x))
    assert made.report()["entry_points"]["inference"]["unknown"], "no cost is claimed"


def test_two_inputs_and_structured_outputs(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x, y):
            z = self.fc(x) + y
            return {"sum": z, "parts": (torch.relu(z), 7)}

    net = Net()
    x, y = torch.rand(5, 6), torch.rand(5, 3)
    made = imcc.compile(net, (x[:1], y[:1]), calibration=[(x, y)])
    made.noisy = False
    wanted, found = net(x, y), made(x, y)
    assert torch.allclose(found["sum"], wanted["sum"], atol=0.05)
    assert found["parts"][1] == 7
    made.save(tmp_path / "net")
    again = imcc.load(tmp_path / "net")
    again.noisy = False
    assert torch.equal(again(x, y)["parts"][0], found["parts"][0])
    with pytest.raises(DiagnosticError, match="IMC702"):
        made(x)
    with pytest.raises(DiagnosticError, match="IMC702"):
        made(x[:, :4], y)


def test_values_that_cannot_be_run_are_refused(artifact):
    made = imcc.load(artifact)
    with pytest.raises(DiagnosticError, match="NaN"):
        made(torch.full((2, 20), float("nan")))
    with pytest.raises(DiagnosticError, match="inputs are tensors"):
        made("a")
    with pytest.raises(DiagnosticError, match="not a torch"):
        imcc.compile(None, torch.zeros(1, 2))


def test_other_precisions_are_refused_at_the_user_s_layer():
    model = nn.Sequential(nn.Linear(4, 2)).double()
    data = torch.rand(8, 4, dtype=torch.float64)
    with pytest.raises(DiagnosticError, match=r"\.float\(\)"):
        imcc.compile(model, data[:1], calibration=[(data,)])


def test_output_without_a_batch_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x), self.fc.weight

    data = torch.rand(8, 4)
    made = imcc.compile(Net(), data[:1], calibration=[(data,)])
    with pytest.raises(DiagnosticError, match="no batch axis"):
        made(data)


def _reseal(path):
    import hashlib

    data = json.loads((path / "manifest.json").read_text())
    for name in data["files"]:
        held = (path / name).read_bytes()
        data["files"][name] = {"sha256": hashlib.sha256(held).hexdigest(), "bytes": len(held)}
    (path / "manifest.json").write_text(json.dumps(data))


@pytest.mark.parametrize("report", ['{"a": 1}', "{}", '{"targets": [], "warnings": 3}'])
def test_tampered_report_is_refused(artifact, report, capsys):
    (artifact / "report.json").write_text(report)
    _reseal(artifact)
    assert main(["report", str(artifact)]) == 1
    assert "IMC601" in capsys.readouterr().err


def test_run_on_a_data_file(artifact, tmp_path, capsys):
    import numpy as np

    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((5, 20), dtype=np.float32))
    out = str(tmp_path / "y.npz")
    arguments = ["run", str(artifact), "--data", str(tmp_path / "x.npz"), "-o", out]
    assert main([*arguments, "--trials", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shapes"] == [[2, 5, 3]]
    assert np.load(out)["output0"].shape == (2, 5, 3)
    assert main(arguments) == 1
    (tmp_path / "x.npz").write_bytes(b"garbage")
    assert main([*arguments, "--force"]) == 1
    np.savez(tmp_path / "x.npz", x=np.zeros((5, 20)))
    assert main([*arguments, "--force"]) == 1
    assert "float32" in capsys.readouterr().err
