"""Find the first pass that broke its promise, by running the module before and after each one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from imcc.backends.api import find_backend
from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError, error
from imcc.ir.module import Module
from imcc.ir.rewriting import Change
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.infrastructure import Pass, PassContext, run_pipeline
from imcc.passes.infrastructure.instruments import is_pass_failure
from imcc.passes.infrastructure.reproducer import free_folder, write_reproducer
from imcc.runtime.executor import Executor
from imcc.runtime.promises import Measured, measure, relative_rms

SHOWN_CHANGES = 6


@dataclass(frozen=True)
class Checked:
    """One pass: its text and promise, what was measured, and how far results are from the first.

    ``measured`` is None where the pass, or the module after it, did not run; ``failure`` says why.
    """

    text: str
    promise: str
    changes: int
    measured: Measured | None
    total_relative_rms: float | None
    failure: str = ""

    @property
    def holds(self) -> bool:
        """Whether the pass kept its promise."""
        return self.measured is not None and self.measured.holds

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "pass": self.text,
            "promise": self.promise,
            "changes": self.changes,
            "holds": self.holds,
            "measured": self.measured.to_json() if self.measured is not None else None,
            "total_relative_rms": self.total_relative_rms,
            "failure": self.failure or None,
        }


@dataclass(frozen=True)
class Bisection:
    """The passes that ran, in order; the last one is the culprit if any is.

    ``touched`` are the culprit's changes, ``reproducer`` the folder that reruns it with
    ``command``.
    """

    passes: tuple[Checked, ...]
    touched: tuple[Change, ...] = ()
    reproducer: Path | None = None
    command: str = ""

    @property
    def culprit(self) -> Checked | None:
        """The first pass that broke its promise, or None."""
        return next((item for item in self.passes if not item.holds), None)

    def diagnostic(self) -> Diagnostic | None:
        """The verdict as an error, or None if every pass kept its promise."""
        found = self.culprit
        if found is None:
            return None
        measured = found.measured
        if measured is None:
            reason = found.failure
        else:
            reason = f"{measured.metric} is {measured.value:.6g}, promised is {measured.bound:g}"
            if measured.worst is not None:
                reason += f"; most at {measured.worst}"
        places = dict.fromkeys(place for change in self.touched for place in change.loc)
        return Diagnostic(
            codes.PROMISE,
            f"the pass {found.text} broke its promise ({found.promise})",
            model=tuple(places)[:SHOWN_CHANGES],
            window=self._window(),
            reason=reason,
            help=f"rerun it alone with\n{self.command}" if self.command else "",
        )

    def _window(self) -> str:
        lines: list[str] = []
        for change in self.touched[:SHOWN_CHANGES]:
            where = f" in @{change.function}" if change.function else ""
            lines.append(f"{change.rule}: {change.kind}{where}")
            lines.extend(f"- {text[:160]}" for text in change.before)
            lines.extend(f"+ {text[:160]}" for text in change.after)
        left = len(self.touched) - SHOWN_CHANGES
        if left > 0:
            lines.append(f"and {left} more changes")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        found = self.culprit
        return {
            "culprit": found.text if found is not None else None,
            "passes": [item.to_json() for item in self.passes],
            "touched": [
                {
                    "rule": change.rule,
                    "kind": change.kind,
                    "function": change.function,
                    "before": list(change.before),
                    "after": list(change.after),
                    "scope": change.scope,
                    "model": [str(place) for place in change.loc],
                }
                for change in self.touched
            ],
            "reproducer": str(self.reproducer) if self.reproducer is not None else None,
            "command": self.command or None,
        }


def bisect(
    module: Module,
    passes: Sequence[Pass],
    context: PassContext,
    inputs: Sequence[Tensor],
    *,
    reproducer: Path | None = None,
) -> Bisection:
    """Run ``passes`` on a copy of ``module`` until one breaks its promise about ``@inference``.

    Both sides run on ideal devices (no draws), which is what promises speak of. A pass that raises,
    or whose module no longer verifies or runs, is a culprit too; a diagnostic of the pass's own
    (data or a target that it lacks, an op that the target cannot run) is raised as it is.

    ``reproducer`` is the folder to write for the culprit; None takes ``imcc-bisect-PASS``, numbered
    if that exists.
    """
    if "inference" not in module.functions:
        raise error(
            codes.BAD_INPUT,
            "the module has no entry point @inference to run",
            help=f"its functions: {', '.join('@' + name for name in module.functions) or 'none'}",
        )
    held = module.clone()
    context.resources = (context.resources or ResourceStore()).copy()
    first = previous = _outputs(held, context, inputs)
    checked: list[Checked] = []
    for item in passes:
        before, resources = held.clone(), context.resources.copy()
        try:
            run_pipeline(held, (item,), context)
        except Exception as wrong:
            if isinstance(wrong, DiagnosticError) and not is_pass_failure(wrong):
                raise
            checked.append(Checked(str(item), str(item.promise()), 0, None, None, _failure(wrong)))
        else:
            if item.ideal_before:
                previous = _outputs(before, context, inputs, ideal=True)
            outputs, verdict = _check(item, held, context, inputs, first, previous)
            checked.append(verdict)
            previous = outputs
            if item.ideal_after and verdict.holds:
                previous = _outputs(held, context, inputs)
        if not checked[-1].holds:
            folder = reproducer or free_folder(f"imcc-bisect-{item.name}")
            touched = tuple(context.journal.changes)
            command = write_reproducer(
                folder,
                before,
                resources,
                item,
                context,
                inputs=inputs,
                reason=checked[-1].failure or str(checked[-1].measured),
            )
            return Bisection(tuple(checked), touched, folder, command)
    return Bisection(tuple(checked))


def _check(
    item: Pass,
    module: Module,
    context: PassContext,
    inputs: Sequence[Tensor],
    first: Sequence[Tensor],
    previous: Sequence[Tensor],
) -> tuple[list[Tensor], Checked]:
    """Outputs after the pass, and the verdict on it."""
    changes, promise = len(context.journal.changes), str(item.promise())
    try:
        outputs = _outputs(module, context, inputs, ideal=item.ideal_after)
    except DiagnosticError as wrong:
        reason = f"the module no longer runs: {_failure(wrong)}"
        return [], Checked(str(item), promise, changes, None, None, reason)
    measured = measure(item.promise(), previous, outputs)
    total = relative_rms(first, outputs) if _same_form(first, outputs) else None
    return outputs, Checked(str(item), promise, changes, measured, total)


def _outputs(
    module: Module, context: PassContext, inputs: Sequence[Tensor], *, ideal: bool = False
) -> list[Tensor]:
    target = context.target
    backend = find_backend(target.backend) if target is not None else None
    if ideal and backend is not None:
        module = backend.idealised(module, target)
    executor = Executor(module, context.resources or ResourceStore(), target, backend)
    return [output[0] for output in executor.run(inputs, noisy=False)]


def _same_form(first: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    return [(y.shape, y.dtype) for y in first] == [(y.shape, y.dtype) for y in outputs]


def _failure(wrong: Exception) -> str:
    if isinstance(wrong, DiagnosticError):
        return "; ".join(
            f"[{item.code.id}] {item.message}" + (f" ({item.reason})" if item.reason else "")
            for item in wrong.diagnostics
        )
    return f"it raised {type(wrong).__name__}: {wrong}"
