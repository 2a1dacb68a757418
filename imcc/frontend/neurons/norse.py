"""Neurons of norse: LIF, LIBox, LI, IAF and their cells; a synaptic current in front of a membrane.

They integrate by forward Euler, spike where the membrane is *above* the threshold and reset at once
to ``v_reset`` (Pehle and Pedersen, Norse, 2021; checked against norse 1.1.0).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from imcc.frontend.neurons.library import (
    Neuron,
    check_not_overridden,
    known_base,
    library_class,
    number,
    refuse,
    surrogate,
)
from imcc.frontend.neurons.ops import li, lif
from imcc.ir.diagnostics import Diagnostic

_STEPS: dict[str, tuple[bool, bool, str]] = {
    # activation: (fires, has a synaptic current, state)
    "lif_feed_forward_step": (True, True, "lif.LIFFeedForwardState"),
    "lif_feed_forward_adjoint_step": (True, True, "lif.LIFFeedForwardState"),
    "lif_box_feed_forward_step": (True, False, "lif_box.LIFBoxFeedForwardState"),
    "iaf_feed_forward_step": (True, False, "iaf.IAFFeedForwardState"),
    "li_feed_forward_step": (False, True, "leaky_integrator.LIState"),
    "li_box_feed_forward_step": (False, False, "leaky_integrator_box.LIBoxState"),
    "lif_step": (True, True, "lif.LIFState"),
    "lif_adjoint_step": (True, True, "lif.LIFState"),
}
"""The activation functions whose equations are known, and what they keep."""

_BASES = ("SNNCell", "SNN", "SNNRecurrentCell", "SNNRecurrent")


def exchange(module: nn.Module, name: str, found: list[Diagnostic]) -> Neuron | None:
    """The neuron that computes as ``module`` does; None for a module without a membrane."""
    known = known_base(module, [f"norse.torch.module.snn.{base}" for base in _BASES])
    if known is None:
        return None
    check_not_overridden(module, name, known[1], ("forward",))
    held: Any = module
    step = getattr(held.activation, "__name__", "")
    ours = getattr(held.activation, "__module__", "").startswith("norse.torch.functional")
    if not ours or step not in _STEPS:
        raise refuse(
            module,
            name,
            f"{step or 'its activation'} is not among the equations of snn.lif and snn.li",
            help="use LIF, LIFBox, IAF, LI or LIBox, or their cells",
        )
    return _Norse(module, name, known[1].__name__, step)


class _Norse(Neuron):
    def __init__(self, module: nn.Module, name: str, base: str, step: str) -> None:
        super().__init__(module, name)
        p = self.module.p
        self.sequence = base in ("SNN", "SNNRecurrent")
        self.recurrent = base in ("SNNRecurrentCell", "SNNRecurrent")
        self.fires, self.synapse, self.state = _STEPS[step]
        # dt times a float32 tensor is rounded to float32, as in the library.
        rates = {key: self.module.dt * getattr(p, key) for key in p._fields if key[:4] == "tau_"}
        self.current_rate: Any = rates.get("tau_syn_inv", 0.0)
        rate = number(self.current_rate)
        self.current_rate = self.current_rate if rate is None else rate
        self.numbers: dict[str, Any] = {}
        self.form: dict[str, Any] = {}
        leak = getattr(p, "v_leak", 0.0)
        if "tau_mem_inv" in rates:
            self.numbers = {"leak": rates["tau_mem_inv"], "rest": leak}
            self.form = {"leak_as": "rate", "decay_input": True}
        self.v_init = number(leak if "tau_mem_inv" in rates else p.v_reset)
        self.lifts_input = step == "lif_box_feed_forward_step" and number(leak) != 0.0
        if self.fires:
            self.form |= {"fires_at": "above", "reset": "hard", **_surrogate(module, name)}
            self.form["reset_value"] = number(p.v_reset)
            self.form["detach_reset"] = self.recurrent
            self.numbers["threshold"] = p.v_th
            method = getattr(getattr(p, "reset_method", None), "__name__", "reset_value")
            if method == "reset_subtract":
                self.form |= {"reset": "subtract", "reset_value": None}
            elif method != "reset_value":
                raise refuse(module, name, f"its reset is {method}", help="use reset_value")
        if self.v_init is None or (self.fires and number(p.v_reset) is None):
            raise refuse(module, name, "v_leak or v_reset differ between neurons")
        if self.lifts_input:
            self.numbers["rest"] = 0.0
        scalars = {key: number(value) for key, value in self.numbers.items()}
        self.numbers |= {key: value for key, value in scalars.items() if value is not None}

    def forward(self, input_tensor: Tensor, state: Any = None) -> Any:
        if self.recurrent:
            return self._recurrent(input_tensor, state)
        return self._run(input_tensor, state, self.sequence)

    def _run(self, x: Tensor, state: Any, many: bool) -> Any:
        shape = x.shape[1:] if many else x.shape
        kept: dict[str, Tensor] = {}
        if self.synapse:
            form = {"time_axis": many, "leak_as": "rate", "read": "jump"}
            start = _start(state, "i", shape)
            x, currents = li(x, start, form, leak=self.current_rate)
            kept["i"] = currents
        x = x + self.module.p.v_leak if self.lifts_input else x
        form = {**self.form, "time_axis": many, "v_init": self.v_init}
        run = lif if self.fires else li
        made, membranes = run(x, _start(state, "v", shape), form, **self.numbers)
        kept["v"] = membranes
        if many and not self.module.record_states:
            kept = {key: item[-1] for key, item in kept.items()}
        return made, self._state_class()(**kept)

    def _recurrent(self, x: Tensor, state: Any) -> Any:
        module = self.module
        functional = nn.functional
        steps = x.unbind(0) if self.sequence else (x,)
        fired: list[Tensor] = []
        for step in steps:
            driven = functional.linear(step, module.input_weights)
            if state is not None:
                # The library adds current, input and feedback in this order.
                jump = state.i + driven
                driven = functional.linear(state.z, module.recurrent_weights)
                state = state._replace(i=jump)
            spikes, now = self._run_step(driven, state)
            state = self._state_class()(z=spikes, **now)
            fired.append(spikes)
        if not self.sequence:
            return fired[0], state
        return torch.stack(fired), state

    def _run_step(self, driven: Tensor, state: Any) -> tuple[Tensor, dict[str, Tensor]]:
        form = {"time_axis": False, "leak_as": "rate", "read": "jump"}
        current, kept = li(driven, _start(state, "i", driven.shape), form, leak=self.current_rate)
        form = {**self.form, "time_axis": False, "v_init": self.v_init}
        spikes, v = lif(current, _start(state, "v", driven.shape), form, **self.numbers)
        return spikes, {"v": v, "i": kept}

    def _state_class(self) -> Any:
        return library_class(f"norse.torch.functional.{self.state}")


def _start(state: Any, key: str, shape: Any) -> Tensor | None:
    if state is None:
        return None
    held: Tensor = getattr(state, key)
    return held.expand(shape) if held.shape != shape else held


def _surrogate(module: nn.Module, name: str) -> dict[str, Any]:
    held: Any = module
    method, alpha = held.p.method, number(held.p.alpha)
    if alpha is None:
        alpha = 1.0
    match method:
        case "super" | "adjoint":
            # norse 1.1.0 does not use alpha here.
            return surrogate("fast_sigmoid")
        case "triangle":
            return surrogate("triangle", 1.0, alpha)
        case "tanh":
            # 1 - tanh(k x)^2 = 4 S(2 k x) (1 - S(2 k x))
            return surrogate("sigmoid", 2.0 * alpha, 4.0)
        case "heavi_erfc":
            return surrogate("gaussian", alpha, 2.0 / 3.141592653589793**0.5)
        case "heaviside" | "circ":
            return surrogate("none")
    raise refuse(module, name, f"its threshold function {method!r} draws spikes at random")
