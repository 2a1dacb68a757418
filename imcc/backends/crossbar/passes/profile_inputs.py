"""Pass ``profile-inputs``: count which rows the inputs of every read drive on real samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from imcc.backends.crossbar import BACKEND
from imcc.backends.crossbar.dialect import Mvm, ReadMatrix
from imcc.ir.module import Function, Module
from imcc.ir.ops import Op, Value
from imcc.ir.types import SpikesType
from imcc.passes.infrastructure import Exact, Pass, PassContext, option

if TYPE_CHECKING:
    from imcc.backends.crossbar.activity import Drives
    from imcc.backends.crossbar.target import CrossbarTarget


@dataclass(frozen=True)
class ProfileInputs(Pass):
    """Run calibration samples on ideal devices and count ones in what drives the rows.

    Each read of a matrix gets the share of rows that each input digit drives (for spikes also that
    of each time step), with padding and offsets as the hardware applies them, and the share of
    reads of a run of rows that drive any. The cost rules take these in place of
    ``activity.input_bit_density``. Reads that come behind an output error are not seen, for
    calibration data has no labels: they stay as assumed.
    """

    name: ClassVar[str] = "profile-inputs"
    contract: ClassVar[Exact] = Exact()
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "calibration", "target"})
    requires_phase: ClassVar[str | None] = "scheduled"

    samples: int = option(
        default=0, minimum=0, doc="calibration samples; 0: the target's activity.samples"
    )

    def run(self, module: Module, context: PassContext) -> None:
        """Annotate every read."""
        from imcc.backends.crossbar.activity import Drives
        from imcc.backends.crossbar.passes_support import crossbar_target
        from imcc.ir.semantics.interpreter import evaluate_function

        target = crossbar_target(self.name, context)
        rewriter = context.rewriter(module, self.name)
        programmed = evaluate_function(
            module.function("deploy"),
            (),
            resources=context.weights(),
            backend=BACKEND.name,
            target=target,
        ).states
        wanted = self.samples or target.keys.activity.samples
        for function in module.functions.values():
            drives: dict[Op, Drives] = {
                op: Drives() for op in function.ops if isinstance(op, (Mvm, ReadMatrix))
            }
            if not drives:
                continue
            samples = context.calibration_samples(function, wanted)
            for number, sample in enumerate(samples):
                context.progress(number, len(samples), "profile inputs")
                _count(function, sample, drives, programmed, context, target)
            for op, held in drives.items():
                if held.samples:
                    rewriter.annotate(op, **held.annotations())


def _count(
    function: Function,
    sample: tuple[Any, ...],
    drives: dict[Op, Drives],
    programmed: Any,
    context: PassContext,
    target: CrossbarTarget,
) -> None:
    """Count what one sample applies to every read of a function."""
    import torch

    from imcc.backends.crossbar.dialect import Write
    from imcc.backends.crossbar.run_time import applied_to_written
    from imcc.backends.crossbar.simulate import applied
    from imcc.ir.semantics.interpreter import evaluate_function
    from imcc.passes.learning.adapting import error_values

    unseen = error_values(function)
    kept: set[Value] = set()
    for op in drives:
        kept |= set(op.operands)
        if isinstance(op, ReadMatrix) and isinstance(op.matrix.owner, Write):
            kept.add(op.matrix.owner.codes)
    seen: dict[Value, Any] = dict(zip(function.inputs, sample, strict=True))
    pending = [op for op in drives if op.operands[0] not in unseen]

    def count(op: Op) -> None:
        if not isinstance(op, (Mvm, ReadMatrix)):
            return
        zero = 0.0 if op.x_zero_point is None else float(seen[op.x_zero_point])
        if isinstance(op, ReadMatrix):
            write = op.matrix.owner
            if isinstance(write, Write):
                vectors, kind = applied_to_written(op, seen[op.x], seen[write.codes])
                drives[op].count(vectors, kind, op.digits, op.dac_bits, 0)
            return
        vectors = applied(op, seen[op.x], zero)
        drives[op].count(vectors, op.held, op.digits, op.dac_bits, _time_steps(op))

    def observer(op: Op, results: tuple[Any, ...]) -> None:
        for value, held in zip(op.results, results, strict=True):
            if value in kept:
                seen[value] = held
        if op in drives and op in pending:
            count(op)

    with torch.no_grad():
        evaluate_function(
            function,
            sample,
            resources=context.weights(),
            states=programmed,
            backend=BACKEND.name,
            target=target,
            observer=observer,
            partial=bool(unseen),
        )


def _time_steps(op: Mvm) -> int:
    """Time steps of the spikes that a read takes, 0 where it takes no spikes."""
    value = op.x
    while not isinstance(value.type, SpikesType):
        owner = value.owner
        moved = owner is not None and owner.name.split(".")[0] in ("core", "quant", "nn")
        if op.input_bits != 1 or owner is None or not moved or not owner.operands:
            return 0
        value = owner.operands[0]
    steps = value.type.shape[0] if value.type.batch_axis else 0
    return steps if isinstance(steps, int) else 0
