"""Which values of a function are weights that adapt, and which come from the output error."""

from __future__ import annotations

from imcc.ir.dialects import core, learn
from imcc.ir.module import Function
from imcc.ir.ops import Op, Value


def error_values(function: Function) -> set[Value]:
    """What is computed from an output error, and so from labels."""
    found = {op.e for op in function.ops if isinstance(op, learn.OutputError)}
    for op in function.ops:
        if any(value in found for value in op.operands):
            found.update(op.results)
    return found


def state_of(op: Op, value: Value) -> str | None:
    """The state whose value ``op`` reads as ``value``, if it is one."""
    function = op.parent
    if function is None or value.owner is not None:
        return None
    for argument, state in zip(function.arguments, function.argument_states, strict=True):
        if argument is value:
            return state
    return None


def is_held(op: Op, weight: Value) -> bool:
    """Whether a weight of ``op`` is kept from call to call: a constant, or state that adapts."""
    return isinstance(weight.owner, core.Constant) or state_of(op, weight) is not None
