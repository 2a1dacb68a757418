"""The history of a compilation: recorded, kept in the artifact, checked when read."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import imcc
from imcc.driver import load
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.text import parse_module, print_module
from imcc.runtime.history import parse_history


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


@pytest.fixture(scope="module")
def compiled():
    torch.manual_seed(0)
    return imcc.compile(Small(), (torch.rand(1, 6),), calibration=[(torch.rand(8, 6),)])


def lines(text):
    return [line.strip() for line in text.rstrip("\n").split("\n")]


def test_every_stage_is_the_program_after_its_pass(compiled):
    history = compiled.history
    assert [stage.pass_ for stage in history.stages] == [
        "",
        *(record.text for record in compiled.records),
    ]
    assert history.stages[0].phase == "captured" and history.stages[-1].phase == "scheduled"
    for number in range(len(history.stages)):
        text = history.text(number)
        assert lines(print_module(parse_module(text))) == lines(text)
    last = lines(print_module(compiled.module))
    # The driver names the weights file behind the last pass.
    assert lines(history.text(len(history.stages) - 1))[2:] == last[2:]


def test_only_passes_that_changed_something_have_a_program(compiled):
    for stage, record in zip(compiled.history.stages[1:], compiled.records, strict=True):
        assert (stage.program is not None) == record.changed
        assert len(stage.rewrites) == len(record.journal.changes)
    assert any(stage.program is None for stage in compiled.history.stages)


def test_rewrites_name_rules_and_lines(compiled):
    history = compiled.history
    (stage,) = [item for item in history.stages if item.pass_ == "integer-arithmetic"]
    replaced = next(item for item in stage.rewrites if item.kind == "replace")
    assert replaced.rule.startswith("integer-arithmetic")
    assert "nn.linear" in "".join(history.lines[line] for line in replaced.before)
    assert "quant.linear" in "".join(history.lines[line] for line in replaced.after)


def test_sources_hold_the_lines_around_each_op(compiled):
    (file,) = compiled.history.sources
    kept = compiled.history.sources[file]
    assert Path(file).name == "test_history.py"
    assert any("self.last(torch.relu" in text for text in kept.values())
    assert len(kept) < 20


def test_the_artifact_keeps_it(compiled, tmp_path):
    compiled.save(tmp_path / "folder")
    held = load(tmp_path / "folder")
    assert held.history == compiled.history
    held.save(tmp_path / "again.zip")
    again = load(tmp_path / "again.zip").history
    assert again.to_json() == compiled.history.to_json()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: data.update(history_version=2), "history_version"),
        (lambda data: data.update(stages=[]), "no first stage"),
        (lambda data: data["stages"][0].update(program=None), "no first stage"),
        (lambda data: data["stages"][0].update(program=[[0, 10**9]]), "stages.0.program"),
        (lambda data: data["stages"][0].update(program=[[0, 2]] * 3_000_000), "more than"),
        (lambda data: data["stages"][2].update(rewrites=[{"rule": 1}]), "stages.2.rewrites"),
        (lambda data: data["stages"][-1]["rewrites"][0].update(after=[-1]), "rewrites name"),
        (lambda data: data.update(sources={"a.py": {"x": "y"}}), "sources.a.py"),
        (lambda data: data.update(more=1), "more"),
    ],
)
def test_a_history_of_another_form_is_refused(compiled, change, named):
    data = json.loads(compiled.history.to_json())
    change(data)
    with pytest.raises(DiagnosticError) as failed:
        parse_history(json.dumps(data), Path("history.json"))
    assert "IMC702" in str(failed.value) or "history" in str(failed.value)
    assert named in str(failed.value)
