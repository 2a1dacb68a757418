"""Backend ``nearmem``: integer lanes beside a buffer, weights and activations read from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from imcc.backends.api import Activity, Backend, Target

if TYPE_CHECKING:
    from imcc.ir.cost import CostRecord
    from imcc.ir.module import Module
    from imcc.ir.ops import Op


class NearMemoryBackend(Backend):
    """Multiply-accumulate lanes and a vector unit that read every operand from one buffer."""

    name: ClassVar[str] = "nearmem"
    rule_modules: ClassVar[tuple[str, ...]] = ("imcc_example.nearmem.rules",)

    def load_target(self, name: str, data: dict[str, Any], origin: str) -> Target:
        """Validate by :class:`imcc_example.nearmem.target.NearMemoryKeys`."""
        from imcc_example.nearmem.target import load

        return load(name, data, origin)

    def pipeline(self, target: Target) -> str:
        """Quantise to 8-bit integers, then give every op its time."""
        return (
            "canonicalize, fold-batch-norm, dead-code, calibrate-activations, quantize-weights, "
            "integer-arithmetic, dead-code, schedule-nearmem"
        )

    def op_times(self, op: Op) -> tuple[float, float] | None:
        """What ``schedule-nearmem`` wrote."""
        from imcc_example.nearmem.dialect import END, START

        if END not in op.annotations:
            return None
        return op.annotations[START], op.annotations[END]

    def cost(
        self, module: Module, function: str, target: Target, activity: Activity = "assumed"
    ) -> CostRecord:
        """Events of the cost rules times the figures of the target."""
        from imcc_example.nearmem.record import cost_record

        return cost_record(self, module, function, target, activity)


BACKEND = NearMemoryBackend()
