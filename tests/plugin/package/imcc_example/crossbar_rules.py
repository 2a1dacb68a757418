"""Ops of ``extra`` on crossbar hardware: its vector unit does them."""

from __future__ import annotations

import math

from imcc.backends.crossbar.cost import elements, words
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.cost import OpCost
from imcc.ir.rules import COST, LEGAL
from imcc_example.dialect import Hardshrink


@LEGAL.register(Hardshrink, backend="crossbar")
def _legal(op: Hardshrink, target: CrossbarTarget) -> str | None:
    return None


@COST.register(Hardshrink, backend="crossbar")
def _cost(op: Hardshrink, target: CrossbarTarget, activity: str) -> OpCost:
    """Two comparisons for each element; operand and result lie in the buffer."""
    keys = target.keys
    comparisons = 2 * elements(op.y)
    return OpCost(
        {
            "alu_add.add": comparisons,
            "buffer_read.word": words(op.x, target),
            "buffer_write.word": words(op.y, target),
        },
        math.ceil(comparisons / keys.digital.lanes) * keys.timing.clock_ns,
    )
