"""Backend ``reference``: runs neutral IR as it is, in floating point; it has no hardware cost."""

from __future__ import annotations

from typing import Any, ClassVar

from imcc.backends.api import Activity, Backend, Target
from imcc.ir.cost import CostRecord, LayerCost, OpCost
from imcc.ir.module import Module
from imcc.ir.ops import Op
from imcc.ir.phases import is_neutral

_NO_HARDWARE = "the target describes no hardware"


class ReferenceBackend(Backend):
    """The interpreter as a target: what the model means, to compare hardware against."""

    name: ClassVar[str] = "reference"
    last_phase: ClassVar[str] = "optimized"

    def load_target(self, name: str, data: dict[str, Any], origin: str) -> Target:
        """A target with no keys but ``backend`` and ``summary``."""
        from imcc.backends.reference.target import ReferenceTarget
        from imcc.backends.targets import validate, write_toml

        made = validate(ReferenceTarget, data, origin).model_dump(exclude_none=True)
        return Target(name, self.name, made, write_toml(made), origin)

    def pipeline(self, target: Target) -> str:
        """Tidies the module, changes nothing else."""
        return "canonicalize, dead-code"

    def legal(self, op: Op, target: Target) -> str | None:
        """Every neutral op runs."""
        dialect = op.name.split(".", 1)[0]
        if is_neutral(dialect):
            return None
        return f"{op.name} belongs to the hardware dialect {dialect!r}; this target has no hardware"

    def op_cost(self, op: Op, target: Target, activity: Activity = "assumed") -> OpCost:
        """Unknown: no hardware is described."""
        return OpCost(unknown=_NO_HARDWARE)

    def cost(
        self, module: Module, function: str, target: Target, activity: Activity = "assumed"
    ) -> CostRecord:
        """A record in which the cost of every op is unknown: no hardware is described."""
        layers: dict[str, list[str]] = {}
        for op in module.function(function).ops:
            if not op.terminator:
                layers.setdefault(op.scope or op.name, []).append(op.name)
        made = tuple(
            LayerCost(name, tuple(ops), None, 0.0, 0.0, 0.0, 0.0, {}, {}, {}, _NO_HARDWARE)
            for name, ops in layers.items()
        )
        unknown = tuple(
            f"{name}: {op} ({_NO_HARDWARE})" for name, ops in layers.items() for op in ops
        )
        provenance = {"target": target.name, "target_sha256": target.sha256, "cost_model": "none"}
        return CostRecord(0.0, 0.0, 0.0, 0.0, {}, {}, made, activity, provenance, unknown)


BACKEND = ReferenceBackend()
