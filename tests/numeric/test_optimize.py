"""``imcc optimize``: from a model file and a delay to a trained program that meets it."""

import json

import pytest
import torch

from imcc.cli.main import main
from imcc.cli.optimizing import microseconds
from imcc.driver.optimization import OptimizeOptions, optimize_file, pareto, reuse_search
from imcc.driver.resuming import load
from imcc.frontend.model_file import load_model_file
from imcc.ir.diagnostics import DiagnosticError

MODEL = """
import torch
from torch import nn
from torch.nn import functional

SIZE, TOKENS = 8, 4


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(SIZE), nn.Linear(SIZE, 24), nn.Linear(SIZE, 8)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Encoder() for _ in range(3))
        self.head = nn.Linear(SIZE, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def data(count, seed):
    x = torch.randn(count, TOKENS, SIZE, generator=torch.Generator().manual_seed(seed))
    return x, (x.mean((1, 2)) > 0).long()


def model():
    torch.manual_seed(0)
    return Net().eval()


def example_inputs():
    return data(2, 0)[0]


def calibration_data():
    return [data(16, 1)[0]]


def evaluation_data():
    return data(32, 2)


def metric(outputs, targets):
    return (outputs.argmax(1) == targets).double().mean().item()


def training_data():
    return [data(16, number) for number in range(3, 9)]


def loss(outputs, batch):
    return functional.cross_entropy(outputs, batch[1])
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("optimize") / "net.py"
    path.write_text(MODEL)
    return path


def options(**given):
    return OptimizeOptions(
        **{"target": "trexsim", "trials": 2, "steps": 4, "rank_steps": 2, **given}
    )


@pytest.fixture(scope="module")
def untouched(file):
    return optimize_file(str(file), options(delay_us=1e9))


def test_a_delay_that_is_met_changes_nothing(untouched):
    found = untouched.report["optimization"]
    assert found["met_without_change"] and found["chosen"] == 0 and len(found["points"]) == 1
    assert not found["rankings"]
    assert untouched.report["latency_ns"] == found["points"][0]["latency_ns"]
    assert found["predictions"][0]["latency_us"] == pytest.approx(
        untouched.report["latency_ns"] * 1e-3
    )


def test_a_delay_is_met_by_the_compiled_program(file, untouched, tmp_path, capsys):
    full = untouched.report["latency_ns"]
    output = tmp_path / "out"
    command = ["optimize", str(file), "--target", "trexsim", "--delay", f"{full - 1}ns"]
    command += ["--trials", "2", "--steps", "4", "--rank-steps", "2", "-o", str(output), "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    found = report["optimization"]
    point = found["points"][found["chosen"]]
    assert report["latency_ns"] == point["latency_ns"] <= full - 1
    assert [row["met"] for row in found["predictions"]] == [False, True]
    (ranking,) = found["rankings"]
    losses = [item["held_out_loss"] for item in ranking["placements"]]
    assert losses == sorted(losses) and len(losses) == 2
    assert point["encoders"] == ranking["placements"][0]["encoders"]
    names = [item["name"] for item in found["points"]]
    assert names[:2] == ["without reuse", "without reuse, trained"]
    assert found["points"][1]["steps"] == point["steps"] == 4
    made = load(output)
    assert made(torch.zeros(2, 4, 8)).shape == (2, 2)
    assert main(["opt", str(output / "float.imc"), "--weights", str(output / "float.safetensors"),
                 "--passes", "canonicalize"]) == 0  # fmt: skip
    assert "reuse.fc" in capsys.readouterr().out


def test_a_delay_out_of_reach_names_the_best(file):
    with pytest.raises(DiagnosticError) as caught:
        optimize_file(str(file), options(delay_us=1e-3))
    (item,) = caught.value.diagnostics
    assert item.code.id == "IMC506" and "2 of 3 encoders" in item.message


def test_neither_or_both_goals_are_refused(file, capsys):
    for extra in ([], ["--delay", "1us", "--counts", "1"]):
        assert main(["optimize", str(file), *extra]) == 1
        assert "either a delay or counts" in capsys.readouterr().err
    assert main(["optimize", str(file), "--delay", "soon"]) == 1
    assert "'soon' is no time" in capsys.readouterr().err
    assert main(["optimize", str(file), "--counts", "3"]) == 1
    assert "3 of 3 encoders" in capsys.readouterr().err


def test_short_and_whole_trainings_of_equal_length_keep_checkpoints_apart(file, tmp_path):
    given = options(counts=(1,), steps=2, compare_trained=False, folder=tmp_path / "kept")
    first, second = optimize_file(str(file), given), optimize_file(str(file), given)
    assert first.report["optimization"]["points"] == second.report["optimization"]["points"]
    assert {path.name for path in (tmp_path / "kept").iterdir()} >= {"rank-1-2-steps"}


@pytest.mark.parametrize(
    ("loss", "code", "message"),
    [
        ('reduction="none")', "IMC704", "a tensor of shape"),
        (") * float('nan')", "IMC406", "the loss on held-out batches is nan"),
    ],
)
def test_a_loss_that_cannot_rank_is_refused(tmp_path, loss, code, message):
    path = tmp_path / "net.py"
    start, call, end = MODEL.rpartition("cross_entropy(outputs, batch[1])")
    assert call
    path.write_text(f"{start}{call[:-1]}{', ' if loss[0] == 'r' else ''}{loss}{end}")
    with pytest.raises(DiagnosticError) as caught:
        optimize_file(str(path), options(counts=(1,), steps=0, rank_steps=0, init="identity"))
    (item,) = caught.value.diagnostics
    assert item.code.id == code and message in item.message


def test_a_target_without_costs_is_refused(file):
    with pytest.raises(DiagnosticError, match="gives no cost"):
        optimize_file(str(file), options(target="reference", counts=(1,)))


def test_times():
    with pytest.raises(DiagnosticError):
        microseconds("1e400us")
    assert microseconds("500us") == 500.0
    assert microseconds("2.5 ms") == 2500.0
    assert microseconds("80ns") == pytest.approx(0.08)


def test_pareto():
    points = [
        {"accuracy": accuracy, "edap_pj_ns_um2": edap}
        for accuracy, edap in ((0.9, 10.0), (0.8, 12.0), (0.85, 5.0), (0.85, 6.0), (0.5, 1.0))
    ]
    assert pareto(points) == {0, 2, 4}


def test_each_step_alone(file):
    held = load_model_file(str(file))
    search = reuse_search(held, options())
    full, less = search.latency_us(()), search.latency_us((1,))
    assert less < full and search.fewest(full) == 0
    rows = []
    assert search.fewest(less, rows) == 1 and [row["met"] for row in rows] == [False, True]
    assert search.candidates(1) == {(2,): "strided, late", (1,): "strided, early"}
    search.options = options(delay_us=less)
    found = search.candidates(1)
    assert found and all(search.latency_us(encoders) <= less for encoders in found)
    with pytest.raises(DiagnosticError, match="training needs data and a loss"):
        search.train(search.insert((1,)))
    search.learn(held)
    fit, held_out = search._split()
    assert len(fit) == 5 and len(held_out) == 1
    trained = search.train(search.insert((1,)), fit, steps=1)
    assert trained.encoders == (1,) and len(trained.losses) == 1
    (alone,) = search.rank({(1,): "by hand"})
    assert alone.placement == "by hand" and len(alone.trained.losses) == 2
    assert alone.held_out_loss == search.mean_loss(alone.trained, held_out)
