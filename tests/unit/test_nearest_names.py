"""Wherever a name is looked up, a misspelt one is answered with the nearest, at its place."""

import io
import sys

import pytest

from imcc.cli.main import main

PROGRAM = """// imc 1
module @m phase("captured") {
  resource @weight : tensor<8x8xf32>
  func @inference(%x: tensor<Bx8xf32>) -> tensor<Bx8xf32> {
    LINE
    core.return %x
  }
}
"""
LINES = {
    "%y = nn.rleu %x : tensor<Bx8xf32>": "nn.relu",
    "%y = nn.relu %xx : tensor<Bx8xf32>": "%x",
    "%y = nn.clamp %x {minimun = 0.0} : tensor<Bx8xf32>": "minimum",
    "%y = nn.relu %x {xbar.start_n = 0.0} : tensor<Bx8xf32>": "xbar.start_ns",
    '%y = nn.gelu %x {approximate = "tanhh"} : tensor<Bx8xf32>': "tanh",
    "%y = nn.linear %x, %x, bais=%x : tensor<Bx8xf32>": "bias",
    "%w = core.constant {value = @weigth} : tensor<8x8xf32>": "weight",
    "%y = nn.relu %x : tensr<Bx8xf32>": "tensor",
    "%y = nn.relu %x : !xbar.matrx<rows=4>": "xbar.matrix",
    "%y = nn.relu %x : !xbar.matrix<row=4>": "rows",
}


@pytest.mark.parametrize(("line", "name"), LINES.items())
def test_in_ir_text(line, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROGRAM.replace("LINE", line)))
    assert main(["opt", "-"]) == 1
    shown = capsys.readouterr().err
    assert f"did you mean '{name}'" in shown
    assert "--> <stdin>:5:" in shown and f"> 5 |     {line}" in shown


@pytest.mark.parametrize(
    ("old", "new", "name", "line"),
    [('"captured"', '"captred"', "captured", 2), ("  func @", "  fnc @", "func", 4)],
)
def test_in_heads(old, new, name, line, monkeypatch, capsys):
    text = PROGRAM.replace("    LINE\n", "").replace(old, new)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert main(["opt", "-"]) == 1
    shown = capsys.readouterr().err
    assert f"did you mean '{name}'" in shown and f"--> <stdin>:{line}:" in shown


@pytest.mark.parametrize(
    ("passes", "name", "column"),
    [
        ("canonicalize, dead-cod", "dead-code", 15),
        ("quantize-weights{bitz=4}", "bits", 18),
        ("quantize-weights{granularity=chanel}", "channel", 18),
    ],
)
def test_in_pipelines(passes, name, column, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROGRAM.replace("    LINE\n", "")))
    assert main(["opt", "-", "--passes", passes]) == 1
    shown = capsys.readouterr().err
    assert f"did you mean '{name}'" in shown and f"--> <pipeline>:1:{column}" in shown


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["targets", "rrma"], "rram"),
        (["targets", "rram", "--set", "adc.bitz=6"], "bits"),
        (["targets", "rram", "--set", "adcc.bits=6"], "adc"),
        (["targets", "rram", "--set", "device.write_noise.model=gausian_write"], "gaussian_write"),
        (["ops", "nn.rleu"], "nn.relu"),
        (["passes", "dead-cod"], "dead-code"),
        (["explain", "IMC1O1"], "IMC101"),
        (["opt", "-", "--emit", "mlri"], "mlir"),
        (["report", "x", "--by", "layr"], "layer"),
        (["compil", "x.py"], "compile"),
        (["opt", "-", "--to", "maped", "--target", "rram"], "mapped"),
    ],
)
def test_on_the_command_line(arguments, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROGRAM.replace("    LINE\n", "")))
    assert main(arguments) in (1, 2)
    assert f"did you mean '{name}'" in capsys.readouterr().err
