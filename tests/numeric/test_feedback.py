"""insert-feedback: gradients against torch, the feedback rule against its definition."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from imcc.frontend.capture import capture
from imcc.ir import parse_module, print_module, structural_difference, verify
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects import snn
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline

RATE = 0.1


class Residual(nn.Module):
    """Convolutions with and without padding, groups, pooling, a residual sum, a mean."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.strided = nn.Conv2d(4, 6, 2, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = functional.max_pool2d(torch.relu(self.first(x)), 2)
        x = x + functional.leaky_relu(self.deep(x), 0.1)
        x = functional.avg_pool2d(self.strided(x), 2, padding=1)
        return self.head(x.mean((-2, -1)))


def small(kind):
    torch.manual_seed(1)
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
        )
    return Residual()


def samples(kind, classes):
    generator = torch.Generator().manual_seed(2)
    shape = (7, 6) if kind == "mlp" else (7, 1, 8, 8)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (7,), generator=generator)


def adapted(model, x, options="", seed=0):
    captured = capture(model, (x,))
    module, store = captured.module.clone(), captured.resources.copy()
    run_pipeline(
        module,
        parse_pipeline(f"insert-feedback{{learning_rate={RATE} {options}}}"),
        PassContext(resources=store, seed=seed),
    )
    return module, store


def step(module, store, x, labels, states=None):
    return evaluate_function(module.function("adapt"), (x, labels), resources=store, states=states)


@pytest.mark.parametrize("kind, classes", [("mlp", 3), ("cnn", 5)])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_back_propagation_is_torchs(kind, classes, loss):
    model = small(kind).double()
    x, labels = samples(kind, classes)
    module, store = adapted(model, x, f'rule="bp" loss="{loss}"')
    found = step(module, store, x, labels)
    made = model(x)
    if loss == "squared":
        value = functional.mse_loss(made, functional.one_hot(labels, classes).double())
    else:
        value = functional.cross_entropy(made, labels)
    value.backward()
    assert torch.allclose(found.outputs[0], made, atol=1e-12)
    for name, parameter in model.named_parameters():
        wanted = parameter - RATE * parameter.grad
        assert torch.allclose(found.states[name], wanted, atol=1e-12), name


def test_the_text_round_trips_and_inference_is_what_it_was():
    model = small("cnn")
    x = torch.randn(2, 1, 8, 8)
    module, store = adapted(model, x)
    verify(module)
    assert structural_difference(module, parse_module(print_module(module))) is None
    made = evaluate_function(module.function(), (x,), resources=store).outputs[0]
    assert torch.equal(made, model(x).detach())


def direct_feedback(model, x, labels, store):
    """The rule itself, on an MLP: every hidden layer's delta from the output error alone."""
    first, _, second, _, last = model
    h1 = torch.relu(u1 := first(x))
    h2 = torch.relu(u2 := second(h1))
    e = (torch.softmax(last(h2), -1) - functional.one_hot(labels, 3)) / len(x)
    d1 = (e @ store.get("2.feedback").T) * (u1 > 0)
    d2 = (e @ store.get("4.feedback").T) * (u2 > 0)
    made = {}
    for name, layer, delta, seen in (
        ("0", first, d1, x),
        ("2", second, d2, h1),
        ("4", last, e, h2),
    ):
        made[f"{name}.weight"] = layer.weight - RATE * delta.T @ seen
        made[f"{name}.bias"] = layer.bias - RATE * delta.sum(0)
    return made


def test_direct_feedback_is_its_definition():
    model = small("mlp").double()
    x, labels = samples("mlp", 3)
    module, store = adapted(model, x)
    assert store.get("2.feedback").shape == (8, 3)
    found = step(module, store, x, labels).states
    for name, wanted in direct_feedback(model, x, labels, store).items():
        assert torch.allclose(found[name], wanted, atol=1e-12), name


def test_true_transposes_as_feedback_give_back_propagation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, labels = samples("mlp", 3)
    module, store = adapted(model, x)
    exact, other = adapted(model, x, 'rule="bp"')
    held = store.bind({"2.feedback": model[2].weight.detach().T})
    found = step(module, held, x, labels).states
    wanted = step(exact, other, x, labels).states
    for name in wanted:
        assert torch.allclose(found[name], wanted[name], atol=1e-12)


def test_shared_feedback_takes_rows_of_one_matrix():
    model = small("cnn")
    x = torch.randn(2, 1, 8, 8)
    module, store = adapted(model, x, 'rule="dfa-shared"')
    drawn = [name for name in module.resources if "feedback" in name]
    assert drawn == ["feedback"] and store.get("feedback").shape[0] == 4 * 4 * 4
    step(module, store, x, torch.tensor([0, 1]))


def test_the_seed_draws_the_feedback():
    model, x = small("mlp"), torch.randn(2, 6)
    matrices = [adapted(model, x, seed=seed)[1].get("2.feedback") for seed in (0, 0, 1)]
    assert torch.equal(matrices[0], matrices[1]) and not torch.equal(matrices[0], matrices[2])
    many = adapted(
        nn.Sequential(nn.Linear(4, 4000), nn.ReLU(), nn.Linear(4000, 10)), torch.randn(2, 4)
    )
    assert float(many[1].get("2.feedback").std()) == pytest.approx(1 / math.sqrt(10), rel=0.02)


@pytest.mark.parametrize("rule", ["bp", "dfa", "dfa-shared"])
def test_adaptation_learns(rule):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    x = torch.randn(256, 8)
    labels = (x[:, :4] + 0.5 * x[:, 4:]).argmax(1)
    module, store = adapted(model, x, f'rule="{rule}"')
    states, right = {}, []
    for _ in range(150):
        made = step(module, store, x, labels, states)
        states = made.states
        right.append(float((made.outputs[0].argmax(1) == labels).double().mean()))
    assert right[0] < 0.5 and right[-1] > 0.8


def test_only_the_layers_asked_for_adapt():
    model, x = small("mlp"), torch.randn(2, 6)
    module, _ = adapted(model, x, 'layers=["4.*"]')
    assert set(module.states) == {"4.weight", "4.bias"}
    assert not [name for name in module.resources if "feedback" in name]
    with pytest.raises(DiagnosticError, match=r"'5\.\*' matches no weight"):
        adapted(model, x, 'layers=["5.*"]')


class Running(nn.Module):
    """A running sum, which has no adjoint rule, between two linear layers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.first(x).cumsum(1))


def test_an_op_without_adjoint_is_named():
    model = Running()
    with pytest.raises(DiagnosticError, match=r"(?s)core\.cumulative_sum.*no adjoint rule"):
        adapted(model, torch.randn(2, 6))
    adapted(model, torch.randn(2, 6), 'layers=["last.*"]')


def test_a_model_without_class_scores_is_refused():
    with pytest.raises(DiagnosticError, match=r"one output \[B, classes\]"):
        adapted(nn.Conv2d(1, 2, 3), torch.randn(2, 1, 8, 8))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_refused(label):
    model, x = small("mlp"), torch.randn(2, 6)
    module, store = adapted(model, x)
    with pytest.raises(DiagnosticError, match="the model has 3 outputs"):
        step(module, store, x, torch.tensor([0, label]))


def test_a_sample_that_is_not_finite_changes_no_weight():
    model, x = small("mlp"), torch.randn(2, 6)
    module, store = adapted(model, x)
    x[0, 0] = float("nan")
    with pytest.raises(DiagnosticError, match="NaN or infinity"):
        step(module, store, x, torch.tensor([0, 1]))


# -- spiking networks ---------------------------------------------------------------------------


def spiking(seed):
    """Linear, LIF, linear, LIF over T = 6 steps, rates as class scores."""
    generator = torch.Generator().manual_seed(seed)
    text = """// imc 1
module @spiking phase("captured") {
  resource @one.weight : tensor<16x8xf64>
  resource @two.weight : tensor<3x16xf64>
  func @inference(%x: tensor<6xBx8xf64>) -> tensor<Bx3xf64> {
    %w = core.constant {value = @one.weight} : tensor<16x8xf64>
    %u = nn.linear %x, %w {scope = "one"} : tensor<6xBx16xf64>
    %s, %v = snn.lif %u {leak = 0.75, threshold = 0.5, surrogate = "triangle"}
      : spikes<6xBx16xf64>, tensor<6xBx16xf64>
    %q = core.constant {value = @two.weight} : tensor<3x16xf64>
    %z = nn.linear %s, %q {scope = "two"} : tensor<6xBx3xf64>
    %t, %p = snn.lif %z {leak = 0.75, threshold = 0.5, surrogate = "triangle"}
      : spikes<6xBx3xf64>, tensor<6xBx3xf64>
    %y = nn.mean %t {axes = [-3]} : tensor<Bx3xf64>
    core.return %y
  }
}
"""
    module, store = parse_module(text), ResourceStore()
    for name, shape in (("one.weight", (16, 8)), ("two.weight", (3, 16))):
        store.put(name, torch.randn(shape, generator=generator, dtype=torch.float64))
    return module, store


def test_surrogate_gradients_through_time_are_torchs():
    module, store = spiking(0)
    x = torch.randn(6, 4, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1])
    weights = {name: store.get(name).clone().requires_grad_() for name in store.names()}
    made = evaluate_function(module.function(), (x,), resources=store.bind(weights)).outputs[0]
    functional.cross_entropy(made, labels).backward()
    run_pipeline(
        module,
        parse_pipeline(f'insert-feedback{{rule="bp" learning_rate={RATE}}}'),
        PassContext(resources=store),
    )
    found = step(module, store, x, labels).states
    for name, weight in weights.items():
        assert weight.grad.abs().sum() > 0
        assert torch.allclose(found[name], weight.detach() - RATE * weight.grad, atol=1e-12)


@pytest.mark.parametrize("neurons, local", [("auto", True), ("through_time", False)])
def test_feedback_is_repeated_over_time_steps(neurons, local):
    module, store = spiking(1)
    x = torch.randn(6, 4, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1])
    run_pipeline(
        module,
        parse_pipeline(f'insert-feedback{{learning_rate={RATE} neurons="{neurons}"}}'),
        PassContext(resources=store),
    )
    found = step(module, store, x, labels).states["one.weight"]
    lif = next(op for op in module.function().ops if isinstance(op, snn.LeakyIntegrateAndFire))
    u = (x @ store.get("one.weight").T).requires_grad_()
    from imcc.ir.semantics.snn import run_neuron

    none = dict.fromkeys(("start", "leaks", "gains", "rests", "thresholds"))
    spikes = run_neuron(lif, u, **none)[0]
    outputs = evaluate_function(module.function(), (x,), resources=store).outputs[0]
    e = (torch.softmax(outputs, -1) - functional.one_hot(labels, 3)) / 4
    fed = (e @ store.get("two.feedback").T).expand(6, 4, 16)
    if local:
        # The rule as it is written: delta[t] = (B e) phi'(u[t]), of the membrane that fires.
        h, v = torch.zeros(6, 4, 16, dtype=torch.float64), torch.zeros(4, 16, dtype=torch.float64)
        for t in range(6):
            h[t] = 0.75 * v + u[t].detach()
            v = h[t] - 0.5 * (h[t] >= 0.5).double()
        delta = fed * (1 - (h - 0.5).abs()).clamp_min(0)
    else:
        (delta,) = torch.autograd.grad(spikes, u, fed)
    wanted = store.get("one.weight") - RATE * torch.einsum("tbn,tbk->nk", delta, x)
    assert torch.allclose(found, wanted, atol=1e-12)


class Maps(nn.Module):
    """Two convolutions along time and a linear layer on the flattened map."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(2, 4, 3, padding=1)
        self.second = nn.Conv1d(4, 5, 3, padding=1)
        self.last = nn.Linear(5 * 6, 3)

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))).flatten(1))


@pytest.mark.parametrize("rule", ["dfa", "dfa-shared"])
def test_feedback_to_channels_is_repeated_over_positions(rule):
    torch.manual_seed(0)
    model = Maps().double()
    x, labels = torch.randn(4, 2, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    module, store = adapted(model, x, f'rule="{rule}" feedback="channels"')
    found = step(module, store, x, labels).states
    h1 = torch.relu(u1 := model.first(x))
    u2 = model.second(h1)
    e = torch.softmax(model(x), -1) - functional.one_hot(labels, 3)
    if rule == "dfa":
        b1, b2 = store.get("second.feedback"), store.get("last.feedback")
    else:
        b1, b2 = store.get("feedback")[:4], store.get("feedback")
    assert b1.shape == (4, 3) and b2.shape == (5, 3)
    d1 = (e / 4 @ b1.T)[:, :, None] * (u1 > 0)
    d2 = (e / 4 @ b2.T)[:, :, None] * (u2 > 0)
    for layer, seen, delta in (("first", x, d1), ("second", h1, d2)):
        held = model.get_submodule(layer)
        windows = functional.pad(seen, (1, 1)).unfold(-1, 3, 1)
        wanted = held.weight - RATE * torch.einsum("bnp,bcpk->nck", delta, windows)
        assert torch.allclose(found[f"{layer}.weight"], wanted, atol=1e-12)


# -- adjoints of further layers -------------------------------------------------------------------


class Around(nn.Module):
    """A linear layer, some function of its result, and a linear layer."""

    def __init__(self, function, size=8):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(size, 3)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def random_statistics(norm):
    generator = torch.Generator().manual_seed(3)
    for value in (*norm.parameters(), *norm.buffers()):
        if value.is_floating_point():
            with torch.no_grad():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return norm.eval()


def attention(h):
    q, k, v = h.reshape(-1, 2, 4), (2 * h).reshape(-1, 2, 4), h.tanh().reshape(-1, 2, 4)
    return (torch.softmax(q @ k.transpose(-1, -2), -1) @ v).flatten(1)


FUNCTIONS = {
    "layer_norm": lambda: Around(random_statistics(nn.LayerNorm(8))),
    "rms_norm": lambda: Around(random_statistics(nn.RMSNorm(8, eps=1e-5))),
    "batch_norm": lambda: Around(random_statistics(nn.BatchNorm1d(8))),
    "gelu": lambda: Around(nn.GELU()),
    "gelu_tanh": lambda: Around(nn.GELU(approximate="tanh")),
    "silu": lambda: Around(nn.SiLU()),
    "sigmoid": lambda: Around(nn.Sigmoid()),
    "tanh": lambda: Around(nn.Tanh()),
    "hardswish": lambda: Around(nn.Hardswish()),
    "hardsigmoid": lambda: Around(nn.Hardsigmoid()),
    "clamp": lambda: Around(nn.Hardtanh(-0.3, 0.4)),
    "softmax": lambda: Around(nn.Softmax(-1)),
    "concat": lambda: Around(lambda h: torch.cat([h, h * h], 1), 16),
    "slice": lambda: Around(lambda h: h[:, 1:8:3], 3),
    "pad": lambda: Around(lambda h: functional.pad(h, (2, 1)), 11),
    "sum": lambda: Around(lambda h: h.reshape(-1, 4, 2).sum(-1), 4),
    "expand": lambda: Around(lambda h: h[:, :1].expand(-1, 4) * h[:, 4:], 4),
    "divide": lambda: Around(lambda h: h / (1 + h[:, :1] * h[:, :1])),
    "where": lambda: Around(lambda h: torch.where(h > 0.1, h, h * h)),
    "attention": lambda: Around(attention),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_back_propagation_through_a_layer_is_torchs(name):
    torch.manual_seed(0)
    model = FUNCTIONS[name]().double()
    x, labels = samples("mlp", 3)
    captured = capture(model, (x,))
    module, store = captured.module.clone(), captured.resources.copy()
    pipeline = f'decompose-attention, insert-feedback{{learning_rate={RATE} rule="bp"}}'
    run_pipeline(module, parse_pipeline(pipeline), PassContext(resources=store))
    verify(module)
    found = step(module, store, x, labels).states
    functional.cross_entropy(model(x), labels).backward()
    for held in ("first.weight", "first.bias", "last.weight"):
        parameter = model.get_parameter(held)
        assert parameter.grad.abs().sum() > 0
        assert torch.allclose(found[held], parameter - RATE * parameter.grad, atol=1e-12), held


@pytest.mark.parametrize("read", ["membrane", "integrator"])
def test_gradients_pass_what_a_spiking_network_reads_at_its_end(read):
    """The membrane of the last neurons, or of integrators, in place of their spikes."""
    module, store = spiking(0)
    text = print_module(module)
    if read == "membrane":
        text = text.replace("nn.mean %t", "nn.mean %p")
    else:
        start = text.index("%t, %p = snn.lif")
        end = text.index("%y = nn.mean")
        text = (
            text[:start]
            + '%t, %p = snn.li %z {leak = 0.2, leak_as = "rate", read = "jump"} '
            + ": tensor<6xBx3xf64>, tensor<6xBx3xf64>\n    "
            + text[end:]
        )
    module = parse_module(text)
    verify(module)
    x = torch.randn(6, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    labels = torch.tensor([0, 1, 2, 1])
    weights = {name: store.get(name).clone().requires_grad_() for name in store.names()}
    made = evaluate_function(module.function(), (x,), resources=store.bind(weights)).outputs[0]
    functional.cross_entropy(made, labels).backward()
    run_pipeline(
        module,
        parse_pipeline(f'insert-feedback{{rule="bp" learning_rate={RATE}}}'),
        PassContext(resources=store),
    )
    found = step(module, store, x, labels).states
    for name, weight in weights.items():
        assert weight.grad.abs().sum() > 0
        assert torch.allclose(found[name], weight.detach() - RATE * weight.grad, atol=1e-12)
