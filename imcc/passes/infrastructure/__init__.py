"""What passes are made of and run by: base class, registry, pipelines, context, instruments."""

from imcc.passes.infrastructure.base import (
    Approximate,
    Contract,
    Exact,
    Pass,
    WithinTolerance,
    option,
)
from imcc.passes.infrastructure.context import PassContext, Progress, no_progress
from imcc.passes.infrastructure.pipeline import (
    PassRecord,
    parse_pipeline,
    print_pipeline,
    run_pipeline,
)
from imcc.passes.infrastructure.registry import find_pass, pass_names

__all__ = [
    "Approximate",
    "Contract",
    "Exact",
    "Pass",
    "PassContext",
    "PassRecord",
    "Progress",
    "WithinTolerance",
    "find_pass",
    "no_progress",
    "option",
    "parse_pipeline",
    "pass_names",
    "print_pipeline",
    "run_pipeline",
]
