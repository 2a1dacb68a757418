"""Neurons of spiking libraries: while a model is exported, each is one custom op.

One module for each library says which of its classes it knows and how they compute; none imports
its library, which a model that holds its neurons has imported already. Only ``forward`` of the
neuron objects is exchanged, and only within :func:`exchanged_neurons`, so that whatever else a
model does with them (resetting, reading a membrane) stays what it is.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from imcc.frontend.neurons.library import Exchange, Neuron
from imcc.ir.diagnostics import Diagnostic, DiagnosticError

LIBRARIES: dict[str, str] = {
    "norse": "imcc.frontend.neurons.norse",
    "sinabs": "imcc.frontend.neurons.sinabs",
    "snntorch": "imcc.frontend.neurons.snntorch",
    "spikingjelly": "imcc.frontend.neurons.spikingjelly",
}
"""Module that knows the neurons of a library, by the library's package."""


@dataclass
class Exchanged:
    """The neurons of a model, and what the user should know about them."""

    neurons: list[Neuron] = field(default_factory=list)
    warnings: list[Diagnostic] = field(default_factory=list)
    _before: tuple[int, int] = field(default_factory=lambda: _computed())

    @property
    def computed(self) -> tuple[int, int]:
        """Time steps and elements that neurons computed since the exchange."""
        steps, elements = _computed()
        return steps - self._before[0], elements - self._before[1]

    @property
    def flattened_steps(self) -> int:
        """Time steps that inputs hold in their first axis beside the samples; else 1."""
        return max((item.flattened_steps or 1 for item in self.neurons), default=1)


@contextlib.contextmanager
def exchanged_neurons(model: nn.Module) -> Iterator[Exchanged]:
    """Within the context, known neurons of ``model`` call the ops of :mod:`.ops`.

    Every call of the model starts from reset neurons, and their state is put back at the end.
    Raises :class:`DiagnosticError` that lists the neurons which compute in a way that the ops do
    not.
    """
    exchanged = Exchanged()
    found, neurons = exchanged.warnings, exchanged.neurons
    # What reads a network from another format says how it differs.
    found.extend(getattr(model, "conversion_notes", ()))
    refused: list[Diagnostic] = []
    for name, module in model.named_modules():
        exchange = _exchange_of(module)
        if exchange is None:
            continue
        try:
            neuron = exchange(module, name, found)
        except DiagnosticError as wrong:
            refused.extend(wrong.diagnostics)
            continue
        if neuron is not None:
            neurons.append(neuron)
    if refused:
        raise DiagnosticError(refused)
    if not neurons:
        yield exchanged
        return
    with contextlib.ExitStack() as stack:
        for neuron in neurons:
            stack.enter_context(_overridden(neuron.module, neuron.overrides()))
            stack.callback(neuron.restore, neuron.saved())
        stack.enter_context(_overridden(model, {"forward": _from_reset(model, neurons)}))
        yield exchanged


def _computed() -> tuple[int, int]:
    # A model without spiking neurons has not loaded their ops.
    ops = sys.modules.get("imcc.frontend.neurons.ops")
    return (0, 0) if ops is None else (int(ops.computed()[0]), int(ops.computed()[1]))


def _exchange_of(module: nn.Module) -> Exchange | None:
    for base in type(module).__mro__:
        package = base.__module__.partition(".")[0]
        if package in LIBRARIES:
            made: Exchange = importlib.import_module(LIBRARIES[package]).exchange
            return made
    return None


def _from_reset(model: nn.Module, neurons: list[Neuron]) -> Any:
    forward = model.forward

    @functools.wraps(forward)
    def run(*arguments: Any, **keywords: Any) -> Any:
        for neuron in neurons:
            neuron.reset()
        try:
            return forward(*arguments, **keywords)
        finally:
            for neuron in neurons:
                neuron.reset()

    return run


@contextlib.contextmanager
def _overridden(module: nn.Module, methods: dict[str, Any]) -> Iterator[None]:
    held = module.__dict__
    before = {name: held[name] for name in methods if name in held}
    held.update(methods)
    try:
        yield
    finally:
        for name in methods:
            del held[name]
        held.update(before)
