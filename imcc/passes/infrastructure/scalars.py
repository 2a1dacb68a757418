"""Constants of one number that passes add to a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imcc.ir.dialects import core
from imcc.ir.module import Resource
from imcc.ir.rewriting import Rewriter
from imcc.ir.types import TensorType

if TYPE_CHECKING:
    from imcc.ir.semantics.resources import ResourceStore


def scalar_constant(
    rewriter: Rewriter, store: ResourceStore | None, value: float, element: str
) -> core.Constant:
    """A detached constant of no axes; its resource is declared, with data where ``store`` is."""
    name = f"number.{element}.{value!r}".replace("+", "").replace("-", "minus_")
    resource = Resource(name, TensorType((), element))
    if store is not None:
        import torch

        from imcc.ir.semantics.resources import TORCH_DTYPES

        resource = store.put(name, torch.tensor(value).to(TORCH_DTYPES[element]))
    if rewriter.module.resources.get(resource.name) != resource:
        rewriter.add_resource(resource)
    return core.Constant.of(resource.name, resource.type)
