"""Every diagnostic code has a page, and the page's example really causes it."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from imcc.cli.main import main
from imcc.ir import codes, parse_module
from imcc.ir.codes import CODES, page
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.resources import ResourceStore
from imcc.testing.examples import example_module
from imcc.testing.golden import read_golden, run_golden

ROOT = Path(__file__).parents[2]
OURS = [item for item in CODES.values() if item.id.startswith("IMC")]
SECTIONS = ["Example", "What to do", "See also"]
BLOCK = re.compile(r"```([a-z]+)(?: (\S+))?\n(.*?)```", re.DOTALL)
MODEL = """
import torch

def model():
    return torch.nn.Linear(8, 3)

def example_inputs():
    return torch.zeros(1, 8)
"""
CONSTANTS = {item.id: name for name, item in vars(codes).items() if isinstance(item, codes.Code)}


def sections(text):
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    assert parts[0] == ""
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


@pytest.mark.parametrize("code", OURS, ids=lambda code: code.id)
def test_every_code_has_a_page(code, capsys):
    """A new code needs imcc/ir/pages/ID.md with these sections; IMC105.md is a short example."""
    held = sections(page(code))
    assert list(held) == SECTIONS and all(held.values())
    assert (code.page.strip() and code.title[0].islower()) or code.title.startswith("IR")
    for other in re.findall(r"\bIMC\d{3}\b", held["See also"]):
        assert other in CODES and other != code.id
    for file in re.findall(r"`(docs/[^`]+\.md)`", "".join(held.values())):
        assert (ROOT / file).is_file(), file
    assert main(["explain", code.id.lower()]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{code.id}: {code.title}") and held["What to do"] in shown


@pytest.mark.parametrize("code", OURS, ids=lambda code: code.id)
def test_the_example_causes_the_code(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = sections(page(code))["Example"]
    blocks = BLOCK.findall(example)
    if not blocks:
        (where,) = re.findall(r"Tested in `([^`]+)`\.", example)
        file, _, name = where.partition("::")
        text = (ROOT / file).read_text()
        assert not name or f"def {name}(" in text
        assert code.id in text or f"codes.{CONSTANTS[code.id]}" in text, f"{file} lacks {code.id}"
        return
    (tmp_path / "model.py").write_text(MODEL)
    said = ""
    for language, name, text in blocks:
        if name:
            (tmp_path / name).write_text(text)
        elif language == "imc":
            (tmp_path / "example.imc").write_text(text)
            said += run_golden(read_golden(tmp_path / "example.imc"))
        elif language == "python":
            (tmp_path / "model.py").write_text(text)
            assert main(["compile", "model.py", "--target", "reference"]) == 1
            said += capsys.readouterr().err
        else:
            for line in text.splitlines():
                words = shlex.split(line)
                assert words[0] == "imcc" and main(words[1:]) != 0
                said += capsys.readouterr().err
    found = set(re.findall(r"^error\[(IMC\d+)\]", said, flags=re.MULTILINE))
    assert found == {code.id}, said


def test_pages_are_of_codes_that_exist():
    names = {path.stem for path in (ROOT / "imcc/ir/pages").glob("*.md")}
    assert names == {code.id for code in OURS}


def test_explain_as_json_and_the_nearest_code(capsys):
    assert main(["explain", "IMC105", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["code"] == "IMC105" and "## Example" in data["page"]
    assert main(["explain", "IMC10"]) == 1
    assert "did you mean 'IMC10" in capsys.readouterr().err


# -- codes that no command line of one file causes -------------------------------------------------

WEIGHTS = """// imc 1
module @m phase("captured") resources("gone.safetensors") {
  resource @w : tensor<3x8xf32>
  func @inference(%x: tensor<Bx8xf32>) -> tensor<Bx3xf32> {
    %w = core.constant {value = @w} : tensor<3x8xf32>
    %y = nn.linear %x, %w : tensor<Bx3xf32>
    core.return %y
  }
}
"""


def run(tmp_path, x):
    (tmp_path / "m.imc").write_text(WEIGHTS)
    np.savez(tmp_path / "x.npz", x=x)
    command = ["run", str(tmp_path / "m.imc"), "--target", "reference", "--json"]
    return main([*command, "--data", str(tmp_path / "x.npz"), "-o", str(tmp_path / "y.npz")])


def test_weights_that_are_absent(tmp_path, capsys):
    assert run(tmp_path, np.zeros((2, 8), np.float32)) == 1
    assert "IMC701" in capsys.readouterr().err


@pytest.mark.parametrize("x", [np.zeros((3, 9), np.float32), np.zeros((3, 8))])
def test_input_that_does_not_fit(tmp_path, x, capsys):
    assert run(tmp_path, x) == 1
    assert "IMC702" in capsys.readouterr().err


def test_op_that_asks_for_more_than_there_is():
    text = WEIGHTS.replace(
        "%y = nn.linear %x, %w : tensor<Bx3xf32>",
        "%y = core.pad %x {before = [0, 0], after = [0, 999999999992]} : "
        "tensor<Bx1000000000000xf32>",
    ).replace("-> tensor<Bx3xf32>", "-> tensor<Bx1000000000000xf32>")
    function = parse_module(text).function()
    resources = ResourceStore({"w": torch.zeros(3, 8)})
    with pytest.raises(DiagnosticError) as raised:
        evaluate_function(function, [torch.zeros(2000, 8)], resources=resources)
    assert raised.value.diagnostics[0].code is codes.CANNOT_COMPUTE


def test_op_without_a_rule():
    from imcc.backends.crossbar.dialect import Program

    function = example_module(Program).function()
    with pytest.raises(DiagnosticError) as raised:
        evaluate_function(function, [torch.zeros(3, 4)], resources=ResourceStore())
    assert raised.value.diagnostics[0].code is codes.NO_RULE
