"""How resources follow from other resources, as functions that can be differentiated.

A pass that computes weights from weights (a fold, a quantisation, a product of scales) leaves the
function beside the tensors it put. Whoever changes the first weights, as training does, gets all
others by replaying these functions, with gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Derivation:
    """``made = compute(*sources)``: names of resources, and a function of their tensors.

    ``compute`` gives the tensors as ops see them: codes are floats, differentiable straight-through
    in the rounding. Its values equal what the pass put.
    """

    sources: tuple[str, ...]
    made: tuple[str, ...]
    compute: Callable[..., tuple[Tensor, ...]]


class Store(Protocol):
    """Where tensors that nobody gives come from."""

    def get(self, name: str) -> Tensor:
        """The tensor as stored."""


def replay(
    derivations: Sequence[Derivation], values: Mapping[str, Tensor], store: Store
) -> dict[str, Tensor]:
    """``values`` and everything that follows from them, by name.

    Derivations run in the order in which passes left them; one that depends on none of the values
    does not run.
    """
    known = dict(values)
    for item in derivations:
        if any(name in known for name in item.sources):
            made = item.compute(*(known.get(name, store.get(name)) for name in item.sources))
            known.update(zip(item.made, made, strict=True))
    return known
