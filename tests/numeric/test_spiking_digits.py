"""The spiking example: spikes equal the library's, on both kinds of hardware, side by side."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from imcc.cli.main import main
from imcc.driver import load
from imcc.ir.dialects import snn
from imcc.ir.semantics.interpreter import evaluate_function

EXAMPLE = Path(__file__).parents[2] / "examples" / "spiking_digits" / "model.py"

pytest.importorskip("snntorch", reason="snntorch is not installed: pip install 'imcc[spiking]'")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("spiking_digits_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spiking")
    for target in ("loas", "rram"):
        out = str(folder / target)
        assert main(["compile", str(EXAMPLE), "--target", target, "-o", out]) == 0
    return folder


def spikes_of_program(made, images):
    """Spikes of each layer, by its name, from the compiled program."""
    found = {}

    def observer(op, results):
        if isinstance(op, snn.LeakyIntegrateAndFire):
            found[op.scope] = results[0]

    outputs = evaluate_function(
        made.module.function("inference"),
        (images,),
        resources=made.resources,
        backend="sparse_snn",
        target=made.target,
        observer=observer,
    ).outputs
    return found, outputs[0]


def spikes_of_library(network, images):
    """Spikes of each layer from the library's own run."""
    found = {}
    for name, module in network.named_modules():
        if type(module).__name__ == "Leaky":
            steps = found.setdefault(name, [])
            module.register_forward_hook(lambda _, __, out, steps=steps: steps.append(out[0]))
    with torch.no_grad():
        outputs = network(images)
    return {name: torch.stack(steps) for name, steps in found.items()}, outputs


def test_weights_are_pruned_and_accurate_enough(example):
    images, labels = example.evaluation_data()
    network = example.model()
    with torch.no_grad():
        assert example.metric(network(images), labels) >= 0.93
    assert float((network.conv2.weight == 0).double().mean()) >= 0.89
    assert float((network.conv3.weight == 0).double().mean()) >= 0.89


def test_spikes_equal_the_librarys_run_with_the_same_weights(example, artifacts):
    made = load(artifacts / "loas")
    images, _ = example.evaluation_data()
    network = example.model()
    for name in ("conv1", "conv2", "conv3", "classifier"):
        codes = made.resources.get(f"{name}.weight.codes")
        # Inputs are spikes with scale 1, so the rescaling is by the scale of the weights.
        scale = made.resources.get(f"{name}.weight.rescale")
        weight = network.get_submodule(name).weight
        with torch.no_grad():
            weight.copy_(codes.float() * scale.reshape(-1, *(1,) * (codes.dim() - 1)))
        assert float((weight == 0).double().mean()) >= 0.4
    ours, outputs = spikes_of_program(made, images)
    theirs, expected = spikes_of_library(network, images)
    assert set(ours) == set(theirs) == {"encode", "lif1", "lif2", "lif3"}
    for name, spikes in theirs.items():
        assert 0.01 < float(spikes.mean()) < 0.9, name
        assert torch.equal(ours[name], spikes), name
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5)


def test_report_has_every_layer_from_real_operands(artifacts):
    report = load(artifacts / "loas").report()
    record = report["entry_points"]["inference"]
    assert record["activity"] == "profiled" and record["unknown"] == []
    layers = {layer["name"]: layer for layer in record["layers"]}
    for name in ("conv1", "conv2", "conv3", "classifier"):
        assert layers[name]["energy_pj"] > 0 and layers[name]["busy_ns"] > 0
        assert layers[name]["events"]["join.chunk"] > 0
    busy = sum(layer["busy_ns"] for layer in layers.values())
    assert record["latency_ns"] == pytest.approx(busy)
    assert report["accuracy"]["noise_free"] >= 0.93


def test_compare_shows_both(artifacts, capsys):
    arguments = ["compare", str(artifacts / "loas"), str(artifacts / "rram")]
    assert main([*arguments, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["target"] == ["loas", "rram"]
    assert made["totals"]["energy_pj"]["ratio"] == pytest.approx(
        made["totals"]["energy_pj"]["second"] / made["totals"]["energy_pj"]["first"]
    )
    names = [row["name"] for row in made["layers"]]
    assert {"conv1", "conv2", "conv3", "classifier"} <= set(names)
    assert any("not modelled" in note for note in made["notes"])
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "spiking_digits on loas" in shown and "energy, rram" in shown


def test_crossbars_read_spikes_one_bit_at_a_time(artifacts):
    made = load(artifacts / "rram")
    reads = [op for op in made.module.function("inference").ops if op.name == "xbar.mvm"]
    assert [op.input_bits for op in reads] == [1] * 4
