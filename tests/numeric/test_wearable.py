"""The wearable example: capture equals snnTorch, wearers are apart, a new one is learned."""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

import imcc
from imcc.ir.dialects import snn
from imcc.runtime.adaptation import AdaptationOptions

pytest.importorskip("snntorch", reason="snntorch is not installed: pip install 'imcc[spiking]'")

EXAMPLE = Path(__file__).parents[2] / "examples" / "wearable"
PASSES = (
    "fold-batch-norm, "
    'insert-feedback{rule="bp" learning_rate=0.0007 layers=["classifier.*"]}, '
    "canonicalize, dead-code"
)


@pytest.fixture(scope="module")
def watch():
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield importlib.import_module("watch")
    finally:
        sys.path.remove(str(EXAMPLE))


@pytest.fixture(scope="module")
def compiled(watch):
    return imcc.compile(watch.model(), watch.example_inputs(), "reference", passes=PASSES)


def test_the_time_axis_of_the_sensor_is_that_of_the_neurons(watch, compiled):
    neurons = [
        op for op in compiled.module.function().ops if isinstance(op, snn.LeakyIntegrateAndFire)
    ]
    assert [str(op.x.type.shape[0]) for op in neurons] == ["129", "66", "35"]
    x = watch.test_windows(9).x[:16]
    with torch.no_grad():
        assert torch.equal(compiled.executor.run([x])[0][0].argmax(1), watch.model()(x).argmax(1))


def test_wearers_and_windows_are_apart(watch):
    known = set(watch.training_windows().subject.tolist())
    assert len(known) == 7 and not known & set(watch.NEW_WEARERS)
    for wearer in watch.NEW_WEARERS:
        learned, test = watch.adaptation_windows(wearer), watch.test_windows(wearer)
        assert len(learned) <= 200 and set(test.subject.tolist()) == {wearer}
        for number in test.recording.unique():
            last = learned.start[learned.recording == number].max()
            assert last + 128 <= test.start[test.recording == number].min()


def test_a_new_wearer_is_learned_from_labelled_windows(watch, compiled):
    held, test = watch.adaptation_windows(10), watch.test_windows(10)
    record = imcc.adapt(
        compiled,
        (held.x[:64], held.y[:64]),
        evaluation=(test.x[::3], test.y[::3]),
        options=AdaptationOptions(batch=8),
    )
    assert record.status == "finished" and record.after >= record.before


@pytest.mark.skipif(
    not (Path(os.environ.get("IMCC_DATA", "")) / "hapt").is_dir(),
    reason="IMCC_DATA names no folder with hapt",
)
def test_windows_of_activities(watch):
    hapt = importlib.import_module("hapt")
    assert len(hapt.training_windows()) == 5722 and len(hapt.known_windows()) == 1399
    for part in (hapt.adaptation_windows(9), hapt.test_windows(9)):
        assert int(part.y.bincount(minlength=6).min()) >= 15
    assert sorted(hapt.windows().y.unique().tolist()) == [0, 1, 2, 3, 4, 5]
