"""Neurons against a plain Python transcription of the equations, one number at a time."""

import itertools
import math

import pytest
import torch

from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects import snn
from imcc.ir.module import Function, Module
from imcc.ir.semantics.interpreter import EvalContext, evaluate_op
from imcc.ir.semantics.resources import ELEMENT_OF, ResourceStore
from imcc.ir.types import SpikesType, TensorType

STEPS, NEURONS = 12, 40


def run(kind, x, operands=None, **attributes):
    function = Function("inference")
    Module("m").add_function(function)
    held = {"x": x, **(operands or {})}
    arguments = {
        name: function.add_argument(TensorType(tuple(item.shape), ELEMENT_OF[item.dtype]), name)
        for name, item in held.items()
    }
    op = function.append(kind(**arguments, **attributes))
    op.verify()
    context = EvalContext({}, ResourceStore({}))
    results = evaluate_op(op, {value: held[name] for name, value in arguments.items()}, context)
    for value, made in zip(op.results, results, strict=True):
        assert tuple(made.shape) == value.type.shape
    return op, results


def integrated(form, decay_input, v, u, leak, rest):
    if form == "factor":
        return leak * (v + u) if decay_input else leak * v + u
    scaled = leak if form == "rate" else 1 / leak
    if decay_input:
        return v + (u - (v - rest)) * scaled
    return v - (v - rest) * scaled + u


def expected_lif(x, op):
    """Spikes and membranes of one neuron, from the documented equations."""
    v, fired, held = op.v_init, [], []
    limit = op.max_spikes or math.inf
    amount = op.threshold if op.reset_value is None else op.reset_value

    def beyond(value):
        return value > op.threshold if op.fires_at == "above" else value >= op.threshold

    for value in x:
        late = op.reset != "none" and op.reset_at != "present"
        r = 1.0 if late and beyond(v) else 0.0
        if op.reset == "hard" and op.reset_at in ("next", "both"):
            v = (1 - r) * v
        h = integrated(op.leak_as, op.decay_input, v, op.gain * value, op.leak, op.rest)
        if late and op.reset == "subtract":
            h -= r * amount
        if op.reset == "hard" and op.reset_at == "next_with_input":
            h -= r * h
        if op.max_spikes == 1:
            s = 1.0 if beyond(h) else 0.0
        else:
            s = float(min(math.trunc(h / op.threshold), limit)) if h > 0 else 0.0
        v = h
        if op.reset != "none" and op.reset_at in ("present", "both"):
            s_now = s - r
            if op.reset == "subtract":
                v = h - s_now * amount
            elif op.reset_at == "both":
                v = h - s_now * h
            else:
                v = (op.reset_value or 0.0) if s else h
        if op.minimum is not None:
            v = max(v - op.minimum, 0) + op.minimum
        fired.append(s)
        held.append(v)
    return fired, held


def check(x, **attributes):
    op, (spikes, v) = run(snn.LeakyIntegrateAndFire, x, **attributes)
    assert isinstance(op.spikes.type, SpikesType) == (op.max_spikes == 1)
    wanted = [expected_lif(x[:, n].tolist(), op) for n in range(x.shape[1])]
    fired = torch.tensor([item[0] for item in wanted], dtype=x.dtype).T
    held = torch.tensor([item[1] for item in wanted], dtype=x.dtype).T
    assert fired.sum() > 0
    assert torch.equal(spikes, fired)
    assert torch.allclose(v, held, rtol=1e-12, atol=1e-12)


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(STEPS, NEURONS, generator=generator, dtype=torch.float64) * 1.5


INTEGRATIONS = [
    {"leak": 0.8},
    {"leak": 0.8, "decay_input": True, "gain": 1.7},
    {"leak": 0.3, "leak_as": "rate", "rest": 0.1},
    {"leak": 0.7, "leak_as": "rate", "rest": -0.2, "decay_input": True, "gain": 3.0},
    {"leak": 2.5, "leak_as": "time_constant", "rest": 0.1},
    {"leak": 1.5, "leak_as": "time_constant", "rest": 0.1, "decay_input": True, "gain": 2.0},
]
RESETS = [
    {"reset": reset, "reset_at": at}
    for reset, at in itertools.product(
        ("subtract", "hard", "none"), ("present", "next", "next_with_input", "both")
    )
]


@pytest.mark.parametrize(
    "integration", INTEGRATIONS, ids=lambda item: "-".join(map(str, item.values()))
)
@pytest.mark.parametrize("reset", RESETS, ids=lambda item: "-".join(item.values()))
def test_lif_follows_its_equations(x, integration, reset):
    check(x, **integration, **reset, threshold=0.7, fires_at="above", v_init=0.3)


@pytest.mark.parametrize("limit", [0, 1, 3])
@pytest.mark.parametrize("reset", ["subtract", "hard"])
def test_counting_and_lower_bound(x, limit, reset):
    check(2 * x, leak=0.9, max_spikes=limit, reset=reset, reset_value=0.25, minimum=-0.5)


def test_the_threshold_itself_fires_or_does_not():
    x = torch.tensor([[1.0], [0.0]])
    fired = {
        at: run(snn.LeakyIntegrateAndFire, x, fires_at=at)[1][0].flatten().tolist()
        for at in ("above", "threshold")
    }
    assert fired == {"above": [0.0, 0.0], "threshold": [1.0, 0.0]}


@pytest.mark.parametrize(
    "integration", INTEGRATIONS, ids=lambda item: "-".join(map(str, item.values()))
)
def test_integrator_follows_its_equations(x, integration):
    op, (y, v) = run(snn.LeakyIntegrator, x, **integration, v_init=0.2)
    state = torch.full((NEURONS,), 0.2, dtype=x.dtype)
    for step, now in zip(x, v, strict=True):
        state = integrated(op.leak_as, op.decay_input, state, op.gain * step, op.leak, op.rest)
        assert torch.allclose(now, state, rtol=1e-12)
    assert torch.equal(y, v)


def test_integrator_read_at_the_jump(x):
    _, (y, v) = run(snn.LeakyIntegrator, x, leak=0.25, leak_as="rate", read="jump")
    assert torch.equal(y[1:], v[:-1] + x[1:])
    assert torch.allclose(v, 0.75 * y)


def test_steps_one_by_one_are_the_sequence(x):
    form = {"leak": 0.8, "reset": "hard", "reset_at": "next", "threshold": 0.6}
    _, (spikes, v) = run(snn.LeakyIntegrateAndFire, x, **form)
    state = torch.zeros(NEURONS, dtype=x.dtype)
    for t in range(STEPS):
        _, (s, state) = run(
            snn.LeakyIntegrateAndFire, x[t], {"start": state}, time_axis=False, **form
        )
        assert torch.equal(s, spikes[t]) and torch.equal(state, v[t])


def test_parameters_per_element(x):
    values = {
        "leaks": torch.linspace(0.5, 0.9, NEURONS, dtype=x.dtype),
        "thresholds": torch.linspace(0.4, 1.4, NEURONS, dtype=x.dtype),
        "gains": torch.linspace(0.9, 1.4, NEURONS, dtype=x.dtype),
    }
    _, (spikes, v) = run(snn.LeakyIntegrateAndFire, x, values)
    for n in range(0, NEURONS, 7):
        one = {key[:-1]: float(item[n]) for key, item in values.items()}
        _, (alone, membrane) = run(snn.LeakyIntegrateAndFire, x[:, n : n + 1], **one)
        assert torch.equal(alone[:, 0], spikes[:, n]) and torch.equal(membrane[:, 0], v[:, n])


SLOPES = {
    "atan": lambda d: 1 / (1 + d**2),
    "fast_sigmoid": lambda d: 1 / (1 + abs(d)) ** 2,
    "sigmoid": lambda d: math.exp(-d) / (1 + math.exp(-d)) ** 2,
    "triangle": lambda d: max(1 - abs(d), 0.0),
    "exponential": lambda d: math.exp(-abs(d)),
    "gaussian": lambda d: math.exp(-(d**2)),
    "rectangle": lambda d: float(abs(d) < 1),
    "straight_through": lambda d: 1.0,
    "none": lambda d: 0.0,
}


@pytest.mark.parametrize("name", SLOPES)
def test_gradient_of_a_spike_is_its_surrogate(name):
    x = torch.linspace(-1, 3, 23, dtype=torch.float64)[None].requires_grad_(True)
    form = {"surrogate": name, "surrogate_slope": 1.3, "surrogate_scale": 0.4, "threshold": 0.9}
    _, (spikes, _) = run(snn.LeakyIntegrateAndFire, x, **form)
    spikes.sum().backward()
    wanted = [0.4 * SLOPES[name](1.3 * (value - 0.9)) for value in x[0].tolist()]
    assert x.grad[0].tolist() == pytest.approx(wanted)


def test_detached_reset_keeps_its_gradient_out():
    grads = []
    for detach in (False, True):
        x = torch.tensor([[1.2], [0.1]], dtype=torch.float64, requires_grad=True)
        _, (_, v) = run(
            snn.LeakyIntegrateAndFire, x, surrogate="straight_through", detach_reset=detach
        )
        v[-1].sum().backward()
        grads.append(x.grad.flatten().tolist())
    # d v / d x[0] is 1 - threshold * surrogate, or 1 without the reset's share.
    assert grads == [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"rest": 1.0}, "a rest other than 0"),
        ({"leak": 0.0, "leak_as": "time_constant"}, "time constant of 0"),
        ({"max_spikes": 0, "reset_at": "next"}, "counting neurons"),
        ({"max_spikes": 2, "threshold": 0.0}, "positive threshold"),
        ({"reset": "hard", "reset_at": "next", "reset_value": 0.5}, "delayed hard reset"),
    ],
)
def test_forms_that_mean_nothing_are_refused(x, attributes, message):
    with pytest.raises(DiagnosticError, match=message):
        run(snn.LeakyIntegrateAndFire, x, **attributes)
