"""Captured time loops: rolled back into a time axis, with the numbers of the model's own run."""

import pytest
import torch
from torch import nn

import imcc
from imcc.frontend.capture import capture
from imcc.frontend.neurons.ops import lif
from imcc.ir.semantics.interpreter import evaluate_function

FORM = {"time_axis": False, "fires_at": "above", "reset_at": "next"}


class Step(nn.Module):
    """One step of a neuron, without any library."""

    def forward(self, x, state):
        return lif(x, state, FORM, leak=0.8, threshold=0.2)


class Loop(nn.Module):
    """Convolution, neuron, linear layer, neuron: in a python loop over the second axis."""

    def __init__(self, recurrent=False, constant=0):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(48, 5)
        self.first, self.second = Step(), Step()
        self.back = nn.Linear(5, 5) if recurrent else None
        self.constant = constant

    def forward(self, x):
        one = two = spikes = None
        out, total = [], 0
        for t in range(self.constant or x.shape[1]):
            now = x if self.constant else x[:, t]
            fired, one = self.first(self.norm(self.conv(now)), one)
            drive = self.fc(fired.flatten(1))
            if self.back is not None and spikes is not None:
                drive = drive + self.back(spikes)
            spikes, two = self.second(drive, two)
            out.append(spikes)
            total = total + spikes
        return torch.stack(out), total, two


def captured_ops(model, x):
    model.eval()
    program = capture(model, (x,))
    with torch.no_grad():
        wanted = model(x)
    function = program.module.function("inference")
    made = evaluate_function(function, (x,), resources=program.resources).outputs
    for left, right in zip(made, wanted, strict=True):
        assert torch.allclose(left, right, atol=1e-5), "as the model's own run"
    assert wanted[0].sum() > 0
    return program, [op for op in function.ops if op.name not in ("core.constant", "core.return")]


def test_a_loop_becomes_one_op_per_layer():
    program, ops = captured_ops(Loop(), torch.randn(3, 8, 2, 4, 4) * 3)
    names = [op.name for op in ops]
    assert names.count("snn.lif") == 2 and names.count("nn.conv") == 1
    assert names.count("nn.linear") == 1 and names.count("nn.sum") == 1
    assert len(names) <= 10
    neurons = [op for op in ops if op.name == "snn.lif"]
    assert all(op.time_axis for op in neurons)
    assert str(neurons[1].spikes.type) == "spikes<8xBx5>"
    assert program.warnings == ()


def test_a_constant_input_is_computed_once():
    _, ops = captured_ops(Loop(constant=6), torch.randn(3, 2, 4, 4) * 3)
    expand = next(op for op in ops if op.name == "core.expand")
    assert str(expand.y.type) == "tensor<6xBx3x4x4xf32>"
    conv = next(op for op in ops if op.name == "nn.conv")
    assert str(conv.y.type) == "tensor<Bx3x4x4xf32>"


def test_recurrent_steps_stay_apart_with_a_reason():
    program, ops = captured_ops(Loop(recurrent=True), torch.randn(3, 4, 2, 4, 4) * 3)
    neurons = [op for op in ops if op.name == "snn.lif"]
    # The first neuron does not see the feedback: it has its time axis, the second its four steps.
    assert [op.time_axis for op in neurons] == [True, False, False, False, False]
    (warning,) = program.warnings
    assert "4 time steps of second stay apart" in warning.message
    assert warning.code.id == "IMC408"
    assert "the steps mix" in warning.reason


class Flattened(nn.Module):
    """Time and batch in one axis for the layers, as multi-step models of libraries do it."""

    def __init__(self, repeat=0):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.fc = nn.Linear(48, 5)
        self.repeat = repeat

    def forward(self, x):
        x = x.unsqueeze(0).repeat(self.repeat, 1, 1, 1, 1) if self.repeat else x.transpose(0, 1)
        steps, batch = x.shape[:2]
        drive = self.conv(x.flatten(0, 1)).unflatten(0, (steps, batch))
        fired, _ = lif(drive, None, {"reset": "hard"}, leak=0.8, threshold=0.2)
        return lif(self.fc(fired.flatten(2)), None, {}, leak=0.7, threshold=0.2)


@pytest.mark.parametrize("repeat", [0, 4])
def test_time_and_batch_stay_two_axes(repeat):
    shape = (3, 2, 4, 4) if repeat else (3, 4, 2, 4, 4)
    _, ops = captured_ops(Flattened(repeat), torch.randn(shape) * 2)
    shapes = [value.type for op in ops for value in op.results]
    assert not [kind for kind in shapes if "4*B" in str(kind)]


def test_crossbars_take_spikes_as_one_bit_and_time_in_front():
    torch.manual_seed(0)
    x = torch.rand(3, 2, 4, 4) * 2
    model = Flattened(4).eval()
    compiled = imcc.compile(model, (x,), target="rram", calibration=[(x,)])
    reads = [op for op in compiled.module.function("inference").ops if op.name == "xbar.mvm"]
    # The image is quantised to the default of 8 bits, spikes are one bit as they are.
    assert [op.input_bits for op in reads] == [8, 1]
    assert str(reads[1].y.type) == "tensor<4xBx5xf32>"
    cost = compiled.report()["entry_points"]["inference"]
    assert cost["unknown"] == [] and cost["energy_pj"] > 0
    compiled.noisy = False
    with torch.no_grad():
        spikes = model(x)[0]
    assert torch.equal(compiled(x)[0], spikes) and spikes.sum() > 0
    # Noise belongs to a sample, wherever the batch axis is.
    noisy = {"trials": (1, 2), "seed": 3}
    together = compiled.executor.run([x], **noisy)[1]
    assert together.shape == (2, 4, 3, 5)
    for sample in range(3):
        alone = compiled.executor.run([x[sample : sample + 1]], first_sample=sample, **noisy)[1]
        assert torch.equal(alone[:, :, 0], together[:, :, sample])
    assert not torch.equal(together[0], together[1])
