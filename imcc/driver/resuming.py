"""Going on from programs at rest: artifacts, and the program of any phase as an ``.imc`` file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imcc.backends.api import Target, find_backend
from imcc.backends.targets import find_target
from imcc.driver.compiled import CompiledModel, load_artifact_model
from imcc.driver.data import calibration_batches
from imcc.driver.options import CompileOptions
from imcc.driver.phase_folder import Dump
from imcc.driver.stages import entry_point_costs, finish, report_data, start_of
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.passes.infrastructure import (
    Instrument,
    Pass,
    PassContext,
    Progress,
    Timing,
    no_progress,
    parse_pipeline,
    print_pipeline,
)


def load(
    path: str | Path,
    *,
    target: str | None = None,
    overrides: Sequence[str] = (),
    costs: bool = True,
    initial: bool = False,
) -> CompiledModel:
    """Load a program to run it: an artifact (folder or zip), or an ``.imc`` file of any phase.

    Nothing in it is executed. For an ``.imc`` file, target, signature and calibration data come
    from the files that ``--dump-phases`` wrote beside it; one that stands alone needs ``target``.
    With ``costs`` it is costed by the passes that it still lacks, on a copy; without, its report is
    empty. An artifact that adapted on line runs as adapted, or with ``initial`` as it was before.
    Raises ``ARTIFACT`` for what cannot be read.
    """
    if Path(path).suffix != ".imc":
        if target is not None or overrides:
            raise error(
                codes.USAGE,
                f"{path} is compiled for its own target",
                help="compile the model again for another one",
            )
        return load_artifact_model(Path(path), initial=initial)
    dump = Dump.read(Path(path))
    found = _target(dump, target, overrides)
    seed = dump.settings.seed if dump.settings is not None else 0
    start = start_of(dump, dump.module.name, None)
    made = CompiledModel(dump.module, dump.resources, found, start.signature, {}, seed=seed)
    if costs:
        backend = find_backend(found.backend)
        passes = _passes(dump, found, None)
        context = PassContext(
            resources=dump.resources,
            target=found,
            backend=backend,
            calibration=dump.calibration(),
            seed=seed,
            legality=backend.legal,
        )
        records = entry_point_costs(made, passes, context)
        made.report_data = report_data(made, start, print_pipeline(passes), records, None, ())
    return made


def resume(
    path: str | Path,
    *,
    target: str | None = None,
    overrides: Sequence[str] = (),
    passes: str | None = None,
    seed: int | None = None,
    calibration: Any = None,
    to: str | None = None,
    dump_phases: str | Path | None = None,
    instruments: Sequence[Instrument] = (),
    timing: Timing | None = None,
    progress: Progress = no_progress,
) -> CompiledModel:
    """Go on from the dump of a phase to the end, or to the phase ``to``.

    The numbers are those of the compilation that wrote the dump, bit for bit, given the same
    target, seed and calibration data; these come from the dump's folder where the arguments do not
    say otherwise. Only the passes after the dump's phase run, so calibration data (a list of input
    tuples) is needed only where one of those asks for it. There is no accuracy in the report: the
    evaluation data is the model file's, see ``start`` of :class:`CompileOptions`.
    """
    dump = Dump.read(Path(path))
    found = _target(dump, target, overrides)
    start = start_of(dump, dump.settings.model if dump.settings else dump.module.name, None)
    if seed is None:
        seed = dump.settings.seed if dump.settings is not None else 0
    if calibration is None:
        batches = dump.calibration()
    else:
        batches = [
            tuple(start.signature.tensors(batch)) for batch in calibration_batches(calibration)
        ]
    options = CompileOptions(
        found.name,
        seed=seed,
        to=to,
        dump_phases=Path(dump_phases) if dump_phases is not None else None,
        instruments=tuple(instruments),
    )
    pipeline = _passes(dump, found, passes)
    return finish(start, found, pipeline, batches, options, None, timing or Timing(), progress)


def _target(dump: Dump, name: str | None, overrides: Sequence[str]) -> Target:
    if name is not None:
        return find_target(name, overrides)
    if dump.target is None:
        raise error(
            codes.USAGE,
            f"{dump.path} does not say which target it is for",
            help="give one with --target NAME (in Python target=...); dumps in a folder of "
            "--dump-phases need none",
        )
    if overrides:
        return find_target(dump.path.parent / f"{dump.target.name}.toml", overrides)
    return dump.target


def _passes(dump: Dump, target: Target, given: str | None) -> tuple[Pass, ...]:
    """The pipeline: given, that of the dump's folder, or the target's own."""
    if given is None and dump.settings is not None and dump.target is not None:
        same = dump.target.sha256 == target.sha256
        given = dump.settings.pipeline if same else None
    return parse_pipeline(
        given if given is not None else find_backend(target.backend).pipeline(target)
    )
