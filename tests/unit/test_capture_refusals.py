"""Each model that cannot be captured is refused with the user's line and what to change."""

import linecache
import textwrap
from collections import OrderedDict

import pytest
import torch
from torch import nn

import imcc
from imcc.driver.signature import Signature
from imcc.frontend.capture import capture
from imcc.frontend.model_file import load_model_file
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.semantics.interpreter import evaluate_function

HEAD = "import torch\nfrom torch import nn\n"


@pytest.fixture
def load(tmp_path):
    """A model file from text; the class is the model, ``X`` its example inputs."""

    def make(text, inputs="torch.randn(2, 4)"):
        path = tmp_path / "net.py"
        body = textwrap.dedent(text)
        path.write_text(f"{HEAD}{body}\ndef example_inputs():\n    return {inputs}\n")
        linecache.checkcache(str(path))
        return load_model_file(f"{path}:Net")

    return make


# name: (class, example inputs, marker of the line to blame, message, help)
REFUSED = {
    "if on data": (
        """
        class Net(nn.Module):
            def forward(self, x):
                if x.sum() > 0:
                    return x
                return -x
        """,
        "torch.randn(2, 4)",
        "if x.sum() > 0",
        "control flow depends on values",
        "torch.clamp",
    ),
    "item": (
        """
        class Net(nn.Module):
            def forward(self, x):
                count = int(x.max().item())
                return x * count
        """,
        "torch.rand(2, 4) + 1",
        "count = int",
        "control flow depends on values",
        ".item()",
    ),
    "buffer as state": (
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("count", torch.zeros(1))
            def forward(self, x):
                self.count += 1
                return x * self.count
        """,
        "torch.randn(2, 4)",
        "self.count += 1",
        "'count', and the second call's result differs",
        "input and return its new value",
    ),
    "attribute as state": (
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.mem = None
            def forward(self, x):
                if self.mem is None:
                    self.mem = torch.zeros_like(x)
                self.mem = 0.5 * self.mem + x
                return self.mem
        """,
        "torch.randn(2, 4)",
        "self.mem = torch.zeros_like(x)",
        "'mem', and the second call's result differs",
        "reset it at the start of forward",
    ),
    "list as state": (
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.seen = []
            def forward(self, x):
                self.seen.append(x)
                return sum(self.seen)
        """,
        "torch.randn(2, 4)",
        "self.seen.append(x)",
        "'seen', and the second call's result differs",
        "reset it at the start of forward",
    ),
    "counted calls": (
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("count", torch.zeros(1))
            def forward(self, x):
                self.count.add_(1)
                return x * 2
        """,
        "torch.randn(2, 4)",
        "self.count.add_(1)",
        "forward changes the buffer 'count'",
        "if self.training",
    ),
    "complex input": (
        """
        class Net(nn.Module):
            def forward(self, x):
                return x * 2
        """,
        "torch.zeros(2, 4, dtype=torch.complex64)",
        None,
        "example input 0 has elements torch.complex64",
        "view_as_real",
    ),
    "complex weight": (
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.zeros(4, 4, dtype=torch.complex64))
            def forward(self, x):
                return x @ self.w.real
        """,
        "torch.randn(2, 4)",
        None,
        "tensor w has elements torch.complex64",
        "view_as_real",
    ),
    "integer input of a float model": (
        """
        class Net(nn.Linear):
            def __init__(self):
                super().__init__(4, 2)
            def forward(self, x):
                return super().forward(x)
        """,
        "torch.zeros(2, 4, dtype=torch.int64)",
        "return super().forward(x)",
        "raises on its example inputs",
        "tensor.to(torch.float32)",
    ),
    "half weights": (
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(4, 2).half()
            def forward(self, x):
                return self.fc(x)
        """,
        "torch.randn(2, 4)",
        "return self.fc(x)",
        "raises on its example inputs",
        "tensor.to(torch.float16)",
    ),
    "weights on meta, inputs on cpu": (
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(4, 2, device="meta")
            def forward(self, x):
                return self.fc(x)
        """,
        "torch.randn(2, 4)",
        "return self.fc(x)",
        "raises on its example inputs",
        'both on "meta"',
    ),
    "a device by name": (
        """
        class Net(nn.Module):
            def forward(self, x):
                return x.to("cuda") * 2
        """,
        "torch.randn(2, 4)",
        'x.to("cuda")',
        "CUDA",
        "x.device",
    ),
    "active dropout": (
        """
        class Net(nn.Module):
            def forward(self, x):
                return nn.functional.dropout(x, 0.5)
        """,
        "torch.randn(2, 4)",
        "nn.functional.dropout(x, 0.5)",
        "draws random numbers",
        "training=self.training",
    ),
    "noise of its own": (
        """
        class Net(nn.Module):
            def forward(self, x):
                return x + torch.randn_like(x)
        """,
        "torch.randn(2, 4)",
        "randn_like",
        "draws random numbers",
        "if self.training",
    ),
    "numpy": (
        """
        class Net(nn.Module):
            def forward(self, x):
                return torch.from_numpy(x.numpy() * 2)
        """,
        "torch.randn(2, 4)",
        "x.numpy()",
        "cannot capture",
        "no .numpy()",
    ),
    "a size": (
        """
        class Net(nn.Module):
            def forward(self, x):
                return x * 2, x.shape[0]
        """,
        "torch.randn(2, 4)",
        "def forward",
        "returns a size as output 1",
        "leave it out",
    ),
    "no tensor": (
        """
        class Net(nn.Module):
            def forward(self, x):
                return 3
        """,
        "torch.randn(2, 4)",
        "def forward",
        "returns no tensor, only int",
        "return a tensor",
    ),
    "no return": (
        """
        class Net(nn.Module):
            def forward(self, x):
                x * 2
        """,
        "torch.randn(2, 4)",
        "def forward",
        "returns no tensor, only NoneType",
        "is there a return statement?",
    ),
    "an object": (
        """
        class Result:
            def __init__(self, x):
                self.x = x
        class Net(nn.Module):
            def forward(self, x):
                return Result(x * 2)
        """,
        "torch.randn(2, 4)",
        "def forward",
        "an object of Result",
        "dataclasses",
    ),
    "sparse weight": (
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("adjacency", torch.eye(4).to_sparse())
            def forward(self, x):
                return torch.sparse.mm(self.adjacency, x.t()).t()
        """,
        "torch.randn(2, 4)",
        None,
        "tensor adjacency is sparse (sparse_coo)",
        "to_dense()",
    ),
    "sparse input": (
        """
        class Net(nn.Module):
            def forward(self, x):
                return x * 2
        """,
        "torch.eye(4).to_sparse()",
        None,
        "example input 0 is sparse",
        "to_dense()",
    ),
    "no forward": (
        """
        class Net(nn.ModuleList):
            def __init__(self):
                super().__init__([nn.ReLU()])
        """,
        "torch.randn(2, 4)",
        None,
        "raises on its example inputs: NotImplementedError",
        "forward method",
    ),
    "scripted": (
        """
        def Net():
            return torch.jit.trace(nn.Linear(4, 2), torch.zeros(1, 4))
        """,
        "torch.randn(2, 4)",
        None,
        "the model is a TorchScript module",
        "before torch.jit.script",
    ),
}
for _name in ("LSTM", "GRU", "RNN"):
    REFUSED[_name] = (
        f"""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head, self.rnn = nn.Linear(5, 2), nn.{_name}(4, 5, batch_first=True)
            def forward(self, x):
                y, _ = self.rnn(x)
                return self.head(y[:, -1])
        """,
        "torch.randn(2, 3, 4)",
        "self.rnn(x)",
        f"rnn is a recurrent layer ({_name})",
        "use attention",
    )
    REFUSED[f"{_name}Cell"] = (
        f"""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell = nn.{_name}Cell(4, 5)
            def forward(self, x):
                return self.cell(x)
        """,
        "torch.randn(2, 4)",
        "self.cell(x)",
        f"cell is a recurrent layer ({_name}Cell)",
        "use attention",
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, load):
    text, inputs, marker, message, help_text = REFUSED[name]
    file = load(text, inputs)
    with pytest.raises(DiagnosticError) as caught:
        capture(file.module, file.example_inputs)
    (item,) = caught.value.diagnostics
    assert item.code in (codes.CAPTURE, codes.UNSUPPORTED_OP, codes.UNSUPPORTED_FORM)
    assert message in item.message, item.render()
    assert help_text in item.help, item.render()
    if marker is None:
        assert item.model == ()
    else:
        (place,) = item.model
        assert marker in linecache.getline(place.file, place.line), item.render()


def test_quantised_modules(load):
    file = load(
        """
        def Net():
            found = torch.backends.quantized.supported_engines
            torch.backends.quantized.engine = "fbgemm" if "fbgemm" in found else found[-1]
            net = nn.Sequential(nn.Linear(4, 4))
            return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
        """
    )
    with pytest.raises(DiagnosticError, match=r"quantised by torch: 0 \(Linear\)") as caught:
        capture(file.module, file.example_inputs)
    assert "compile the float model" in caught.value.diagnostics[0].help


def test_several_faults_are_reported_in_one_run(load):
    file = load(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.GRU(4, 4, batch_first=True)
                self.second = nn.LSTM(4, 4, batch_first=True)
                self.unused = nn.RNN(4, 4)
            def forward(self, x):
                x, _ = self.first(x)
                x, _ = self.second(x)
                return x, object()
        """,
        "torch.randn(2, 3, 4)",
    )
    with pytest.raises(DiagnosticError) as caught:
        capture(file.module, file.example_inputs)
    messages = [item.message for item in caught.value.diagnostics]
    assert [message.split()[0] for message in messages] == ["first", "second", "the"]


def test_refusals_leave_the_model_as_it_was(load):
    file = load(REFUSED["attribute as state"][0])
    with pytest.raises(DiagnosticError):
        capture(file.module, file.example_inputs)
    assert file.module.mem is None
    file = load(REFUSED["buffer as state"][0])
    with pytest.raises(DiagnosticError):
        capture(file.module, file.example_inputs)
    assert file.module.count.item() == 0 and file.module.training
    file = load(REFUSED["list as state"][0])
    with pytest.raises(DiagnosticError):
        capture(file.module, file.example_inputs)
    assert file.module.seen == []


def test_an_attribute_that_no_result_depends_on_is_no_state(load):
    file = load(
        """
        class Net(nn.Module):
            def forward(self, x):
                self.last = torch.relu(x)
                return self.last * 2
        """
    )
    made = capture(file.module, file.example_inputs)
    assert made.warnings == () and not hasattr(file.module, "last")


# -- accepted, with a word about it ----------------------------------------------------------------


def test_a_fixed_batch_names_the_line_that_fixes_it(load):
    file = load(
        """
        class Net(nn.Module):
            def forward(self, x):
                y = x * 2
                return y.view(4, 2, 2).flatten(1)
        """,
        "torch.randn(4, 4)",
    )
    compiled = imcc.compile(file.module, file.example_inputs, target="reference")
    (warning,) = compiled.report()["warnings"]
    assert "fixes its batch size" in warning["message"] and "batch of 5" in warning["reason"]
    file_name, _, line = warning["model"][0].rpartition(":")
    assert "view(4, 2, 2)" in linecache.getline(file_name, int(line))
    x = torch.randn(4, 4)
    assert torch.equal(compiled(x), 2 * x)
    with pytest.raises(DiagnosticError, match="shape"):
        compiled(torch.randn(3, 4))


def test_trials_of_a_fixed_batch_are_those_of_a_free_one():
    torch.manual_seed(0)
    layer = nn.Linear(8, 3)

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x.view(4, 8))

    data = torch.rand(4, 8)
    quiet = ["device.read_noise.sigma_fraction=0.0", "device.write_noise.sigma_fraction=0.2"]
    options = {"target": "rram", "calibration": [(data,)], "overrides": quiet}
    fixed = imcc.compile(Fixed(), (data,), **options)
    # Draws go by the names of weights.
    named = nn.Sequential(OrderedDict(layer=layer))
    free = imcc.compile(named, (data,), **options)
    assert str(fixed.module.function().inputs[0].type) == "tensor<4x8xf32>"
    left = fixed.executor.run([data], trials=(0, 1, 2), seed=3)[0]
    assert left.shape == (3, 4, 3)
    # Write noise is drawn for each cell and trial; both programs hold the same matrix.
    right = free.executor.run([data], trials=(0, 1, 2), seed=3)[0]
    assert torch.allclose(left, right, atol=1e-4)
    assert not torch.equal(left[0], left[1])


def test_an_input_that_is_written_to(load):
    file = load(
        """
        class Net(nn.Module):
            def forward(self, x):
                x.mul_(2)
                return x + 1
        """
    )
    (given,) = file.example_inputs
    before = given.clone()
    made = capture(file.module, file.example_inputs)
    (warning,) = made.warnings
    assert warning.severity == "warning" and "writes into its input" in warning.message
    assert "x.mul_(2)" in linecache.getline(warning.model[0].file, warning.model[0].line)
    assert torch.equal(given, before)


def test_training_mode_is_said():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    (note,) = capture(net, (torch.zeros(2, 4),)).warnings
    assert note.severity == "note" and "training mode" in note.message and net.training
    assert capture(net.eval(), (torch.zeros(2, 4),)).warnings == ()


def test_wrappers_are_looked_through():
    layer = nn.Linear(4, 2)
    x = (torch.zeros(2, 4),)
    for wrapped in (
        torch.compile(layer),
        nn.DataParallel(layer),
        nn.DataParallel(torch.compile(layer)),
    ):
        assert list(capture(wrapped, x).module.resources) == ["weight", "bias"]


def test_arguments_that_are_no_tensors_are_fixed(load):
    file = load(
        """
        class Net(nn.Module):
            def forward(self, x, mask=None, scale=1.0, shift=None):
                x = x if mask is None else x * mask
                return x * scale + shift
        """,
        "(torch.randn(2, 4), None, 2.0, torch.randn(2, 4))",
    )
    made = capture(file.module, file.example_inputs)
    signature = Signature.of(made)
    x, shift = torch.randn(3, 4), torch.randn(3, 4)
    assert len(signature.flatten((x, None, 2.0, shift))) == 2
    for wrong in ((x, None, 3.0, shift), (x, x, 2.0, shift)):
        with pytest.raises(DiagnosticError, match="was compiled for"):
            signature.flatten(wrong)
    again = Signature.from_json(signature.to_json(), made.module)
    assert again == signature


def test_keyword_inputs_are_called_by_position_as_forward_has_them(load):
    file = load(
        """
        class Net(nn.Module):
            def forward(self, x, *, gate, flag=True):
                return x * 2 + gate if flag else x
        """,
        "{'gate': torch.randn(2, 4), 'x': torch.randn(2, 4), 'flag': True}",
    )
    compiled = imcc.compile(file.module, file.example_inputs, target="reference")
    x, gate = torch.randn(3, 4), torch.randn(3, 4)
    for made in (compiled(x, gate=gate), compiled(gate=gate, x=x), compiled(x=x, gate=gate)):
        assert torch.equal(made, 2 * x + gate)
    with pytest.raises(DiagnosticError, match="compiled for True"):
        compiled(x, gate=gate, flag=False)


@pytest.mark.parametrize("given", [torch.relu, lambda x: torch.relu(x), nn.ReLU().forward])
def test_functions_are_models(given):
    x = torch.randn(3, 4)
    compiled = imcc.compile(given, x[:1], target="reference")
    assert torch.equal(compiled(x), torch.relu(x))


def test_what_is_no_model():
    for given, words in ((nn.ReLU, "the class ReLU"), ([nn.ReLU()], "list")):
        with pytest.raises(DiagnosticError, match=words) as caught:
            imcc.compile(given, torch.zeros(1, 4), target="reference")
        assert caught.value.diagnostics[0].help


def test_dataclass_outputs_come_back(load):
    file = load(
        """
        from dataclasses import dataclass
        @dataclass
        class Output:
            logits: torch.Tensor
            hidden: tuple = ()
        class Net(nn.Module):
            def forward(self, x):
                return Output(x * 2, (x, x + 1))
        """
    )
    compiled = imcc.compile(file.module, file.example_inputs, target="reference")
    x = torch.randn(3, 4)
    made = compiled(x)
    assert type(made).__name__ == "Output"
    assert torch.equal(made.logits, 2 * x) and torch.equal(made.hidden[1], x + 1)


def test_an_exception_inside_a_library_names_the_users_line_first(tmp_path):
    package = tmp_path / "site-packages" / "somelib"
    package.mkdir(parents=True)
    (package / "net.py").write_text(
        f"{HEAD}class Inner(nn.Module):\n    def forward(self, x):\n        return x.view(7)\n"
    )
    inner = load_model_file_class(package / "net.py", "Inner")
    with pytest.raises(DiagnosticError) as caught:
        capture(inner(), (torch.zeros(2, 4),))  # the user's line
    first, second = caught.value.diagnostics[0].model
    assert "the user's line" in linecache.getline(first.file, first.line)
    assert second.file.endswith("somelib/net.py") and second.line == 5


def load_model_file_class(path, name):
    scope = {"__name__": path.stem}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    return scope[name]


def test_autocast_is_captured_with_its_casts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.fc(x)

    model, x = Net(), torch.randn(3, 4)
    made = capture(model, (x,))
    outputs = evaluate_function(made.module.function(), (x,), resources=made.resources).outputs
    assert outputs[0].dtype == torch.bfloat16 and torch.equal(outputs[0], model(x))
