"""The custom torch ops that stand for neurons while a model is exported, and what they become.

A neuron of a library is replaced by one call of ``imcc::lif`` or ``imcc::li``, which the exporter
passes through as it is. The form of the neuron travels as JSON text of the op's attributes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from imcc.frontend.convert import Argument, Const, Converter
from imcc.frontend.rules import RULES
from imcc.ir.dialects import snn
from imcc.ir.module import Function, Module
from imcc.ir.ops import Value
from imcc.ir.semantics.interpreter import EvalContext, evaluate_op
from imcc.ir.semantics.resources import ELEMENT_OF, ResourceStore
from imcc.ir.types import TensorType

Neuron: TypeAlias = Callable[..., snn.LeakyIntegrateAndFire | snn.LeakyIntegrator]

_PARAMETERS = {"leaks": "leak", "gains": "gain", "rests": "rest", "thresholds": "threshold"}
"""Operands that an attribute stands for where they are one number."""


_computed = [0, 0]


def computed() -> tuple[int, int]:
    """Time steps and elements that neurons computed in this process, outside of an export."""
    return _computed[0], _computed[1]


def _run(kind: Neuron, form: str, operands: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
    function = Function("neuron")
    Module("neuron").add_function(function)
    given = {name: tensor for name, tensor in operands.items() if tensor is not None}
    values = {
        name: function.add_argument(TensorType(tuple(item.shape), ELEMENT_OF[item.dtype]), name)
        for name, item in given.items()
    }
    op = kind(**values, **json.loads(form))
    op.verify()
    _computed[0] += given["x"].shape[0] if op.time_axis else 1
    _computed[1] += given["x"].numel()
    held = {values[name]: item for name, item in given.items()}
    fired, membrane = evaluate_op(op, held, EvalContext({}, ResourceStore({})))
    # A custom op may not return the same tensor twice.
    return fired, membrane.clone() if fired is membrane else membrane


@torch.library.custom_op(
    "imcc::lif",
    mutates_args=(),
    schema="(Tensor x, Tensor? start, Tensor? leaks, Tensor? gains, Tensor? rests, "
    "Tensor? thresholds, str form) -> (Tensor, Tensor)",
)
def _lif(
    x: Tensor,
    start: Tensor | None,
    leaks: Tensor | None,
    gains: Tensor | None,
    rests: Tensor | None,
    thresholds: Tensor | None,
    form: str,
) -> tuple[Tensor, Tensor]:
    operands = {"x": x, "start": start, "leaks": leaks, "gains": gains, "rests": rests}
    return _run(snn.LeakyIntegrateAndFire, form, {**operands, "thresholds": thresholds})


@torch.library.custom_op(
    "imcc::li",
    mutates_args=(),
    schema="(Tensor x, Tensor? start, Tensor? leaks, Tensor? gains, Tensor? rests, str form) "
    "-> (Tensor, Tensor)",
)
def _li(
    x: Tensor,
    start: Tensor | None,
    leaks: Tensor | None,
    gains: Tensor | None,
    rests: Tensor | None,
    form: str,
) -> tuple[Tensor, Tensor]:
    operands = {"x": x, "start": start, "leaks": leaks, "gains": gains, "rests": rests}
    return _run(snn.LeakyIntegrator, form, operands)


def _shaped_like_x(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return (torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype))


_lif.register_fake(_shaped_like_x)
_li.register_fake(_shaped_like_x)


def _split(numbers: dict[str, float | Tensor]) -> tuple[dict[str, Tensor | None], dict[str, float]]:
    tensors: dict[str, Tensor | None] = dict.fromkeys(_PARAMETERS)
    scalars: dict[str, float] = {}
    for plural, name in _PARAMETERS.items():
        given = numbers.get(name)
        if isinstance(given, Tensor):
            tensors[plural] = given
        elif given is not None:
            scalars[name] = float(given)
    return tensors, scalars


def lif(
    x: Tensor,
    start: Tensor | None,
    form: dict[str, Any],
    **numbers: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Spikes and membranes of ``snn.lif``; ``numbers`` are leak, gain, rest and threshold."""
    tensors, scalars = _split(numbers)
    text = json.dumps({**form, **scalars})
    made: tuple[Tensor, Tensor] = torch.ops.imcc.lif(x, start, *tensors.values(), text)
    return made


def li(
    x: Tensor, start: Tensor | None, form: dict[str, Any], **numbers: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs and states of ``snn.li``; ``numbers`` are leak, gain and rest."""
    tensors, scalars = _split(numbers)
    del tensors["thresholds"]
    text = json.dumps({**form, **scalars})
    made: tuple[Tensor, Tensor] = torch.ops.imcc.li(x, start, *tensors.values(), text)
    return made


# -- conversion -----------------------------------------------------------------------------------


def _convert(
    c: Converter, kind: Neuron, x: Argument, start: Argument | None, form: str, **given: Any
) -> tuple[Value, ...]:
    attributes = json.loads(form)
    operands: dict[str, Value] = {"x": c.value(x)}
    for plural, value in given.items():
        if isinstance(value, Const) and value.tensor.numel() == 1 and not value.tensor.is_meta:
            attributes[_PARAMETERS[plural]] = float(value.tensor)
        elif value is not None:
            operands[plural] = c.value(value)
    if isinstance(start, Const) and not start.tensor.is_meta and start.tensor.numel():
        first = start.tensor.flatten()[0]
        if bool((start.tensor == first).all()):
            attributes["v_init"], start = float(first), None
    if start is not None:
        operands["start"] = c.value(start)
    return c.emit(kind(**operands, **attributes)).results


def _convert_lif(c: Converter, **given: Any) -> tuple[Value, ...]:
    return _convert(c, snn.LeakyIntegrateAndFire, **given)


def _convert_li(c: Converter, **given: Any) -> tuple[Value, ...]:
    return _convert(c, snn.LeakyIntegrator, **given)


RULES["imcc.lif"] = _convert_lif
RULES["imcc.li"] = _convert_li
