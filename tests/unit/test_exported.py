"""Exported programs: what is read from a .pt2 file, and that nothing in it is run."""

import io
import json
import linecache
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import imcc
from imcc.cli.main import main
from imcc.frontend.exported import load_exported
from imcc.ir.diagnostics import DiagnosticError

DATA = """
import torch

def calibration_data():
    return [torch.rand(32, 4, generator=torch.Generator().manual_seed(1))]

def evaluation_data():
    inputs = torch.rand(20, 4, generator=torch.Generator().manual_seed(2))
    return inputs, torch.arange(20) % 3

def metric(outputs, targets):
    return (outputs["logits"].argmax(-1) == targets).double().mean()
"""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, 3)
        self.tied = nn.Linear(4, 3, bias=False)
        self.tied.weight = self.head.weight
        self.register_buffer("offset", torch.ones(3), persistent=False)
        self.scale = torch.full((3,), 2.0)

    def forward(self, x, shift=None):
        with torch.no_grad():
            y = torch.relu(self.head(x))  # the head
        y = y * self.scale + self.offset + self.tied(x)
        return {"logits": y if shift is None else y + shift, "hidden": (x * 2,)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    sizes = {"x": {0: torch.export.Dim("B")}}
    program = torch.export.export(Net().eval(), (torch.rand(2, 4),), dynamic_shapes=sizes)
    torch.export.save(program, path)
    return path


@pytest.fixture
def forge(saved, tmp_path):
    """Copies of the file with entries replaced: bytes, or a change of the parsed JSON."""

    def make(changes, compression=zipfile.ZIP_STORED):
        path = tmp_path / "forged.pt2"
        with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w", compression) as new:
            root = old.namelist()[0].split("/")[0]
            for item in old.infolist():
                name = item.filename.partition("/")[2]
                data = old.read(item)
                change = changes.get(name)
                if callable(change):
                    held = json.loads(data)
                    change(held)
                    data = json.dumps(held).encode()
                elif change is not None:
                    data = change
                if name not in changes or change is not None:
                    new.writestr(f"{root}/{name}", data)
        return path

    return make


def refused(call, *words):
    with pytest.raises(DiagnosticError) as caught:
        call()
    text = str(caught.value)
    assert all(item.code.id == "IMC307" and item.help for item in caught.value.diagnostics), text
    assert all(word in text for word in words), text
    return caught.value.diagnostics


# -- what is read ----------------------------------------------------------------------------------


def test_a_program_is_compiled_from_its_file(saved, tmp_path, capsys):
    (tmp_path / "data.py").write_text(DATA)
    arguments = ["compile", str(saved), "--data", str(tmp_path / "data.py"), "--trials", "2"]
    assert main([*arguments, "-o", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy"]["noisy"]["trials"] == 2 and report["energy_pj"] > 0
    assert report["model"] == {"name": "net", "file": "net.pt2"}
    held = imcc.load(tmp_path / "out")
    assert set(held(x=torch.rand(5, 4))) == {"logits", "hidden"}
    again = ["run", str(tmp_path / "out"), "--model", str(tmp_path / "data.py"), "--trials", "2"]
    assert main([*again, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["per_trial"] == report["accuracy"]["noisy"]["per_trial"]


def test_what_is_read_computes_what_the_model_does(saved):
    program = load_exported(saved)
    compiled = imcc.compile(program, target="reference")
    x = torch.rand(7, 4)
    want, got = Net().eval()(x), compiled(x)
    assert torch.equal(got["logits"], want["logits"])
    assert torch.equal(got["hidden"][0], want["hidden"][0])
    module = compiled.module
    assert {"head.weight", "head.bias", "offset", "scale"} <= set(module.resources)
    assert "tied.weight" not in module.resources, "tied weights are one resource"
    (linear, _) = [op for op in module.walk() if op.name == "nn.linear"]
    assert linear.scope == "head"
    assert "# the head" in linecache.getline(linear.loc[0].file, linear.loc[0].line)
    assert tuple(program.example_inputs[0][0].shape) == (2, 4)


def test_a_program_in_memory_is_the_same_as_its_file(saved):
    sizes = {"x": {0: torch.export.Dim("B")}}
    program = torch.export.export(Net().eval(), (torch.rand(2, 4),), dynamic_shapes=sizes)
    left = imcc.compile(program, target="reference")
    right = imcc.compile(load_exported(saved), target="reference")
    assert str(left.module) == str(right.module)


def test_a_batch_size_that_was_not_left_open_is_said(tmp_path):
    program = torch.export.export(
        Net().eval(), (torch.rand(2, 4),), kwargs={"shift": torch.ones(3)}
    )
    torch.export.save(program, tmp_path / "fixed.pt2")
    compiled = imcc.compile(load_exported(tmp_path / "fixed.pt2"), target="reference")
    (warning,) = compiled.report()["warnings"]
    assert "one batch size" in warning["message"] and "dynamic_shapes" in warning["help"]
    x, shift = torch.rand(2, 4), torch.rand(3)
    want = Net().eval()(x, shift)["logits"]
    assert torch.equal(compiled(x, shift=shift)["logits"], want)
    assert torch.equal(compiled(shift=shift, x=x)["logits"], want)


def test_structures_of_other_types_become_plain(forge):
    """A type that would have to be imported is a dict of its names."""

    def change(document):
        (whole,) = [i for i in document["graph_module"]["module_call_graph"] if i["fqn"] == ""]
        spec = json.loads(whole["signature"]["out_spec"])
        spec[1]["type"] = "transformers.modeling_outputs.BaseModelOutput"
        spec[1]["children_spec"][1]["type"] = "os.no_such_type"
        whole["signature"]["out_spec"] = json.dumps(spec)

    program = load_exported(forge({"models/model.json": change}))
    out = imcc.compile(program, target="reference")(torch.rand(2, 4))
    assert type(out) is dict and type(out["hidden"]) is tuple


def test_several_programs_in_one_file(tmp_path):
    from torch.export.pt2_archive._package import package_pt2

    programs = {
        name: torch.export.export(layer.eval(), (torch.rand(2, 4),))
        for name, layer in (("small", nn.Linear(4, 2)), ("large", nn.Linear(4, 8)))
    }
    path = tmp_path / "both.pt2"
    package_pt2(str(path), exported_programs=programs)
    refused(lambda: load_exported(path), "holds no program 'model'", f"{path}:large")
    (item,) = refused(lambda: load_exported(path, "smal"))
    assert item.suggestions == ("small",)
    assert load_exported(path, "small").state_dict["weight"].shape == (2, 4)


# -- what is refused, and not run ------------------------------------------------------------------


class Bomb:
    """Unpickled, makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def nodes(document):
    return document["graph_module"]["graph"]["nodes"]


def test_pickled_weights_are_refused(forge, tmp_path):
    mark = tmp_path / "ran"
    data = io.BytesIO()
    torch.save(Bomb(mark), data)

    def change(document):
        document["config"]["head.weight"]["use_pickle"] = True

    path = forge(
        {
            "data/weights/weight_0": data.getvalue(),
            "data/weights/model_weights_config.json": change,
        }
    )
    refused(lambda: load_exported(path), "head.weight as a pickle")
    assert not mark.exists()


def test_pickled_example_inputs_are_left_out(forge, tmp_path):
    mark = tmp_path / "ran"
    data = io.BytesIO()
    torch.save((Bomb(mark),), data)
    path = forge({"data/sample_inputs/model.pt": data.getvalue()})
    assert load_exported(path).example_inputs is None and not mark.exists()
    with pytest.raises(Exception):  # noqa: B017 - whatever torch makes of what it unpickled
        torch.export.load(path)
    assert mark.exists(), "the file does run code where it is loaded as torch does"


def evil(mark):
    code = f"__import__('os').mkdir({str(mark)!r})"

    def target(document):
        nodes(document)[1]["target"] = "torch.hub.os.mkdir"

    def size(document):
        sizes = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = code

    def symbol(document):
        ranges = document["range_constraints"]
        ranges[code] = ranges.popitem()[1]

    def name(document):
        text = json.dumps(document).replace('"x"', json.dumps(f"x):\n  pass\n{code}\ndef f(y"))
        document.clear()
        document.update(json.loads(text))

    def guard(document):
        document["guards_code"] = [code]

    def structure(document):
        (whole,) = [i for i in document["graph_module"]["module_call_graph"] if i["fqn"] == ""]
        spec = json.loads(whole["signature"]["out_spec"])
        spec[1]["context"] = json.dumps({"__enum__": True, "fqn": "antigravity:XKCD", "name": "x"})
        whole["signature"]["out_spec"] = json.dumps(spec)

    def argument(document):
        (whole,) = [i for i in document["graph_module"]["module_call_graph"] if i["fqn"] == ""]
        whole["signature"]["forward_arg_names"] = [f"x=({code})"]

    def parameter(document):
        spec = document["graph_module"]["signature"]["input_specs"][0]["parameter"]
        spec["parameter_name"] = f'head.weight") or {code} #'

    def operator(document):
        nodes(document)[1]["inputs"][1]["arg"] = {"as_operator": "torch.hub.os.mkdir"}

    def other_library(document):
        nodes(document)[1]["target"] = "torch.ops.mylib.scale.default"

    def file(document):
        node = nodes(document)[1]
        node["target"] = "torch.ops.aten.from_file.default"
        node["inputs"] = [
            {"name": "filename", "arg": {"as_string": str(mark)}, "kind": 1},
            {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
            {"name": "size", "arg": {"as_int": 3}, "kind": 1},
        ]

    def save(document):
        nodes(document)[1]["target"] = "torch.ops.aten.save.default"

    return locals()


REFUSED = {
    "target": "the op torch.hub.os.mkdir",
    "size": "the size",
    "symbol": "the name",
    "name": "the name",
    "argument": "the name",
    "parameter": "the name",
    "operator": "an operator or object",
    "other_library": "the op torch.ops.mylib.scale.default",
    "file": "the op torch.ops.aten.from_file.default",
    "save": "the op torch.ops.aten.save.default",
}


@pytest.mark.parametrize("name", [*REFUSED, "guard", "structure"])
def test_nothing_in_a_graph_is_run(name, forge, tmp_path):
    mark = tmp_path / "ran"
    path = forge({"models/model.json": evil(mark)[name]})
    if name in REFUSED:
        found = refused(lambda: load_exported(path), REFUSED[name])
        assert any("could run code" in item.reason for item in found)
    else:
        imcc.compile(load_exported(path), target="reference")(torch.rand(2, 4))
    assert not mark.exists()
    import sys

    assert "antigravity" not in sys.modules


def test_several_refusals_in_one_run_name_the_lines(forge):
    def change(document):
        for node in nodes(document)[1:3]:
            node["target"] = node["target"].replace("aten", "mylib")

    found = refused(lambda: load_exported(forge({"models/model.json": change})))
    assert len(found) == 2
    place = found[0].model[0]
    assert Path(place.file).name == "test_exported.py"
    assert "self.scale" in linecache.getline(place.file, place.line)


def test_tensors_stay_within_their_bytes(forge):
    def grow(document):
        document["config"]["head.weight"]["tensor_meta"]["sizes"][0]["as_int"] = 1000

    def elsewhere(document):
        document["config"]["head.weight"]["path_name"] = "../../models/model.json"

    def negative(document):
        document["config"]["head.weight"]["tensor_meta"]["storage_offset"]["as_int"] = -1

    def kind(document):
        document["config"]["head.weight"]["tensor_meta"]["dtype"] = 99

    listing = "data/weights/model_weights_config.json"
    for change in (grow, elsewhere, negative, kind):
        refused(lambda change=change: load_exported(forge({listing: change})), "head.weight")


def test_damaged_files(saved, forge, tmp_path):
    refused(lambda: load_exported(saved.with_name("nett.pt2")), "does not exist", "net.pt2")
    refused(lambda: load_exported(saved.parent), "is a folder")
    whole = saved.read_bytes()
    path = tmp_path / "cut.pt2"
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(lambda: load_exported(path), "cannot be read")
    flipped = bytearray(whole)
    flipped[whole.index(b"graph_module")] ^= 1
    path.write_bytes(flipped)
    refused(lambda: load_exported(path), "CRC")
    refused(lambda: load_exported(forge({}, zipfile.ZIP_DEFLATED)), "compressed")
    for name in ("archive_format", "models/model.json", "data/weights/weight_0"):
        refused(lambda name=name: load_exported(forge({name: None})))
    refused(lambda: load_exported(forge({"models/model.json": b"[]"})), "no JSON object")
    refused(lambda: load_exported(forge({"models/model.json": b"{}"})), "of another form")
    deep = b"[" * 100_000
    refused(lambda: load_exported(forge({"models/model.json": b'{"a":' + deep})), "model.json")
    refused(lambda: load_exported(forge({"byteorder": b"big"})), "big-endian")
    refused(lambda: load_exported(forge({"archive_format": b"pt3"})), "no archive")

    def newer(document):
        document["schema_version"]["major"] = 99

    refused(lambda: load_exported(forge({"models/model.json": newer})), "export and save")

    def huge(document):
        node = nodes(document)[1]
        node["inputs"][0]["arg"] = {"as_int": 2**70}

    forged = load_exported(forge({"models/model.json": huge}))
    refused(lambda: imcc.compile(forged, target="reference"), "cannot be captured")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/archive_format", "pt2")
        file.writestr("b/x", struct.pack("<i", 1))
    refused(lambda: load_exported(path), "one folder")
