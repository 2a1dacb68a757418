"""The digits example from its file to an artifact: accuracy, seeds, saving, batching."""

from pathlib import Path

import pytest
import torch

import imcc
from imcc.driver import CompileOptions, compile_file
from imcc.driver.data import evaluation_set
from imcc.frontend.model_file import load_model_file
from imcc.runtime import executor as executor_module
from imcc.runtime.executor import Executor
from imcc.runtime.trials import run_trials

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "digits_cnn" / "model.py")
TRIALS = 3


@pytest.fixture(scope="module")
def compiled():
    return compile_file(EXAMPLE, CompileOptions(trials=TRIALS, seed=7, sweep=False))


@pytest.fixture(scope="module")
def images():
    inputs, _ = evaluation_set(load_model_file(EXAMPLE).evaluation_data())
    return inputs[0][:24]


def test_accuracy(compiled):
    accuracy = compiled.report()["accuracy"]
    assert accuracy["metric"] == "metric" and accuracy["samples"] == 360
    assert accuracy["float"] >= 0.98
    assert abs(accuracy["noise_free"] - accuracy["float"]) <= 0.005
    noisy = accuracy["noisy"]
    assert len(noisy["per_trial"]) == TRIALS
    low, high = noisy["ci95"]
    assert low <= noisy["mean"] <= high
    assert noisy["mean"] > 0.9


def test_the_float_value_is_the_model_s_own(compiled):
    held = load_model_file(EXAMPLE)
    inputs, labels = evaluation_set(held.evaluation_data())
    with torch.no_grad():
        own = float(held.metric(held.module.eval()(*inputs), labels))
    assert compiled.report()["accuracy"]["float"] == own


def test_saved_program_gives_the_same_bits(compiled, images, tmp_path):
    for name in ("out", "out.zip"):
        compiled.save(tmp_path / name)
        loaded = imcc.load(tmp_path / name)
        assert loaded.seed == 7
        compiled.reset()
        assert torch.equal(loaded(images), compiled(images))


def test_reported_trials_can_be_repeated(compiled, tmp_path):
    compiled.save(tmp_path / "out")
    held = load_model_file(EXAMPLE)
    inputs, labels = evaluation_set(held.evaluation_data())
    again = run_trials(
        imcc.load(tmp_path / "out").executor,
        list(inputs),
        labels,
        held.metric,
        trials=TRIALS,
        seed=7,
    )
    assert list(again.per_trial) == compiled.report()["accuracy"]["noisy"]["per_trial"]


@pytest.mark.parametrize("rows", [1, 7, 48])
def test_numbers_do_not_depend_on_chunks(compiled, images, monkeypatch, rows):
    def run():
        made = Executor(
            compiled.module, compiled.resources, compiled.target, compiled.executor.backend
        )
        return made.run([images[:6]], trials=range(TRIALS), seed=1)[0]

    whole = run()
    monkeypatch.setattr(executor_module, "MAX_FOLDED", rows)
    assert torch.equal(run(), whole)


def test_seeds_and_trials_differ_and_noise_off_draws_nothing(compiled, images):
    run = compiled.executor.run
    first = run([images], trials=(0, 1), seed=1)[0]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(run([images], trials=(0,), seed=2)[0][0], first[0])
    ideal = run([images], seed=1, noisy=False)[0]
    assert torch.equal(run([images], seed=2, noisy=False)[0], ideal)
