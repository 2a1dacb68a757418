"""The door to MLIR: what is exported, and that MLIR's readers take it."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from imcc.cli.main import main
from imcc.ir import parse_module
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.ops import OPS
from imcc.ir.registry import load_all_dialects
from imcc.ir.text.mlir import export_mlir
from imcc.testing.examples import example_module
from imcc.testing.golden import read_golden
from imcc.testing.mlir import check_export, read_with_xdsl

ROOT = Path(__file__).parents[2]
PROGRAM = """// imc 1
module @m phase("captured") resources("w.safetensors") {
  resource @fc.weight : tensor<10x64xq<s8, axis=0>> sha256("ab12")
  resource @blocks.0/scale : tensor<10xf32>
  state @seen : tensor<10xf32> init(@blocks.0/scale)
  func @inference(%x: tensor<4*BxSx64xf32>, %seen: tensor<10xf32> state(@seen)) -> (tensor<4*BxSx64xf32>, tensor<10xf32> state(@seen)) {
    %y = nn.clamp %x {minimum = -1e-05, maximum = inf, scope = "a\\"b"} : tensor<4*BxSx64xf32> loc("my model.py":12)
    core.return %y, %seen
  }
}
"""  # noqa: E501


def test_text():
    text = export_mlir(parse_module(PROGRAM))
    assert text == (
        '"builtin.module"() <{sym_name = "m"}> ({\n'
        '  "imcc.resource"() {sym_name = "fc.weight", type = tensor<10x64x!imcc.q<"s8, axis=0">>,'
        ' sha256 = "ab12"} : () -> ()\n'
        '  "imcc.resource"() {sym_name = "blocks.0/scale", type = tensor<10xf32>} : () -> ()\n'
        '  "imcc.state"() {sym_name = "seen", type = tensor<10xf32>, init = @"blocks.0/scale"} :'
        " () -> ()\n"
        '  "func.func"() <{sym_name = "inference", function_type = (tensor<?x?x64xf32>,'
        " tensor<10xf32>) -> (tensor<?x?x64xf32>, tensor<10xf32>), arg_attrs = ["
        '{imcc.name = "x", imcc.types = ["tensor<4*BxSx64xf32>"]},'
        ' {imcc.name = "seen", imcc.state = @seen}], res_attrs = ['
        '{imcc.types = ["tensor<4*BxSx64xf32>"]}, {imcc.state = @seen}]}> ({\n'
        "  ^bb0(%x: tensor<?x?x64xf32>, %seen: tensor<10xf32>):\n"
        '    %y = "nn.clamp"(%x) {minimum = -1.0e-05 : f64, maximum = 0x7FF0000000000000 : f64,'
        ' scope = "a\\"b", imcc.types = ["tensor<4*BxSx64xf32>"]} : (tensor<?x?x64xf32>) ->'
        ' tensor<?x?x64xf32> loc("my model.py":12:0)\n'
        '    "func.return"(%y, %seen) : (tensor<?x?x64xf32>, tensor<10xf32>) -> ()\n'
        "  }) : () -> ()\n"
        '}) {imcc.phase = "captured", imcc.resource_file = "w.safetensors"} : () -> ()\n'
    )


def test_command_line_and_artifact(tmp_path, capsys):
    (tmp_path / "m.imc").write_text(
        '// imc 1\nmodule @m phase("captured") {\n'
        "  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx4xf32> {\n"
        "    %y = nn.relu %x : tensor<Bx4xf32>\n    core.return %y\n  }\n}\n"
    )
    assert main(["opt", str(tmp_path / "m.imc"), "--emit", "mlir"]) == 0
    assert '"nn.relu"(%x)' in capsys.readouterr().out
    (tmp_path / "model.py").write_text(
        "import torch\n\ndef model():\n    return torch.nn.Linear(4, 3)\n\n"
        "def example_inputs():\n    return torch.zeros(1, 4)\n"
    )
    for name in ("out", "out.zip"):
        artifact = str(tmp_path / name)
        assert (
            main(["compile", str(tmp_path / "model.py"), "--target", "reference", "-o", artifact])
            == 0
        )
        capsys.readouterr()
        assert main(["opt", artifact, "--emit", "mlir"]) == 0
        shown = capsys.readouterr().out
        assert '"nn.linear"' in shown


# -- read by xdsl ----------------------------------------------------------------------------------


needs_xdsl = pytest.mark.skipif(
    find_spec("xdsl") is None, reason="xdsl is not installed: pip install 'imcc[mlir]'"
)


@needs_xdsl
@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests/golden").glob("*/*.imc")), ids=lambda p: p.stem
)
def test_goldens_are_read_by_xdsl(path):
    """Inputs and outputs of every golden that are modules."""
    golden = read_golden(path)
    parts = [golden.input, *re.split(r"^// ====.*$", golden.expected, flags=re.MULTILINE)]
    count = 0
    for text in parts:
        try:
            module = parse_module(text)
        except DiagnosticError:
            continue
        check_export(module)
        count += 1
    assert count or path.parent.name == "errors", "the golden holds no module"


@needs_xdsl
def test_examples_of_all_ops_are_read_by_xdsl():
    load_all_dialects()
    for op in list(OPS.values()):
        check_export(example_module(op))


@needs_xdsl
def test_floats_names_and_strings_that_mlir_writes_otherwise():
    text = (
        '// imc 1\nmodule @m phase("captured") {\n'
        "  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx4xf32> {\n"
        '    %y = nn.clamp %x {minimum = -inf, maximum = 1e+22, scope = "größe\\\\\\n"} : '
        "tensor<Bx4xf32>\n"
        "    core.return %y\n  }\n}\n"
    )
    module = parse_module(text)
    check_export(module)
    made = read_with_xdsl(export_mlir(module))
    scopes = [op.attributes["scope"] for op in made.walk() if "scope" in op.attributes]
    held = [item.data if isinstance(item.data, bytes) else item.data.encode() for item in scopes]
    assert held == ["größe\\\n".encode()]
