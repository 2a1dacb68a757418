"""Pass ``roll-time-loops``: copies of one time step become one computation over a time axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError
from imcc.ir.dialects import core, nn, snn
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Function, Module
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.passes.dead_code import DeadCode
from imcc.passes.infrastructure import Pass, PassContext, WithinTolerance
from imcc.passes.time.lifting import NotLiftedError, lift, new_axis

AnyOp = TypeVar("AnyOp", bound=Op)
Step: TypeAlias = snn.LeakyIntegrateAndFire | snn.LeakyIntegrator


@dataclass(frozen=True)
class RollTimeLoops(Pass):
    """Give a network whose time loop was unrolled its time axis back.

    Before: ``%s0, %v0 = snn.lif %x0``, ``%s1, %v1 = snn.lif %x1, start=%v0`` ... for each step,
    with the layers between copied as often. After: one op of each kind over ``[T, ...]``, and one
    ``snn.lif`` that starts once. What is the same in each step is computed once and repeated; a
    stack of the steps is the tensor itself, a chain of additions a sum over the axis.

    Where the input of a step depends on what the same neuron fired before, the steps mix and stay
    apart, with a warning that says so. Sums over the steps may round in another order.
    """

    name: ClassVar[str] = "roll-time-loops"
    contract: ClassVar[WithinTolerance] = WithinTolerance(1e-5)

    def run(self, module: Module, context: PassContext) -> None:
        """Roll every function that holds single steps of neurons."""
        rewriter = context.rewriter(module, self.name)
        rolled = False
        for function in module.functions.values():
            if any(_is_step(op) for op in function.ops):
                rolled = _Roller(function, rewriter, context).run() or rolled
        if rolled:
            DeadCode().run(module, context)


def _is_step(op: Op | None) -> bool:
    return isinstance(op, (snn.LeakyIntegrateAndFire, snn.LeakyIntegrator)) and not op.time_axis


class _Roller:
    def __init__(self, function: Function, rewriter: Rewriter, context: PassContext) -> None:
        self.function = function
        self.rewriter = rewriter
        self.context = context
        self.place: dict[Op, tuple[int, int]] = {}
        self.made = 0
        self.known: dict[tuple[Value, ...], Value] = {}
        self.reasons: dict[tuple[Value, ...], str] = {}

    def run(self) -> bool:
        """Roll what can be rolled; returns whether anything was."""
        self._merge_copies()
        chains = list(self._chains())
        if not chains:
            return False
        self.place = {op: (index, 0) for index, op in enumerate(self.function.ops)}
        lengths = {len(chain) for chain in chains}
        rolled = False
        for chain in chains:
            reason = self._roll(chain)
            rolled = rolled or reason is None
            if reason is not None:
                self._explain(chain, reason)
        if rolled:
            for op in list(self.function.ops):
                if op.parent is None:
                    continue
                if isinstance(op, core.Concat):
                    self._stack(op)
                elif isinstance(op, core.Add):
                    self._sum(op, lengths)
        return rolled

    # -- finding ---------------------------------------------------------------------------------

    def _merge_copies(self) -> None:
        """Ops that compute the same from the same become one."""
        first: dict[Any, Op] = {}
        for op in list(self.function.ops):
            if op.terminator or op.draws or op.writes:
                continue
            key = (op.name, _operand_key(op), tuple(op.attributes.items()))
            kept = first.setdefault(key, op)
            if kept is not op:
                for old, new in zip(op.results, kept.results, strict=True):
                    self.rewriter.replace_uses(old, new)
                self.rewriter.erase(op, note="computed already")

    def _chains(self) -> Iterator[list[Step]]:
        """Neurons that take each other's state, step by step, at least two of them."""
        following: dict[Op, Op] = {}
        for op in self.function.ops:
            if not _is_step(op):
                continue
            start: Value | None = op.start  # type: ignore[attr-defined]
            source = start.owner if start is not None else None
            if source is None or not _is_step(source):
                continue
            if _same_neuron(source, op) and start is source.results[1]:
                following.setdefault(source, op)
        later = set(following.values())
        for op in list(self.function.ops):
            if _is_step(op) and op not in later:
                chain: list[Any] = [op]
                while chain[-1] in following:
                    chain.append(following[chain[-1]])
                if len(chain) > 1:
                    yield chain

    # -- rolling ---------------------------------------------------------------------------------

    def _roll(self, chain: list[Step]) -> str | None:
        """Replace the steps of one neuron by one op; returns why not."""
        head = chain[0]
        mixed = _mixes(chain)
        if mixed:
            return mixed
        try:
            x = self._lifted(tuple(op.x for op in chain), head, set())
        except NotLiftedError as wrong:
            return str(wrong)
        operands = {spec.name: getattr(head, spec.name) for spec in type(head).spec().operands}
        operands["x"] = x
        late = [value for value in operands.values() if value and not self._before(value, head)]
        if late:
            return "its parameters are computed within the loop"
        attributes: Any = {**head.attributes, "time_axis": True}
        made = type(head)(**operands, **attributes, scope=head.scope, loc=head.loc)
        self._insert(head, made)
        for result, values in zip(
            made.results, zip(*(op.results for op in chain), strict=True), strict=True
        ):
            self._hand_out(head, result, values)
        for op in reversed(chain):
            self.rewriter.erase(op, note="a step of the neuron over time")
        return None

    def _hand_out(self, anchor: Op, result: Value, values: Sequence[Value]) -> None:
        """Redirect what reads single steps to slices of the result."""
        self.known[tuple(values)] = result
        for step, value in enumerate(values):
            if value.users:
                cut = core.Slice(x=result, axis=0, start=step, stop=step + 1)
                self._insert(anchor, cut)
                kept = core.Reshape(x=cut.y, shape=tensor(value).shape)
                self._insert(anchor, kept)
                self.rewriter.replace_uses(value, kept.y)

    def _lifted(
        self, values: tuple[Value, ...], anchor: Op, active: set[tuple[Value, ...]]
    ) -> Value:
        """One value that holds ``values`` along a new axis 0, computed in front of ``anchor``."""
        known = self.known.get(values)
        if known is not None and self._before(known, anchor):
            return known
        if values in active:
            raise NotLiftedError("the steps depend on each other")
        active.add(values)
        made = self._found(values, anchor) or self._computed(values, anchor, active)
        active.discard(values)
        self.known[values] = made
        return made

    def _found(self, values: tuple[Value, ...], anchor: Op) -> Value | None:
        """The same value in each step, or the steps of a tensor."""
        first = values[0]
        if all(value is first for value in values):
            shape = (len(values), *tensor(first).shape)
            return self._insert(anchor, core.Expand(x=self._there(first, anchor), shape=shape)).y
        cuts = [_cut(value) for value in values]
        if any(cut is None for cut in cuts):
            return None
        sources = {(cut[0], cut[1]) for cut in cuts if cut}
        starts = [cut[2] for cut in cuts if cut]
        stride = starts[1] - starts[0]
        if (
            len(sources) > 1
            or stride < 1
            or any(start != starts[0] + stride * step for step, start in enumerate(starts))
        ):
            return None
        source, axis = sources.pop()
        if not self._before(source, anchor):
            return None
        made = source
        if (starts[0], stride, len(starts)) != (0, 1, tensor(source).shape[axis]):
            cut = core.Slice(x=source, axis=axis, start=starts[0], stop=starts[-1] + 1, step=stride)
            made = self._insert(anchor, cut).y
        if axis:
            axes = (axis, *(item for item in range(tensor(made).rank) if item != axis))
            made = self._insert(anchor, core.Permute(x=made, axes=axes)).y
        return made

    def _computed(
        self, values: tuple[Value, ...], anchor: Op, active: set[tuple[Value, ...]]
    ) -> Value:
        """The op that computes each of the values, over the axis."""
        owners = [value.owner for value in values]
        first = owners[0]
        if first is None or any(op is None for op in owners):
            raise NotLiftedError("a step reads an input of its own")
        ops: list[Op] = [op for op in owners if op is not None]
        if any(type(op) is not type(first) or op.attributes != first.attributes for op in ops):
            raise NotLiftedError(f"{_shown(ops)} differ between the steps")
        if _is_step(first):
            raise NotLiftedError("a neuron before it stays step by step")
        if isinstance(first, core.Constant) or first.draws or first.writes:
            raise NotLiftedError(f"{first.name} is not the same in each step")
        index = [op.results.index(value) for op, value in zip(ops, values, strict=True)]
        if len(set(index)) > 1:
            raise NotLiftedError("the steps use different results of an op")
        operands: dict[str, Any] = {}
        lifted: set[Value] = set()

        def over_time(items: tuple[Value | None, ...]) -> Value | None:
            if items[0] is None or any(item is None for item in items):
                return None
            given = tuple(item for item in items if item is not None)
            if all(item is given[0] for item in given):
                return self._there(given[0], anchor)
            made = self._lifted(given, anchor, active)
            lifted.add(made)
            return made

        for spec in type(first).spec().operands:
            held = [getattr(op, spec.name) for op in ops]
            if spec.variadic:
                operands[spec.name] = tuple(over_time(items) for items in zip(*held, strict=True))
            else:
                operands[spec.name] = over_time(tuple(held))
        try:
            made = lift(first, operands, frozenset(lifted), new_axis(len(values)))
        except DiagnosticError as wrong:
            raise NotLiftedError(f"{first.name}: {wrong.diagnostics[0].message}") from None
        except NotLiftedError as wrong:
            raise NotLiftedError(f"{first.name} {wrong}") from None
        for op in made:
            self._insert(anchor, op)
        return made[-1].results[index[0]]

    # -- what reads the steps --------------------------------------------------------------------

    def _stack(self, op: core.Concat) -> None:
        """A stack of the steps is the tensor over time."""
        inner = [value.owner for value in op.inputs]
        rank = tensor(op.y).rank
        axis = op.axis % rank
        values: list[Value] = []
        for piece, item in zip(op.inputs, inner, strict=True):
            if not isinstance(item, core.Reshape) or tensor(piece).shape[axis] != 1:
                return
            shape = tensor(piece).shape
            if tensor(item.x).shape != shape[:axis] + shape[axis + 1 :]:
                return
            values.append(item.x)
        if len(values) < 2:
            return
        try:
            made = self._lifted(tuple(values), op, set())
        except NotLiftedError as wrong:
            self.rewriter.refuse(op, str(wrong))
            return
        if axis:
            axes = (*range(1, axis + 1), 0, *range(axis + 1, rank))
            made = self._insert(op, core.Permute(x=made, axes=axes)).y
        if made.type is op.y.type:
            self.rewriter.replace(op, [], made, note="a stack of steps")

    def _sum(self, op: core.Add, lengths: set[int]) -> None:
        """A chain of additions over the steps is a sum."""
        if any(isinstance(user, core.Add) for user in op.y.users):
            return
        terms = [value for value in _terms(op) if not self._is_zero(value)]
        if len(terms) not in lengths or all(term is terms[0] for term in terms):
            return
        if any(tensor(term).shape != tensor(op.y).shape for term in terms):
            return
        try:
            x = self._lifted(tuple(terms), op, set())
        except NotLiftedError as wrong:
            self.rewriter.refuse(op, str(wrong))
            return
        made = nn.Sum(x=x, axes=(-tensor(x).rank,))
        self.place[made] = self.place[op]
        self.rewriter.replace(op, [made], made.y, note="a sum over the steps")

    def _is_zero(self, value: Value) -> bool:
        source = value.owner
        resources = self.context.resources
        if not isinstance(source, core.Constant) or resources is None:
            return False
        if source.value not in resources or tensor(value).rank:
            return False
        return bool((resources.get(source.value) == 0).all())

    # -- order -----------------------------------------------------------------------------------

    def _insert(self, anchor: Op, op: AnyOp) -> AnyOp:
        self.made += 1
        self.rewriter.insert_before(anchor, op)
        # Inserted ops stand in front of the anchor, in the order in which they were made.
        self.place[op] = (self.place[anchor][0], self.made - (1 << 60))
        return op

    def _before(self, value: Value, anchor: Op) -> bool:
        owner = value.owner
        return owner is None or self.place[owner] < self.place[anchor]

    def _there(self, value: Value, anchor: Op) -> Value:
        """The value, if it is computed in front of the anchor; constants are moved there."""
        if self._before(value, anchor):
            return value
        source = value.owner
        if isinstance(source, core.Constant):
            copy = core.Constant.of(source.value, tensor(value), value.name, source.scope)
            made: Value = self._insert(anchor, copy).y
            return made
        raise NotLiftedError("a value that every step reads is computed within the loop")

    def _explain(self, chain: list[Step], reason: str) -> None:
        head = chain[0]
        self.rewriter.refuse(head, reason)
        self.context.warnings.append(
            Diagnostic(
                codes.STEPS,
                f"the {len(chain)} time steps of {head.scope or head.name} stay apart",
                severity="warning",
                model=head.loc,
                scope=head.scope,
                reason=reason,
            )
        )


def _operand_key(op: Op) -> tuple[Any, ...]:
    held = op.__dict__
    return tuple(
        tuple(map(id, value)) if isinstance(value := held[spec.name], tuple) else id(value)
        for spec in type(op).spec().operands
    )


def _same_neuron(left: Op, right: Op) -> bool:
    """Whether two steps are of one neuron: all but the start is the same."""
    if type(left) is not type(right):
        return False
    given = [{**op.attributes, "v_init": 0.0} for op in (left, right)]
    names = [spec.name for spec in type(left).spec().operands if spec.name not in ("x", "start")]
    return given[0] == given[1] and all(
        getattr(left, name) is getattr(right, name) for name in names
    )


def _mixes(chain: list[Step]) -> str | None:
    """Why the second step needs results of the first other than its state, if it does."""
    first, second = chain[0], chain[1]
    seen: set[Op] = set()
    work = [second.x]
    while work:
        op = work.pop().owner
        if op is first:
            return "the steps mix: the input of a step depends on what the neuron did before"
        if op is not None and op not in seen:
            seen.add(op)
            work.extend(op.operands)
    return None


def _cut(value: Value) -> tuple[Value, int, int] | None:
    """(source, axis, index) of a value that is one step of a tensor: ``x[:, index]``."""
    inner = value.owner
    if not isinstance(inner, core.Reshape) or not isinstance(inner.x.owner, core.Slice):
        return None
    cut = inner.x.owner
    axis = cut.axis % tensor(cut.x).rank
    shape = tensor(cut.y).shape
    if not (isinstance(cut.start, int) and cut.stop == cut.start + 1):
        return None
    if tensor(value).shape != shape[:axis] + shape[axis + 1 :]:
        return None
    return cut.x, axis, cut.start


def _terms(op: core.Add) -> list[Value]:
    terms: list[Value] = []
    for value in (op.a, op.b):
        inner = value.owner
        if isinstance(inner, core.Add) and len(value.users) == 1:
            terms.extend(_terms(inner))
        else:
            terms.append(value)
    return terms


def _shown(ops: Sequence[Op]) -> str:
    return " and ".join(sorted({op.name for op in ops}))
