"""From a program at the end of a phase to a compiled model: passes, cost, evaluation, report."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imcc._version import __version__
from imcc.backends.api import Target, find_backend
from imcc.driver.compiled import CompiledModel
from imcc.driver.data import fit_batches
from imcc.driver.estimation import Estimates
from imcc.driver.evaluation import CheckAccuracy, Evaluated, evaluate_accuracy
from imcc.driver.options import CompileOptions
from imcc.driver.phase_folder import Dump, PhaseFolder
from imcc.driver.signature import Signature
from imcc.driver.simulation import Simulations
from imcc.driver.test_set import TestSet
from imcc.ir import codes
from imcc.ir.cost import SCHEMA_VERSION, CostRecord
from imcc.ir.diagnostics import Diagnostic, error
from imcc.ir.module import PHASES, Module
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.verifier import verify
from imcc.passes.infrastructure import (
    Instrument,
    Pass,
    PassContext,
    Progress,
    Timing,
    begin,
    no_progress,
    passes_after,
    passes_until,
    print_pipeline,
    run_pipeline,
)
from imcc.runtime.artifact import WEIGHTS
from imcc.runtime.executor import Executor
from imcc.runtime.history import HistoryRecorder


@dataclass(frozen=True)
class Start:
    """Where a compilation starts: a program at the end of a phase, and how it is called.

    ``reference`` is the program as captured, which float accuracy and estimates rest on.
    """

    module: Module
    resources: ResourceStore
    signature: Signature
    reference: Module
    reference_resources: ResourceStore
    model: str
    file: str | None
    warnings: tuple[Diagnostic, ...] = ()
    dump: Dump | None = None


def start_of(dump: Dump, name: str, file: str | None) -> Start:
    """Start from a dump, with the program as captured from the same folder if it is there."""
    captured = dump.captured()
    return Start(
        dump.module,
        dump.resources,
        dump.signature(),
        captured.module,
        captured.resources,
        name,
        file,
        dump=dump,
    )


def finish(
    start: Start,
    target: Target,
    passes: Sequence[Pass],
    batches: list[tuple[Any, ...]] | None,
    options: CompileOptions,
    test_set: TestSet | None,
    timing: Timing,
    progress: Progress,
) -> CompiledModel:
    """Run the passes that are left, as far as the options say, then cost, evaluate and report."""
    backend = find_backend(target.backend)
    until = passes if options.to is None else passes_until(passes, options.to)
    module, resources = start.module.clone(), start.resources.copy()
    verify(module)
    _fits(start, target)
    if batches is not None:
        batches = fit_batches(batches, module.function())
    for function in module.functions.values():
        function.target = target.name
    context = PassContext(
        resources=resources,
        target=target,
        backend=backend,
        calibration=batches,
        seed=options.seed,
        progress=progress,
        legality=backend.legal,
        timing=timing,
    )
    context.estimator = Estimates(context)
    context.simulator = Simulations(context)
    recorder = HistoryRecorder(module)
    watching: list[Instrument] = [recorder, *options.instruments]
    folder: PhaseFolder | None = None
    if options.dump_phases is not None:
        folder = PhaseFolder(
            options.dump_phases,
            passes,
            target=target,
            seed=options.seed,
            signature=start.signature,
            model=start.model,
            file=start.file,
            inputs=[value.name for value in module.function().inputs],
            calibration=batches,
            resumed=start.dump,
        )
        watching.append(folder)
        if module.phase == "captured":
            folder.write(module, resources)
    checked: CheckAccuracy | None = None
    if options.check and test_set is not None:
        checked = CheckAccuracy(test_set, start.signature, options.seed)
        watching.append(checked)
    left = passes_after(passes, module.phase)
    todo = [item for item in until if any(item is other for other in left)]
    if options.to != "captured":
        begin(module, context)
    with timing.span("passes"):
        records = run_pipeline(module, todo, context, instruments=watching)
    context.rewriter(module, "driver").set_resource_file(WEIGHTS)
    # As they are here: passes that only the cost needs measure for themselves.
    measured = copy.deepcopy(context.measurements)
    made = CompiledModel(
        module,
        resources,
        target,
        start.signature,
        {},
        tuple(records),
        seed=options.seed,
        history=recorder.history(),
    )
    with timing.span("cost"):
        costs = entry_point_costs(made, passes, context)
    accuracy: Evaluated | None = None
    if test_set is not None:
        with timing.span("evaluate"):
            accuracy = evaluate_accuracy(
                Executor(start.reference, start.reference_resources),
                made,
                backend,
                test_set,
                trials=options.trials,
                seed=options.seed,
                sweep=options.sweep,
                progress=progress,
            )
    warnings = [*start.warnings, *context.warnings]
    report = report_data(made, start, print_pipeline(passes), costs, accuracy, warnings)
    report["measurements"] = measured
    if checked is not None:
        report["accuracy"]["passes"] = [item.to_json() for item in checked.steps]
    made.report_data = report
    return made


def _fits(start: Start, target: Target) -> None:
    """Refuse to go on for another target than the one that the dump was mapped to."""
    settings = start.dump.settings if start.dump is not None else None
    mapped = PHASES.index(start.module.phase) >= PHASES.index("mapped")
    if settings is None or not mapped or settings.target_sha256 == target.sha256:
        return
    raise error(
        codes.PASS_REQUIRES,
        f"the dump is {start.module.phase} for the target {settings.target!r}, and this target "
        "differs from it",
        help="resume from the phase 'optimized', or with the target of the dump's folder",
    )


def entry_point_costs(
    made: CompiledModel, passes: Sequence[Pass], context: PassContext
) -> dict[str, CostRecord]:
    """Cost of each entry point, after the passes that a program of an earlier phase still lacks."""
    backend = find_backend(made.target.backend)
    left = passes_after(passes, made.module.phase)
    module = made.module
    if left:
        module = module.clone()
        inner = dataclasses.replace(
            context, resources=made.resources.copy(), warnings=[], progress=no_progress
        )
        begin(module, inner)
        run_pipeline(module, left, inner)
    return {name: backend.cost(module, name, made.target) for name in module.functions}


def report_data(
    made: CompiledModel,
    start: Start,
    pipeline: str,
    costs: Mapping[str, CostRecord],
    accuracy: Evaluated | None,
    warnings: Sequence[Diagnostic],
) -> dict[str, Any]:
    """The report of a program; ``docs/reference/report-schema.md`` describes it."""
    points = {name: cost.to_json() for name, cost in costs.items()}
    main = points["inference"]
    return {
        "schema_version": SCHEMA_VERSION,
        "imcc_version": __version__,
        "model": {"name": start.model, "file": start.file},
        "targets": [
            {
                "name": made.target.name,
                "backend": made.target.backend,
                "sha256": made.target.sha256,
            }
        ],
        "seed": made.seed,
        "phase": made.module.phase,
        "pipeline": pipeline,
        "passes": [
            {"pass": item.text, "seconds": item.seconds, "changes": len(item.journal.changes)}
            for item in made.records
        ],
        "energy_pj": main["energy_pj"],
        "latency_ns": main["latency_ns"],
        "area_um2": main["area_um2"],
        "resources": main["resources"],
        "entry_points": points,
        "accuracy": accuracy.to_json() if accuracy is not None else None,
        "warnings": [item.to_json() for item in warnings],
        "signature": made.signature.to_json(),
    }
