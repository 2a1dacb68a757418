"""Backend ``sparse_snn``: sparse spikes times sparse weights, from compressed fibers.

``fibers`` and ``windows`` are the operands, one module per dataflow holds its kernel, ``engines``
runs a product on a target, ``target`` says what the hardware is. ``dialect`` says what programs
are, ``passes`` compress, order the loops and count on real samples, ``simulate`` computes what the
hardware computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from imcc.backends.api import Activity, Backend, Target
from imcc.ir.ops import Op

if TYPE_CHECKING:
    from imcc.ir.cost import CostRecord
    from imcc.ir.module import Module


class SparseSnnBackend(Backend):
    """Accelerators for spiking networks with sparse weights: LoAS and what it is compared with."""

    name: ClassVar[str] = "sparse_snn"
    rule_modules: ClassVar[tuple[str, ...]] = (
        "imcc.backends.sparse_snn.legality",
        "imcc.backends.sparse_snn.lowering",
        "imcc.backends.sparse_snn.cost",
    )

    def load_target(self, name: str, data: dict[str, Any], origin: str) -> Target:
        """Validate by the keys of :mod:`imcc.backends.sparse_snn.target`."""
        from imcc.backends.sparse_snn.target import load

        return load(name, data, origin)

    def pipeline(self, target: Target) -> str:
        """Quantise to spikes and 8-bit codes, compress, order the loops, count on samples."""
        parallel = target.data.get("engine") == "temporal-parallel"
        order = "timestep-parallel" if parallel else "timestep-sequential"
        return (
            "canonicalize, fold-batch-norm, dead-code, quantize-spikes, "
            "calibrate-activations, quantize-weights, integer-arithmetic, dead-code, "
            f"compress-spikes, {order}, profile-activity"
        )

    def cost(
        self, module: Module, function: str, target: Target, activity: Activity = "assumed"
    ) -> CostRecord:
        """Cost of one call of an entry point of a scheduled module, B = 1, as profiled."""
        from imcc.backends.sparse_snn.record import cost_record

        return cost_record(module, function, target, activity)

    def op_times(self, op: Op) -> tuple[float, float] | None:
        """What the pass ``profile-activity`` wrote."""
        from imcc.backends.sparse_snn.dialect import END, START

        if END not in op.annotations:
            return None
        return float(op.annotations.get(START, 0.0)), float(op.annotations[END])


BACKEND = SparseSnnBackend()
