"""What a function would cost: mapped by the target's own pipeline on a copy, remembered by content.

Passes and searches ask through ``context.estimate``; many of them ask for the same program again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field

from imcc.backends.api import Activity, Target, find_backend
from imcc.ir import codes
from imcc.ir.cost import CostRecord
from imcc.ir.diagnostics import error
from imcc.ir.module import Function, Module, clone_function
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.text.printer import print_function
from imcc.passes.infrastructure import (
    PassContext,
    Timing,
    begin,
    no_progress,
    parse_pipeline,
    passes_after,
    run_pipeline,
)


@dataclass
class Estimates:
    """The estimator of a run. ``context`` provides weights and calibration data, where needed.

    A function is costed by what ``Backend.cost_pipeline`` says, which leaves numbers out where
    costs do not rest on them. Results are kept by a hash over the function's text, the types of
    its resources, the target and the kind of activity.
    """

    context: PassContext
    known: dict[str, CostRecord] = field(default_factory=dict)

    def __call__(self, function: Function, target: Target | None, activity: str) -> CostRecord:
        """Cost of one call; raises a diagnostic for what the target cannot run."""
        wanted = target if target is not None else self.context.target
        if wanted is None:
            raise error(codes.PASS_REQUIRES, "this run has no target to estimate cost on")
        if activity not in ("assumed", "profiled", "measured"):
            raise error(codes.BAD_OPTION, f"there is no activity {activity!r}")
        asked: Activity = activity  # type: ignore[assignment]
        key = content_hash(function, wanted, asked)
        if key not in self.known:
            self.known[key] = self._estimate(function, wanted, asked)
        return self.known[key]

    def _estimate(self, function: Function, target: Target, activity: Activity) -> CostRecord:
        backend = find_backend(target.backend)
        copy = _alone(function)
        held = self.context.resources
        inner = dataclasses.replace(
            self.context,
            target=target,
            backend=backend,
            resources=held.copy() if held is not None else ResourceStore(),
            legality=backend.legal,
            progress=no_progress,
            warnings=[],
            measurements={},
            timing=Timing(),
        )
        passes = parse_pipeline(backend.cost_pipeline(target))
        if copy.phase not in ("captured", "optimized"):
            passes = passes_after(passes, copy.phase)
        begin(copy, inner)
        run_pipeline(copy, passes, inner)
        return backend.cost(copy, function.name, target, activity)


def content_hash(function: Function, target: Target, activity: Activity) -> str:
    """SHA-256 over everything that an estimate rests on."""
    module = function.module
    used = {str(name) for op in function.ops for name in op.symbols()}
    held = {
        name: str(resource.type)
        for name, resource in (module.resources if module is not None else {}).items()
        if name in used
    }
    sizes = dict(module.sizes) if module is not None else {}
    phase = module.phase if module is not None else ""
    parts = [print_function(function), phase, held, sizes, target.sha256, activity]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _alone(function: Function) -> Module:
    """A copy of the function in a module of its own, with what it refers to."""
    whole = function.module
    if whole is None:
        raise error(codes.STRUCTURE, f"@{function.name} belongs to no module")
    copy = Module(whole.name, phase=whole.phase)
    copy.sizes = dict(whole.sizes)
    copy.resources = dict(whole.resources)
    copy.states = dict(whole.states)
    copy.add_function(clone_function(function))
    return copy
