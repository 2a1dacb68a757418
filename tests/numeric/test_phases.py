"""Stop and resume: the dump of each phase goes on to the numbers of the whole compilation."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import imcc
from imcc.cli.main import main
from imcc.driver.data import calibration_batches, evaluation_set
from imcc.frontend.model_file import load_model_file
from imcc.ir import codes, parse_module, print_module, verify
from imcc.ir.diagnostics import DiagnosticError
from imcc.testing.mlir import check_export

DIGITS = str(Path(__file__).parents[2] / "examples" / "digits_cnn" / "model.py")
SEED, TRIALS = 7, 2
EMPTY = '// imc 1\nmodule @m phase("captured") {\n}\n'
PHASES = {
    "reference": ("captured", "optimized"),
    "rram": ("captured", "optimized", "mapped", "placed", "scheduled"),
}
CASES = [(target, phase) for target, phases in PHASES.items() for phase in phases]


class Whole:
    """An uninterrupted compilation, with its dumps and noisy outputs."""

    def __init__(self, target, folder):
        held = load_model_file(DIGITS)
        inputs, labels = evaluation_set(held.evaluation_data())
        self.arguments = {
            "model": held.module,
            "example_inputs": held.example_inputs,
            "target": target,
            "calibration": [(calibration_batches(held.calibration_data())[0][0][:24],)],
            "evaluation": ((inputs[0][:16],), labels[:16]),
            "metric": held.metric,
            "trials": TRIALS,
            "sweep": False,
            "seed": SEED,
            "name": "digits",
        }
        self.folder, self.x = folder, inputs[0][30:38]
        self.compiled = imcc.compile(**self.arguments, dump_phases=folder, check=True)
        self.outputs = self.compiled(self.x)
        self.report = self.compiled.report()

    def check(self, compiled):
        """The same outputs and costs, bit for bit."""
        compiled.reset()
        assert torch.equal(compiled(self.x), self.outputs)
        report = compiled.report()
        for key in ("energy_pj", "latency_ns", "area_um2", "resources", "entry_points"):
            assert report[key] == self.report[key], key


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    made = {}
    for target in PHASES:
        made[target] = Whole(target, tmp_path_factory.mktemp("phases") / target)
    return made


@pytest.fixture
def copied(wholes, tmp_path):
    shutil.copytree(wholes["rram"].folder, tmp_path / "dumps")
    return tmp_path / "dumps"


@pytest.mark.parametrize("target", PHASES)
def test_one_file_for_each_phase(wholes, target):
    names = {path.name for path in wholes[target].folder.iterdir()}
    assert {f"{phase}.imc" for phase in PHASES[target]} == {n for n in names if ".imc" in n}
    weights = {"captured.safetensors"}
    if target == "rram":
        # Later phases change no weights: they name the file of the phase before.
        weights |= {"optimized.safetensors", "calibration.safetensors"}
    assert {name for name in names if name.endswith(".safetensors")} == weights
    settings = json.loads((wholes[target].folder / "phases.json").read_text())
    assert settings["seed"] == SEED and settings["target"] == target


@pytest.mark.parametrize(("target", "phase"), CASES)
def test_every_dump_parses_and_verifies(wholes, target, phase):
    text = (wholes[target].folder / f"{phase}.imc").read_text()
    module = parse_module(text)
    verify(module)
    assert module.phase == phase and print_module(module) == text


@pytest.mark.parametrize(("target", "phase"), CASES)
def test_resuming_gives_the_same_numbers(wholes, target, phase):
    made = imcc.resume(wholes[target].folder / f"{phase}.imc")
    assert made.module.phase == PHASES[target][-1] and made.seed == SEED
    wholes[target].check(made)


@pytest.mark.parametrize(("target", "phase"), CASES)
def test_every_dump_runs_as_it_stands(wholes, target, phase):
    """From ``mapped`` on a dump draws the same noise; before it computes without hardware."""
    whole = wholes[target]
    made = imcc.load(whole.folder / f"{phase}.imc", costs=False)
    assert made.module.phase == phase
    outputs = made(whole.x)
    if phase in PHASES[target][2:] or target == "reference":
        assert torch.equal(outputs, whole.outputs)
    if phase == "captured":
        with torch.no_grad():
            own = whole.arguments["model"].eval()(whole.x)
        assert torch.allclose(outputs, own, atol=1e-5)
    if phase == "optimized" and target == "rram":
        gap = (outputs - whole.compiled.executor.run([whole.x], noisy=False)[0][0]).abs().max()
        assert gap < 0.2 * outputs.abs().max()


@pytest.mark.parametrize(("target", "phase"), CASES)
def test_every_dump_is_costed(wholes, target, phase):
    report = imcc.load(wholes[target].folder / f"{phase}.imc").report()
    assert report["phase"] == phase
    assert report["entry_points"] == wholes[target].report["entry_points"]


@pytest.mark.parametrize("phase", PHASES["rram"])
def test_from_a_phase_with_the_model(wholes, copied, phase):
    """With the model's data the accuracy comes out the same too."""
    whole = wholes["rram"]
    made = imcc.compile(**whole.arguments, dump_phases=copied, start=phase, check=True)
    whole.check(made)
    accuracy = made.report()["accuracy"]
    passes, expected = accuracy.pop("passes"), dict(whole.report["accuracy"])
    everything = expected.pop("passes")
    assert passes == everything[len(everything) - len(passes) :]
    assert accuracy == expected
    again = sorted(path.name for path in copied.iterdir())
    assert again == sorted(path.name for path in whole.folder.iterdir())
    for name in again:
        if name.endswith(".imc"):
            assert (copied / name).read_bytes() == (whole.folder / name).read_bytes(), name


@pytest.mark.parametrize("phase", PHASES["rram"])
def test_to_a_phase(wholes, tmp_path, phase):
    whole = wholes["rram"]
    arguments = {**whole.arguments, "trials": 0, "evaluation": None}
    made = imcc.compile(**arguments, to=phase, dump_phases=tmp_path / "dumps")
    assert made.module.phase == phase
    reached = PHASES["rram"][: PHASES["rram"].index(phase) + 1]
    dumped = {path.stem for path in (tmp_path / "dumps").glob("*.imc")}
    assert dumped == set(reached)
    assert made.report()["entry_points"] == whole.report["entry_points"]
    for name in dumped:
        text = (tmp_path / "dumps" / f"{name}.imc").read_text()
        assert text == (whole.folder / f"{name}.imc").read_text()


def test_command_line(wholes, copied, tmp_path, capsys):
    whole = wholes["rram"]
    np.savez(tmp_path / "x.npz", x=whole.x.numpy())
    trials = whole.compiled.executor.run([whole.x], trials=range(2), seed=SEED)[0]
    for phase in ("mapped", "placed", "scheduled"):
        file, out = str(copied / f"{phase}.imc"), str(tmp_path / f"{phase}.npz")
        command = ["run", file, "--data", str(tmp_path / "x.npz"), "-o", out]
        assert main([*command, "--trials", "2", "--seed", str(SEED)]) == 0
        with np.load(out) as held:
            assert torch.equal(torch.from_numpy(held["output0"]), trials)
    capsys.readouterr()
    for phase in PHASES["rram"]:
        assert main(["report", str(copied / f"{phase}.imc"), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["entry_points"] == whole.report["entry_points"]
    artifact = tmp_path / "artifact"
    assert main(["compile", str(copied / "mapped.imc"), "-o", str(artifact)]) == 0
    whole.check(imcc.load(artifact))
    capsys.readouterr()
    assert main(["compile", str(copied / "mapped.imc"), "--trials", "3"]) == 1
    assert "needs the model file" in capsys.readouterr().err


def test_editing_a_dump_changes_what_comes_out(wholes, copied):
    """A layer's converters made coarser by hand: other outputs, from the same folder."""
    file = copied / "mapped.imc"
    before = parse_module(file.read_text())
    steps = [op.adc_step for op in before.walk() if op.name == "xbar.mvm"]
    text = file.read_text().replace(f"adc_step = {steps[0]!r}", "adc_step = 9.0")
    file.write_text(text)
    made = imcc.resume(file, dump_phases=copied)
    assert not torch.equal(made(wholes["rram"].x), wholes["rram"].outputs)
    assert "adc_step = 9.0" in (copied / "scheduled.imc").read_text()
    assert file.read_text() == text


# -- refused ---------------------------------------------------------------------------------------


def refusal(call):
    with pytest.raises(DiagnosticError) as raised:
        call()
    return raised.value.diagnostics[0]


def test_calibration_data_is_needed_only_by_passes_that_are_left(wholes, copied):
    (copied / "calibration.safetensors").unlink()
    wholes["rram"].check(imcc.resume(copied / "mapped.imc"))
    for phase in ("captured", "optimized"):
        found = refusal(lambda phase=phase: imcc.resume(copied / f"{phase}.imc"))
        assert found.code is codes.PASS_REQUIRES and "calibration" in found.message
    calibration = wholes["rram"].arguments["calibration"]
    wholes["rram"].check(imcc.resume(copied / "captured.imc", calibration=calibration))


def test_another_target(copied):
    found = refusal(lambda: imcc.resume(copied / "mapped.imc", overrides=["adc.bits=6"]))
    assert found.code is codes.PASS_REQUIRES and "mapped for the target 'rram'" in found.message
    made = imcc.resume(copied / "optimized.imc", overrides=["adc.bits=6"])
    assert "adc_bits = 6" in print_module(made.module)


def test_folders_of_others_are_left_alone(wholes, copied, tmp_path):
    arguments = {**wholes["rram"].arguments, "evaluation": None, "trials": 0}
    (copied / "mine.txt").write_text("keep")
    found = refusal(lambda: imcc.compile(**arguments, dump_phases=copied))
    assert found.code is codes.OUTPUT and "mine.txt" in found.message
    assert (copied / "captured.imc").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "rram.toml").write_text("keep")
    refusal(lambda: imcc.compile(**arguments, dump_phases=tmp_path / "other"))
    assert (tmp_path / "other" / "rram.toml").read_text() == "keep"


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("phases.json", "{}", "format_version"),
        ("phases.json", "[", "phases.json cannot be read"),
        ("phases.json", None, "does not say which target"),
        ("mapped.imc", None, "No such file"),
        ("mapped.imc", EMPTY, "no entry point @inference"),
        ("optimized.safetensors", "broken", "cannot be read as safetensors"),
    ],
)
def test_broken_folders(copied, name, text, shown):
    if text is None:
        (copied / name).unlink()
    else:
        (copied / name).write_text(text)
    found = refusal(lambda: imcc.resume(copied / "mapped.imc"))
    assert shown in found.render() and found.help


def test_phases_that_do_not_exist(wholes, copied, capsys):
    arguments = {**wholes["reference"].arguments, "evaluation": None, "trials": 0}
    assert "'mapped'" in refusal(lambda: imcc.compile(**arguments, to="mapped")).message
    found = refusal(lambda: imcc.compile(**arguments, start="maped", dump_phases=copied))
    assert found.suggestions[0] == "mapped"
    assert "--dump-phases" in refusal(lambda: imcc.compile(**arguments, start="mapped")).help


# -- what passes cost, and the door to MLIR --------------------------------------------------------


def test_check_reports_each_approximate_pass(wholes, capsys):
    steps = wholes["rram"].report["accuracy"]["passes"]
    assert [item["pass"] for item in steps] == [
        "calibrate-activations",
        "quantize-weights",
        "quantize-learning",
        "integer-arithmetic",
        "calibrate-adc",
    ]
    accuracy = wholes["rram"].report["accuracy"]
    assert steps[0]["before"] == accuracy["float"] and steps[-1]["after"] == accuracy["noise_free"]
    for item in steps:
        assert item["change"] == item["after"] - item["before"]
        assert item["promise"].startswith("approximate")


def test_check_sees_a_pass_that_costs_accuracy(wholes, capsys):
    """2-bit weights, tensor-wise, ruin the digits network; the table says which pass did it."""
    arguments = dict(wholes["rram"].arguments)
    arguments |= {"target": "reference", "trials": 0}
    text = 'calibrate-activations, quantize-weights{bits=2 granularity="tensor"}'
    made = imcc.compile(**arguments, passes=text, check=True)
    first, second = made.report()["accuracy"]["passes"]
    assert first["change"] == 0.0 and second["change"] < -0.1


@pytest.mark.skipif(
    find_spec("xdsl") is None, reason="xdsl is not installed: pip install 'imcc[mlir]'"
)
@pytest.mark.parametrize(("target", "phase"), CASES)
def test_every_phase_goes_through_the_door_to_mlir(wholes, target, phase):
    check_export(parse_module((wholes[target].folder / f"{phase}.imc").read_text()))
