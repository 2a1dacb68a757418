"""Instruments: printing, numbered dumps, checks after each pass, timing, crash reproducers."""

import json
import re
import shlex
import sys
import types
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from imcc.cli.main import main
from imcc.ir import codes, parse_module, print_module, verify
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects import nn
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.infrastructure import (
    CrashReproducer,
    NumberedDumps,
    Pass,
    PassContext,
    Timing,
    VerifyEach,
    by_phase,
    parse_pipeline,
    passes_after,
    passes_until,
    print_pipeline,
    registry,
    run_pipeline,
)

PROGRAM = """// imc 1
module @m phase("captured") resources("w.safetensors") {
  resource @w : tensor<3x4xf32>
  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx3xf32> {
    %w = core.constant {value = @w} : tensor<3x4xf32>
    %a = nn.relu %x : tensor<Bx4xf32>
    %dead = nn.relu %a : tensor<Bx4xf32>
    %y = nn.linear %a, %w {scope = "fc"} : tensor<Bx3xf32>
    core.return %y
  }
}
"""


@pytest.fixture
def held():
    """A module whose resource has a hash, with its store."""
    module = parse_module(PROGRAM)
    store = ResourceStore()
    module.resources["w"] = store.put("w", torch.arange(12.0).reshape(3, 4))
    return module, PassContext(resources=store)


class Broken(Pass):
    """Base of passes that go wrong in one way."""

    name: ClassVar[str] = "broken"


class Unjournaled(Broken):
    def run(self, module, context):
        op = next(op for op in module.walk() if isinstance(op, nn.Relu))
        op._set("scope", "behind the journal's back")


class WrongUses(Broken):
    def run(self, module, context):
        context.rewriter(module).set_attributes(next(module.walk()), scope="x") if 0 else None
        op = next(op for op in module.walk() if isinstance(op, nn.Relu))
        op.x.users.clear()


class OtherBytes(Broken):
    def run(self, module, context):
        context.weights().get("w").mul_(2)


class Idle(Broken):
    def run(self, module, context):
        rewriter = context.rewriter(module, "idle")
        op = next(op for op in module.walk() if isinstance(op, nn.Linear))
        rewriter.set_operand(op, "x", op.x)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (Unjournaled, "the journal holds no change"),
        (WrongUses, "the users of %x in @inference are not recorded rightly"),
        (OtherBytes, "bytes of resource @w do not match its hash"),
        (Idle, "the module's text is the same"),
    ],
)
def test_verify_each_finds_what_the_verifier_takes_for_granted(held, wrong, reason):
    module, context = held
    run_pipeline(module.clone(), (wrong(),), context)
    if wrong is OtherBytes:
        context.weights().get("w").div_(2)
    with pytest.raises(DiagnosticError) as raised:
        run_pipeline(module, (wrong(),), context, instruments=[VerifyEach()])
    assert {item.code for item in raised.value.diagnostics} == {codes.PASS_FAILED}
    assert reason in str(raised.value) and "broken" in str(raised.value)


def test_verify_each_is_content_with_the_passes_of_the_house(held):
    module, context = held
    passes = parse_pipeline("fold-batch-norm, canonicalize, dead-code, quantize-weights")
    records = run_pipeline(module, passes, context, instruments=[VerifyEach()])
    assert [item.changed for item in records] == [False, True, False, True]


def test_numbered_dumps(held, tmp_path):
    module, context = held
    before = print_module(module)
    passes = parse_pipeline("fold-batch-norm, dead-code, quantize-weights, fold-batch-norm")
    folder = tmp_path / "dumps"
    run_pipeline(module, passes, context, instruments=[NumberedDumps(folder)])
    names = sorted(item.name for item in folder.iterdir())
    assert names == [
        "00-input.imc",
        "00-input.safetensors",
        "02-dead-code.imc",
        "03-quantize-weights.imc",
        "03-quantize-weights.safetensors",
    ]
    assert (
        before.replace("w.safetensors", "00-input.safetensors")
        == (folder / "00-input.imc").read_text()
    )
    for path in folder.glob("*.imc"):
        dumped = parse_module(path.read_text(), str(path))
        verify(dumped)
        ResourceStore.load(folder / dumped.resource_file, dumped)
    # A second run replaces its own dumps and nothing else.
    run_pipeline(parse_module(PROGRAM), (), PassContext(), instruments=[NumberedDumps(folder)])
    assert [item.name for item in folder.iterdir()] == ["00-input.imc"]
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(DiagnosticError) as raised:
        NumberedDumps(folder)
    assert raised.value.diagnostics[0].code is codes.OUTPUT
    assert (folder / "mine.txt").exists() and (folder / "00-input.imc").exists()


# -- timing ----------------------------------------------------------------------------------------


def test_timing_nests_and_adds_up():
    timing = Timing()
    with timing.span("compile"):
        for _ in range(2):
            with timing.span("pass"), timing.span("verify"):
                pass
    with pytest.raises(ZeroDivisionError), timing.span("fails"):
        raise ZeroDivisionError
    (whole, fails) = timing.root.children
    assert [child.name for child in whole.children] == ["pass", "pass"]
    assert whole.children[0].children[0].name == "verify" and fails.children == []
    assert timing.root.seconds == whole.seconds + fails.seconds
    tree, listed = timing.as_tree().splitlines(), timing.as_list().splitlines()
    assert [re.split(r" %  ", line)[1] for line in tree] == [
        *("total", "  compile", "    pass", "      verify", "    pass", "      verify", "  fails")
    ]
    assert len(listed) == 5 and sum("(2 times)" in line for line in listed) == 2
    data = timing.to_json()
    assert data["children"][0]["children"][1]["children"][0]["name"] == "verify"


def test_timing_on_the_command_line(tmp_path, capsys):
    file, times = tmp_path / "m.imc", tmp_path / "times.json"
    file.write_text(PROGRAM)
    command = ["opt", str(file), "--passes", "canonicalize, dead-code"]
    assert main([*command, "--timing", "--timing-tree", "--timing-json", str(times)]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("// imc 1") and "verify  (2 times)" in shown.err
    assert "    verify" in shown.err
    data = json.loads(times.read_text())
    assert [item["name"] for item in data["children"]] == ["canonicalize", "dead-code"]


# -- crashes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crash(Pass):
    """Raises after it changed something."""

    name: ClassVar[str] = "crash"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "calibration"})
    bits: int = 8

    def run(self, module, context):
        rewriter = context.rewriter(module, self.name)
        for op in list(module.walk()):
            if isinstance(op, nn.Relu) and not op.y.users:
                rewriter.erase(op)
        raise ZeroDivisionError(f"unforeseen at {self.bits} bits")


@pytest.fixture
def crash(monkeypatch):
    plugin = types.ModuleType("crashing_plugin")
    plugin.Crash = Crash
    monkeypatch.setitem(sys.modules, "crashing_plugin", plugin)
    monkeypatch.setitem(registry._modules(), "crash", "crashing_plugin")


def test_crash_reproducer(held, crash, tmp_path, capsys):
    module, context = held
    context.calibration = [(torch.ones(2, 4),), (torch.zeros(1, 4),)]
    before, folder = print_module(module), tmp_path / "crash"
    with pytest.raises(ZeroDivisionError) as raised:
        run_pipeline(
            module,
            parse_pipeline("fold-batch-norm, crash{bits=3}"),
            context,
            instruments=[CrashReproducer(folder)],
        )
    note = "\n".join(raised.value.__notes__)
    facts = json.loads((folder / "reproducer.json").read_text())
    assert facts["command"] in note and "crash{bits=3}" in note
    assert "unforeseen at 3 bits" in facts["reason"]
    text = (folder / "before.imc").read_text()
    assert text == before.replace("w.safetensors", "before.safetensors")
    assert main(shlex.split(facts["command"])[1:]) == 70
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: unforeseen at 3 bits" in shown and "pass crash{bits=3}" in shown
    assert "Traceback" not in shown


def test_refusing_is_no_crash(held, tmp_path):
    module, _ = held
    with pytest.raises(DiagnosticError):
        run_pipeline(
            module,
            parse_pipeline("quantize-weights"),
            PassContext(),
            instruments=[CrashReproducer(tmp_path / "crash")],
        )
    assert not (tmp_path / "crash").exists()


# -- phases ----------------------------------------------------------------------------------------


def test_passes_by_phase():
    text = "canonicalize, dead-code, map-crossbars, calibrate-adc, place, schedule"
    passes = parse_pipeline(text)
    parts = {name: print_pipeline(held) for name, held in by_phase(passes).items()}
    assert parts == {
        "captured": "",
        "optimized": "canonicalize, dead-code",
        "mapped": "map-crossbars, calibrate-adc",
        "placed": "place",
        "scheduled": "schedule",
    }
    assert print_pipeline(passes_after(passes, "mapped")) == "place, schedule"
    assert passes_after(passes, "captured") == passes_until(passes, "scheduled") == passes
    assert passes_until(passes, "captured") == passes_after(passes, "scheduled") == ()
    with pytest.raises(DiagnosticError, match="never reaches the phase 'placed'"):
        passes_until(passes[:4], "placed")
    with pytest.raises(DiagnosticError, match="did you mean 'mapped'"):
        passes_until(passes, "maped")
