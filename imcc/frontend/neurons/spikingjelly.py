"""Neurons of SpikingJelly: ``IFNode``, ``LIFNode``, ``ParametricLIFNode``, single and multi-step.

They spike where the membrane is *at or above* the threshold and reset at once (Fang et al.,
Science Advances 2023; checked against spikingjelly 2.0.0).
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from imcc.frontend.neurons.library import (
    Neuron,
    check_not_overridden,
    known_base,
    number,
    refuse,
    surrogate,
    unknown_surrogate,
)
from imcc.frontend.neurons.ops import lif
from imcc.ir.diagnostics import Diagnostic

_NEURON = "spikingjelly.activation_based.neuron"

KNOWN = tuple(f"{_NEURON}.{name}" for name in ("IFNode", "LIFNode", "ParametricLIFNode"))

_METHODS = (
    "forward",
    "single_step_forward",
    "multi_step_forward",
    "single_step_functional_forward",
    "multi_step_functional_forward",
    "neuronal_charge",
    "neuronal_fire",
    "neuronal_reset",
    "neuronal_adaptation",
    "materialize_states",
)


def exchange(module: nn.Module, name: str, found: list[Diagnostic]) -> Neuron | None:
    """The neuron that computes as ``module`` does; None for a module without a membrane."""
    known = known_base(module, KNOWN)
    if known is None:
        bases = ("BaseNode", "SimpleBaseNode", "NonSpikingBaseNode", "PSN")
        if known_base(module, [f"{_NEURON}.{base}" for base in bases]) is None:
            return None
        raise refuse(
            module,
            name,
            "its equations are not among those of snn.lif",
            help="use IFNode, LIFNode or ParametricLIFNode",
        )
    check_not_overridden(module, name, known[1], _METHODS)
    return _SpikingJelly(module, name, known[1].__name__, found)


class _SpikingJelly(Neuron):
    def __init__(self, module: nn.Module, name: str, kind: str, found: list[Diagnostic]) -> None:
        super().__init__(module, name)
        held = self.module
        if getattr(held, "_neuron_precision", None) is not None:
            raise refuse(module, name, "it computes in a precision of its own")
        reset = held.v_reset
        self.form = {
            "fires_at": "threshold",
            "reset": "subtract" if reset is None else "hard",
            "reset_value": None if reset is None else float(reset),
            "detach_reset": bool(held.detach_reset),
            **_surrogate(module, name, found),
        }
        self.numbers: dict[str, float | Tensor] = {"threshold": float(held.v_threshold)}
        if kind != "IFNode":
            self.form["decay_input"] = bool(held.decay_input)
            self.numbers["rest"] = 0.0 if reset is None else float(reset)
        if kind == "LIFNode":
            self.form["leak_as"] = "time_constant"
            self.numbers["leak"] = float(held.tau)
        elif kind == "ParametricLIFNode":
            self.form["leak_as"] = "rate"
            rate = number(held.w.detach().sigmoid())
            self.numbers["leak"] = held.w if rate is None else rate

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        module = self.module
        many = module.step_mode == "m"
        step = x[0] if many else x
        v = module.v
        start: Tensor | None = None
        form = {**self.form, "time_axis": many}
        if isinstance(v, Tensor) and v.shape == step.shape:
            start = v.to(x.dtype)
        elif isinstance(v, Tensor):
            # A membrane of another shape starts anew, as in the library.
            form["v_init"] = 0.0 if module.v_reset is None else float(module.v_reset)
        else:
            form["v_init"] = float(v)
        numbers = dict(self.numbers)
        if isinstance(numbers.get("leak"), Tensor):
            numbers["leak"] = module.w.sigmoid()
        spikes, membrane = lif(x, start, form, **numbers)
        module.v = membrane[-1] if many else membrane
        if module.store_v_seq:
            module.v_seq = membrane if many else membrane.unsqueeze(0)
        return spikes

    def saved(self) -> Any:
        return dict(self.module._memories), self.module.v_seq

    def restore(self, saved: Any) -> None:
        self.module._memories.update(saved[0])
        self.module.v_seq = saved[1]

    def reset(self) -> None:
        module = self.module
        for key, value in module._memories_rv.items():
            module._memories[key] = copy.deepcopy(value)
        module.v_seq = None


def _surrogate(module: nn.Module, name: str, found: list[Diagnostic]) -> dict[str, Any]:
    held: Any = module
    function = held.surrogate_function
    kind = type(function)
    made: dict[str, Any] | None = None
    if kind.__module__ == "spikingjelly.activation_based.surrogate":
        if not getattr(function, "spiking", True):
            raise refuse(
                module,
                name,
                "its surrogate function is not in spiking mode, so that it fires smoothly",
                help="call surrogate_function.set_spiking_mode(True)",
            )
        made = _recorded(kind.__name__, getattr(function, "alpha", None))
    return made or unknown_surrogate(module, name, found, function, at=1.0)


def _recorded(kind: str, alpha: Any) -> dict[str, Any] | None:
    if not isinstance(alpha, (int, float)):
        return None
    pi = 3.141592653589793
    match kind:
        case "ATan":
            return surrogate("atan", pi / 2 * alpha, alpha / 2)
        case "Sigmoid":
            return surrogate("sigmoid", alpha, alpha)
        case "SoftSign":
            return surrogate("fast_sigmoid", alpha, alpha / 2)
        case "SuperSpike":
            return surrogate("fast_sigmoid", 1.0, alpha)
        case "PiecewiseQuadratic":
            return surrogate("triangle", alpha, alpha)
        case "PiecewiseExp":
            return surrogate("exponential", alpha, alpha / 2)
        case "Erf":
            return surrogate("gaussian", alpha, alpha / pi**0.5)
    return None
