"""Fine-tuning through the simulator: gradients, reads without converters, resume, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from imcc.backends.crossbar.dialect import Mvm
from imcc.backends.targets import find_target
from imcc.frontend.capture import Captured, capture
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.rewriting import Rewriter
from imcc.ir.semantics.derivations import replay
from imcc.training import Batch, NoisyProgram, Recipe, fine_tune, trainable

QUIET = (
    "device.write_noise.model=none",
    "device.read_noise.model=none",
)
FINE = ("adc.bits=16",)


class Small(nn.Module):
    """A convolution with a batch norm, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.fc1 = nn.Linear(6 * 4 * 4, 12)
        self.fc2 = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.conv(x))).flatten(1)
        return self.fc2(torch.tanh(self.fc1(x)))


def small() -> Small:
    torch.manual_seed(3)
    network = Small().train()
    for _ in range(3):
        network(torch.randn(16, 2, 4, 4))
    with torch.no_grad():
        network.bn.weight.uniform_(-1.0, 1.5)
        network.bn.bias.normal_()
    return network.eval()


def captured() -> Captured:
    return capture(small(), (torch.randn(2, 2, 4, 4),))


def data(count: int = 4, size: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    made: list[Batch] = []
    for _ in range(count):
        x = torch.randn(size, 2, 4, 4, generator=generator)
        made.append(((x,), torch.randint(0, 3, (size,), generator=generator)))
    return made


def loss(outputs: list[Tensor], labels: Tensor) -> Tensor:
    return functional.cross_entropy(outputs[0], labels)


def calibration() -> list[tuple[Tensor]]:
    return [(inputs[0],) for inputs, _ in data()]


def lowered(*overrides: str) -> tuple[Captured, NoisyProgram]:
    held = captured()
    target = find_target("rram", overrides)
    return held, NoisyProgram.lower(held.module, held.resources, target, calibration=calibration())


def weights_of(held: Captured) -> dict[str, Tensor]:
    return {
        name: held.resources.get(name).clone().requires_grad_() for name in trainable(held.module)
    }


def test_what_is_trained_is_what_the_user_has() -> None:
    names = set(trainable(captured().module))
    assert names == {name for name, _ in small().named_parameters()}


def test_replayed_resources_equal_those_that_passes_put() -> None:
    held, program = lowered()
    made = replay(program.resources.derivations, weights_of(held), program.resources)
    compared = 0
    for name, tensor in made.items():
        if name in program.module.resources:
            stored = program.resources.get(name)
            assert torch.equal(tensor.detach().to(stored.dtype), stored), name
            compared += name.endswith((".codes", ".rescale", ".folded"))
    assert compared == 3 * 2 + 1


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def eager(network: Small, program: NoisyProgram, x: Tensor) -> Tensor:
    """The quantised network in plain torch, straight through each rounding."""

    def activation(x: Tensor, layer: str) -> Tensor:
        scale = program.resources.get(f"{layer}.input.scale")
        zero = torch.zeros(())
        low, high = 0.0, 255.0
        if f"{layer}.input.zero_point" in program.resources:
            zero = program.resources.get(f"{layer}.input.zero_point").float()
        return (((_Rounded.apply(x / scale) + zero).clamp(low, high)) - zero) * scale

    def weight(w: Tensor) -> Tensor:
        scale = w.detach().flatten(1).abs().amax(1).reshape(-1, *[1] * (w.dim() - 1)) / 127
        return _Rounded.apply(w / scale) * scale

    factor = network.bn.weight / torch.sqrt(network.bn.running_var + network.bn.eps)
    filters = weight(network.conv.weight * factor[:, None, None, None])
    bias = network.bn.bias - network.bn.running_mean * factor
    x = functional.conv2d(activation(x, "conv"), filters, bias, padding=1)
    x = activation(functional.relu(x).flatten(1), "fc1")
    x = torch.tanh(functional.linear(x, weight(network.fc1.weight), network.fc1.bias))
    return functional.linear(activation(x, "fc2"), weight(network.fc2.weight), network.fc2.bias)


@pytest.mark.parametrize("reads", ["simulated", "linear"])
def test_gradient_without_noise_is_that_of_the_quantised_network(reads: str) -> None:
    held, program = lowered(*QUIET, *FINE)
    network = small()
    weights = weights_of(held)
    (x,), labels = data()[0]
    (output,) = program.run(
        weights, (x,), seed=0, trial=0, noisy=False, linear_reads=reads == "linear"
    )
    wanted = eager(network, program, x)
    torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-4)
    functional.cross_entropy(output, labels).backward()
    functional.cross_entropy(wanted, labels).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(
            weights[name].grad, parameter.grad, rtol=2e-3, atol=1e-5, msg=lambda m, n=name: n + m
        )


MAPPINGS = {
    "differential": ("adc.converts=pair",),
    "offset": ("array.encoding=offset",),
    "bias column": ("array.encoding=bias_column",),
    "two bits at a time": ("dac.bits=2",),
    "no dummy column": ("array.encoding=offset", "array.dummy_column=false"),
    "driver offsets": ("dac.offset_lsb=0.05", "adc.offset_lsb=0.5", "adc.converts=pair"),
    "small arrays": ("array.rows=20", "array.columns=18", "adc.converts=pair"),
    "proportional read noise": (
        "device.read_noise.model=proportional_read",
        "device.read_noise.sigma_fraction=0.2",
        "adc.converts=pair",
    ),
}


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_linear_reads_have_the_moments_of_the_simulator(mapping: str) -> None:
    """One layer on one device, the same input many times: each read draws anew.

    Sums stay far from the ends of the converters, whose clipping linear reads leave out. A column
    of a pair by itself often sums to 0, the end of its converter: differences are converted there.
    """
    torch.manual_seed(1)
    layer = nn.Linear(40, 9)
    x = torch.randn(3, 40)
    held = capture(layer, (x,))
    noise = "device.write_noise.sigma_fraction=0.1", "device.read_noise.sigma_fraction=0.05"
    target = find_target("rram", (*noise, *MAPPINGS[mapping]))
    program = NoisyProgram.lower(held.module, held.resources, target, calibration=[(x,)])
    rewriter = Rewriter(program.module)
    for op in program.module.walk():
        if isinstance(op, Mvm):
            # Converters that lose nothing: what is left is what linear reads compute.
            rewriter.set_attributes(op, adc_bits=32, adc_step=2.0**-8)
    repeats = 600
    made = {
        linear: program.run(
            {}, (x.repeat_interleave(repeats, 0),), seed=1, trial=0, linear_reads=linear
        )[0].reshape(3, repeats, 9)
        for linear in (False, True)
    }
    ideal = layer(x).detach()
    simulated, linear = made[False], made[True]
    error = simulated.std(1) / repeats**0.5
    assert float(((simulated.mean(1) - linear.mean(1)).abs() / error).max()) < 6
    # The device's own error is far larger than what the mean of reads is known to.
    assert float(((linear.mean(1) - ideal).abs() / error).median()) > 3
    ratio = linear.std(1) / simulated.std(1)
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.02)
    assert float((ratio - 1).abs().max()) < 0.2


def test_a_stopped_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    held = captured()
    target = find_target("rram", ("device.write_noise.sigma_fraction=0.1",))
    recipe = Recipe(steps=6, learning_rate=1e-2, weight_decay=0.01, save_every=2, reads="linear")

    class StopError(Exception):
        pass

    def stop(done: int, total: int, what: str) -> None:
        if what.startswith("train") and done == 5:
            raise StopError

    def tune(folder: Path | None = None, progress=lambda *_: None):
        return fine_tune(
            held.module,
            held.resources,
            data(),
            loss,
            recipe,
            target=target,
            calibration=calibration(),
            checkpoint=folder,
            progress=progress,
        )

    whole = tune()
    with pytest.raises(StopError):
        tune(tmp_path, stop)
    resumed = tune(tmp_path)
    assert resumed.losses == whole.losses
    for name in whole.trained:
        assert torch.equal(resumed.resources.get(name), whole.resources.get(name)), name
        assert not torch.equal(whole.resources.get(name), held.resources.get(name)), name
    other = Recipe(steps=6, learning_rate=2e-2, reads="linear")
    with pytest.raises(DiagnosticError, match="a run with other weights"):
        fine_tune(
            held.module,
            held.resources,
            data(),
            loss,
            other,
            target=target,
            calibration=calibration(),
            checkpoint=tmp_path,
        )


def test_the_seed_reproduces_and_matters() -> None:
    held = captured()
    target = find_target("rram", ("device.write_noise.sigma_fraction=0.1",))

    def losses(seed: int) -> tuple[float, ...]:
        recipe = Recipe(steps=2, seed=seed, reads="linear")
        return fine_tune(
            held.module,
            held.resources,
            data(),
            loss,
            recipe,
            target=target,
            calibration=calibration(),
        ).losses

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_a_loss_that_is_not_finite_is_a_diagnostic() -> None:
    held = captured()
    with pytest.raises(DiagnosticError, match="training loss is nan at step 0"):
        fine_tune(
            held.module,
            held.resources,
            data(),
            lambda outputs, _: outputs[0].sum() * float("nan"),
            Recipe(steps=1),
            target=find_target("rram"),
            calibration=calibration(),
        )


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda outputs, _: outputs[0], "not a scalar"),
        (lambda outputs, _: 3.0, "float, not a scalar"),
        (lambda outputs, _: torch.zeros(()), "no gradient"),
        (lambda outputs, labels: outputs[7], "IndexError"),
    ],
)
def test_a_loss_of_another_form_is_a_diagnostic(made: object, message: str) -> None:
    held = captured()
    with pytest.raises(DiagnosticError, match=message):
        fine_tune(
            held.module,
            held.resources,
            data(),
            made,  # type: ignore[arg-type]
            Recipe(steps=1, reads="linear"),
            target=find_target("rram"),
            calibration=calibration(),
        )
