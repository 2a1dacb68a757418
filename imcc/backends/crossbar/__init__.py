"""Backend ``crossbar``: weights in resistive crossbars, inputs bit by bit, converters per column.

``dialect`` says what the programs are, ``target`` what the hardware is, ``passes`` map, calibrate,
place and schedule, ``simulate`` computes what the hardware computes, ``cost`` counts what it does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from imcc.backends.api import Activity, Backend, Target, Wear

if TYPE_CHECKING:
    from torch import Tensor

    from imcc.ir.cost import CostRecord, OpCost, Placement
    from imcc.ir.module import Module
    from imcc.ir.ops import Op
    from imcc.ir.types import Type


class CrossbarBackend(Backend):
    """Crossbars of resistive cells with differential weights and bit-serial inputs."""

    name: ClassVar[str] = "crossbar"
    deploy_functions: ClassVar[tuple[str, ...]] = ("deploy",)
    rule_modules: ClassVar[tuple[str, ...]] = (
        "imcc.backends.crossbar.legality",
        "imcc.backends.crossbar.learning_legality",
        "imcc.backends.crossbar.lowering",
        "imcc.backends.crossbar.learning",
        "imcc.backends.crossbar.cost",
        "imcc.backends.crossbar.run_time_rules",
        "imcc.backends.crossbar.learning_cost",
    )

    def load_target(self, name: str, data: dict[str, Any], origin: str) -> Target:
        """Validate by :class:`imcc.backends.crossbar.target.TargetKeys`."""
        from imcc.backends.crossbar.target import load

        return load(name, data, origin)

    def pipeline(self, target: Target) -> str:
        """Quantise (weights to ``array.weight_bits``), map, calibrate, place, schedule."""
        calibrated = "calibrate-adc, " if target.data["adc"]["range"] == "calibrated" else ""
        bits = target.data["array"]["weight_bits"]
        weights = "" if bits == 8 else f"{{bits={bits}}}"
        written = target.data["dynamic"]["matrices"] == "crossbar"
        products = '{matmul="symmetric"}' if written else ""
        counted = ", profile-inputs" if target.data["activity"]["source"] == "profiled" else ""
        return (
            "canonicalize, fold-batch-norm, decompose-attention, dead-code, "
            f"quantize-spikes, calibrate-activations{products}, quantize-weights{weights}, "
            f"quantize-learning, integer-arithmetic, dead-code, map-crossbars, {calibrated}"
            f"place, schedule{counted}"
        )

    def cost_pipeline(self, target: Target) -> str:
        """Codes without numbers in place of quantisation: costs rest on shapes."""
        bits = target.data["array"]["weight_bits"]
        written = target.data["dynamic"]["matrices"] == "crossbar"
        options = ([] if bits == 8 else [f"weight_bits={bits}"]) + ['matmul="symmetric"'] * written
        chosen = f"{{{' '.join(options)}}}" if options else ""
        return (
            "canonicalize, fold-batch-norm, decompose-attention, dead-code, "
            f"assume-codes{chosen}, dead-code, map-crossbars, place, schedule"
        )

    def cost(
        self, module: Module, function: str, target: Target, activity: Activity = "assumed"
    ) -> CostRecord:
        """Cost of one call of an entry point of a scheduled module, B = 1."""
        from imcc.backends.crossbar.record import cost_record

        return cost_record(module, function, target, activity)

    def with_transfers(self, op: Op, cost: OpCost, target: Target) -> OpCost:
        """What the op moves over the chip and its pins; see ``traffic.py``."""
        from imcc.backends.crossbar.cache import with_growth
        from imcc.backends.crossbar.target import CrossbarTarget
        from imcc.backends.crossbar.traffic import with_traffic

        if not isinstance(target, CrossbarTarget):
            return cost
        return with_traffic(op, with_growth(op, cost, target), target)

    def op_times(self, op: Op) -> tuple[float, float] | None:
        """What the pass ``schedule`` wrote."""
        from imcc.backends.crossbar.dialect import END, START

        if END not in op.annotations:
            return None
        return float(op.annotations.get(START, 0.0)), float(op.annotations[END])

    def placement(self, module: Module, function: str, target: Target) -> Placement | None:
        """What the pass ``place`` wrote: tiles of PEs of crossbars."""
        from imcc.backends.crossbar.record import placement

        return placement(module, function, target)

    def state_tensors(self, value: Any) -> dict[str, Tensor]:
        """Codes, cells and wear of a matrix."""
        from imcc.backends.crossbar.adaptation import matrix_tensors
        from imcc.backends.crossbar.simulate import Matrix

        return matrix_tensors(value) if isinstance(value, Matrix) else super().state_tensors(value)

    def restore_state(self, kind: Type, tensors: Mapping[str, Tensor], target: Target) -> Any:
        """A matrix for a type of matrices; raises ``ValueError`` for parts that do not fit it."""
        from imcc.backends.crossbar.adaptation import matrix_from
        from imcc.backends.crossbar.dialect import MatrixType

        if isinstance(kind, MatrixType):
            return matrix_from(kind, tensors)
        return super().restore_state(kind, tensors, target)

    def write_energy(self, target: Target) -> tuple[str, float] | None:
        """Pulses of a write by the target's write noise, at the figure of ``cell_write``."""
        from imcc.backends.crossbar.target import CrossbarTarget

        if not isinstance(target, CrossbarTarget):
            return None
        pulse_pj = target.keys.components.cell_write.energy_pj
        if pulse_pj is None:
            return None
        return "cell_write", pulse_pj * target.write_noise.pulses

    def wear(self, value: Any, target: Target | None) -> Wear | None:
        """Writes to the cells of a matrix since it was deployed."""
        from imcc.backends.crossbar.adaptation import wear_of
        from imcc.backends.crossbar.simulate import Matrix
        from imcc.backends.crossbar.target import CrossbarTarget

        if isinstance(value, Matrix) and isinstance(target, CrossbarTarget):
            return wear_of(value, target)
        return None

    def idealised(self, module: Module, target: Target) -> Module:
        """Converters as wide as an op can say, with a step of 1: they lose nothing."""
        from imcc.backends.crossbar.dialect import Mvm, ReadMatrix
        from imcc.ir.rewriting import Rewriter

        made = module.clone()
        rewriter = Rewriter(made)
        for op in made.walk():
            if isinstance(op, (Mvm, ReadMatrix)):
                rewriter.set_attributes(op, adc_bits=32, adc_step=1.0)
        return made

    def smallest_conductance(self, target: Target) -> float | None:
        """``1 / on_off_ratio`` of the cells that are written at run time."""
        from imcc.backends.crossbar.target import CrossbarTarget

        if not isinstance(target, CrossbarTarget):
            return None
        return 1 / target.dynamic.keys.device.on_off_ratio

    def written_noise(self, target: Target) -> dict[str, Any]:
        """The write-noise model with its parameters, the mapping, and the range of conductances."""
        from imcc.backends.crossbar.target import CrossbarTarget

        if not isinstance(target, CrossbarTarget):
            return {}
        data = target.dynamic.data
        noise = dict(data["device"]["write_noise"])
        return {
            **noise,
            "bounds": "[0, g_max]" if noise.get("bounded") else "[0, inf)",
            "mapping": data["array"]["encoding"],
            "cell_bits": data["array"]["cell_bits"],
            "on_off_ratio": data["device"]["on_off_ratio"],
            "matrices": target.keys.dynamic.matrices,
        }

    def write_noise_sweep(self, target: Target) -> list[tuple[float, Target]]:
        """No write noise, then once, twice and four times the target's; none if it has none."""
        held = target.data["device"]["write_noise"].get("sigma_fraction", 0.0)
        made: list[tuple[float, Target]] = []
        for factor in (0.0, 1.0, 2.0, 4.0) if held else ():
            if factor == 1.0:
                made.append((held, target))
                continue
            data = copy.deepcopy(dict(target.data))
            data["device"]["write_noise"]["sigma_fraction"] = held * factor
            made.append((held * factor, self.load_target(target.name, data, target.origin)))
        return made


BACKEND = CrossbarBackend()
