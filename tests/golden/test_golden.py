"""Runs every golden file, and checks that the runner itself can fail."""

from pathlib import Path

import pytest

from imcc.testing.golden import GoldenError, read_golden, run_golden, update_golden

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*/*.imc"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden(path, request):
    if request.config.getoption("--update-golden"):
        update_golden(path)
    golden = read_golden(path)
    assert run_golden(golden) == golden.expected, f"rerun with --update-golden to accept {path}"


def test_there_are_goldens():
    assert len(FILES) >= 20


@pytest.mark.parametrize(
    "text",
    [
        "module @m {}\n",
        "// RUN: opt\n// CHEKC: x\n",
        "// RUN: opt\nmodule\n// ==== ouput ====\n",
        "// RUN: opt\n// imc 1\n// CHECK: %x\n",
    ],
)
def test_malformed_golden_is_an_error(tmp_path, text):
    path = tmp_path / "bad.imc"
    path.write_text(text)
    with pytest.raises(GoldenError):
        read_golden(path)


def test_wrong_expectation_fails(tmp_path):
    path = tmp_path / "wrong.imc"
    body = (
        "// RUN: opt\n// imc 1\n"
        'module @m phase("captured") {\n'
        "  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx4xf32> {\n"
        "    core.return %x\n  }\n}\n"
    )
    path.write_text(body + "// ==== output ====\nnothing\n")
    golden = read_golden(path)
    assert run_golden(golden) != golden.expected
    update_golden(path)
    golden = read_golden(path)
    assert run_golden(golden) == golden.expected


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("%y = nn.rleu %x : tensor<Bx4xf32>", "// ==== output ====\n// ==== exit 1 ====\n"),
        ("%y = nn.relu %x : tensor<Bx4xf32>", "// ==== output ====\nSAME"),
    ],
)
def test_diagnostics_that_are_not_expected_fail(tmp_path, program, expected):
    """A diagnostic without its section fails, and so does a section without its diagnostic."""
    path = tmp_path / "unexpected.imc"
    body = (
        '// imc 1\nmodule @m phase("captured") {\n'
        "  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx4xf32> {\n"
        f"    {program}\n    core.return %x\n  }}\n}}\n"
    )
    expected = expected.replace("SAME", body)
    path.write_text("// RUN: opt\n" + body + expected)
    golden = read_golden(path)
    accepted = "rleu" not in program
    assert (run_golden(golden) == golden.expected) is accepted
    path.write_text("// RUN: opt\n" + body + expected + "// ==== diagnostics ====\nerror: x\n")
    golden = read_golden(path)
    assert run_golden(golden) != golden.expected
