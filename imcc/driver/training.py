"""Training data and loss of a user's file, in the form that :mod:`imcc.training` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from imcc.driver.data import as_inputs
from imcc.driver.signature import Signature
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.training import Batch, Loss

FORM = "def training_data():\n    return [(inputs, targets), ...]  # batches"


def training_batches(given: Any, signature: Signature) -> list[Batch]:
    """What ``training_data()`` returned: inputs as flat tensors, each with the user's batch."""
    if not isinstance(given, Iterable) or isinstance(given, Tensor):
        raise error(
            codes.BAD_DATA,
            f"training_data() returns batches, not a {type(given).__name__}",
            help=f"write it as:\n{FORM}",
        )
    made: list[Batch] = []
    for number, batch in enumerate(given):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise error(
                codes.BAD_DATA,
                f"batch {number} of training_data() is no pair of inputs and targets",
                help=f"write it as:\n{FORM}",
            )
        made.append((tuple(signature.tensors(as_inputs(batch[0]))), batch))
    if not made:
        raise error(codes.BAD_DATA, "training_data() returned nothing", help=f"write:\n{FORM}")
    return made


def training_loss(loss: Callable[[Any, Any], Any], signature: Signature) -> Loss:
    """The user's ``loss(outputs, batch)`` on a program's flat outputs."""

    def made(outputs: list[Tensor], batch: Any) -> Tensor:
        value: Tensor = loss(signature.rebuild(outputs), batch)
        return value

    return made
