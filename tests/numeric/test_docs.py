"""Code in the README and the how-tos runs as it stands."""

import re
from pathlib import Path

import pytest

from imcc.cli.main import main

ROOT = Path(__file__).parents[2]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def test_readme_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    energy, latency = map(float, capsys.readouterr().out.split())
    assert energy > 0 and latency > 0
    assert (tmp_path / "out" / "mlp" / "program.imc").exists()


def test_use_torch_compile(capsys):
    (code,) = blocks("docs/how-to/use-torch-compile.md", "python")
    exec(compile(code, "use-torch-compile.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0


def test_compile_an_exported_program(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export, data, python = blocks("docs/how-to/compile-an-exported-program.md", "python")
    exec(compile(export, "export.py", "exec"), {})
    (tmp_path / "data.py").write_text(data)
    arguments = ["compile", "digits.pt2", "--data", "data.py", "--target", "rram", "-o", "out/d"]
    assert main([*arguments, "--trials", "2"]) == 0
    assert "write and read noise" in capsys.readouterr().out
    assert main(["run", "out/d", "--model", "data.py", "--trials", "2"]) == 0
    capsys.readouterr()
    exec(compile(python, "python.py", "exec"), {})
    assert "[2, 2]" in capsys.readouterr().out


def test_bring_your_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, networks = blocks("docs/how-to/bring-your-model.md", "python")
    (tmp_path / "mymodel.py").write_text(code)
    (tmp_path / "networks.py").write_text(networks)
    for name in ("Small", "build_large", "trained"):
        arguments = ["compile", f"networks.py:{name}", "--data", "mymodel.py"]
        assert main([*arguments, "--target", "rram"]) == 0
        capsys.readouterr()
    assert main(["compile", "mymodel.py", "--target", "rram", "-o", "out/m", "--trials", "2"]) == 0
    assert "write and read noise" in capsys.readouterr().out
    assert main(["report", "out/m"]) == 0


def test_own_target_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["targets", "rram"]) == 0
    (tmp_path / "mychip.toml").write_text(capsys.readouterr().out)
    assert main(["targets", "mychip.toml", "--set", "adc.bits=6"]) == 0
    assert "bits = 6" in capsys.readouterr().out


def test_adapt_on_line(capsys):
    (code,) = blocks("docs/how-to/adapt-on-line.md", "python")
    exec(compile(code, "adapt-on-line.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0.9


def test_see_what_the_compiler_did(tmp_path, monkeypatch, capsys):
    import json
    import shlex

    page = "docs/how-to/see-what-the-compiler-did.md"
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(page, "python")
    (tmp_path / "mymodel.py").write_text(code)
    commands = re.findall(r"^imcc .*$", (ROOT / page).read_text(), re.MULTILINE)
    assert len(commands) == 14
    for line in commands:
        name, *arguments = shlex.split(line)
        assert name == "imcc" and main(arguments) == 0, line
        shown = capsys.readouterr().out
        assert shown or arguments[0] == "view" or "--trace" in arguments, line
    assert (tmp_path / "out" / "mymodel.html").read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]
    assert set(json.loads((tmp_path / "out" / "mymodel" / "history.json").read_text())) == {
        "history_version",
        "lines",
        "stages",
        "sources",
    }


def test_spiking_networks(capsys):
    pytest.importorskip("snntorch", reason="snntorch is not installed")
    (code,) = blocks("docs/how-to/spiking-networks.md", "python")
    exec(compile(code, "spiking-networks.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "['snn.lif', 'snn.lif']"
