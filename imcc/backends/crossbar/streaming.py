"""How much of its operands an op needs before it starts, and on which hardware it runs."""

from __future__ import annotations

import math

from imcc.backends.crossbar.dialect import FIRST_CROSSBAR, UNIT, Mvm, ReadMatrix, Write
from imcc.ir.dialects import core, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Module
from imcc.ir.ops import Op, Value
from imcc.ir.types import TensorType

WHOLE = (nn.AdaptiveAvgPool, nn.Mean, nn.Sum, nn.Max, core.Gather, core.Permute, nn.Matmul, Write)
"""Ops that may read all of an operand for the first part of their result."""


def parts_of(op: Op, value: Value) -> tuple[float, float] | None:
    """Shares of an operand: what the first result needs, and what the last part of it is.

    The latter is a share of the op's time that is left when the operand is complete. None: the op
    waits for the whole operand. A window of ``k`` rows (less the padding above) over an image of
    ``H`` rows starts with ``k / H`` of it and handles one row at a time, where an axis of time
    steps leads, those of one step; a product of tokens goes token by token, any other op element
    by element in the order of the leading axes.
    """
    from imcc.backends.crossbar.cost import stated

    if isinstance(op, WHOLE) or not isinstance(value.type, TensorType):
        return None
    if isinstance(op, (Mvm, ReadMatrix, nn.MaxPool, nn.AvgPool)) and value is not op.x:
        # Zero points, which are there from the start.
        return None
    shape = [stated(size, value) for size in value.type.shape]
    # The zero point of a window's input has no window.
    windowed = isinstance(op, (Mvm, nn.MaxPool, nn.AvgPool)) and value is op.x
    if isinstance(op, (Mvm, nn.MaxPool, nn.AvgPool)) and windowed and op.kernel:
        spatial = len(op.kernel)
        images = math.prod(shape[: -spatial - 1])
        height = max(1, shape[-spatial])
        dilation = op.dilation[0] if isinstance(op, Mvm) else 1
        needed = min(height, (op.kernel[0] - 1) * dilation + 1 - op.padding[0])
        return needed / (height * max(1, images)), 1 / (height * max(1, images))
    if isinstance(op, (Mvm, ReadMatrix)):
        vectors = math.prod(shape[:-1])
    elif isinstance(op, (nn.Softmax, nn.LayerNorm, nn.RmsNorm)):
        vectors = math.prod(shape[:-1]) if _along_last(op) else 1
    else:
        vectors = math.prod(shape[: max(1, tensor(value).rank - 1)])
    return (1 / vectors, 1 / vectors) if vectors > 1 else None


def _along_last(op: Op) -> bool:
    return not isinstance(op, nn.Softmax) or op.axis == -1


def hardware_of(op: Op) -> str | None:
    """Name of what an op occupies: its matrix, or the vector units that it runs on."""
    if FIRST_CROSSBAR in op.annotations:
        return f"crossbar {op.annotations[FIRST_CROSSBAR]}"
    return f"vector unit {op.annotations[UNIT]}" if UNIT in op.annotations else "vector unit"


def busy_by_hardware(
    module: Module, function: str, busy: dict[Op, float]
) -> tuple[dict[str, float], dict[str, str]]:
    """Time that one call keeps each piece of hardware busy, and a layer that does so."""
    made: dict[str, float] = {}
    layers: dict[str, str] = {}
    for op in module.function(function).ops:
        if busy.get(op):
            name = hardware_of(op) or ""
            made[name] = made.get(name, 0.0) + busy[op]
            layers.setdefault(name, op.scope or op.name)
    return made, layers
