"""What passes are made of and run by: base class, registry, pipelines, context, instruments."""

from imcc.passes.infrastructure.base import (
    Approximate,
    Contract,
    Exact,
    Pass,
    WithinTolerance,
    option,
)
from imcc.passes.infrastructure.context import NO_CALIBRATION, PassContext, Progress, no_progress
from imcc.passes.infrastructure.instruments import (
    CrashReproducer,
    Instrument,
    NumberedDumps,
    PrintAfterChange,
    VerifyEach,
)
from imcc.passes.infrastructure.phases import (
    begin,
    by_phase,
    known_phase,
    passes_after,
    passes_until,
)
from imcc.passes.infrastructure.pipeline import (
    PassRecord,
    parse_pipeline,
    print_pipeline,
    run_pipeline,
)
from imcc.passes.infrastructure.registry import find_pass, pass_names
from imcc.passes.infrastructure.timing import Span, Timing

__all__ = [
    "NO_CALIBRATION",
    "Approximate",
    "Contract",
    "CrashReproducer",
    "Exact",
    "Instrument",
    "NumberedDumps",
    "Pass",
    "PassContext",
    "PassRecord",
    "PrintAfterChange",
    "Progress",
    "Span",
    "Timing",
    "VerifyEach",
    "WithinTolerance",
    "begin",
    "by_phase",
    "find_pass",
    "known_phase",
    "no_progress",
    "option",
    "parse_pipeline",
    "pass_names",
    "passes_after",
    "passes_until",
    "print_pipeline",
    "run_pipeline",
]
