"""What the ops of ``extra`` compute."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from imcc.ir.rules import EVAL
from imcc.ir.semantics.interpreter import EvalContext
from imcc_example.dialect import Hardshrink


@EVAL.register(Hardshrink)
def _hardshrink(op: Hardshrink, ctx: EvalContext, *, x: Tensor) -> Tensor:
    return functional.hardshrink(x, op.limit)
