"""Options of a compilation, the same for Python and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imcc.passes.infrastructure import Instrument, Timing


@dataclass(frozen=True)
class CompileOptions:
    """Options of a compilation.

    ``target`` is a preset's name or a TOML file, ``overrides`` are ``"key.path=value"`` strings.
    ``passes`` is a pipeline as text; None takes the target's own. ``trials`` noisy trials are
    evaluated when there is evaluation data; ``sweep`` adds the sweep over write noise.
    ``calibrate_on_example`` allows the example inputs to serve as calibration data.

    ``to`` is the phase to stop after, ``dump_phases`` a folder for the program at the end of each
    phase, ``start`` the phase to resume from, whose dump lies in that folder. ``check`` measures
    what each approximate pass costs in accuracy. ``instruments`` watch the passes. ``dynamic``
    leaves the sizes of batch and sequence open where the model does.
    """

    target: str = "rram"
    overrides: tuple[str, ...] = ()
    passes: str | None = None
    trials: int = 0
    seed: int = 0
    sweep: bool = True
    calibrate_on_example: bool = False
    to: str | None = None
    dump_phases: Path | None = None
    start: str | None = None
    check: bool = False
    instruments: tuple[Instrument, ...] = ()
    timing: Timing | None = None
    dynamic: bool = True
