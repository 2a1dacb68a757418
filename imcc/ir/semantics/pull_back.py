"""Vector-Jacobian products by torch, for rules whose forward rule is at hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def pull_back(compute: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Tensor:
    """The vector-Jacobian product of ``compute`` at ``x``."""
    with torch.enable_grad():
        held = x.detach().requires_grad_()
        made = compute(held)
        if not made.requires_grad:
            return torch.zeros_like(x)
        (found,) = torch.autograd.grad(made, held, dy, allow_unused=True)
    return torch.zeros_like(x) if found is None else found
