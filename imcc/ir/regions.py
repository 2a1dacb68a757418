"""Regions: the ops of a scope as a convex subgraph with its inputs and outputs.

Block-wise quantisation, attention reuse and on-line adaptation work on regions.
"""

from __future__ import annotations

from dataclasses import dataclass

from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError, nearest
from imcc.ir.module import Function
from imcc.ir.ops import Op, Value


@dataclass(frozen=True)
class Region:
    """Ops of ``scope`` in program order; ``inputs`` enter from outside, ``outputs`` leave."""

    scope: str
    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def region(function: Function, scope: str) -> Region:
    """The region of a scope such as ``"blocks.0"``.

    Raises :class:`DiagnosticError` if the scope has no ops, or if an op outside lies on a path
    from the region back into it (then the region is not convex); the diagnostic names that op.
    """
    prefix = scope + "."
    ops = [op for op in function.ops if op.scope == scope or op.scope.startswith(prefix)]
    if not ops:
        scopes = sorted({op.scope for op in function.ops if op.scope})
        raise DiagnosticError(
            Diagnostic(
                codes.STRUCTURE,
                f"no op of @{function.name} lies in the scope {scope!r}",
                suggestions=nearest(scope, scopes),
                help="scopes are the dotted module paths of the model",
            )
        )
    inside = set(ops)
    reached: set[Op] = set()
    for op in function.ops:
        sources = {value.owner for value in op.operands if value.owner is not None}
        if op in inside:
            bad = next((source for source in sources if source in reached), None)
            if bad is not None:
                raise DiagnosticError(
                    bad.diagnostic(
                        codes.STRUCTURE,
                        f"lies between ops of {scope!r}: the region is not convex",
                        help=f"choose a larger scope that contains {bad.scope!r} too",
                    )
                )
        elif sources & (inside | reached):
            reached.add(op)
    inputs: dict[Value, None] = {}
    outputs: dict[Value, None] = {}
    for op in ops:
        for value in op.operands:
            if value.owner not in inside:
                inputs[value] = None
        for value in op.results:
            if any(user not in inside for user in value.users):
                outputs[value] = None
    return Region(scope, tuple(ops), tuple(inputs), tuple(outputs))


def static_ops(function: Function) -> set[Op]:
    """Ops that compute the same in every call: constants, and what is made of them alone."""
    found: set[Op] = set()
    for op in function.ops:
        if not op.draws and not op.terminator and all(v.owner in found for v in op.operands):
            found.add(op)
    return found
