"""Pass ``leading-axes``: time and batch stay two axes; what each step repeats is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.dialects import core
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim, Monomial, product
from imcc.ir.module import Module
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter, apply_rules, rewrite_rule
from imcc.passes.dead_code import DeadCode
from imcc.passes.infrastructure import Exact, Pass, PassContext
from imcc.passes.time.lifting import DATA, NotLiftedError, lift, split_axis


@dataclass(frozen=True)
class LeadingAxes(Pass):
    """Undo the reshapes by which models fit time and batch into the one axis that torch wants.

    Before: ``reshape [T, B, ...] to [T*B, ...]``, a layer, ``reshape`` back. After: the layer on
    ``[T, B, ...]``. Merging sinks below the ops that follow it, splitting rises above those in
    front, until they meet. A tensor repeated along a new leading axis is repeated behind the layers
    that read it.
    """

    name: ClassVar[str] = "leading-axes"
    contract: ClassVar[Exact] = Exact()

    def run(self, module: Module, context: PassContext) -> None:
        """Apply the rules until none matches."""
        rewriter = context.rewriter(module, self.name)
        if apply_rules(
            module, (split_of_merged, sink_merging, raise_splitting, repeat_later), rewriter
        ):
            DeadCode().run(module, context)


def _merged(value: Value) -> tuple[Value, Dim, Dim] | None:
    """(source, outer, inner) of a value whose axis 0 is two of its source, one the batch."""
    op = value.owner
    if not isinstance(op, core.Reshape):
        return None
    shape, source = op.shape, tensor(op.x).shape
    if len(source) != len(shape) + 1 or len(source) < 2 or source[2:] != shape[1:]:
        return None
    outer, inner = source[0], source[1]
    if product((outer, inner)) != shape[0] or 1 in (outer, inner):
        return None
    if not any(isinstance(size, Monomial) and "B" in size.symbols for size in (outer, inner)):
        return None
    return op.x, outer, inner


@rewrite_rule(core.Reshape)
def split_of_merged(op: Op, rewriter: Rewriter) -> bool:
    """``reshape(reshape(x, [T*B, ...]), [T, B, ...])`` is ``reshape(x, [T, B, ...])``."""
    if not isinstance(op, core.Reshape):
        return False
    merged = _merged(op.x)
    if merged is None or op.shape[:2] != merged[1:]:
        return False
    if op.y.type is merged[0].type:
        rewriter.replace(op, [], merged[0])
        return True
    made = core.Reshape(x=merged[0], shape=op.shape)
    rewriter.replace(op, [made], made.y)
    return True


@rewrite_rule()
def sink_merging(op: Op, rewriter: Rewriter) -> bool:
    """An op on ``[T*B, ...]`` becomes the op on ``[T, B, ...]``, merged behind it."""
    if op.terminator or op.draws or op.writes or len(op.results) != 1:
        return False
    found = {merged[1:] for name, value in _data(op) if (merged := _merged(value)) is not None}
    if len(found) != 1 or (isinstance(op, core.Reshape) and _merged(op.y) is not None):
        return False
    ((outer, inner),) = found
    lifted: set[Value] = set()

    def split(name: str, value: Value) -> Value:
        merged = _merged(value) if name in DATA else None
        if merged is None:
            return value
        lifted.add(merged[0])
        return merged[0]

    made = _lifted(op, split, lifted, outer, inner, rewriter)
    if made is None:
        return False
    whole = core.Reshape(x=made[-1].result, shape=tensor(op.result).shape)
    rewriter.replace(op, [*made, whole], whole.y)
    return True


@rewrite_rule(core.Reshape)
def raise_splitting(op: Op, rewriter: Rewriter) -> bool:
    """``reshape(f(x), [B, T, ...])`` of ``[B*T, ...]`` is ``f(reshape(x, [B, T, ...]))``."""
    if not isinstance(op, core.Reshape):
        return False
    before = tensor(op.x).shape
    inner_op = op.x.owner
    if len(op.shape) != len(before) + 1 or len(op.shape) < 2 or op.shape[2:] != before[1:]:
        return False
    outer, inner = op.shape[0], op.shape[1]
    if 1 in (outer, inner) or inner_op is None or op.x.users != {op: 1}:
        return False
    if inner_op.draws or inner_op.writes or len(inner_op.results) != 1:
        return False
    if isinstance(inner_op, core.Constant) or _merged(op.x) is not None:
        return False
    cuts: list[Op] = []
    lifted: set[Value] = set()

    def split(name: str, value: Value) -> Value:
        shape = tensor(value).shape
        if name not in DATA or not shape or shape[0] != before[0]:
            return value
        cut = core.Reshape(x=value, shape=(outer, inner, *shape[1:]))
        cuts.append(cut)
        lifted.add(cut.y)
        return cut.y

    made = _lifted(inner_op, split, lifted, outer, inner, rewriter)
    if made is None or not cuts:
        return False
    rewriter.replace([inner_op, op], [*cuts, *made], made[-1].result)
    return True


@rewrite_rule()
def repeat_later(op: Op, rewriter: Rewriter) -> bool:
    """``f(expand(x))`` along a new leading axis is ``expand(f(x))``."""
    data = list(_data(op))
    if len(data) != 1 or op.terminator or op.draws or op.writes or len(op.results) != 1:
        return False
    name, value = data[0]
    repeat = value.owner
    if name != "x" or not isinstance(repeat, core.Expand) or op.name.startswith("snn."):
        return False
    source, shape = tensor(repeat.x).shape, repeat.shape
    if source[:1] != (1,) or source[1:] != shape[1:] or tensor(op.result).shape[:1] != shape[:1]:
        return False
    attributes = dict(op.attributes)
    if isinstance(op, core.Reshape):
        attributes["shape"] = (1, *op.shape[1:])
    elif op.name.startswith("core.") and op.name != "core.unary":
        return False
    operands = {spec.name: getattr(op, spec.name) for spec in type(op).spec().operands}
    operands["x"] = repeat.x
    made: Any = type(op)(**operands, **attributes, scope=op.scope, loc=op.loc)
    whole = tensor(op.result).shape
    if tensor(made.result).shape != (1, *whole[1:]):
        return False
    again = core.Expand(x=made.result, shape=whole)
    rewriter.replace(op, [made, again], again.y)
    return True


def _data(op: Op) -> list[tuple[str, Value]]:
    return [(spec.name, value) for spec, value in op.named_operands() if spec.name in DATA]


def _lifted(
    op: Op,
    split: Any,
    lifted: set[Value],
    outer: Dim,
    inner: Dim,
    rewriter: Rewriter,
) -> list[Op] | None:
    operands: dict[str, Any] = {}
    for spec in type(op).spec().operands:
        held = getattr(op, spec.name)
        if isinstance(held, tuple):
            operands[spec.name] = tuple(split(spec.name, value) for value in held)
        else:
            operands[spec.name] = None if held is None else split(spec.name, held)
    axis = split_axis(product((outer, inner)), outer, inner)
    try:
        return lift(op, operands, frozenset(lifted), axis)
    except (NotLiftedError, DiagnosticError) as wrong:
        rewriter.refuse(op, str(wrong).splitlines()[0])
        return None
