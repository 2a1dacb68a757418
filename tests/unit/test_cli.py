"""The command line: what goes to which stream, exit codes, and how it ends early."""

import io
import json
import os
import subprocess
import sys

import pytest

from imcc._version import __version__
from imcc.cli import listing
from imcc.cli.main import cli, main
from imcc.report import dot, overview

PROGRAM = """// imc 1
module @m phase("captured") {
  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx4xf32> {
    %y = nn.relu %x : tensor<Bx4xf32>
    core.return %x
  }
}
"""
MODEL = """
import torch
from torch import nn

print("a model file may print")

def model():
    return nn.Linear(4, 3)

def example_inputs():
    return torch.zeros(1, 4)

def calibration_data():
    return [torch.rand(8, 4)]
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "m.imc").write_text(PROGRAM)
    return str(tmp_path / "m.imc")


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    return str(tmp_path / "model.py")


# -- help and usage --------------------------------------------------------------------------------


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr()
    assert "Exit codes" in shown.out and not shown.err
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    for name in cli.commands:
        assert main([name, "--help"]) == 0
    capsys.readouterr()


def test_no_command_shows_the_help_on_stderr(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("Usage: imcc") and "compile" in shown.err


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [(["compil"], "'compile'"), (["compile", "m.py", "--taget", "rram"], "--target")],
)
def test_usage_errors_name_the_nearest(arguments, nearest, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "IMC801" in shown.err and nearest in shown.err


# -- opt -------------------------------------------------------------------------------------------


def test_opt_prints_the_program_and_nothing_else(program, capsys):
    assert main(["opt", program]) == 0
    shown = capsys.readouterr()
    assert shown.out == PROGRAM and shown.err == ""


def test_opt_reads_stdin_and_reports_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROGRAM))
    assert main(["opt", "-", "--passes", "dead-code", "--print-after-change", "--timing"]) == 0
    shown = capsys.readouterr()
    assert "nn.relu" not in shown.out and shown.out.startswith("// imc 1")
    assert "// after dead-code" in shown.err and " ms " in shown.err


def test_opt_verifies(tmp_path, capsys):
    file = tmp_path / "m.imc"
    file.write_text(PROGRAM.replace("-> tensor<Bx4xf32> {", "-> tensor<Bx5xf32> {"))
    assert main(["opt", str(file)]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and "IMC2" in shown.err and f"{file}:" in shown.err


# -- compile, report -------------------------------------------------------------------------------


def test_json_is_all_of_stdout(model, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["compile", model, "-o", out, "--json"]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert "a model file may print" in shown.err
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert main(["report", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report


def test_zip_on_the_command_line(model, tmp_path, capsys):
    out = str(tmp_path / "out.zip")
    assert main(["compile", model, "-o", out]) == 0
    assert main(["compile", model, "-o", out]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["report", out]) == 0
    assert "@inference" in capsys.readouterr().out


def test_a_failing_dot_costs_no_compilation(model, tmp_path, monkeypatch, capsys):
    import graphviz

    def fail(*arguments, **options):
        raise graphviz.CalledProcessError(139, ["dot"])

    monkeypatch.setattr(graphviz.Source, "pipe", fail)
    assert main(["compile", model, "-o", str(tmp_path / "out")]) == 0
    assert "exit code 139" in capsys.readouterr().err
    assert (tmp_path / "out" / "program.dot").exists()
    assert not (tmp_path / "out" / "program.svg").exists()


def test_a_cut_picture_says_so(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dot, "MAX_NODES", 1)
    assert main(["compile", model, "-o", str(tmp_path / "out")]) == 0
    assert "the first 1 of" in (tmp_path / "out" / "program.dot").read_text()
    capsys.readouterr()


def test_names_in_tables_are_no_markup_and_steer_no_terminal(model, tmp_path, capsys):
    assert main(["compile", model, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    report["model"]["name"] = "[/bold] \x1b[2J"
    report["entry_points"]["inference"]["layers"][0]["name"] = "heads[0][/x]"
    shown = io.StringIO()
    overview.print_report(report, shown)
    assert "[/bold] ?[2J on rram" in shown.getvalue()
    assert "heads[0][/x]" in shown.getvalue() and "\x1b" not in shown.getvalue()


# -- ends ------------------------------------------------------------------------------------------


def test_internal_error(monkeypatch, capsys):
    def fail():
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(listing, "show_ops", fail)
    assert main(["ops"]) == 70
    shown = capsys.readouterr()
    assert "IMC901" in shown.err and "unforeseen" in shown.err and "--traceback" in shown.err
    assert "Traceback" not in shown.err
    with pytest.raises(ZeroDivisionError):
        main(["--traceback", "ops"])


def test_interrupt(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "show_ops", interrupt)
    assert main(["ops"]) == 130
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.strip() == "interrupted"


@pytest.mark.parametrize("command", [["ops", "--json"], ["opt"], ["explain"]])
def test_a_reader_that_leaves_is_no_error(command, program):
    if command == ["opt"]:
        command = ["opt", program]
    process = subprocess.Popen(
        [sys.executable, "-m", "imcc", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    # Closed before anything is written: the command needs a while to start.
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_help_into_a_closed_pipe_is_quiet():
    # Wait for the reader to leave, then write: nothing may come out on stderr.
    code = (
        "import os, sys, time\n"
        "from imcc.cli.main import main\n"
        "sys.stdin.readline()\n"
        "sys.exit(main(['--help']))\n"
    )
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    os.close(read)
    _, said = process.communicate("go\n", timeout=60)
    assert process.returncode == 0 and said == ""


def test_a_bad_setting_is_blamed_on_the_option(capsys):
    for setting, found in (("adc.bits=0", "'adc.bits=0'"), ("adc.bitz=6", "'adc.bitz=6'")):
        assert main(["targets", "rram", "--set", setting]) == 1
        said = capsys.readouterr().err
        assert f"setting {found}" in said and ".toml" not in said, said
    assert main(["targets", "rram", "--set", "adc.bits=0", "--set", "adc.bits=99"]) == 1
    assert "setting 'adc.bits=99'" in capsys.readouterr().err


def test_missing_calibration_is_said_in_the_same_words(tmp_path, capsys):
    import torch

    import imcc
    from imcc.ir.diagnostics import DiagnosticError

    (tmp_path / "model.py").write_text(MODEL.replace("def calibration_data", "def other"))
    assert main(["compile", str(tmp_path / "model.py")]) == 1
    said = capsys.readouterr().err
    assert "IMC404" in said and "no calibration data" in said and "def calibration_data" in said
    with pytest.raises(DiagnosticError, match="no calibration data") as caught:
        imcc.compile(torch.nn.Linear(4, 3), torch.zeros(1, 4))
    assert "calibration=[" in caught.value.diagnostics[0].help


def test_run_makes_the_folder_of_its_output(model, tmp_path, capsys):
    import numpy as np

    assert main(["compile", model, "--target", "reference", "-o", str(tmp_path / "out")]) == 0
    np.savez(tmp_path / "x.npz", input=np.zeros((2, 4), dtype=np.float32))
    arguments = ["run", str(tmp_path / "out"), "--data", str(tmp_path / "x.npz")]
    output = tmp_path / "new" / "deep" / "y.npz"
    assert main([*arguments, "-o", str(output)]) == 0 and output.exists()
    capsys.readouterr()
    assert main([*arguments, "-o", str(output)]) == 1
    assert "IMC603" in capsys.readouterr().err
