"""Model files and capture: what is accepted, and each refusal with code and the user's line."""

import inspect
import textwrap

import pytest
import torch
from torch import nn

from imcc.driver.signature import Signature
from imcc.frontend.aten import RULES
from imcc.frontend.capture import capture
from imcc.frontend.model_file import load_data_file, load_model_file
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.semantics.interpreter import evaluate_function

HEAD = "import torch\nfrom torch import nn\n"
GOOD = """
def model():
    return nn.Linear(4, 2)
def example_inputs():
    return torch.zeros(1, 4)
"""


@pytest.fixture
def write(tmp_path):
    def make(text, name="model.py"):
        path = tmp_path / name
        path.write_text(HEAD + textwrap.dedent(text))
        return path

    return make


@pytest.fixture
def network(write):
    """A model file around a forward body; returns module and example inputs."""

    def make(body, init="", inputs="(torch.randn(1, 4),)", arguments="x"):
        indent = " " * 8
        text = (
            "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            + textwrap.indent(textwrap.dedent(init), indent)
            + f"\n    def forward(self, {arguments}):\n"
            + textwrap.indent(textwrap.dedent(body), indent)
            + f"\ndef model():\n    return Net()\ndef example_inputs():\n    return {inputs}\n"
        )
        path = write("\n" + text)
        return load_model_file(path)

    return make


def line_of(path, text):
    return next(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def refused(call, code):
    with pytest.raises(DiagnosticError) as caught:
        call()
    assert all(item.code is code for item in caught.value.diagnostics), caught.value
    assert all(item.help or item.suggestions for item in caught.value.diagnostics)
    return caught.value.diagnostics


def captured(file):
    return capture(file.module, file.example_inputs)


# -- model files ----------------------------------------------------------------------------------


def test_a_model_file_is_loaded(write, capsys):
    path = write(
        GOOD
        + """
        print("hello")
        def calibration_data():
            print("calibrating")
            return torch.zeros(3, 4)
        def metric(outputs, targets):
            return 1.0
        """.replace("\n        ", "\n")
    )
    file = load_model_file(path)
    assert isinstance(file.module, nn.Linear)
    assert [tuple(item.shape) for item in file.example_inputs] == [(1, 4)]
    assert file.calibration_data().shape == (3, 4)
    assert file.metric(None, None) == 1.0
    assert file.loss is None
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "hello" in streams.err and "calibrating" in streams.err


def test_a_class_can_be_named(write):
    path = write(
        "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(3, 2)\n"
        "def example_inputs():\n    return (torch.zeros(1, 3),)\n"
    )
    assert type(load_model_file(f"{path}:Net").module).__name__ == "Net"
    (item,) = refused(lambda: load_model_file(f"{path}:Nett"), codes.MODEL_MISSING)
    assert "Net" in item.suggestions


NETWORKS = """
import types
class Net(nn.Linear):
    def __init__(self, width=3):
        super().__init__(width, 2)
class Wide(nn.Module):
    def __init__(self, width, depth=1):
        super().__init__()
def build_net():
    return Net(5)
def helper():
    return 3
instance = Net(7)
number = 4
zoo = types.SimpleNamespace(Net=Net)
def example_inputs():
    return (torch.zeros(1, 3),)
"""


def test_what_a_file_offers_by_name(write):
    path = write(NETWORKS)
    for name, width in (("Net", 3), ("build_net", 5), ("instance", 7), ("zoo.Net", 3)):
        assert load_model_file(f"{path}:{name}").module.in_features == width
    (item,) = refused(lambda: load_model_file(f"{path}:build"), codes.MODEL_MISSING)
    assert item.suggestions == ("build_net",)
    assert item.help == (
        "its networks: model.py:Net, model.py:Wide, model.py:build_net, model.py:instance"
    )
    (item,) = refused(lambda: load_model_file(f"{path}:zoo.Nett"), codes.MODEL_MISSING)
    assert item.suggestions == ("zoo.Net",)
    (item,) = refused(lambda: load_model_file(path), codes.MODEL_MISSING)
    assert "compile one of its networks: model.py:Net" in item.help and "def model" in item.help


def test_a_class_that_needs_arguments(write):
    path = write(NETWORKS)
    (item,) = refused(lambda: load_model_file(f"{path}:Wide"), codes.MODEL_FILE)
    assert "it needs width" in item.message and "return Wide(width=...)" in item.help
    assert item.model[0].line == line_of(path, "class Wide")


def test_names_that_are_no_networks(write):
    path = write(NETWORKS)
    (item,) = refused(lambda: load_model_file(f"{path}:helper"), codes.MODEL_FILE)
    assert "helper() returned a int" in item.message
    (item,) = refused(lambda: load_model_file(f"{path}:number"), codes.MODEL_FILE)
    assert "number is a int" in item.message


def test_data_from_another_file(write):
    path = write(NETWORKS.replace("def example_inputs", "def other"))
    data = write(
        "def example_inputs():\n    return {'x': torch.zeros(2, 3)}\n"
        "def calibration_data():\n    return torch.zeros(4, 3)\n",
        "data.py",
    )
    file = load_model_file(f"{path}:Net", data)
    assert list(file.example_inputs) == ["x"] and file.calibration_data().shape == (4, 3)
    assert load_data_file(data).calibration_data().shape == (4, 3)
    (item,) = refused(lambda: load_data_file(data).require("metric", "x"), codes.MODEL_MISSING)
    assert "data.py" in item.message


def test_files_beside_the_model_can_be_imported(write):
    write("WIDTH = 7\n", "helper_of_model.py")
    path = write(
        "import helper_of_model\ndef model():\n"
        "    return nn.Linear(helper_of_model.WIDTH, 2)\n"
        "def example_inputs():\n    return torch.zeros(1, 7)\n"
    )
    assert load_model_file(path).module.in_features == 7


def test_missing_file(write, tmp_path):
    write(GOOD)
    (item,) = refused(lambda: load_model_file(tmp_path / "modle.py"), codes.MODEL_FILE)
    assert item.suggestions == (str(tmp_path / "model.py"),)
    refused(lambda: load_model_file(tmp_path), codes.MODEL_FILE)


BROKEN = {
    "syntax": ("def model(:\n    pass\n", "def model(:", "not valid Python"),
    "import": ("import no_such_package_here\n", "no_such", "ModuleNotFoundError"),
    "exit": ("raise SystemExit(3)\n", "SystemExit", "SystemExit"),
    "model raises": (
        "def model():\n    return 1 / 0\ndef example_inputs():\n    return torch.zeros(1)\n",
        "1 / 0",
        "ZeroDivisionError",
    ),
    "model returns None": (
        "def model():\n    nn.Linear(1, 1)\ndef example_inputs():\n    return torch.zeros(1)\n",
        "def model",
        "returned None",
    ),
    "model wants arguments": (
        "def model(width):\n    return nn.Linear(width, 1)\n",
        "def model",
        "no arguments",
    ),
    "inputs are not tensors": (
        "def model():\n    return nn.Linear(1, 1)\ndef example_inputs():\n    return (3,)\n",
        "def example_inputs",
        "not a tensor",
    ),
    "inputs are missing a return": (
        "def model():\n    return nn.Linear(1, 1)\ndef example_inputs():\n    pass\n",
        "def example_inputs",
        "return statement",
    ),
    "metric has the wrong form": (
        GOOD + "def metric(outputs):\n    return 1.0\n",
        "def metric",
        "2 arguments",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_model_files(name, write):
    text, line, message = BROKEN[name]
    path = write(text)
    (item,) = refused(lambda: load_model_file(path), codes.MODEL_FILE)
    assert message in item.message
    assert item.model[0].file == str(path)
    assert item.model[0].line == line_of(path, line)


@pytest.mark.parametrize("name", ["model", "example_inputs"])
def test_missing_functions_show_the_lines_to_write(name, write):
    path = write(GOOD.replace(f"def {name}(", f"def {name}s("))
    (item,) = refused(lambda: load_model_file(path), codes.MODEL_MISSING)
    assert f"def {name}():" in item.help and "return" in item.help
    assert item.suggestions == (f"{name}s",)
    assert item.model[0].file == str(path)


def test_functions_that_a_task_needs(write):
    file = load_model_file(write(GOOD + "def evaluate(model):\n    return [][0]\n"))
    (item,) = refused(lambda: file.require("loss", "fine-tuning"), codes.MODEL_MISSING)
    assert "fine-tuning" in item.message and "def loss(outputs, batch):" in item.help
    (item,) = refused(lambda: file.require("evaluate", "accuracy")(None), codes.MODEL_FILE)
    assert item.model[0].line == line_of(file.path, "[][0]")


# -- capture --------------------------------------------------------------------------------------


def test_scopes_places_and_names(network):
    file = network("x = self.body(x)\nreturn x * 2", "self.body = nn.Sequential(nn.Linear(4, 3))")
    made = captured(file)
    linear, product = (op for op in made.module.walk() if op.name in ("nn.linear", "core.multiply"))
    assert linear.scope == "body.0" and product.scope == ""
    assert linear.loc[0].line == line_of(file.path, "self.body(x)")
    assert product.loc[0].line == line_of(file.path, "x * 2")
    assert {"body.0.weight", "body.0.bias"} <= set(made.module.resources)
    assert all(item.sha256 for item in made.module.resources.values())
    assert str(made.module.function().arguments[0].type) == "tensor<Bx4xf32>"


def test_training_flags_and_inputs_are_left_alone(network):
    file = network("return self.act(x)", "self.act = nn.ReLU(inplace=True)")
    file.module.train()
    before = file.example_inputs[0].clone()
    captured(file)
    assert file.module.training
    assert torch.equal(file.example_inputs[0], before)


def test_tied_weights_are_stored_once(network):
    file = network(
        "return self.b(self.a(x))",
        "self.a = nn.Linear(4, 4, bias=False)\nself.b = nn.Linear(4, 4, bias=False)\n"
        "self.b.weight = self.a.weight",
    )
    made = captured(file)
    assert list(made.module.resources) == ["a.weight"]
    assert [op.name for op in made.module.walk()].count("core.constant") == 1


def test_structured_inputs_and_outputs(network):
    file = network(
        "return {'sum': x + y, 'rest': (x, None, 3)}",
        inputs="(torch.randn(1, 4), torch.randn(1, 4))",
        arguments="x, y",
    )
    made = captured(file)
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    signature = Signature.of(made)
    flat = signature.flatten((x, y))
    results = evaluate_function(made.module.function(), flat, resources=made.resources).outputs
    shaped = signature.rebuild(results)
    assert torch.equal(shaped["sum"], x + y)
    assert torch.equal(shaped["rest"][0], x) and shaped["rest"][1:] == (None, 3)
    refused(lambda: signature.flatten((x,)), codes.BAD_INPUT)


def test_weights_on_meta_are_captured_without_data():
    with torch.device("meta"):
        module, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(1, 4)
    made = capture(module, (x,))
    assert {item.sha256 for item in made.module.resources.values()} == {None}
    assert made.resources.names() == []


def test_a_fixed_batch_is_captured_with_a_warning(network):
    file = network("return x.reshape(1, 2, 2)")
    made = captured(file)
    (warning,) = made.warnings
    assert warning.severity == "warning" and "fixes its batch" in warning.message
    assert str(made.module.function().arguments[0].type) == "tensor<1x4xf32>"


def test_a_refusal_after_a_fixed_batch_says_both(network):
    file = network("return torch.erfinv(x.reshape(1, 2, 2))")
    with pytest.raises(DiagnosticError) as caught:
        captured(file)
    found = [(item.code, item.severity) for item in caught.value.diagnostics]
    assert found == [(codes.UNSUPPORTED_OP, "error"), (codes.CAPTURE, "warning")]


def test_dynamic_batch_can_be_turned_off(network):
    file = network("return x")
    made = capture(file.module, file.example_inputs, dynamic_batch=False)
    assert made.warnings == ()
    assert str(made.module.function().arguments[0].type) == "tensor<1x4xf32>"


def test_all_unsupported_ops_are_reported_at_once(network):
    file = network(
        "y = torch.erfinv(x)\nz = torch.relu(y)\nreturn torch.fft.fft(z).real + x.argmax()"
    )
    found = refused(lambda: captured(file), codes.UNSUPPORTED_OP)
    assert [item.message.split()[0] for item in found][:2] == ["aten.erfinv", "aten.fft_fft"]
    assert found[0].model[0].line == line_of(file.path, "torch.erfinv")
    assert found[1].model[0].line == line_of(file.path, "torch.fft")
    assert "relu" in found[0].help
    assert any("in metric()" in item.help for item in found)


def test_rules_fit_the_schemas_of_their_ops():
    for target, rule in RULES.items():
        library, packet, overload = [*target.split("."), "default"][:3]
        op = getattr(getattr(getattr(torch.ops, library), packet), overload)
        given = [
            "x" if item.name in ("self", "input") else item.name for item in op._schema.arguments
        ]
        inspect.signature(rule).bind(None, **dict.fromkeys(given))


def test_scope_of_an_unsupported_op(network):
    file = network("return self.head(x)", "self.head = nn.Sequential(nn.AdaptiveMaxPool1d(2))")
    (item,) = refused(lambda: captured(file), codes.UNSUPPORTED_OP)
    assert item.scope == "head.0" and item.model[0].line == line_of(file.path, "self.head(x)")


FORMS = {
    "dynamic product": ("return x @ x.t()", "holds the batch"),
    "batch statistics": (
        "return torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False)",
        "statistics of the batch",
    ),
    "transposed": ("return torch.conv_transpose1d(x[:, None], torch.ones(1, 1, 2))", "transposed"),
    "batch slice": ("return x[:1]", "slices the batch axis"),
    "mean over the batch": ("return x.mean(0)", "holds the batch"),
    "dtype": ("return x.to(torch.complex64).real", "complex"),
    "indices": ("return torch.max_pool1d_with_indices(x, 2)[1]", "result 1"),
    "reflection": ("return nn.functional.pad(x, (1, 1), mode='reflect')", "'reflect'"),
    "active dropout": ("return nn.functional.dropout(x)", "dropout is active"),
}


@pytest.mark.parametrize("name", FORMS)
def test_unsupported_forms(name, network):
    body, message = FORMS[name]
    file = network(body)
    with pytest.raises(DiagnosticError) as caught:
        captured(file)
    (item, *_) = caught.value.diagnostics
    assert item.code in (codes.UNSUPPORTED_FORM, codes.UNSUPPORTED_OP), caught.value
    assert message in item.message or item.code is codes.UNSUPPORTED_OP
    assert item.model[0].line == line_of(file.path, body.splitlines()[0])


def test_weights_that_are_not_finite(network):
    file = network(
        "return self.fc(x)",
        "self.fc = nn.Linear(4, 2)\nnn.init.constant_(self.fc.bias, float('nan'))",
    )
    (item,) = refused(lambda: captured(file), codes.BAD_WEIGHTS)
    assert item.message.startswith("fc.bias holds 2 of 2")
    assert item.model[0].line == line_of(file.path, "self.fc(x)")


def test_control_flow_on_data(network, capsys):
    file = network("if x.sum() > 0:\n    return x\nreturn -x")
    (item,) = refused(lambda: captured(file), codes.CAPTURE)
    assert "control flow" in item.message
    assert item.model[0].line == line_of(file.path, "if x.sum()")
    assert capsys.readouterr() == ("", "")


def test_a_model_that_raises_by_itself(network):
    file = network("return self.fc(x)", "self.fc = nn.Linear(5, 2)")
    (item,) = refused(lambda: captured(file), codes.CAPTURE)
    assert "example inputs" in item.message and "RuntimeError" in item.message
    assert item.model[0].line == line_of(file.path, "self.fc(x)")


def test_changed_buffers(network):
    file = network("self.count.add_(1)\nreturn x", "self.register_buffer('count', torch.zeros(1))")
    (item,) = refused(lambda: captured(file), codes.CAPTURE)
    assert "'count'" in item.message


def test_inputs_that_are_not_tensors():
    refused(lambda: capture(nn.Identity(), (3,)), codes.CAPTURE)
    refused(lambda: capture(nn.Identity(), ()), codes.CAPTURE)


WRITES = {
    "a column": "y = x * 1\ny[:, 0] = 0\nreturn y",
    "a range": "y = x * 1\ny[:, 1:3] = x[:, :2] * 2\nreturn y",
    "added to a range": "y = x * 1\ny[:, 2:] += 1\ny[:, -1] *= 3\nreturn y",
    "all of it": "y = x * 1\ny[:] = x + 1\nreturn y",
    "by a mask": "y = x * 1\ny[y < 0] = 0\nreturn y",
    "a fresh tensor": "y = torch.zeros_like(x)\ny[:, 1] = x[:, 0]\nreturn y",
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_into_parts(name, network):
    file = network(WRITES[name])
    made = captured(file)
    x = torch.randn(3, 4)
    (got,) = evaluate_function(made.module.function(), [x], resources=made.resources).outputs
    assert torch.equal(got, file.module(x))
    assert not any("batch" in item.message for item in made.warnings)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_branch_on_the_batch_size_fixes_it(size):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x) if x.shape[0] > 2 else x

    made = capture(Branching(), (torch.randn(3, 4),))
    (warning,) = made.warnings
    assert "fixes its batch size" in warning.message
    x = torch.randn(size, 4)
    if size == 3:
        outputs = evaluate_function(made.module.function(), (x,), resources=made.resources).outputs
        assert outputs[0].shape == (3, 4)
    else:
        with pytest.raises(DiagnosticError):
            evaluate_function(made.module.function(), (x,), resources=made.resources)


def test_a_sparse_tensor_that_is_no_parameter_is_refused():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.held = torch.eye(4).to_sparse()

        def forward(self, x):
            return torch.sparse.mm(self.held, self.layer(x).T).T

    with pytest.raises(DiagnosticError, match="cannot capture"):
        capture(Sparse(), (torch.randn(3, 4),))
