"""What users hand in as data, brought into one form: flat tuples of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error
from imcc.ir.module import Function

CallInputs: TypeAlias = tuple[Any, ...] | Mapping[str, Any]
"""One call's inputs: by position, or by name."""


def as_inputs(given: Any) -> CallInputs:
    """One call's inputs: a tensor becomes a tuple of one, a list a tuple; a mapping gives names."""
    if isinstance(given, Tensor):
        return (given,)
    if isinstance(given, (tuple, Mapping)):
        return given
    if isinstance(given, list):
        return tuple(given)
    raise error(
        codes.BAD_DATA,
        f"inputs are a tensor, a tuple of tensors or a dict by name, not {type(given).__name__}",
        help="convert arrays with torch.from_numpy(array)"
        if type(given).__module__ == "numpy"
        else "give (x,), or {'x': x} for keyword inputs",
    )


def calibration_batches(given: Any) -> list[CallInputs]:
    """Calibration data as a list of one call's inputs.

    Accepts a list of input tuples or dicts, a list of tensors (one batch each), a tensor (one
    batch), or one input tuple or dict. Raises ``BAD_DATA`` for anything else, empty data and values
    that are not finite.
    """
    items = list(given) if isinstance(given, Sequence) and not isinstance(given, tuple) else [given]
    batches = [as_inputs(item) for item in items]
    if not batches:
        raise _bad("calibration_data() returned nothing")
    for number, batch in enumerate(batches):
        for value in pytree.tree_leaves(batch):
            if isinstance(value, Tensor) and value.numel() == 0:
                raise _bad(f"calibration batch {number} is empty: a tensor of {list(value.shape)}")
            floating = isinstance(value, Tensor) and value.is_floating_point()
            if floating and not bool(torch.isfinite(value).all()):
                raise _bad(f"calibration batch {number} holds values that are not finite")
    return batches


def fit_batches(batches: Sequence[tuple[Any, ...]], function: Function) -> list[tuple[Any, ...]]:
    """Calibration batches in the size that ``function`` takes, if it does not leave it free.

    The last piece is filled up from the front: samples seen twice do not change a range.
    """
    size = function.fixed_batch
    if size is None:
        return list(batches)
    made: list[tuple[Any, ...]] = []
    for batch in batches:
        count = int(batch[0].shape[0]) if batch and batch[0].dim() else 1
        for start in range(0, max(count, 1), size):
            rows = torch.arange(start, start + size) % max(count, 1)
            made.append(
                tuple(
                    item[rows] if item.dim() and item.shape[0] == count else item for item in batch
                )
            )
    return made


def evaluation_set(given: Any) -> tuple[CallInputs, Any]:
    """Evaluation data ``(inputs, targets)`` as an input tuple and targets."""
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise _bad(f"evaluation_data() returns a pair (inputs, targets), not {_shown(given)}")
    return as_inputs(given[0]), given[1]


def _shown(given: Any) -> str:
    kind = type(given).__name__
    return f"a {kind} of {len(given)}" if isinstance(given, (list, tuple, dict)) else f"a {kind}"


def _bad(message: str) -> DiagnosticError:
    return error(
        codes.BAD_DATA, message, help="docs/how-to/bring-your-model.md shows the expected forms"
    )
