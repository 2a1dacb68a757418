"""``imcc doctor`` on a whole installation, and on one where torch and plugins are broken."""

import json
import subprocess

import pytest

from imcc.cli import doctor
from imcc.cli.main import main


def test_a_whole_installation(capsys):
    assert main(["doctor", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert shown.err == "" and found["healthy"] and found["problems"] == []
    versions = {item["name"]: item["version"] for item in found["packages"]}
    assert versions["torch"] and versions["numpy"] and versions["lark"]
    points = {(item["group"], item["name"]) for item in found["plugins"]}
    assert {("imcc.backends", "crossbar"), ("imcc.dialects", "nn")} <= points
    assert found["torch"]["threads"] >= 1 and found["torch"]["cpu_capability"]
    assert set(found["variables"]) == set(doctor.VARIABLES)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A torch that ends the process, and a package with plugins of three kinds."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import os\nos.abort()\n")
    (tmp_path / "good_plugin.py").write_text("print('hello')\n")
    (tmp_path / "bad_plugin.py").write_text("import module_that_is_not_there\n")
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[imcc.dialects]\ngood = good_plugin\nbad = bad_plugin\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("IMCC_DATA", str(tmp_path / "absent"))


def test_a_broken_installation(broken, capsys):
    assert main(["doctor"]) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err and shown.err == ""
    lines = shown.out.splitlines()
    (torch,) = [line for line in lines if line.startswith("  torch") and "BROKEN" in line]
    assert "signal 6" in torch
    problems = "\n".join(lines[lines.index(next(x for x in lines if x.endswith("problems"))) :])
    assert "imcc.dialects bad (bad_plugin, of outside): ModuleNotFoundError" in problems
    assert " good " not in problems and "numpy" not in problems
    assert "OMP_WAIT_POLICY is not PASSIVE" in shown.out
    assert "which is no folder" in shown.out


def test_what_hangs_is_named_and_the_rest_still_loads(monkeypatch):
    runs = []

    def run(command, **options):
        names = command[3:]
        runs.append(names)
        if "module:b" in names:
            done = 'start module:a\n{"name": "module:a", "error": null}\nstart module:b\n'
            raise subprocess.TimeoutExpired(command, 1.0, output=done.encode())
        text = "".join(f'{{"name": "{name}", "error": null}}\n' for name in names)
        return subprocess.CompletedProcess(command, 0, text, "")

    monkeypatch.setattr(doctor.subprocess, "run", run)
    found = doctor._probe(["module:a", "module:b", "module:c"])
    assert runs == [["module:a", "module:b", "module:c"], ["module:c"]]
    assert found["module:a"]["error"] is None and found["module:c"]["error"] is None
    assert "does not load within" in found["module:b"]["error"]


def test_missing_packages_and_old_ones(monkeypatch):
    wanted = [("torch", "imcc", ">=99.0"), ("not-there", "imcc", ""), ("nir-x", "nir", "")]
    monkeypatch.setattr(doctor, "_requirements", lambda: wanted)
    monkeypatch.setattr(doctor, "_probe", lambda names: {n: {"error": None} for n in names})
    found = doctor.examine()
    assert [item.broken for item in found.packages] == [True, True, False]
    assert "imcc needs torch>=99.0" in found.problems[0]
    assert "pip install not-there" in found.problems[1]
    text = found.render()
    assert "pip install 'imcc[nir]'" in text and text.endswith(found.problems[-1])
    assert json.loads(json.dumps(found.to_json()))["healthy"] is False


@pytest.mark.parametrize(
    ("version", "rule", "fits"),
    [("2.13.0+cpu", ">=2.9", True), ("2.8.1", ">=2.9", False), ("1.0", "", True)],
)
def test_version_rules(version, rule, fits):
    assert doctor._satisfies(version, rule) is fits
