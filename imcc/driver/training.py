"""Training data and loss of a user's file, in the form that :mod:`imcc.training` takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from imcc.driver.data import as_inputs
from imcc.driver.signature import Signature
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.training import Batch, Loss

FORM = "def training_data():\n    return [(inputs, targets), ...]  # batches"


def training_batches(given: Any, signature: Signature, size: int | None = None) -> list[Batch]:
    """What ``training_data()`` returned: inputs as flat tensors, each with the user's batch.

    With ``size``, the batch size that a program fixes, batches of another size are left out, as the
    last one often is; it is an error if there is no other.
    """
    if not isinstance(given, Iterable) or isinstance(given, (Tensor, str, dict)):
        raise error(
            codes.BAD_DATA,
            f"training_data() returns batches, not a {type(given).__name__}",
            help=f"write it as:\n{FORM}",
        )
    made: list[Batch] = []
    for number, batch in enumerate(given):
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise error(
                codes.BAD_DATA,
                f"batch {number} of training_data() is no pair of inputs and targets",
                help=f"write it as:\n{FORM}",
            )
        made.append((_inputs(batch[0], signature, number), batch))
    fitting = [item for item in made if size is None or int(item[0][0].shape[0]) == size]
    if made and not fitting:
        raise error(
            codes.BAD_DATA,
            f"no training batch has {size} samples, the size that the model fixes",
            help="give batches of that size",
        )
    if not made:
        raise error(codes.BAD_DATA, "training_data() returned nothing", help=f"write:\n{FORM}")
    return fitting


def _inputs(given: Any, signature: Signature, number: int) -> tuple[Tensor, ...]:
    try:
        return tuple(signature.tensors(as_inputs(given)))
    except DiagnosticError as wrong:
        first = wrong.diagnostics[0]
        raise error(
            codes.BAD_DATA,
            f"the inputs of training batch {number} do not fit: {first.message}",
            help=first.help,
        ) from None


def training_loss(loss: Callable[[Any, Any], Any], signature: Signature) -> Loss:
    """The user's ``loss(outputs, batch)`` on a program's flat outputs."""

    @functools.wraps(loss)
    def made(outputs: list[Tensor], batch: Any) -> Tensor:
        value: Tensor = loss(signature.rebuild(outputs), batch)
        return value

    return made
