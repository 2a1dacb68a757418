"""NIR graphs: what is read computes the equations, and what is written says how it differs."""

import itertools

import numpy as np
import pytest
import torch

import imcc
from imcc.cli.main import main
from imcc.frontend.model_file import load_model_file
from imcc.frontend.nir_import import load_nir
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError

nir = pytest.importorskip("nir", reason="nir is not installed")
h5py = pytest.importorskip("h5py", reason="h5py is not installed")

DT, STEPS = 1e-3, 12


def values(*shape, seed=0, low=-1.0, high=1.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def neuron(*shape, kind="LIF", **changed):
    ones = np.ones(shape, dtype=np.float32)
    given = {"tau": 8e-3 * ones, "r": 3.0 * ones, "v_leak": 0.1 * ones, "v_threshold": 0.4 * ones}
    if kind.startswith("Cuba"):
        given["tau_mem"], given["tau_syn"] = given.pop("tau"), 5e-3 * ones
    if not kind.endswith("F"):
        del given["v_threshold"]
    if kind in ("I", "IF"):
        del given["tau"], given["v_leak"]
    return getattr(nir, kind)(**(given | changed))


def chain(shape, *nodes):
    names = [f"n{index}" for index in range(len(nodes))]
    held = {"in": nir.Input(np.array(shape)), **dict(zip(names, nodes, strict=True))}
    held["out"] = nir.Output(np.array([1]))
    order = ["in", *names, "out"]
    return nir.NIRGraph(held, list(itertools.pairwise(order)), type_check=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.nir"


def by_hand(x, kind, dt=DT):
    """Forward Euler of the equations of NIR's documentation, one number at a time."""
    v = i = 0.0
    out = []
    for current in x:
        if kind.startswith("Cuba"):
            i += dt / 5e-3 * (-i + current)
            current = i
        v += 3.0 * current if kind in ("I", "IF") else dt / 8e-3 * ((0.1 - v) + 3.0 * current)
        if kind.endswith("F"):
            fired = v > 0.4
            out.append(float(fired))
            v = 0.0 if fired else v
        else:
            out.append(v)
    return out


@pytest.mark.parametrize("kind", ["LI", "LIF", "CubaLI", "CubaLIF", "I", "IF"])
def test_neurons_follow_their_equations(path, kind):
    nir.write(path, chain([4], neuron(4, kind=kind)))
    network, (example,) = load_nir(path, dt=DT, steps=STEPS)
    assert example.shape == (STEPS, 1, 4)
    x = torch.from_numpy(values(STEPS, 2, 4, low=-0.3, high=1.5)).double()
    made = network.double()(x)
    for b in range(2):
        for n in range(4):
            assert made[:, b, n].tolist() == pytest.approx(by_hand(x[:, b, n].tolist(), kind))
    assert made.abs().sum() > 0
    verdict = {"I": "approximate", "IF": "approximate"}.get(kind, "faithful")
    assert [item.verdict for item in network.report if item.name == "n0"] == [verdict]


def convolutional():
    weight = values(3, 2, 3, 3, seed=1)
    conv = nir.Conv2d((8, 8), weight, 1, 1, 1, 1, values(3, seed=2))
    return chain(
        [2, 8, 8],
        conv,
        neuron(3, 8, 8),
        nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        nir.Flatten({"input": np.array([3, 4, 4])}, 0, -1),
        nir.Affine(values(5, 48, seed=3), values(5, seed=4)),
        neuron(5),
    )


def test_a_graph_compiles_from_file(path, tmp_path, capsys):
    nir.write(path, convolutional())
    held = load_model_file(f"{path}:dt=1e-3,steps=6")
    x = torch.from_numpy(values(6, 3, 2, 8, 8, low=0.0, high=1.5))
    compiled = imcc.compile(held.module, held.example_inputs, target="reference")
    with torch.no_grad():
        wanted = held.module(x)
    assert wanted.sum() > 0 and torch.equal(compiled(x), wanted)
    ops = [op.name for op in compiled.module.function("inference").ops]
    assert ops.count("snn.lif") == 2 and ops.count("nn.conv") == 1
    (neuron_op, _) = [op for op in compiled.module.walk() if op.name == "snn.lif"]
    assert str(neuron_op.spikes.type) == "spikes<6xBx3x8x8>"
    output = tmp_path / "out"
    assert main(["compile", str(path), "--target", "reference", "-o", str(output)]) == 0
    assert (output / "program.imc").exists()


def test_what_cannot_be_computed_is_listed(path):
    nir.write(path, chain([4], nir.Delay(np.ones(4)), neuron(4)))
    with pytest.raises(DiagnosticError, match=r"'n0' \(Delay\) is unsupported"):
        load_nir(path)
    graph = nir.NIRGraph(
        {
            "in": nir.Input(np.array([4])),
            "a": neuron(4),
            "b": nir.Linear(values(4, 4)),
            "out": nir.Output(np.array([4])),
        },
        [("in", "a"), ("a", "b"), ("b", "a"), ("a", "out")],
        type_check=False,
    )
    nir.write(path, graph)
    with pytest.raises(DiagnosticError, match="cycle"):
        load_nir(path)


def test_hostile_files_give_a_diagnostic(path, tmp_path):
    secret = tmp_path / "other.h5"
    with h5py.File(secret, "w") as file:
        file["node/type"] = "NIRGraph"

    def refused(fill):
        with h5py.File(path, "w") as file:
            fill(file)
        with pytest.raises(DiagnosticError) as caught:
            load_nir(path)
        return caught.value.diagnostics[0].reason

    assert "link out" in refused(lambda f: f.__setitem__("node", h5py.ExternalLink(secret, "node")))
    assert "link out" in refused(lambda f: f.__setitem__("node", h5py.SoftLink("/elsewhere")))
    assert "GiB" in refused(
        lambda f: f.create_dataset("node/big", shape=(1 << 32,), dtype="f8", chunks=(1 << 20,))
    )
    assert "another file" in refused(
        lambda f: f.create_dataset("node/w", (4,), "f4", external=[(str(secret), 0, 16)])
    )
    assert refused(lambda f: f.create_group("node"))
    assert refused(lambda f: f.__setitem__("node/type", "LIF"))
    for data in (b"", b"no HDF5 at all", path.read_bytes()[:200]):
        path.write_bytes(data)
        with pytest.raises(DiagnosticError, match="not a NIR graph"):
            load_nir(path)
    with pytest.raises(DiagnosticError, match="does not exist"):
        load_nir(tmp_path / "none.nir")
    nir.write(path, chain([4], neuron(4, tau=np.zeros(4, dtype=np.float32))))
    with pytest.raises(DiagnosticError, match="not complete"):
        load_nir(path)


def test_options_of_a_nir_file(path):
    nir.write(path, chain([4], neuron(4)))
    assert load_model_file(f"{path}:steps=3").example_inputs[0].shape[0] == 3
    for wrong in ("step=3", "dt=-1", "dt", "steps=x"):
        with pytest.raises(DiagnosticError, match="no option"):
            load_model_file(f"{path}:{wrong}")


# -- writing --------------------------------------------------------------------------------------


def captured(
    form, neuron="snn.lif", results="%s, %v", types="spikes<8xBx{n}>, tensor<8xBx{n}xf32>"
):
    """A convolution, neurons, a flattening and a layer, in text."""
    from imcc.ir import parse_module
    from imcc.ir.semantics.resources import ResourceStore

    out = f"{neuron} %u {{{form}}} : " + types.format(n="3x4x4")
    text = f"""// imc 1
module @m phase("captured") {{
  resource @c.weight : tensor<3x2x3x3xf32>
  resource @c.bias : tensor<3xf32>
  resource @f.weight : tensor<5x48xf32>
  func @inference(%x: tensor<8xBx2x8x8xf32>) -> tensor<8xBx5xf32> {{
    %w = core.constant {{value = @c.weight}} : tensor<3x2x3x3xf32>
    %b = core.constant {{value = @c.bias}} : tensor<3xf32>
    %u = nn.conv %x, %w, bias=%b {{stride = [2, 2], padding = [1, 1], dilation = [1, 1],
      scope = "c"}} : tensor<8xBx3x4x4xf32>
    {results} = {out}
    %r = core.reshape %s {{shape = [8, B, 48]}} : {types.format(n=48).split(", ")[0]}
    %q = core.constant {{value = @f.weight}} : tensor<5x48xf32>
    %y = nn.linear %r, %q {{scope = "f"}} : tensor<8xBx5xf32>
    core.return %y
  }}
}}
"""
    store = ResourceStore()
    for name, shape in (("c.weight", (3, 2, 3, 3)), ("c.bias", (3,)), ("f.weight", (5, 48))):
        store.put(name, torch.as_tensor(values(*shape)))
    return parse_module(text), store


HARD = 'reset = "hard", threshold = 0.3, fires_at = "above"'
FORMS = [
    "leak = 0.8",
    "leak = 0.8, decay_input = true",
    'leak = 0.25, leak_as = "rate"',
    'leak = 0.25, leak_as = "rate", decay_input = true, rest = 0.05, gain = 1.5',
    'leak = 4.0, leak_as = "time_constant"',
    'leak = 4.0, leak_as = "time_constant", decay_input = true, reset_value = -0.1',
]


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_computes_the_same_spikes(form, path):
    from imcc.driver.nir_export import export_nir
    from imcc.ir.semantics.interpreter import evaluate_function

    module, store = captured(f"{form}, {HARD}")
    report = export_nir(module, store, path, dt=DT)
    assert {item.verdict for item in report} == {"faithful"}
    assert [item.kind for item in report] == ["nn.conv", "snn.lif", "core.reshape", "nn.linear"]
    network, _ = load_nir(path, dt=DT, steps=8)
    x = torch.as_tensor(values(8, 3, 2, 8, 8, seed=4))
    wanted = evaluate_function(module.function(), (x,), resources=store).outputs[0]
    assert wanted.abs().sum() > 0
    assert torch.allclose(network(x), wanted, atol=1e-5)


def test_integrators_are_written(path):
    from imcc.driver.nir_export import export_nir
    from imcc.ir.semantics.interpreter import evaluate_function

    module, store = captured(
        "leak = 0.9", "snn.li", types="tensor<8xBx{n}xf32>, tensor<8xBx{n}xf32>"
    )
    export_nir(module, store, path, dt=DT)
    assert {type(node).__name__ for node in nir.read(path).nodes.values()} >= {"LI", "Conv2d"}
    x = torch.as_tensor(values(8, 2, 2, 8, 8))
    wanted = evaluate_function(module.function(), (x,), resources=store).outputs[0]
    assert torch.allclose(load_nir(path, dt=DT, steps=8)[0](x), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "form, reason",
    [
        ("leak = 0.8", "subtracts its threshold"),
        ('leak = 0.8, reset = "hard", reset_at = "next"', "resets in the next step"),
        ('leak = 0.8, reset = "none"', "this one does not"),
        ('leak = 1.0, reset = "hard"', "taken as its charge"),
    ],
)
def test_what_nir_holds_approximately_is_refused_unless_asked_for(form, reason, path):
    from imcc.driver.nir_export import export_nir

    module, store = captured(form)
    with pytest.raises(DiagnosticError, match=reason):
        export_nir(module, store, path)
    assert not path.exists()
    report = export_nir(module, store, path, approximate=True)
    assert [item.verdict for item in report].count("approximate") == 1
    assert nir.read(path).nodes


def test_every_op_that_nir_lacks_is_listed_and_nothing_written(path):
    from imcc.driver.nir_export import export_nir
    from imcc.frontend.capture import capture

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.Softmax(-1))
    made = capture(model, (torch.randn(8, 2, 4),))
    with pytest.raises(DiagnosticError) as caught:
        export_nir(made.module, made.resources, path)
    assert [item.code for item in caught.value.diagnostics] == [codes.UNSUPPORTED_OP] * 2
    assert list(path.parent.iterdir()) == []
    path.write_text("mine")
    with pytest.raises(DiagnosticError, match="exists already"):
        export_nir(made.module, made.resources, path)
