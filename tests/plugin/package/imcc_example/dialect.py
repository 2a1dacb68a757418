"""Dialect ``extra``: ops that imcc does not have."""

from __future__ import annotations

from imcc.ir.ops import Op, Value, attribute, operand, result
from imcc.ir.types import FLOATS, TensorType, Type

NEUTRAL = True
SEMANTICS = "imcc_example.semantics"


class Hardshrink(Op, name="extra.hardshrink"):
    """``y = x`` where ``|x| > limit``, else 0."""

    example = "%x: tensor<Bx8xf32> => %y = extra.hardshrink %x {limit = 0.25} : tensor<Bx8xf32>"

    x: Value = operand(TensorType, elements=FLOATS)
    limit: float = attribute(default=0.5, minimum=0.0, doc="magnitudes up to this become 0")
    y: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        return self.x.type
