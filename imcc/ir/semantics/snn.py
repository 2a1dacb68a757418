"""Rules of ``snn``: one step after the other, in the order of operations of each library.

Floating-point addition does not associate, so the order of the terms is part of the meaning: each
expression is written as the libraries write it, and spikes come out the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from imcc.ir.dialects import snn
from imcc.ir.rules import EVAL
from imcc.ir.semantics.interpreter import EvalContext

Number: TypeAlias = Tensor | float

SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "atan": lambda d: 1.0 / (1.0 + d * d),
    "fast_sigmoid": lambda d: 1.0 / (1.0 + d.abs()) ** 2,
    "sigmoid": lambda d: torch.sigmoid(d) * torch.sigmoid(-d),
    "triangle": lambda d: (1.0 - d.abs()).clamp_min(0.0),
    "exponential": lambda d: torch.exp(-d.abs()),
    "gaussian": lambda d: torch.exp(-d * d),
    "rectangle": lambda d: (d.abs() < 1.0).to(d.dtype),
    "straight_through": torch.ones_like,
    "none": torch.zeros_like,
}
"""Derivatives of the stand-ins for the step function, at slope 1 and scale 1."""


class _Fire(torch.autograd.Function):
    """Spikes as computed; the gradient in the membrane is the surrogate's."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor, distance: Tensor, op: snn.Neuron) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.op = op
        return spikes.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (distance,) = ctx.saved_tensors
        op: snn.Neuron = ctx.op
        slope = SURROGATES[op.surrogate](op.surrogate_slope * distance)
        return None, gradients[0] * (op.surrogate_scale * slope), None


def integrate(
    op: snn.Integrator,
    v: Tensor,
    u: Tensor,
    leak: Number,
    rest: Number,
) -> Tensor:
    """One step of the membrane without firing."""
    if op.leak_as == "factor":
        return leak * (v + u) if op.decay_input else leak * v + u
    away = v - rest
    if op.decay_input:
        driven = u - away
        return v + (driven * leak if op.leak_as == "rate" else driven / leak)
    return v - (away * leak if op.leak_as == "rate" else away / leak) + u


def _steps(op: snn.Integrator, x: Tensor) -> tuple[Tensor, ...]:
    return x.unbind(0) if op.time_axis else (x,)


def _driven(x: Tensor, gain: Number) -> Tensor:
    return x if isinstance(gain, float) and gain == 1.0 else gain * x


def _first(v_init: float, start: Tensor | None, step: Tensor) -> Tensor:
    if start is None:
        return torch.full_like(step, v_init)
    return start.expand(step.shape)


def _joined(op: snn.Integrator, steps: list[Tensor]) -> Tensor:
    return torch.stack(steps) if op.time_axis else steps[0]


def _given(values: Tensor | None, value: float) -> Number:
    return value if values is None else values


@EVAL.register(snn.LeakyIntegrator)
def _li(
    op: snn.LeakyIntegrator,
    ctx: EvalContext,
    *,
    x: Tensor,
    start: Tensor | None,
    leaks: Tensor | None,
    gains: Tensor | None,
    rests: Tensor | None,
) -> tuple[Tensor, Tensor]:
    jump = op.read == "jump"
    return run_integrator(op, x, start=start, leaks=leaks, gains=gains, rests=rests, jump=jump)


def run_integrator(
    op: snn.Integrator,
    x: Tensor,
    *,
    start: Tensor | None,
    leaks: Tensor | None,
    gains: Tensor | None,
    rests: Tensor | None,
    jump: bool,
) -> tuple[Tensor, Tensor]:
    """What is read of an integrator and its states over its input, ``[T, ...]`` each."""
    leak, gain, rest = _given(leaks, op.leak), _given(gains, op.gain), _given(rests, op.rest)
    steps = _steps(op, x)
    v = _first(op.v_init, start, steps[0])
    read: list[Tensor] = []
    states: list[Tensor] = []
    for step in steps:
        u = _driven(step, gain)
        if jump:
            jumped = v + u
            v = jumped - jumped * leak
            read.append(jumped)
        else:
            v = integrate(op, v, u, leak, rest)
            read.append(v)
        states.append(v)
    held = _joined(op, states)
    return (_joined(op, read) if jump else held), held


def _fire(op: snn.Neuron, h: Tensor, threshold: Number) -> Tensor:
    distance = h - threshold
    if op.max_spikes == 1:
        spikes = (distance > 0 if op.fires_at == "above" else distance >= 0).to(h.dtype)
    else:
        spikes = (h > 0).to(h.dtype) * torch.div(h, threshold, rounding_mode="trunc")
        if op.max_spikes:
            spikes = spikes.clamp(max=op.max_spikes)
    if not distance.requires_grad:
        return spikes
    made: Tensor = _Fire.apply(spikes, distance, op)  # type: ignore[no-untyped-call]
    return made


def _after(op: snn.Neuron, h: Tensor, s: Tensor, amount: Number) -> Tensor:
    """The reset that follows a spike at once."""
    if op.reset == "subtract":
        return h - s * amount
    target = 0.0 if op.reset_value is None else op.reset_value
    if op.max_spikes == 1:
        return s * target + (1.0 - s) * h
    return torch.where(s == 0, h, target)


@EVAL.register(snn.LeakyIntegrateAndFire)
def _lif(
    op: snn.LeakyIntegrateAndFire,
    ctx: EvalContext,
    *,
    x: Tensor,
    start: Tensor | None,
    leaks: Tensor | None,
    gains: Tensor | None,
    rests: Tensor | None,
    thresholds: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return run_neuron(
        op, x, start=start, leaks=leaks, gains=gains, rests=rests, thresholds=thresholds
    )


def run_neuron(
    op: snn.Neuron,
    x: Tensor,
    *,
    start: Tensor | None,
    leaks: Tensor | None,
    gains: Tensor | None,
    rests: Tensor | None,
    thresholds: Tensor | None,
    through_time: bool = True,
) -> tuple[Tensor, Tensor]:
    """Spikes and membranes of a neuron over its input, ``[T, ...]`` each.

    Without ``through_time`` no gradient passes from one step to the next.
    """
    leak, gain, rest = _given(leaks, op.leak), _given(gains, op.gain), _given(rests, op.rest)
    threshold = _given(thresholds, op.threshold)
    amount = threshold if op.reset_value is None else op.reset_value
    steps = _steps(op, x)
    v = _first(op.v_init, start, steps[0])
    fired: list[Tensor] = []
    membranes: list[Tensor] = []
    for step in steps:
        u = _driven(step, gain)
        v = v if through_time else v.detach()
        late = op.reset != "none" and op.reset_at != "present"
        r = _fire(op, v, threshold).detach() if late else None
        if r is not None and op.reset == "hard" and op.reset_at != "next_with_input":
            v = (1.0 - r) * v
        h = integrate(op, v, u, leak, rest)
        if r is not None and op.reset == "subtract":
            h = h - r * amount
        elif r is not None and op.reset_at == "next_with_input":
            h = h - r * h
        s = _fire(op, h, threshold)
        v = h
        if op.reset != "none" and op.reset_at in ("present", "both"):
            gone = s.detach() if op.detach_reset else s
            if r is None:
                v = _after(op, h, gone, amount)
            else:
                gone = gone - r
                v = h - gone * amount if op.reset == "subtract" else h - gone * h
        if op.minimum is not None:
            v = torch.relu(v - op.minimum) + op.minimum
        fired.append(s)
        membranes.append(v)
    return _joined(op, fired), _joined(op, membranes)
