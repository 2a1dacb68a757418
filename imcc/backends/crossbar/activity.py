"""Which rows inputs drive: counted on samples, or assumed; what the cost rules make of it.

A row is driven by an input digit that is not 0: a spike, a one of the input bits, any but the
lowest step of a converter with several bits. Drivers and cells of other rows do nothing. A run of
rows without a driven row gives 0, so that hardware can leave out its read and its conversions
(``activity.idle_reads = "skip"``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imcc.backends.crossbar.dialect import (
    DRIVEN_RUNS,
    INPUT_DENSITY,
    PROFILED,
    STEP_DENSITY,
    Mvm,
    ReadMatrix,
)
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.module import Module
from imcc.ir.ops import Op

if TYPE_CHECKING:
    from torch import Tensor

    from imcc.backends.crossbar.dialect import MatrixType


def driven_rows(op: Op, dac_bits: int, target: CrossbarTarget) -> float:
    """Share of rows that an input digit drives, mean over digits.

    As counted where a pass did; else ``activity.input_bit_density`` of the ones, and all rows where
    a digit has several bits.
    """
    if INPUT_DENSITY in op.annotations:
        held: tuple[float, ...] = op.annotations[INPUT_DENSITY]
        return sum(held) / len(held)
    return target.keys.activity.input_bit_density if dac_bits == 1 else 1.0


def driven_runs(op: Op, target: CrossbarTarget) -> float:
    """Share of reads of a run of rows that happen: all, unless idle ones are left out."""
    if target.keys.activity.idle_reads == "convert":
        return 1.0
    return float(op.annotations.get(DRIVEN_RUNS, 1.0))


@dataclass
class Drives:
    """What was counted of one op's inputs: driven rows by digit, by time step, and driven runs."""

    rows: int = 0
    """Rows of all reads of one digit."""
    by_digit: list[int] = field(default_factory=list)
    by_step: list[int] = field(default_factory=list)
    runs: int = 0
    """Reads of a run of rows, over all digits."""
    driven_runs: int = 0
    samples: int = 0

    def count(
        self, vectors: Tensor, kind: MatrixType, digits: int, dac_bits: int, steps: int
    ) -> None:
        """Add the codes ``[batch, positions, G, K/G]`` that one sample applies.

        ``steps`` is how many time steps the batch and positions hold, one after another; 0 where
        they hold none. Negative codes are in two's complement.
        """
        import torch

        from imcc.backends.crossbar.simulate import runs

        self.by_digit = self.by_digit or [0] * digits
        self.by_step = self.by_step or [0] * steps
        whole = runs(vectors, kind).to(torch.int32)
        self.rows += vectors.numel()
        self.samples += 1
        for digit in range(digits):
            driven = ((whole >> (digit * dac_bits)) & (2**dac_bits - 1)) != 0
            self.by_digit[digit] += int(driven.sum())
            self.runs += driven[..., 0].numel()
            self.driven_runs += int(driven.any(-1).sum())
            if steps:
                found = driven.reshape(steps, -1).sum(1)
                self.by_step = [
                    a + int(b) for a, b in zip(self.by_step, found.tolist(), strict=True)
                ]

    def annotations(self) -> dict[str, Any]:
        """As annotations of the op."""
        made: dict[str, Any] = {
            INPUT_DENSITY: tuple(count / self.rows for count in self.by_digit),
            DRIVEN_RUNS: self.driven_runs / self.runs,
            PROFILED: self.samples,
        }
        if self.by_step:
            each = self.rows * len(self.by_digit) / len(self.by_step)
            made[STEP_DENSITY] = tuple(count / each for count in self.by_step)
        return {name.replace(".", "__"): value for name, value in made.items()}


def activity_of(module: Module, function: str, target: CrossbarTarget) -> dict[str, Any]:
    """What a cost record says of activity: where it was counted, and how much of it.

    ``inputs`` has a row for each read that was counted; ``assumed_layers`` are the others.
    ``input_bit_density`` is the mean over all reads of all rows.
    """
    from imcc.backends.crossbar.cost import rows_read

    held = target.keys.activity
    counted: dict[str, dict[str, Any]] = {}
    assumed: list[str] = []
    driven = total = 0.0
    for op in module.function(function).ops:
        if not isinstance(op, (Mvm, ReadMatrix)):
            continue
        layer = op.scope or op.name
        own = target.dynamic if isinstance(op, ReadMatrix) else target
        reads = rows_read(op)
        density = driven_rows(op, op.dac_bits, own)
        total, driven = total + reads, driven + reads * density
        if INPUT_DENSITY not in op.annotations:
            assumed.append(layer)
            continue
        name = layer
        while name in counted:
            name += "'"
        counted[name] = {
            "density": density,
            "by_digit": list(op.annotations[INPUT_DENSITY]),
            "by_step": list(op.annotations.get(STEP_DENSITY, ())),
            "driven_runs": op.annotations[DRIVEN_RUNS],
            "samples": op.annotations[PROFILED],
        }
    made: dict[str, Any] = {
        "input_bit_density": driven / total if counted and total else held.input_bit_density,
        "idle_reads": held.idle_reads,
    }
    if counted:
        made |= {
            "inputs": counted,
            "assumed_layers": assumed,
            "assumed_density": held.input_bit_density,
        }
    return made
