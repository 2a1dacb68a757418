"""Neurons of sinabs: ``LIF``, ``IAF``, ``ExpLeak``, their ``Squeeze`` and recurrent forms.

Time is axis 1 of what they take, ``[B, T, ...]``; a neuron may fire several times in a step: the
membrane over the threshold, truncated (checked against sinabs 3.1.3).
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

KNOWN = tuple(
    f"sinabs.layers.{name}"
    for name in (
        "LIFSqueeze",
        "IAFSqueeze",
        "ExpLeakSqueeze",
        "LIFRecurrentSqueeze",
        "IAFRecurrentSqueeze",
        "LIFRecurrent",
        "IAFRecurrent",
        "ExpLeak",
        "IAF",
        "LIF",
    )
)


def exchange(module: nn.Module, name: str, found: list[Diagnostic]) -> Neuron | None:
    """The neuron that computes as ``module`` does; None for a module without a membrane."""
    known = known_base(module, KNOWN)
    if known is None:
        if known_base(module, ("sinabs.layers.StatefulLayer",)) is None:
            return None
        raise refuse(
            module,
            name,
            "its equations are not among those of snn.lif and snn.li",
            help="use LIF, IAF or ExpLeak",
        )
    check_not_overridden(module, name, known[1], ("forward", "squeeze_forward"))
    return _Sinabs(module, name, known[1].__name__)


class _Sinabs(Neuron):
    def __init__(self, module: nn.Module, name: str, kind: str) -> None:
        super().__init__(module, name)
        held = self.module
        self.squeezes = kind.endswith("Squeeze")
        self.recurrent = "Recurrent" in kind
        self.v: Tensor | None = None
        self.current: Tensor | None = None
        if held.record_states:
            raise refuse(module, name, "record_states is set", help="set record_states=False")
        alpha = held.alpha_syn_calculated
        self.current_leak = None if alpha is None else _plain(alpha)
        self.numbers: dict[str, Any] = {"leak": _plain(held.alpha_mem_calculated)}
        if held.norm_input:
            self.numbers["gain"] = _plain(1 - held.alpha_mem_calculated)
        self.form: dict[str, Any] = {}
        self.fires = held.spike_fn is not None
        if self.fires:
            self.numbers["threshold"] = _plain(held.spike_threshold)
            self.form = {
                "fires_at": "threshold",
                "max_spikes": _most(module, name),
                **_reset(module, name),
                **_surrogate(module, name),
            }
        if held.min_v_mem is not None:
            low = number(held.min_v_mem)
            if low is None or not self.fires:
                raise refuse(module, name, "min_v_mem differs between neurons, or bounds a leak")
            self.form["minimum"] = low

    def forward(self, input_data: Tensor) -> Tensor:
        if not self.squeezes:
            return self._core(input_data)
        # A number of time steps leaves the batch free; a number of samples would fix it.
        steps = self.module.num_timesteps
        if steps < 1:
            steps = input_data.shape[0] // self.module.batch_size
        if isinstance(steps, int):
            self.flattened_steps = steps
        steps = self.flattened_steps or steps
        made = self._core(input_data.reshape(-1, steps, *input_data.shape[1:]))
        return made.flatten(0, 1)

    def _core(self, x: Tensor) -> Tensor:
        if self.recurrent:
            return self._recurrent(x)
        made, v, current = self._run(x.transpose(0, 1), True)
        self.v = v[-1]
        self.current = None if current is None else current[-1]
        return made.transpose(0, 1)

    def _recurrent(self, x: Tensor) -> Tensor:
        fired: list[Tensor] = []
        back: Tensor | None = None
        for step in x.unbind(1):
            # The library adds zeros before the first feedback.
            driven = step if back is None else step + back
            spikes, self.v, self.current = self._run(driven, False)
            back = self.module.rec_connect(spikes).reshape(step.shape)
            fired.append(spikes)
        return torch.stack(fired, 1)

    def _run(self, x: Tensor, many: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        step = x.shape[1:] if many else x.shape
        current: Tensor | None = None
        if self.current_leak is not None:
            form = {"time_axis": many, "decay_input": True}
            x, current = li(x, _fitting(self.current, step), form, leak=self.current_leak)
        run = lif if self.fires else li
        made, v = run(x, _fitting(self.v, step), {**self.form, "time_axis": many}, **self.numbers)
        return made, v, current

    def overrides(self) -> dict[str, Any]:
        """Resetting the layer resets what is kept here."""
        return {"forward": self.forward, "reset_states": self._reset_states}

    def _reset_states(self, *_: Any, randomize: bool = False, **__: Any) -> None:
        if randomize:
            raise refuse(self.module, self.name, "its state is reset to random numbers")
        self.reset()

    def reset(self) -> None:
        self.v = self.current = None


def _fitting(state: Tensor | None, shape: Any) -> Tensor | None:
    return state if state is not None and state.shape == shape else None


def _plain(tensor: Any) -> float | Tensor:
    made = number(tensor)
    return tensor.detach() if made is None else made


def _is(function: Any, name: str) -> bool:
    known = library_class(f"sinabs.activation.{name}")
    return known is not None and (function is known or type(function) is known)


def _most(module: nn.Module, name: str) -> int:
    function: Any = getattr(module, "spike_fn")  # noqa: B009
    if _is(function, "SingleSpike"):
        return 1
    if _is(function, "MultiSpike"):
        return 0
    if _is(function, "MaxSpike"):
        return int(function.max_num_spikes_per_bin or 0)
    raise refuse(module, name, f"{function} is not one of the library's spike functions")


def _reset(module: nn.Module, name: str) -> dict[str, Any]:
    function: Any = getattr(module, "reset_fn")  # noqa: B009
    if _is(function, "MembraneSubtract"):
        amount = function.subtract_value
        return {"reset": "subtract", "reset_value": None if amount is None else float(amount)}
    if _is(function, "MembraneReset"):
        if function.reset_value != 0:
            raise refuse(
                module,
                name,
                "MembraneReset adds reset_value to every membrane in every step, spike or not",
                help="use MembraneReset() or MembraneSubtract()",
            )
        return {"reset": "hard"}
    raise refuse(module, name, f"{function} is not one of the library's resets")


def _surrogate(module: nn.Module, name: str) -> dict[str, Any]:
    held: Any = module
    function, threshold = held.surrogate_grad_fn, number(held.spike_threshold)
    if threshold:
        if _is(function, "SingleExponential"):
            width = threshold * function.grad_width
            return surrogate("exponential", 1 / width, function.grad_scale / width)
        if _is(function, "Gaussian") and function.mu == 0:
            width = 2**0.5 * function.sigma
            scale = function.grad_scale / (function.sigma * (2 * torch.pi) ** 0.5)
            return surrogate("gaussian", 1 / width, scale)
    return surrogate("none")
