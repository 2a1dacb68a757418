"""Code in the README and the how-tos runs as it stands."""

import re
from pathlib import Path

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


def test_bring_your_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/how-to/bring-your-model.md", "python")
    (tmp_path / "mymodel.py").write_text(code)
    assert main(["compile", "mymodel.py", "--target", "rram", "-o", "out/m", "--trials", "2"]) == 0
    assert "write and read noise" in capsys.readouterr().out
    assert main(["report", "out/m"]) == 0


def test_own_target_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["targets", "rram"]) == 0
    (tmp_path / "mychip.toml").write_text(capsys.readouterr().out)
    assert main(["targets", "mychip.toml", "--set", "adc.bits=6"]) == 0
    assert "bits = 6" in capsys.readouterr().out


def test_add_a_pass_runs(tmp_path, monkeypatch):
    (code,) = blocks("docs/how-to/add-a-pass.md", "python")
    file = tmp_path / "clip_activations.py"
    file.write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import clip_activations

    from imcc.ir import parse_module, print_module
    from imcc.passes.infrastructure import PassContext, run_pipeline

    module = parse_module(
        '// imc 1\nmodule @m phase("captured") {\n'
        "  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx4xf32> {\n"
        "    %y = nn.relu %x : tensor<Bx4xf32>\n    core.return %y\n  }\n}\n"
    )
    made = clip_activations.ClipActivations(limit=4.0)
    run_pipeline(module, (made,), PassContext())
    assert "nn.clamp %x {minimum = 0.0, maximum = 4.0}" in print_module(module)
    assert str(made) == "clip-activations{limit=4.0}"


def test_add_an_op_runs():
    import torch

    from imcc.ir import TensorType, Type, Value, parse_module, print_module, verify
    from imcc.ir.dialects import nn
    from imcc.ir.ops import OPS, Op, attribute, operand, result
    from imcc.ir.rules import EVAL
    from imcc.ir.semantics.interpreter import EvalContext, evaluate_function
    from imcc.ir.semantics.resources import ResourceStore
    from imcc.ir.types import FLOATS
    from imcc.testing.examples import example_text

    declaration, rule = blocks("docs/how-to/add-an-op.md", "python")
    # The page adds to two existing files; these are the names that the files have in scope.
    scope = {
        "__name__": "add_an_op",
        **{"Op": Op, "Value": Value, "Type": Type, "TensorType": TensorType, "FLOATS": FLOATS},
        **{"operand": operand, "attribute": attribute, "result": result},
        **{"EVAL": EVAL, "EvalContext": EvalContext, "Tensor": torch.Tensor, "nn": nn},
        "functional": torch.nn.functional,
    }
    import sys
    import types

    module = sys.modules.setdefault("add_an_op", types.ModuleType("add_an_op"))
    module.__dict__.update(scope)
    try:
        exec(compile(declaration, "nn.py", "exec"), module.__dict__)
        nn.Softplus = module.Softplus
        exec(compile(rule, "semantics.py", "exec"), module.__dict__)
        program = parse_module(example_text(module.Softplus))
        verify(program)
        assert print_module(program) == example_text(module.Softplus)
        x = torch.linspace(-2, 2, 16).reshape(2, 8)
        (y,) = evaluate_function(program.function(), (x,), resources=ResourceStore()).outputs
        assert torch.allclose(y, torch.nn.functional.softplus(x, 2.0))
    finally:
        OPS.pop("nn.softplus", None)
        EVAL._rules.pop(("nn.softplus", None), None)
        vars(nn).pop("Softplus", None)
        del sys.modules["add_an_op"]


def test_export_to_mlir(capsys):
    page = "docs/how-to/export-to-mlir.md"
    (code,) = blocks(page, "python")
    (shown,) = blocks(page, "mlir")
    exec(compile(code, page, "exec"), {})
    assert capsys.readouterr().out.strip() == shown.strip()
