"""The how-tos of the tools run as they stand: every python and sh block, in order."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from imcc.cli.main import main

ROOT = Path(__file__).parents[2]
# The pages speak of the whole example; a part of its data shows as well that they work.
FEWER = """

_evaluation, _calibration = evaluation_data, calibration_data


def evaluation_data():
    images, labels = _evaluation()
    return images[:20], labels[:20]


def calibration_data():
    return _calibration()[:20]
"""
BLOCK = re.compile(r"```(python|sh)\n(.*?)```", re.DOTALL)


@pytest.fixture
def follow(monkeypatch, tmp_path):
    """Run a page from an empty folder beside the examples; returns its python names."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples" / "digits_cnn", tmp_path / "examples" / "digits_cnn")
    with (tmp_path / "examples" / "digits_cnn" / "model.py").open("a") as file:
        file.write(FEWER)

    def run(page):
        names = {}
        for language, code in BLOCK.findall((ROOT / page).read_text()):
            if language == "python":
                exec(compile(code, page, "exec"), names)
                continue
            for line in code.splitlines():
                words = shlex.split(line, comments=True)
                assert words[0] == "imcc" and main(words[1:]) == 0, line
        return names

    return run


def test_stop_and_resume(follow, tmp_path, capsys):
    names = follow("docs/how-to/stop-and-resume.md")
    assert names["as_it_stands"].module.phase == "mapped"
    assert "adc_step = 9.0" in (tmp_path / "out/phases/mapped.imc").read_text()
    assert (tmp_path / "out/digits/program.imc").exists()


def test_find_the_pass_that_broke_it(follow, tmp_path, capsys):
    names = follow("docs/how-to/find-the-pass-that-broke-it.md")
    shown = capsys.readouterr()
    assert "passes kept their promises" in shown.err
    assert "fold-batch-norm  (within 0.0001 of the largest output)" in shown.out
    assert names["found"].culprit.text == "forget-relu"
    assert "broke its promise (exact)" in shown.out and "rerun it alone with" in shown.out
    assert (tmp_path / "imcc-bisect-forget-relu" / "reproducer.json").exists()
    assert (tmp_path / "out/passes/00-input.imc").exists()
    assert (tmp_path / "out/times.json").exists()
    assert "What passes cost in accuracy" in shown.out


def test_export_to_mlir(capsys):
    page = "docs/how-to/export-to-mlir.md"
    text = (ROOT / page).read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (shown,) = re.findall(r"```mlir\n(.*?)```", text, re.DOTALL)
    exec(compile(code, page, "exec"), {})
    assert capsys.readouterr().out.strip() == shown.strip()
