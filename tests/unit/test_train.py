"""``imcc.train`` and ``imcc train``: the user's files and names, reports, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import imcc
from imcc.cli.main import cli
from imcc.ir.diagnostics import DiagnosticError
from imcc.training import Recipe

MODEL = """
import torch
from torch import nn

torch.manual_seed(0)
INPUTS, LABELS = torch.randn(24, 6), torch.arange(24) % 3


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(6, 3)
        self.last.bias.requires_grad_(False)

    def forward(self, x):
        return self.last(self.drop(torch.relu(self.norm(self.second(torch.relu(self.first(x)))))))


def model():
    return Tied()


def example_inputs():
    return (INPUTS[:2],)


def calibration_data():
    return INPUTS


def evaluation_data():
    return INPUTS, LABELS


def metric(outputs, targets):
    return (outputs.argmax(-1) == targets).double().mean().item()
"""
TRAINING = """

def training_data():
    return list(zip(INPUTS.split(8), LABELS.split(8)))


def loss(outputs, batch):
    return nn.functional.cross_entropy(outputs, batch[1])
"""


def run(*arguments: str) -> tuple[int, str, str]:
    made = CliRunner().invoke(cli, arguments, standalone_mode=False)
    if isinstance(made.exception, DiagnosticError):
        return 1, made.stdout, str(made.exception)
    assert made.exception is None, made.exception
    return made.exit_code, made.stdout, made.stderr


def test_the_command_writes_weights_under_the_users_names(tmp_path: Path) -> None:
    file, out = tmp_path / "model.py", tmp_path / "w.safetensors"
    file.write_text(MODEL + TRAINING)
    code, text, _ = run(
        *("train", str(file), "--steps", "2", "--reads", "linear", "--trials", "2"),
        *("-o", str(out), "--json"),
    )
    assert code == 0
    report = json.loads(text)
    assert len(report["loss"]["steps"]) == 2
    assert report["accuracy"]["after"]["noisy"]["trials"] == 2
    assert any("dropout" in note for note in report["notes"])
    # Tied weights are trained once; what the user froze is not.
    names = {"first.bias", "first.weight", "last.weight", "norm.bias", "norm.weight"}
    assert set(report["trained"]) == names
    held = load_file(out)
    scope: dict[str, object] = {}
    exec(MODEL, scope)
    network = scope["Tied"]()
    network.load_state_dict(held)
    assert torch.equal(held["first.weight"], held["second.weight"])
    code, _, message = run("train", str(file), "--steps", "1", "-o", str(out))
    assert code == 1
    assert "exists already" in message


def test_a_checkpoint_belongs_to_data_and_loss_and_not_to_a_place(tmp_path: Path) -> None:
    kept = str(tmp_path / "kept")

    def train(name: str, text: str) -> tuple[int, str, str]:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return run(
            *("train", str(file), "--steps", "1", "--reads", "linear", "--trials", "1"),
            *("--checkpoint", kept, "-o", str(tmp_path / "w.safetensors"), "--force"),
        )

    code, text, _ = train("model.py", MODEL + TRAINING)
    assert code == 0 and "(means of 1 steps)" in text and "+-" not in text
    assert train("moved/other.py", "# moved\n" + MODEL + TRAINING)[0] == 0
    for old, new in (
        ("LABELS.split(8)))", "(LABELS + 1).remainder(3).split(8)))"),
        ("batch[1])\n", "batch[1]) * 2\n"),
    ):
        changed = TRAINING.replace(old, new)
        assert changed != TRAINING
        code, _, errors = train("model.py", MODEL + changed)
        assert code == 1 and "was made by a run with other weights" in errors


def test_missing_functions_show_the_lines_to_write(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    for added, wanted in (
        ("", "def training_data():"),
        (TRAINING.partition("def loss")[0], "def loss(outputs, batch):"),
    ):
        file.write_text(MODEL + added)
        code, _, message = run("train", str(file), "-o", str(tmp_path / "w.safetensors"))
        assert code == 1
        assert wanted in message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "returned nothing"),
        (torch.zeros(2, 4), "returns batches, not a Tensor"),
        ([torch.zeros(2, 4)], "is no pair of inputs and targets"),
        ([((torch.zeros(2, 4), torch.zeros(2)), 0)], "inputs of training batch 0 do not fit"),
    ],
)
def test_training_data_of_another_form_is_refused(data: object, message: str) -> None:
    with pytest.raises(DiagnosticError, match=message):
        imcc.train(
            nn.Linear(4, 3),
            (torch.zeros(2, 4),),
            training_data=data,
            loss=lambda outputs, batch: outputs.sum(),
            calibration=torch.randn(8, 4),
        )


def test_python_trains_any_backend_and_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 2)
    kept = layer.weight.detach().clone()
    x = torch.randn(16, 4)
    y = x @ torch.randn(4, 2)
    made = imcc.train(
        layer,
        (x[:2],),
        "reference",
        training_data=[(x, y)],
        loss=lambda outputs, batch: functional.mse_loss(outputs, batch[1]),
        recipe=Recipe(steps=60, learning_rate=0.1),
        calibration=x,
    )
    losses = made.report()["loss"]["steps"]
    assert losses[-1] < 0.2 * losses[0]
    assert torch.equal(layer.weight, kept)
    assert not torch.equal(made.state_dict["weight"], kept)
