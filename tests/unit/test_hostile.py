"""Wrong and hostile input: a diagnostic and its exit code, no traceback, nothing half written.

Damage to artifacts is in ``test_artifact.py``; here every command meets what it must refuse.
"""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from torch import nn

import imcc
from imcc.cli.main import main
from imcc.ir.ops import OPS
from imcc.ir.registry import load_all_dialects
from imcc.testing.examples import example_text

load_all_dialects()

HEAD = '// imc 1\nmodule @m phase("captured") {\n'
FUNCTION = "  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx4xf32> {\n"
RELU = "    %y = nn.relu %x : tensor<Bx4xf32>\n"
END = "    core.return %y\n  }\n}\n"
PROGRAM = HEAD + FUNCTION + RELU + END
MODEL = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)

def model():
    return Network()

def example_inputs():
    return (torch.zeros(1, 4),)

def calibration_data():
    return [(torch.rand(8, 4),)]
"""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    folder = tmp_path_factory.mktemp("pristine") / "artifact"
    imcc.compile(network, torch.zeros(1, 4), calibration=[torch.rand(8, 4)]).save(folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(folder):
    return sorted(str(item.relative_to(folder)) for item in folder.rglob("*"))


def refused(here, capsys, arguments, status, code, *words):
    """The command fails as it should, prints nothing on stdout and leaves no file."""
    # Bytecode of a model file is no output.
    sys.dont_write_bytecode = True
    before = listing(here)
    assert main(arguments) == status
    shown = capsys.readouterr()
    assert f"[{code}]" in shown.err, shown.err
    assert shown.out == "" and "Traceback" not in shown.err
    for word in words:
        assert word in shown.err, shown.err
    assert listing(here) == before
    return shown.err


# -- model files -----------------------------------------------------------------------------------

MODELS = {
    "absent": (None, "IMC301", "does not exist"),
    "folder": ("/", "IMC301", "is a folder"),
    "empty": ("", "IMC302", "def model():"),
    "syntax error": (MODEL + "\ndef f(:\n", "IMC301", "model.py:22"),
    "binary": (b"\x00\xff\xfe" * 50, "IMC301", "model.py"),
    "nul byte": (b"x = 1\0", "IMC301", "model.py"),
    "no model": (MODEL.replace("def model", "def modle"), "IMC302", "did you mean 'modle'"),
    "no inputs": (MODEL.replace("def example_inputs", "def f"), "IMC302", "example_inputs"),
    "raises": (MODEL + "\n1 / 0\n", "IMC301", "ZeroDivisionError"),
    "model raises": (MODEL.replace("return Network()", "raise OSError('x')"), "IMC301", "OSError"),
    "exits": (MODEL + "\nraise SystemExit(0)\n", "IMC301", "SystemExit"),
    "recursion": (MODEL + "\ndef f():\n    f()\nf()\n", "IMC301", "RecursionError"),
    "deeply nested": ("x = " + "(" * 5000 + ")" * 5000, "IMC301", "model.py"),
    "import": (MODEL + "\nimport no_such_package\n", "IMC301", "install the package"),
    "not a network": (MODEL.replace("return Network()", "return 3"), "IMC301", "torch.nn.Module"),
    "no return": (MODEL.replace("return Network()", "Network()"), "IMC301", "return statement"),
    "unsupported op": (
        MODEL.replace("self.layer(x)", "torch.linalg.det(x[:, :1, None] * x[:, None])"),
        "IMC30",
        "model.py:11",
    ),
    "control flow": (
        MODEL.replace("return self.layer(x)", "return self.layer(x) if x.sum() > 0 else x"),
        "IMC304",
        "model.py:11",
    ),
    "wrong shapes": (MODEL.replace("torch.zeros(1, 4)", "torch.zeros(1, 5)"), "IMC304", "model.py"),
    "strings": (MODEL.replace("torch.zeros(1, 4)", "'text'"), "IMC301", "example_inputs"),
    "complex": (MODEL.replace("torch.zeros(1, 4)", "torch.zeros(1, 4) * 1j"), "IMC304", "complex"),
    "no batch": (MODEL.replace("torch.zeros(1, 4)", "torch.zeros(0, 4)"), "IMC304", "no elements"),
    "nan weights": (
        MODEL.replace("(4, 3)", "(4, 3)\n        self.layer.weight.data[0] = torch.nan"),
        "IMC306",
        "4 of 12 elements",
    ),
    "nan data": (MODEL.replace("torch.rand(8, 4)", "torch.full((8, 4), torch.inf)"), "IMC704", "0"),
    "no data": (MODEL.replace("[(torch.rand(8, 4),)]", "[]"), "IMC704", "nothing"),
    "data of another shape": (MODEL.replace("torch.rand(8, 4)", "torch.rand(8, 5)"), "IMC702", "5"),
    "data raises": (MODEL.replace("torch.rand(8, 4)", "[][0]"), "IMC301", "IndexError"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_model_file(name, here, capsys):
    content, code, words = MODELS[name]
    file = here / "model.py"
    if content == "/":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    held = main(["compile", "model.py", "-o", "out/made", "--json"])
    shown = capsys.readouterr()
    assert held == 1, shown.err
    assert f"error[{code}" in shown.err and words in shown.err, shown.err
    assert shown.out == "" and "Traceback" not in shown.err
    assert not (here / "out").exists()


def test_what_a_model_prints_is_not_machine_output(here):
    printing = MODEL.replace(
        "return self.layer(x)",
        'print("forward"); os.write(1, b"raw forward\\n"); return self.layer(x)',
    )
    start = 'import os\nprint("import")\nos.system("echo shell")\n'
    (here / "model.py").write_text(start + printing)
    command = [sys.executable, "-m", "imcc", "compile", "model.py", "--json"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=here)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["model"]["name"] == here.name
    for said in ("import", "shell", "forward", "raw forward"):
        assert f"{said}\n" in made.stderr


# -- IR text ---------------------------------------------------------------------------------------

DEEP = "[" * 60_000 + "1" + "]" * 60_000
TEXTS = {
    "empty": ("", "IMC102", "// imc 1"),
    "binary": (b"// imc 1\n\xff\xfe\x00", "IMC101", "not UTF-8"),
    "nul": (PROGRAM.replace("%y", "%\0y", 1), "IMC101", "unexpected"),
    "other version": (PROGRAM.replace("imc 1", "imc 7"), "IMC102", "7"),
    "truncated": (PROGRAM[:-9], "IMC101", "the end of the text"),
    "malformed": (PROGRAM.replace("-> tensor", "=> tensor"), "IMC101", "'->'"),
    "trailing": (PROGRAM + "more", "IMC101", "unexpected 'more'"),
    "undefined": (PROGRAM.replace("nn.relu %x", "nn.relu %z"), "IMC103", "%z"),
    "redefined": (HEAD + FUNCTION + RELU + RELU + END, "IMC104", "%y is defined twice"),
    "unknown op": (PROGRAM.replace("nn.relu", "nn.rleu"), "IMC105", "did you mean 'nn.relu'"),
    "unknown dialect": (PROGRAM.replace("nn.relu", "qq.relu"), "IMC105", "qq.relu"),
    "unknown attribute": (PROGRAM.replace("%x :", "%x {a = 1} :"), "IMC107", "attribute 'a'"),
    "wrong type": (PROGRAM.replace("u %x : tensor<Bx4", "u %x : tensor<Bx5"), "IMC203", "Bx5"),
    "no such type": (PROGRAM.replace("xf32>)", "xf31>)"), "IMC108", "f31"),
    "huge number": (
        PROGRAM.replace("nn.relu %x", f"nn.leaky_relu %x {{negative_slope = {'9' * 9000}}}"),
        "IMC10",
        "digits",
    ),
    "huge dimension": (PROGRAM.replace("x4x", f"x{'9' * 9000}x"), "IMC10", "error"),
    "deeply nested": (PROGRAM.replace("%x :", f"%x {{a = {DEEP}}} :"), "IMC109", "nested"),
    "deeply nested type": (PROGRAM.replace("tensor<", "tensor<" * 9000, 1), "IMC10", "error"),
    "no functions": (HEAD + "}\n" * 3, "IMC101", "unexpected"),
    "no return": (HEAD + FUNCTION + RELU + "  }\n}\n", "IMC201", "core.return"),
    "unknown phase": (PROGRAM.replace("captured", "captued"), "IMC201", "did you mean 'captured'"),
    "wrong phase": (
        example_text(OPS["xbar.mvm"]).replace("mapped", "captured"), "IMC205", "with the phase"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_ir_text(name, here, capsys):
    content, code, words = TEXTS[name]
    (here / "m.imc").write_bytes(content if isinstance(content, bytes) else content.encode())
    start = time.process_time()
    held = main(["opt", "m.imc"])
    shown = capsys.readouterr()
    assert held == 1, shown.err
    assert f"error[{code}" in shown.err and words in shown.err, shown.err
    assert shown.out == "" and "Traceback" not in shown.err
    assert len(shown.err) < 20_000, "a hostile file cannot flood the terminal"
    # Hostile text takes no longer than its size asks for; the bound is generous on purpose.
    assert time.process_time() - start < 30


def test_ten_megabytes_of_text(here, capsys):
    line = '    %v{} = nn.relu %x {{scope = "{}"}} : tensor<Bx4xf32>\n'
    filler = "a" * 1_000_000
    lines = "".join(line.format(number, filler) for number in range(10))
    (here / "valid.imc").write_text(HEAD + FUNCTION + lines + RELU + END)
    assert main(["opt", "valid.imc", "--passes", "dead-code"]) == 0
    assert capsys.readouterr().out == PROGRAM
    (here / "noise.imc").write_text("// imc 1\n" + "module @m { " * 800_000)
    refused(here, capsys, ["opt", "noise.imc"], 1, "IMC101")
    (here / "quote.imc").write_text(HEAD + '"' + "\\" * 10_000_000)
    refused(here, capsys, ["opt", "quote.imc"], 1, "IMC101")


def test_a_size_that_no_input_has(here, capsys):
    import numpy as np

    from imcc.ir import parse_module
    from imcc.ir.diagnostics import DiagnosticError
    from imcc.ir.semantics.interpreter import evaluate_function
    from imcc.ir.semantics.resources import ResourceStore

    text = PROGRAM.replace("Bx4", "4").replace(
        RELU.replace("Bx4", "4"),
        "    %i = core.iota {size = S} : tensor<Sxi64>\n    %y = nn.relu %x : tensor<4xf32>\n",
    )
    module = parse_module(text)
    with pytest.raises(DiagnosticError, match="no input says how large S is"):
        evaluate_function(module.function(), [torch.zeros(4)], resources=ResourceStore())
    (here / "m.imc").write_text(text)
    np.savez("x.npz", x=np.zeros(4, np.float32))
    before = listing(here)
    assert main(["run", "m.imc", "--data", "x.npz", "-o", "y.npz"]) == 1
    assert "IMC901" not in capsys.readouterr().err and listing(here) == before


# -- words of the command line ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "code", "words"),
    [
        (["opt", "m.imc", "--passes", "ded-code"], 1, "IMC401", "did you mean 'dead-code'"),
        (["opt", "m.imc", "--passes", "dead-code{x=1}"], 1, "IMC403", "no option 'x'"),
        (["opt", "m.imc", "--passes", "dead-code{"], 1, "IMC402", "unexpected"),
        (["opt", "m.imc", "--passes", "place", "--target", "ram"], 1, "IMC501", "rram"),
        (["opt", "m.imc", "--target", "rram", "--passes", "place"], 1, "IMC404", "phase"),
        (["opt", "m.imc", "--passes", "quantize-weights"], 1, "IMC404", "weights"),
        (["opt", "absent.imc"], 1, "IMC801", "absent.imc"),
        (["opt", "a\0b"], 1, "IMC801", "cannot read"),
        (["opt", "m.imc", "--seed", "x"], 2, "IMC801", "--seed"),
        (["opt", "m.imc", "--weights", "m.imc"], 1, "IMC601", "m.imc"),
        (["opt", "m.imc", "--timing-json", "m.imc/x"], 1, "IMC603", "cannot write"),
        (["opt", "."], 1, "IMC601", "manifest"),
        (["targets", "ram"], 1, "IMC501", "'rram'"),
        (["targets", "rram", "--set", "adc.bits"], 1, "IMC502", "KEY.PATH=VALUE"),
        (["targets", "rram", "--set", "adc.bits=1979-05-27"], 1, "IMC502", "adc.bits"),
        (["targets", "rram", "--set", "backend=1979-05-27"], 1, "IMC502", "backend"),
        (["targets", "rram", "--set", f"a={'[' * 5000}"], 1, "IMC502", "a"),
        (["targets", "rram", "--set", f"{'a.' * 3000}b=1"], 1, "IMC502", "does not set a key"),
        (["passes", "nothing"], 1, "IMC401", "imcc passes"),
        (["ops", "nn.rleu"], 1, "IMC105", "nn.relu"),
        (["explain", "IMC999"], 1, "IMC801", "imcc explain"),
        (["run", "absent", "--data", "x.npz", "-o", "y.npz"], 1, "IMC601", "no artifact"),
        (["run", "absent"], 2, "IMC801", "--model"),
        (["report", "m.imc"], 1, "IMC801", "--target"),
        (["report", "/dev/null"], 1, "IMC601", "no artifact"),
        (["compile", "/dev/null"], 1, "IMC30", ""),
        (["compile", "x" * 300], 1, "IMC801", "too long"),
        (["compile", "model.py", "-o", "x" * 300], 1, "IMC801", "too long"),
        (["compile", "a\0b"], 1, "IMC30", ""),
        (["compile", "model.py", "--target", "a\0b"], 1, "IMC", ""),
        (["opt", "m.imc", "--target", "x" * 300], 1, "IMC", ""),
        (["view", ""], 2, "IMC801", "names no file"),
        (["report", "a\0b"], 2, "IMC801", "names no file"),
    ],
)
def test_command_line(arguments, status, code, words, here, capsys):
    (here / "m.imc").write_text(PROGRAM)
    before = listing(here)
    held = main(arguments)
    shown = capsys.readouterr()
    assert held == status, shown.err
    assert f"error[{code}" in shown.err and words in shown.err, shown.err
    assert shown.out == "" and "Traceback" not in shown.err
    assert listing(here) == before


# -- target files ----------------------------------------------------------------------------------

TARGETS = {
    "wrong unit": ("read_ns = 10.0", "read_us = 0.01", "unknown key timing.read_us"),
    "text for a number": ("read_ns = 10.0", 'read_ns = "10 ns"', "key timing.read_ns"),
    "missing key": ("read_ns = 10.0\n", "", "key timing.read_ns is missing"),
    "negative": ("g_max_us = 1.0", "g_max_us = -1.0", "key device.g_max_us"),
    "zero": ("rows = 128", "rows = 0", "key array.rows"),
    "not finite": ("clock_ns = 1.0", "clock_ns = inf", "key timing.clock_ns"),
    "unknown key": ("lanes = 64", "lanes = 64\nlane = 3", "unknown key digital.lane"),
    "no source": ('source = "CACTI', 'sauce = "CACTI', "sauce"),
    "table twice": ("[dac]", "[array]", "not TOML"),
    "not TOML": ("[dac]", "[dac", "not TOML"),
    "no backend": ('backend = "crossbar"', "", "key backend"),
    "other backend": ('backend = "crossbar"', 'backend = "crosbar"', "unknown backend"),
    "base of a path": ('backend = "crossbar"', 'base = "../x.toml"', "key base"),
    "base that is no text": ('backend = "crossbar"', "base = 1979-05-27", "key base"),
    "huge number": ("rows = 128", "rows = " + "9" * 5000, "digits"),
    "deep": ("bits = 1\n", "bits = " + "[" * 9000 + "]" * 9000 + "\n", "too deep"),
    "deep table": ("[dac]", "[" + ".".join("x" * 50) + "]", "more than 32 deep"),
    "long key": ("[dac]", "[" + ".".join("x" * 20000) + "]", "dots"),
    "inline tables": ("bits = 1\n", "bits = " + "{a=" * 5000 + "1" + "}" * 5000 + "\n", "too deep"),
    "huge float": ("clock_ns = 1.0", "clock_ns = 1e300", "at most 1e+12, found 1e+300"),
    "tiny float": ("clock_ns = 1.0", "clock_ns = 1e-300", "at least 1e-06"),
    "truth for a number": ("clock_ns = 1.0", "clock_ns = true", "found true"),
    "date for a number": ("rows = 128", "rows = 1979-05-27", "found 1979-05-27"),
    "empty key": ("bits = 1\n", 'bits = 1\n"" = 3\n', 'unknown key dac.""'),
    "too large": ("bits = 1\n", "bits = 1\n#" + "x" * (1 << 21) + "\n", "larger than"),
    "binary": ("bits = 1\n", "bits = \udcff\n", "not in UTF-8"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_target_file(name, here, capsys):
    old, new, words = TARGETS[name]
    assert main(["targets", "rram"]) == 0
    text = capsys.readouterr().out
    assert old in text
    text = text.replace(old, new, 1)
    (here / "chip.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    (here / "model.py").write_text(MODEL)
    arguments = ["compile", "model.py", "--target", "chip.toml", "-o", "out"]
    code = "IMC505" if name == "other backend" else "IMC502"
    refused(here, capsys, arguments, 1, code, words)


# -- artifacts -------------------------------------------------------------------------------------


def truncate(folder):
    file = folder / "program.imc"
    file.write_text(file.read_text()[:-5])


def escape(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../secret"] = {"sha256": "", "bytes": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def link(folder):
    (folder / "report.json").unlink()
    (folder / "report.json").symlink_to("/etc/hostname")


def unreadable(folder):
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").mkdir()


HARM = {
    "missing": (lambda folder: (folder / "program.imc").unlink(), "IMC601"),
    "truncated": (truncate, "IMC601"),
    "corrupted": (lambda folder: (folder / "weights.safetensors").write_bytes(b"\xff"), "IMC601"),
    "mismatching": (lambda folder: (folder / "target.toml").write_text("a = 1\n"), "IMC601"),
    "path": (escape, "IMC602"),
    "link": (link, "IMC602"),
    "folder": (unreadable, "IMC601"),
}
READERS = {
    "report": ["report", "a"],
    "run": ["run", "a", "--data", "x.npz", "-o", "y.npz"],
    "opt": ["opt", "a"],
}


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("harm", HARM)
def test_artifact(harm, command, pristine, here, capsys):
    shutil.copytree(pristine, here / "a")
    do, code = HARM[harm]
    do(here / "a")
    refused(here, capsys, READERS[command], 1, code)


def test_decompression_bomb(here, capsys):
    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("manifest.json", "program.imc"):
            with archive.open(name, "w", force_zip64=True) as file:
                for _ in range(100):
                    file.write(bytes(1 << 20))
    assert (here / "bomb.zip").stat().st_size < 1 << 20
    refused(here, capsys, ["report", "bomb.zip"], 1, "IMC602", "expands to")


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04", b"\x80\x04N.", "text", "objects", "nan", "shape", "dtype", "names"],
    ids=str,
)
def test_data_file(data, pristine, here, capsys):
    import numpy as np

    file = here / "x.npz"
    arrays = {
        "objects": {"x": np.array([{}], dtype=object)},
        "nan": {"x": np.full((2, 4), np.nan, np.float32)},
        "shape": {"x": np.zeros((2, 5), np.float32)},
        "dtype": {"x": np.zeros((2, 4), np.float64)},
        "names": {"a": np.zeros(2), "b": np.zeros(3)},
    }
    if isinstance(data, bytes):
        file.write_bytes(data)
    elif data == "text":
        file.write_text("1, 2, 3\n")
    else:
        np.savez(file, **arrays[data])
    held = main(["run", str(pristine), "--data", "x.npz", "-o", "y.npz"])
    shown = capsys.readouterr()
    assert held == 1 and "error[IMC70" in shown.err, shown.err
    assert "Traceback" not in shown.err and listing(here) == ["x.npz"]


# -- where output goes -----------------------------------------------------------------------------


def test_existing_output(here, pristine, capsys):
    import numpy as np

    (here / "model.py").write_text(MODEL)
    np.savez("x.npz", x=np.zeros((2, 4), np.float32))
    (here / "full").mkdir()
    (here / "full" / "thesis.tex").write_text("words")
    (here / "file").write_text("words")
    run = ["run", str(pristine), "--data", "x.npz", "-o"]
    for arguments, words in (
        (["compile", "model.py", "-o", "full"], "--force"),
        (["compile", "model.py", "-o", "full", "--force"], "will not be replaced"),
        (["compile", "model.py", "-o", "file", "--force"], "is a file"),
        (["compile", "model.py", "-o", "file/a"], "cannot write"),
        ([*run, "file"], "--force"),
        ([*run, "full"], "is a folder"),
        ([*run, "file/a.npz"], "cannot write"),
        (["report", str(pristine), "--trace", "file"], "--force"),
        (["opt", str(pristine), "--dump-passes", "full", "--passes", "dead-code"], "did not dump"),
    ):
        refused(here, capsys, arguments, 1, "IMC603", words)
    assert (here / "file").read_text() == (here / "full" / "thesis.tex").read_text() == "words"


FILL = """
import resource, sys
from imcc.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for arguments in sys.argv[1:]:
    assert main(arguments.split()) == 1
"""


def process(*arguments, here, **options):
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.Popen(
        [sys.executable, *arguments], stderr=subprocess.PIPE, text=True, cwd=here, **options
    )


def test_disk_that_takes_no_more(here, pristine):
    import numpy as np

    (here / "model.py").write_text(MODEL)
    np.savez("x.npz", x=np.zeros((2000, 4), np.float32))
    commands = [
        "compile model.py -o out",
        "compile model.py -o out.zip",
        f"run {pristine} --data x.npz -o y.npz",
        f"report {pristine} --trace trace.json",
    ]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with process("-c", FILL, *commands, here=here, env=environment) as made:
        out, err = made.communicate(timeout=240)
    assert made.returncode == 0, err
    assert err.count("error[IMC603]") == err.count("File too large") == 4, err
    assert out == "" and "Traceback" not in err and listing(here) == ["model.py", "x.npz"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_standard_output_that_takes_no_more(here):
    (here / "m.imc").write_text(PROGRAM)
    with (
        open("/dev/full", "w") as full,
        process("-m", "imcc", "opt", "m.imc", here=here, stdout=full) as made,
    ):
        _, err = made.communicate(timeout=120)
    assert made.returncode == 1
    assert "error[IMC603]" in err and "No space left" in err
    assert "Traceback" not in err and "Exception ignored" not in err


def test_closed_streams(here):
    (here / "m.imc").write_text(PROGRAM)
    for closing, status in (("<&-", 1), (">&-", 0), ("2>&-", 0)):
        file = "-" if closing == "<&-" else "m.imc"
        command = f"exec {sys.executable} -m imcc opt {file} {closing}"
        made = subprocess.run(
            command, shell=True, cwd=here, capture_output=True, text=True, timeout=120
        )
        assert made.returncode == status, made.stderr
        assert "IMC901" not in made.stderr and "Traceback" not in made.stderr


@pytest.mark.parametrize(
    "command",
    ["opt secret/m.imc", "report secret/a", "compile secret/model.py", "targets secret/a.toml",
     "report secret/a.zip", "run secret/a --data secret/x.npz -o y.npz", "view secret/a",
     "compile model.py -o secret/out", "run a --model secret/model.py"],
)  # fmt: skip
def test_folder_that_may_not_be_looked_into(command, here, capsys, monkeypatch):
    (here / "model.py").write_text(MODEL)
    look = pathlib.Path.stat

    def stat(path, **options):
        # The superuser may look everywhere, so the refusal is made here.
        if "secret" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, **options)

    monkeypatch.setattr(pathlib.Path, "stat", stat)
    assert main(command.split()) == 1
    shown = capsys.readouterr()
    assert "error[IMC" in shown.err and "IMC901" not in shown.err, shown.err
    assert shown.out == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc takes no folders")
def test_place_where_nothing_can_be_made(here, capsys):
    (here / "model.py").write_text(MODEL)
    refused(here, capsys, ["compile", "model.py", "-o", "/proc/imcc/out"], 1, "IMC603", "/proc")


# -- ends of long runs -----------------------------------------------------------------------------

NEVER_ENDING = {
    "import": "import time\nprint('here', flush=True)\nwhile True:\n    time.sleep(0.01)\n",
    "forward": MODEL.replace(
        "return self.layer(x)", "print('here', flush=True)\n        while True: pass"
    ),
    "evaluation": MODEL
    + """
def evaluation_data():
    return torch.rand(200, 4), torch.zeros(200)

def metric(outputs, targets):
    print("here", flush=True)
    return 0.5
""",
}


@pytest.mark.parametrize(
    ("name", "signalled"),
    [
        ("import", signal.SIGINT),
        ("forward", signal.SIGINT),
        ("evaluation", signal.SIGINT),
        ("evaluation", signal.SIGKILL),
    ],
)
def test_a_run_that_is_ended(name, signalled, here):
    (here / "model.py").write_text(NEVER_ENDING[name])
    arguments = ["compile", "model.py", "-o", "out", "--trials", "100000", "--json"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with process("-m", "imcc", *arguments, here=here, env=environment) as made:
        for line in made.stderr:
            if line == "here\n":
                break
        made.send_signal(signalled)
        out, err = made.communicate(timeout=120)
    assert made.returncode == (130 if signalled == signal.SIGINT else -signal.SIGKILL), err
    assert out == "" and "Traceback" not in err
    if signalled == signal.SIGINT:
        assert err.strip().endswith("interrupted")
    assert listing(here) == ["model.py"]


def die_at(step, patch):
    """Kill this process at one of the steps that change the file system."""
    import imcc.runtime.artifact as artifact

    done = []

    def counted(function):
        def call(*arguments, **options):
            done.append(function)
            if len(done) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in ("write_text", "mkdir", "chmod"):
        patch.setattr(artifact.Path, name, counted(getattr(artifact.Path, name)))
    for name in ("rename", "replace"):
        patch.setattr(artifact.os, name, counted(getattr(os, name)))


def test_killed_while_saving_leaves_the_old_artifact_or_the_new_one(here, pristine, monkeypatch):
    made = imcc.load(pristine)
    ended = []
    for step in range(1, 40):
        shutil.rmtree("a", ignore_errors=True)
        shutil.copytree(pristine, here / "a")
        child = os.fork()
        if child == 0:
            try:
                die_at(step, monkeypatch)
                made.save("a", force=True)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        ended.append(os.WIFSIGNALED(status))
        found = [item for item in (here / "a", *here.glob(".a.*/old")) if item.exists()]
        assert len(found) >= 1, f"killed at step {step}"
        assert repr(imcc.load(found[0]).module) == repr(made.module)
        for left in here.glob(".a.*"):
            shutil.rmtree(left)
        if not ended[-1]:
            break
    assert len(ended) > 6 and not ended[-1], "every step of saving was tried"
