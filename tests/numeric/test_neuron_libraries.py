"""Neurons of the libraries: captured, they give the spikes and membranes of the library's own run.

Equal to the bit in float64 and float32: the neurons are compared alone, without the layers whose
sums may come in another order.
"""

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from imcc.frontend.capture import capture
from imcc.frontend.neurons import exchanged_neurons
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.semantics.interpreter import evaluate_function

STEPS, BATCH, FEATURES = 5, 3, 10
DTYPES = [torch.float64, torch.float32]


def leaves(made):
    return [item for item in pytree.tree_leaves(made) if item is not None]


def same(left, right):
    left, right = leaves(left), leaves(right)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        assert torch.equal(a.to(b.dtype), b)
    return float(sum(item.count_nonzero() for item in left))


def check(model, x, reset=lambda model: None, captured=False):
    """The library's own run, the exchanged neurons and, if wanted, the captured program agree.

    Exporting is what takes time; one form of each neuron is enough for it.
    """
    model = model.to(x.dtype).eval()
    with torch.no_grad():
        reset(model)
        own = model(x)
        reset(model)
        with exchanged_neurons(model) as exchanged:
            ours = model(x)
        assert exchanged.warnings == []
        reset(model)
        after = model(x)
        reset(model)
    assert same(ours, own) > 0, "nothing fires: the test says nothing"
    same(after, own)
    if not captured:
        return None
    program = capture(model, (x,))
    # Recurrent neurons stay step by step, and the program says so.
    assert [item for item in program.warnings if item.code is not codes.STEPS] == []
    function = program.module.function("inference")
    same(evaluate_function(function, (x,), resources=program.resources).outputs, own)
    return function


def data(dtype, *shape):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*(shape or (STEPS, BATCH, FEATURES)), generator=generator, dtype=dtype) * 2


class Loop(nn.Module):
    """A python loop over time that passes the states of one neuron on."""

    def __init__(self, neuron, passed=True):
        super().__init__()
        self.neuron = neuron
        self.passed = passed

    def forward(self, x):
        states, made = (), []
        for step in x:
            out = self.neuron(step, *states)
            if self.passed:
                states = out[1:]
            made.append(out)
        return [torch.stack(items) for items in zip(*map(leaves, made), strict=True)]


# -- snnTorch -------------------------------------------------------------------------------------


def snntorch_forms():
    for reset in ("subtract", "zero", "none"):
        common = {"reset_mechanism": reset, "threshold": 0.8}
        yield "Leaky", {"beta": 0.83, **common}
        yield "Leaky", {"beta": 0.83, "reset_delay": False, "graded_spikes_factor": 1.3, **common}
        yield "Lapicque", {"R": 5.1, "C": 0.2, "time_step": 0.3, **common}
        yield "Synaptic", {"alpha": 0.9, "beta": 0.83, **common}
        yield "RLeaky", {"beta": 0.83, "linear_features": FEATURES, **common}
        yield "RSynaptic", {"alpha": 0.9, "beta": 0.8, "all_to_all": False, "V": 0.7, **common}
    yield (
        "Leaky",
        {
            "beta": torch.linspace(-0.1, 1.1, FEATURES),
            "threshold": torch.linspace(0.3, 1.3, FEATURES),
        },
    )


@pytest.fixture
def snntorch():
    return pytest.importorskip("snntorch", reason="snntorch is not installed")


def one_type(snntorch, model):
    """snnTorch makes float32 spikes of any input: keep its own run in the input's type."""

    def cast(module, args, out):
        if hasattr(module, "spk"):
            module.spk = module.spk.to(args[0].dtype)
        return pytree.tree_map(lambda item: item.to(args[0].dtype), out)

    for item in model.modules():
        if isinstance(item, snntorch.SpikingNeuron):
            item.register_forward_hook(cast)
    return model


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [False, True], ids=["passed", "hidden"])
def test_snntorch(snntorch, dtype, hidden):
    for index, (kind, form) in enumerate(snntorch_forms()):
        neuron = getattr(snntorch, kind)(**form, init_hidden=hidden)
        model = one_type(snntorch, Loop(neuron, passed=not hidden))
        exported = index == (4 if hidden else 0) and dtype is torch.float64
        check(model, data(dtype), lambda model: model.neuron.reset_mem(), captured=exported)


def test_snntorch_records_surrogates(snntorch):
    from snntorch import surrogate

    made = surrogate.fast_sigmoid(slope=7)
    with exchanged_neurons(snntorch.Leaky(beta=0.5, spike_grad=made)) as exchanged:
        form = exchanged.neurons[0].form
    assert (form["surrogate"], form["surrogate_slope"]) == ("fast_sigmoid", 7.0)


def test_snntorch_what_is_no_step_is_refused(snntorch):
    with pytest.raises(DiagnosticError, match="not supported") as caught:
        capture(Loop(snntorch.Leaky(beta=0.5, spike_grad=torch.sigmoid)), (data(torch.float32),))
    assert "is not a step" in caught.value.diagnostics[0].reason
    # Another step function is taken, with a warning that its gradient is lost.
    model = Loop(snntorch.Leaky(beta=0.5, spike_grad=lambda x: (x > 0).float()))
    captured = capture(model, (data(torch.float32),))
    assert "surrogate gradient" in captured.warnings[0].message


def test_changed_arithmetic_is_refused(snntorch):
    class Mine(snntorch.Leaky):
        def _base_state_function(self, input_):
            return 2 * super()._base_state_function(input_)

    with pytest.raises(DiagnosticError) as caught:
        capture(Loop(Mine(beta=0.5)), (data(torch.float32),))
    assert "_base_state_function" in caught.value.diagnostics[0].reason
    with pytest.raises(DiagnosticError, match="Alpha"):
        capture(Loop(snntorch.Alpha(alpha=0.9, beta=0.8)), (data(torch.float32),))


# -- SpikingJelly ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("v_reset", [None, 0.0, -0.3])
def test_spikingjelly(dtype, v_reset):
    pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
    from spikingjelly.activation_based import functional, neuron, surrogate

    forms = [
        (neuron.IFNode, {}),
        (neuron.LIFNode, {"tau": 1.7}),
        (neuron.LIFNode, {"tau": 2.3, "decay_input": False}),
        (neuron.ParametricLIFNode, {"init_tau": 2.7}),
        (neuron.ParametricLIFNode, {"init_tau": 2.7, "decay_input": False}),
    ]
    for kind, form in forms:
        given = {"v_reset": v_reset, "v_threshold": 0.6, "surrogate_function": surrogate.ATan()}
        many = nn.Sequential(kind(step_mode="m", **given, **form))
        exported = v_reset == 0.0 and dtype is torch.float64 and "init_tau" in form
        function = check(many, data(dtype), functional.reset_net, captured=exported)
        if exported:
            assert [op.name for op in function.ops] == ["snn.lif", "core.return"]
        single = Loop(kind(step_mode="s", **given, **form), passed=False)
        check(single, data(dtype), functional.reset_net)


def test_spikingjelly_subclass_with_its_own_charge_is_refused():
    pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
    from spikingjelly.activation_based import neuron

    class Mine(neuron.IFNode):
        def single_step_functional_forward(self, inputs, states, **named):
            return super().single_step_functional_forward((2 * inputs[0],), states, **named)

    for refused in (Mine(), neuron.KLIFNode()):
        with pytest.raises(DiagnosticError, match="not supported"):
            capture(Loop(refused, passed=False), (data(torch.float32),))


# -- norse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norse(dtype):
    norse = pytest.importorskip("norse.torch", reason="norse is not installed")
    low = torch.as_tensor(0.1)
    leaky = norse.LIFParameters(v_th=low, v_leak=torch.as_tensor(0.02))
    fires = [
        (norse.LIFCell, leaky),
        (norse.LIFBoxCell, norse.LIFBoxParameters(v_th=low, v_leak=torch.as_tensor(0.03))),
        (norse.LICell, norse.LIParameters()),
        (norse.LIBoxCell, norse.LIBoxParameters()),
        (norse.IAFCell, norse.IAFParameters(v_th=low)),
    ]

    class Cell(Loop):
        def forward(self, x):
            state, made = None, []
            for step in x:
                out, state = self.neuron(step, state)
                made.append(out)
            return torch.stack(made), state

    for kind, p in fires:
        check(Cell(kind(p)), data(dtype))
    check(norse.LIF(leaky), data(dtype))
    exported = dtype is torch.float64
    check(norse.SequentialState(norse.LIF(leaky), norse.LI()), data(dtype), captured=exported)


# -- sinabs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sinabs(dtype):
    layers = pytest.importorskip("sinabs.layers", reason="sinabs is not installed")
    from sinabs import activation

    def reset(model):
        for item in model.modules():
            if isinstance(item, layers.StatefulLayer):
                for name, _ in list(item.named_buffers(recurse=False)):
                    item.register_buffer(name, torch.zeros(0))

    low = torch.tensor(0.3)
    several = {"spike_fn": activation.MaxSpike(2), "reset_fn": activation.MembraneReset()}
    models = [
        layers.LIF(tau_mem=7.3, spike_threshold=low),
        layers.LIF(tau_mem=7.3, tau_syn=3.1, norm_input=False),
        layers.LIF(7.3, None, low, activation.SingleSpike, min_v_mem=-0.2),
        layers.LIF(tau_mem=torch.linspace(2.0, 6.0, FEATURES), norm_input=False, **several),
        layers.IAF(reset_fn=activation.MembraneSubtract(0.4)),
        layers.ExpLeak(tau_mem=4.0),
        nn.Sequential(nn.Flatten(0, 1), layers.IAFSqueeze(num_timesteps=STEPS)),
    ]
    for model in models:
        exported = model is models[0] and dtype is torch.float64
        check(model, data(dtype, BATCH, STEPS, FEATURES), reset, captured=exported)
    with pytest.raises(DiagnosticError, match="not supported"):
        capture(layers.ALIF(tau_mem=5.0, tau_adapt=3.0), (data(dtype, BATCH, STEPS, FEATURES),))


# -- what needs no library ------------------------------------------------------------------------


def test_models_without_neurons_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with exchanged_neurons(model) as exchanged:
        assert "forward" not in vars(model)
    assert exchanged.neurons == []
