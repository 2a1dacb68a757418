"""The example that the demo compiles keeps its promises."""

import importlib.util
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits_cnn" / "model.py"


@pytest.fixture(scope="module")
def digits():
    # By path and not on sys.path, as the compiler loads it.
    spec = importlib.util.spec_from_file_location("digits_cnn_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_held_out_accuracy(digits):
    images, labels = digits.evaluation_data()
    with torch.no_grad():
        outputs = digits.model()(images)
    assert images.shape == (360, 1, 8, 8)
    assert images.min() >= 0 and images.max() <= 1
    assert digits.metric(outputs, labels) >= 0.98


def test_held_out_images_are_in_no_other_data(digits):
    def keys(images):
        return {image.numpy().tobytes() for image in images}

    held_out = keys(digits.evaluation_data()[0])
    training = keys(torch.cat([images for images, _ in digits.training_data()]))
    assert len(training) == 1437
    assert not training & held_out
    assert keys(digits.calibration_data()) < training
    assert keys(digits.example_inputs()[0]) < training


def test_loss_trains_through_the_model(digits):
    network = digits.model().train()
    batch = digits.training_data()[0]
    digits.loss(network(batch[0]), batch).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
