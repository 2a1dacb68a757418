"""The outside package, installed by pip into an empty folder: everything it adds works."""

import json
import shutil

import pytest

from tests.plugin.fresh import MODEL, PACKAGE, call, run

LAYERED = MODEL.replace(
    "def model", "from imcc_example.layers import Hardshrink\n\ndef model"
).replace("nn.ReLU()", "nn.ReLU(), Hardshrink(0.2)")
NOISE = 'device.write_noise={model="lognormal_write", sigma_log=0.1}'
THROUGH_PASSES = (
    "clip-activations{limit=3.0}, calibrate-activations, quantize-weights, integer-arithmetic, "
    "dead-code, schedule-nearmem"
)
PYTHON = """
import imcc, sys, torch
from imcc_example.layers import Hardshrink
from torch import nn

torch.manual_seed(0)
network = nn.Sequential(nn.Linear(8, 16), Hardshrink(0.1), nn.Linear(16, 3)).eval()
x = torch.rand(64, 8)
settings = {"calibration": [(x,)], "overrides": [
    'device.write_noise={model="lognormal_write", sigma_log=0.0}',
    "device.read_noise.sigma_fraction=0"]}
ideal = imcc.compile(network, (x[:1],), target="fine_adc", **settings)
settings["overrides"][0] = settings["overrides"][0].replace("0.0", "0.05")
noisy = imcc.compile(network, (x[:1],), target="fine_adc", **settings)
want = network(x)
assert (ideal(x) - want).abs().max() < 0.03 * want.abs().max(), "8-bit codes"
assert not torch.equal(noisy(x), ideal(x))
assert "extra.hardshrink" in repr(noisy.module)

import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    copy = shutil.copytree(PACKAGE, tmp_path_factory.mktemp("source") / "package")
    site = tmp_path_factory.mktemp("site")
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    made = run(site, [*pip, "--target", str(site), str(copy)], copy)
    assert made.returncode == 0, made.stderr
    return site


def test_command_line(site, tmp_path):
    (tmp_path / "model.py").write_text(LAYERED)
    (tmp_path / "plain.py").write_text(MODEL)
    compile_lanes = ["compile", "plain.py", "--target", "lanes64", "--passes", THROUGH_PASSES]
    done = {
        "targets": ["targets"],
        "passes": ["passes"],
        "ops": ["ops"],
        "target": ["targets", "fine_adc", "--set", NOISE],
        "report": ["compile", "model.py", "--target", "fine_adc", "--set", NOISE, "-o", "out",
                   "--json"],
        "again": ["report", "out", "--json"],
        "program": ["opt", "out/program.imc", "--target", "fine_adc"],
        "lanes": [*compile_lanes, "--json"],
    }  # fmt: skip
    refused = {
        "op": ["compile", "model.py", "--target", "lanes64"],
        "key": ["targets", "lanes64", "--set", "lanes.count=0"],
    }
    said = call(site, [*done.values(), *refused.values()], tmp_path)
    made = dict(zip([*done, *refused], said, strict=True))
    for name in done:
        assert made[name][0] == 0, made[name][2]
    assert "[nearmem]" in made["targets"][1] and "fine_adc" in made["targets"][1]
    assert "clip-activations" in made["passes"][1] and "schedule-nearmem" in made["passes"][1]
    assert "extra.hardshrink" in made["ops"][1] and "extra.hardshrink" in made["program"][1]
    target = made["target"][1]
    assert 'model = "lognormal_write"' in target and "verify" not in target

    report = json.loads(made["report"][1])
    assert report == json.loads(made["again"][1])
    layers = {item["name"]: item for item in report["entry_points"]["inference"]["layers"]}
    assert layers["2"]["ops"] == ["extra.hardshrink"]
    # Two comparisons for each of 16 elements, on 64 lanes at 1 GHz.
    assert layers["2"]["events"]["alu_add.add"] == 32 and layers["2"]["busy_ns"] == 1

    report = json.loads(made["lanes"][1])
    assert report["targets"][0]["backend"] == "nearmem"
    # 8 x 16 + 16 x 3 products for one inference.
    components = report["entry_points"]["inference"]["components"]
    assert components["mac"]["events"] == {"mac.step": 176}
    assert components["mac"]["energy_pj"] == pytest.approx(176 * 0.3)

    assert made["op"][0] == made["key"][0] == 1
    assert "IMC503" in made["op"][2] and "no rule for extra.hardshrink" in made["op"][2]
    assert "key lanes.count" in made["key"][2]


def test_python_and_its_own_tests(site, tmp_path):
    tests = [str(PACKAGE / "tests"), "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    made = run(site, ["-c", PYTHON, "-q", "-c", "/dev/null", *tests], tmp_path)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]


def test_a_plugin_that_is_broken_does_not_break_the_rest(site, tmp_path):
    broken = shutil.copytree(site, tmp_path / "site")
    for name in ("dialect.py", "noise.py", "nearmem/__init__.py", "passes/clip_activations.py"):
        (broken / "imcc_example" / name).write_text("raise ZeroDivisionError('broken')\n")
    (broken / "imcc_example" / "layers.py").write_text("import missing_package\n")
    (tmp_path / "model.py").write_text(MODEL)
    faults = {
        ("ops", "extra.hardshrink"): "IMC802",
        ("ops",): "IMC802",
        ("passes", "clip-activations"): "IMC802",
        ("passes",): "IMC802",
        ("targets", "rram", "--set", "device.write_noise.model=lognormal_write"): "IMC802",
        ("compile", "model.py"): "IMC802",
        ("targets", "lanes64"): "IMC501",
        ("passes", "dead-code"): None,
        ("ops", "nn.relu"): None,
        ("targets", "rram"): None,
        ("targets",): None,
    }
    said = call(broken, list(faults), tmp_path)
    for (arguments, code), (status, _, err) in zip(faults.items(), said, strict=True):
        assert status == (0 if code is None else 1), (arguments, err)
        assert code is None or f"error[{code}]" in err, (arguments, err)
