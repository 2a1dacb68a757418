"""Layers for users' models, and what they become when a model is captured."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from imcc.frontend.convert import Const, Converter
from imcc.frontend.rules import torch_rule
from imcc.ir.ops import Value
from imcc_example import dialect


@torch.library.custom_op("extra::hardshrink", mutates_args=())
def hardshrink(x: Tensor, limit: float) -> Tensor:
    """``x`` where ``|x| > limit``, else 0; one op for torch, so that capture sees it whole."""
    return functional.hardshrink(x, limit)


@hardshrink.register_fake
def _shape(x: Tensor, limit: float) -> Tensor:
    return torch.empty_like(x)


class Hardshrink(nn.Module):
    """``y = x`` where ``|x| > limit``, else 0."""

    def __init__(self, limit: float = 0.5) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        made: Tensor = hardshrink(x, self.limit)
        return made


@torch_rule("extra.hardshrink")
def _capture(c: Converter, x: Value | Const, limit: float) -> Value:
    return c.emit(dialect.Hardshrink(x=c.value(x), limit=float(limit))).y
