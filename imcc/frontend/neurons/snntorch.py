"""Neurons of snnTorch: ``Leaky``, ``Lapicque``, ``Synaptic``, ``RLeaky`` and ``RSynaptic``.

They spike where the membrane is *above* the threshold and, unless ``reset_delay=False``, reset in
the step that follows (Eshraghian et al., Proc. IEEE 2023; checked against snntorch 1.0.0).
"""

from __future__ import annotations

from typing import Any

import torch
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
from imcc.frontend.neurons.ops import li, lif
from imcc.ir.diagnostics import Diagnostic

KNOWN = (
    "snntorch.Leaky",
    "snntorch.Lapicque",
    "snntorch.Synaptic",
    "snntorch.RLeaky",
    "snntorch.RSynaptic",
)

_STATES = {
    "Leaky": ("mem",),
    "Lapicque": ("mem",),
    "Synaptic": ("syn", "mem"),
    "RLeaky": ("spk", "mem"),
    "RSynaptic": ("spk", "syn", "mem"),
}
"""States in the order in which ``forward`` takes and returns them; ``spk`` is returned once."""

_METHODS = (
    "forward",
    "fire",
    "mem_reset",
    "_base_state_function",
    "_base_state_reset_zero",
    "_base_sub",
    "_base_zero",
    "_base_int",
)


def exchange(module: nn.Module, name: str, found: list[Diagnostic]) -> Neuron | None:
    """The neuron that computes as ``module`` does; None for a module without a membrane."""
    known = known_base(module, KNOWN)
    if known is None:
        spiking = known_base(module, ("snntorch._neurons.neurons.SpikingNeuron",))
        if spiking is None and type(module).__name__ not in ("LeakyParallel", "AssociativeLeaky"):
            return None
        raise refuse(
            module,
            name,
            "its equations are not among those of snn.lif and snn.li",
            help="use one of " + ", ".join(KNOWN),
        )
    check_not_overridden(module, name, known[1], _METHODS)
    return _SnnTorch(module, name, known[1].__name__, found)


class _SnnTorch(Neuron):
    def __init__(self, module: nn.Module, name: str, kind: str, found: list[Diagnostic]) -> None:
        super().__init__(module, name)
        held = self.module
        for flag in ("state_quant", "inhibition"):
            if getattr(held, flag):
                raise refuse(module, name, f"{flag} is set", help=f"build it without {flag}")
        self.kind = kind
        self.states = _STATES[kind]
        self.empty = torch.zeros(0)
        # Which method was chosen at construction decides, not what the flag says by now.
        reset = {"_base_sub": "subtract", "_base_zero": "hard", "_base_int": "none"}[
            held.state_function.__name__
        ]
        self.at_once = not getattr(held, "reset_delay", True)
        whole = kind != "Leaky" and reset == "hard"
        at = "both" if self.at_once else "next_with_input" if whole else "next"
        if self.at_once and whole:
            raise refuse(
                module,
                name,
                'reset_delay=False together with reset_mechanism="zero" resets twice',
                help='use reset_mechanism="subtract", or leave reset_delay as it is',
            )
        self.form = {
            "fires_at": "above",
            "reset": reset,
            "reset_at": at,
            "detach_reset": not self.at_once,
            **_surrogate(module, name, found),
        }
        self.graded = number(held.graded_spikes_factor)
        self.threshold = number(held.threshold)
        self.beta = self._factor("beta")
        self.alpha = self._factor("alpha") if "syn" in self.states else None
        if kind == "Lapicque":
            factors = (held.R, 1 / (held.R * held.C), held.time_step)
            self.scale = [item for factor in factors if (item := number(factor)) is not None]
            self.beta = number(1 - held.time_step / (held.R * held.C))
            if self.beta is None or len(self.scale) < len(factors):
                raise refuse(module, name, "R, C or time_step differ between neurons")

    def _factor(self, name: str) -> float | None:
        # The neuron clamps in its forward; a parameter per element is clamped in the graph.
        return number(getattr(self.module, name).clamp(0, 1))

    def _given(self, name: str) -> float | Tensor:
        held = getattr(self, name)
        if held is not None:
            return float(held)
        tensor: Tensor = getattr(self.module, name)
        return tensor if name == "threshold" else tensor.clamp(0, 1)

    def forward(self, input_: Tensor, *given: Tensor | None, **named: Tensor | None) -> Any:
        module = self.module
        states = dict(zip(self.states, given, strict=False)) | named
        if module.init_hidden and any(state is not None for state in states.values()):
            raise TypeError("states are passed although init_hidden=True")
        for key, state in states.items():
            if state is not None:
                setattr(module, key, state)
        # snnTorch starts a state of another shape than the input from zero.
        before: dict[str, Tensor | None] = {
            key: held if (held := getattr(module, key)).shape == input_.shape else None
            for key in self.states
        }
        spk, after = self._step(input_, before)
        for key, state in after.items():
            setattr(module, key, state)
        if self.graded != 1.0:
            spk = spk * module.graded_spikes_factor
        if "spk" in self.states:
            module.spk = spk
        shown = [getattr(module, key) for key in self.states if key != "spk"]
        if module.init_hidden and not module.output:
            return spk
        return (spk, *shown)

    def _step(
        self, x: Tensor, before: dict[str, Tensor | None]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        module, mem = self.module, before["mem"]
        form = {**self.form, "time_axis": False}
        after: dict[str, Tensor] = {}
        recurrent: Tensor | None = None
        if "spk" in self.states:
            last = before["spk"]
            if last is None:
                # Before the first step nothing has fired, in no sample: one sample is enough.
                last = torch.zeros(x.shape[1:], dtype=x.dtype)
            recurrent = module.recurrent(last)
        if "syn" in self.states:
            x, after["syn"] = li(x, before["syn"], {"time_axis": False}, leak=self._given("alpha"))
            if recurrent is not None:
                x = after["syn"] = x + recurrent
        elif self.kind == "Lapicque":
            for factor in self.scale:
                x = x if factor == 1.0 else x * factor
        if recurrent is None or "syn" in self.states:
            leak: float | Tensor = self._given("beta")
        else:
            # The feedback is added to the leaked membrane and the input, in this order.
            x = li(x, mem, {"time_axis": False}, leak=self._given("beta"))[0] + recurrent
            leak = 0.0
        spk, after["mem"] = lif(x, mem, form, leak=leak, threshold=self._given("threshold"))
        return spk, after

    def overrides(self) -> dict[str, Any]:
        """States become plain attributes: a buffer that changes its shape cannot be exported."""
        return {"forward": self.forward, **dict.fromkeys(self.states, self.empty)}

    def saved(self) -> Any:
        return {key: self.module._buffers.pop(key) for key in self.states}

    def restore(self, saved: Any) -> None:
        self.module._buffers.update(saved)

    def reset(self) -> None:
        for key in self.states:
            setattr(self.module, key, self.empty)


def _surrogate(module: nn.Module, name: str, found: list[Diagnostic]) -> dict[str, Any]:
    held: Any = module
    function = held.spike_grad
    if getattr(function, "__name__", "") == "_surrogate_bypass":
        return surrogate("none")
    made: dict[str, Any] | None = None
    if getattr(function, "__module__", "") == "snntorch.surrogate":
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        made = _recorded(
            function.__qualname__.partition(".")[0],
            {key: cell.cell_contents for key, cell in cells},
        )
    return made or unknown_surrogate(module, name, found, function, at=0.0)


def _recorded(kind: str, given: dict[str, Any]) -> dict[str, Any] | None:
    match kind:
        case "atan":
            return surrogate("atan", torch.pi / 2 * given["alpha"], given["alpha"] / 2)
        case "fast_sigmoid":
            return surrogate("fast_sigmoid", given["slope"])
        case "sigmoid":
            return surrogate("sigmoid", given["slope"], given["slope"])
        case "straight_through_estimator":
            return surrogate("straight_through")
    return None
