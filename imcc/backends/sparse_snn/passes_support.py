"""What the passes of sparse-SNN accelerators share."""

from __future__ import annotations

from imcc.backends.sparse_snn.target import SparseTarget
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.passes.infrastructure import PassContext


def sparse_target(name: str, context: PassContext) -> SparseTarget:
    """The context's target; raises a diagnostic if it is no sparse-SNN accelerator."""
    if not isinstance(context.target, SparseTarget):
        found = getattr(context.target, "backend", None)
        raise error(
            codes.PASS_REQUIRES,
            f"pass {name} needs a target of the backend 'sparse_snn', found {found!r}",
            help="give one with --target, for instance --target loas",
        )
    return context.target
