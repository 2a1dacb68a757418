"""The benchmark of LoAS runs on other networks' traces and says what it must say."""

import json

import numpy as np
import pytest

from benchmarks import loas, loas_networks


@pytest.fixture
def traces(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in (
        ("Conv2d_00", (1, 3, 6, 6)),
        ("Conv2d_01", (4, 5, 6, 6)),
        ("Conv2d_02", (4, 7, 3, 3)),
        ("Linear_00", (4, 63)),
    ):
        spikes = (rng.random(shape) < 0.3).astype(np.uint8)
        arrays |= {name: np.packbits(spikes), f"{name}__shape": np.array(shape)}
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    return path


def test_own_traces(traces, capsys):
    loas.main(["--json", "--quick", "--traces", str(traces), "--weight-sparsity", "0.8"])
    made = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in made["networks"]] == ["mine"]
    assert made["networks"][0]["synthetic"] is False
    for what in ("speedup", "energy_ratio"):
        for baseline in loas.BASELINES:
            row = made[what][baseline]
            assert row["mean"] == row["per_network"]["mine"] > 0
            assert row["band"]
    for baseline, row in made["speedup"].items():
        low, high = row["band"]["low"]["mean"], row["band"]["high"]["mean"]
        assert all(low <= item["speedup"] <= high for item in row["one_at_a_time"]), baseline
    counts = made["counts"]["mine"]
    assert counts["sparten-snn"]["matches"]["mean"] == counts["gamma-snn"]["merged"]["mean"]


def test_layers_are_read_as_documented(traces):
    network = loas_networks.read_traces(traces, "mine", 0.5)
    assert [layer.weight_shape for layer in network.silenced] == [
        (7, 5, 3, 3),
        (7, 7, 3, 3),
        (10, 63),
    ]
    products = network.products(0)
    assert [item.shape for item in products] == [(36, 7, 45), (9, 7, 63), (1, 10, 63)]
    again = network.products(0)
    assert all(np.array_equal(a.weights, b.weights) for a, b in zip(products, again, strict=True))


def test_given_weights_are_used(traces, tmp_path):
    held = dict(np.load(traces))
    held["Linear_00__weights"] = np.full((2, 63), 3, np.int8)
    path = tmp_path / "with_weights.npz"
    np.savez(path, **held)
    made = loas_networks.read_traces(path, "mine", 0.5).products(0)[-1]
    assert made.weights.tolist() == [[3] * 63] * 2


@pytest.mark.parametrize("name", loas_networks.PUBLISHED)
def test_synthetic_networks_have_the_published_densities(name):
    table = loas_networks.PUBLISHED[name]
    network = loas_networks.synthetic(name)
    words = np.concatenate([layer.words.ravel() for layer in network.silenced])
    before = np.concatenate([layer.words.ravel() for layer in network.original])
    assert np.mean(words == 0) == pytest.approx(table.silent_after_silencing, abs=0.01)
    assert np.mean(before == 0) == pytest.approx(table.silent, abs=0.01)
    spikes = np.bitwise_count(before).sum() / (4 * before.size)
    assert 1 - spikes == pytest.approx(table.spike_sparsity, abs=0.01)
    assert set(np.bitwise_count(words).tolist()) == {0, 2, 3, 4}


def test_twice_the_timesteps():
    network = loas_networks.synthetic("alexnet")
    repeated = loas_networks.with_more_timesteps(network, "repeat")
    words, longer = network.silenced[0].words, repeated.silenced[0].words
    assert np.array_equal(longer, words * 17)
    independent = loas_networks.with_more_timesteps(network, "independent")
    silent = np.mean(independent.silenced[0].words == 0)
    assert silent == pytest.approx(np.mean(words == 0) ** 2, abs=0.03)
