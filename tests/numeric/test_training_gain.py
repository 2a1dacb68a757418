"""Fine-tuning under noise makes a network that noise hurts less."""

from __future__ import annotations

from pathlib import Path

from imcc.driver import CompileOptions, train_file
from imcc.frontend.model_file import load_model_file
from imcc.training import Recipe

MODEL = Path(__file__).parents[2] / "examples" / "digits_cnn" / "model.py"


def test_digits_gain_accuracy_under_write_noise() -> None:
    held = load_model_file(MODEL)
    images, labels = held.require("evaluation_data", "the test")()
    object.__setattr__(held, "evaluation_data", lambda: (images[:150], labels[:150]))
    options = CompileOptions("rram", ("device.write_noise.sigma_fraction=0.15",), trials=6)
    recipe = Recipe(steps=46, learning_rate=1e-3, reads="linear")
    report = train_file(held, options, recipe).report()
    before, after = (report["accuracy"][when] for when in ("before", "after"))
    gain = after["noisy"]["mean"] - before["noisy"]["mean"]
    spread = (before["noisy"]["std"] ** 2 + after["noisy"]["std"] ** 2) ** 0.5 / 6**0.5
    # Two standard errors of the difference of means over devices that training has not seen.
    assert gain > 2 * spread, (before["noisy"], after["noisy"])
    assert after["float"] > 0.95
