"""torch.compile(model, backend="imcc"): what is compiled, when again, and what is refused."""

import linecache

import pytest
import torch
from torch import nn

from imcc.ir.diagnostics import DiagnosticError

REFERENCE = {"target": "reference"}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, scale=None):
        y = torch.relu(self.fc(x))  # the block's line
        return y if scale is None else y * scale


class Net(nn.Module):
    def __init__(self, breaks=""):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.register_buffer("offset", torch.ones(4))
        self.plain = torch.full((4,), 2.0)
        self.drop = nn.Dropout()
        self.breaks = breaks

    def forward(self, x, *, mask=None, **rest):
        if self.breaks == "first":
            print("hello")  # first
        for block in self.blocks:
            x = block(x)
            if self.breaks == "loop":
                print("hello")  # loop
        if self.breaks == "middle":
            print("hello")  # middle
        if self.breaks == "data" and x.sum() > 0:  # data
            x = x * 2
        x = x.reshape(x.shape[0], -1)
        out = self.drop(x + self.offset) * self.plain
        return {"out": out, "mask": None if mask is None else mask * 2, "rest": len(rest)}


def compiled(model, *, dynamic=None, **options):
    made = []
    options = {**REFERENCE, "on_compiled": made.append, **options}
    return torch.compile(model, backend="imcc", options=options, dynamic=dynamic), made


def refused(call):
    with pytest.raises(DiagnosticError) as caught:
        call()
    return caught.value.diagnostics


def line_of(item):
    (place,) = item.model
    return linecache.getline(place.file, place.line)


def test_torch_finds_the_backend_by_its_entry_point():
    assert "imcc" in torch._dynamo.list_backends()


def test_keywords_structures_and_batch_sizes():
    net = Net().eval()
    model, made = compiled(net)
    counts = []
    with torch.no_grad():
        for size in (2, 3, 5, 1):
            x, mask = torch.rand(size, 4), torch.rand(size, 4)
            got, want = model(x, mask=mask), net(x, mask=mask)
            assert got.keys() == want.keys() and got["rest"] == 0
            assert torch.equal(got["out"], want["out"]) and torch.equal(got["mask"], want["mask"])
            counts.append(len(made))
        assert model(x)["mask"] is None
    # Once as given, once for any size, once for a single sample, which torch treats apart.
    assert counts == [1, 2, 2, 3]
    assert str(made[1].module.function().inputs[0].type) == "tensor<Bx4xf32>"


def test_a_dynamic_graph_is_compiled_once():
    model, made = compiled(Net().eval(), dynamic=True)
    with torch.no_grad():
        for size in (3, 2, 9):
            model(torch.rand(size, 4))
    assert len(made) == 1


def test_names_scopes_and_places_are_those_of_the_model():
    net = Net().eval()
    model, made = compiled(net)
    with torch.no_grad():
        model(torch.rand(2, 4))
    module = made[0].module
    assert set(net.state_dict()) <= set(module.resources)
    assert "plain" in module.resources
    linear = [op for op in module.walk() if op.name == "nn.linear"]
    assert [op.scope for op in linear] == ["blocks.0.fc", "blocks.1.fc"]
    assert all(
        "the block's line" in linecache.getline(op.loc[0].file, op.loc[0].line) for op in linear
    )


def test_a_plain_function():
    weight = torch.rand(4, 4)

    @torch.compile(backend="imcc", options=REFERENCE)
    def layer(x, *, shift):
        return torch.relu(x @ weight.t()) + shift

    x, shift = torch.rand(3, 4), torch.rand(3, 4)
    assert torch.allclose(layer(x, shift=shift), torch.relu(x @ weight.t()) + shift, atol=1e-6)


def test_changed_weights_are_compiled_anew():
    net = Net().eval()
    model, made = compiled(net)
    x = torch.rand(2, 4)
    with torch.no_grad():
        first = model(x)["out"]
        net.load_state_dict({name: value * 2 for name, value in net.state_dict().items()})
        second = model(x)["out"]
        assert torch.equal(second, net(x)["out"]) and not torch.equal(first, second)
    assert len(made) == 2


def test_noise_is_seeded_and_fresh_on_each_call():
    net = nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3))
    x, data = torch.rand(3, 20), torch.rand(32, 20)

    def outputs(**options):
        torch._dynamo.reset()
        model, made = compiled(net, target="rram", calibration=[(data,)], **options)
        with torch.no_grad():
            return model(x), model(x), made

    first, again, made = outputs(seed=1)
    assert len(made) == 1 and made[0].report()["energy_pj"] > 0
    assert not torch.equal(first, again), "each call reads fresh noise"
    same, _, _ = outputs(seed=1)
    other, _, _ = outputs(seed=2)
    still, quiet, _ = outputs(noisy=False)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(still, quiet)


def test_calibration_by_position_and_by_name():
    net = Net().eval()
    data, mask = torch.rand(6, 4), torch.ones(6, 4)
    x = torch.rand(4, 4)
    results = []
    for batches, keywords in (
        ([(data,)], {}),
        ([{"x": data, "mask": mask}], {"mask": torch.ones(4, 4)}),
    ):
        model, _ = compiled(net, target="rram", calibration=batches, noisy=False)
        with torch.no_grad():
            results.append(model(x, **keywords)["out"])
    assert torch.equal(*results)
    model, _ = compiled(net, target="rram", calibration=[(data,)])
    (item,) = refused(lambda: model(x, mask=torch.ones(4, 4)))
    assert "L['mask']" in item.reason and "calibrate_on_example" in item.help
    model, _ = compiled(net, target="rram", calibration=[{"y": data, "z": data}])
    (item,) = refused(lambda: model(x))
    assert "no value for the input L['x']" in item.reason
    model, _ = compiled(net, target="rram", calibration=[(data, data)])
    (item,) = refused(lambda: model(x))
    assert "does not fit forward(x, *, mask, **rest)" in item.message
    model, _ = compiled(net, target="rram")
    (item,) = refused(lambda: model(x))
    assert "no calibration data" in item.message


@pytest.mark.parametrize("where", ["first", "middle", "loop", "data"])
def test_a_graph_break_is_refused_with_its_line(where, capsys):
    model, made = compiled(Net(where).eval())
    with torch.no_grad():
        (item,) = refused(lambda: model(torch.rand(2, 4)))
    assert "breaks the graph" in item.message and made == []
    assert f"# {where}" in line_of(item), item.render()
    assert "print" in item.reason or where == "data"


def test_fullgraph_finds_breaks_that_leave_no_graph():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
                print("hello")
            return x

    model = torch.compile(Bare().eval(), backend="imcc", options=REFERENCE, fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="print"):
        model(torch.rand(2, 4))


def test_options_are_checked_all_at_once():
    model = torch.compile(
        Net().eval(),
        backend="imcc",
        options={"targt": "rram", "seed": True, "trials": 3, "overrides": "adc.bits=6"},
    )
    found = refused(lambda: model(torch.rand(2, 4)))
    assert [item.code.id for item in found] == ["IMC801"] * 4
    assert found[0].suggestions == ("target",)
    assert "imcc.compile(model" in found[2].help and "adc.bits=6" in found[3].help
    model = torch.compile(Net().eval(), backend="imcc", options={"target": "rramm"})
    (item,) = refused(lambda: model(torch.rand(2, 4)))
    assert item.suggestions == ("rram", "sram")
    (item,) = refused(
        lambda: torch.compile(Net().eval(), backend="imcc", mode="max-autotune")(torch.rand(2, 4))
    )
    assert "mode='max-autotune'" in item.message


def test_training_mode_is_refused():
    net = Net()
    model, made = compiled(net)
    (item,) = refused(lambda: model(torch.rand(2, 4)))
    assert "dropout is active" in item.message and item.scope == "drop"
    assert "self.drop(" in line_of(item) and "model.eval()" in item.help
    net.eval()
    model(torch.rand(2, 4))
    assert len(made) == 1


def test_outputs_say_that_they_have_no_gradient():
    net = Net().eval()
    model, _ = compiled(net)
    out = model(torch.rand(2, 4))["out"]
    assert out.requires_grad, "as the output of the model itself"
    (item,) = refused(lambda: out.sum().backward())
    assert "no gradient" in item.message
    with torch.no_grad():
        assert not model(torch.rand(2, 4))["out"].requires_grad


def test_state_is_refused():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.count.add_(1)  # the state
            return x * self.count

    model, _ = compiled(Counting().eval())
    with torch.no_grad():
        (item,) = refused(lambda: model(torch.rand(2, 4)))
    assert "'count'" in item.message


def test_unsupported_ops_name_the_line():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x).real  # fourier

    model, _ = compiled(Odd())
    found = refused(lambda: model(torch.rand(2, 4)))
    assert found[0].code.id == "IMC303" and "# fourier" in line_of(found[0])
