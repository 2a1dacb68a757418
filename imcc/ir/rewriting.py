"""The only way to change a program: :class:`Rewriter`, its journal, rules applied to a fixpoint.

The Rewriter keeps uses, gives new ops the common ancestor scope of the ops they replace, fuses
their locations, and writes what happened to a :class:`Journal` that reports and viewers read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from imcc.ir.attributes import ANNOTATIONS
from imcc.ir.diagnostics import Location
from imcc.ir.module import Function, FunctionResult, Module, Resource, State
from imcc.ir.ops import Op, Value
from imcc.ir.registry import load_dialect_of
from imcc.ir.text.printer import print_op
from imcc.ir.types import Type

AnyOp = TypeVar("AnyOp", bound=Op)
MAX_FUSED_LOCATIONS = 4


@dataclass(frozen=True)
class Change:
    """One step: the rule that made it, the function, ops before and after as text, user places."""

    rule: str
    kind: str
    function: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    scope: str = ""
    loc: tuple[Location, ...] = ()
    note: str = ""


@dataclass
class Journal:
    """All changes of one pass, in order, and the reasons of matches that a rule refused."""

    changes: list[Change] = field(default_factory=list)
    refusals: list[tuple[str, str, str]] = field(default_factory=list)
    """(rule, op text, reason)"""


def common_scope(scopes: Iterable[str]) -> str:
    """The longest dotted prefix that all scopes share."""
    parts: list[str] | None = None
    for scope in scopes:
        split = scope.split(".") if scope else []
        if parts is None:
            parts = split
            continue
        length = 0
        while length < min(len(parts), len(split)) and parts[length] == split[length]:
            length += 1
        parts = parts[:length]
    return ".".join(parts or [])


def fuse_locations(ops: Iterable[Op]) -> tuple[Location, ...]:
    """The distinct places of several ops in order, at most :data:`MAX_FUSED_LOCATIONS`."""
    seen = dict.fromkeys(place for op in ops for place in op.loc)
    return tuple(seen)[:MAX_FUSED_LOCATIONS]


class Rewriter:
    """Changes one module. ``rule`` names what is at work in the journal."""

    def __init__(self, module: Module, journal: Journal | None = None, rule: str = "") -> None:
        self.module = module
        self.journal = journal if journal is not None else Journal()
        self.rule = rule
        self.touched: list[Op] = []
        """Ops inserted or changed since a driver last looked; for worklists."""

    # -- ops -------------------------------------------------------------------------------------

    def insert_before(self, anchor: Op, op: AnyOp) -> AnyOp:
        """Insert a detached op in front of ``anchor``, inheriting its scope and places."""
        self._adopt(op, [anchor])
        _parent(anchor).insert(op, before=anchor)
        self._note("insert", anchor, (), (op,))
        self.touched.append(op)
        return op

    def insert_after(self, anchor: Op, op: AnyOp) -> AnyOp:
        """Insert a detached op right behind ``anchor``."""
        self._adopt(op, [anchor])
        _parent(anchor).insert(op, before=anchor.next)
        self._note("insert", anchor, (), (op,))
        self.touched.append(op)
        return op

    def append(self, function: Function, op: AnyOp) -> AnyOp:
        """Append a detached op at the end of a function under construction."""
        function.insert(op, before=None)
        self._note("insert", op, (), (op,))
        self.touched.append(op)
        return op

    def replace(
        self,
        old: Op | Sequence[Op],
        new: Sequence[Op],
        values: Value | Sequence[Value],
        note: str = "",
    ) -> None:
        """Replace ops: insert ``new`` (detached, in order) at the last of ``old``, redirect uses.

        ``values`` take the place of the results of the last old op; the other old ops are erased
        too where nothing uses them any more.
        """
        olds = [old] if isinstance(old, Op) else list(old)
        last = olds[-1]
        values = (values,) if isinstance(values, Value) else tuple(values)
        if len(values) != len(last.results):
            raise ValueError(f"{len(values)} values replace {len(last.results)} results")
        before = tuple(print_op(op) for op in olds)
        scope = common_scope(op.scope for op in olds)
        loc = fuse_locations(olds)
        for op in new:
            if not op.scope:
                op._set("scope", scope)
            if not op.loc:
                op._set("loc", loc)
            _parent(last).insert(op, before=last)
            self.touched.append(op)
        for result, value in zip(last.results, values, strict=True):
            self._redirect(result, value)
        function = _parent(last).name
        for op in reversed(olds):
            if not any(value.users for value in op.results):
                _parent(op).unlink(op)
        for result, value in zip(last.results, values, strict=True):
            if value.owner in new and result.name and last.parent is None:
                value.name = result.name
        after = tuple(print_op(op) for op in new)
        self.journal.changes.append(
            Change(self.rule, "replace", function, before, after, scope, loc, note)
        )

    def erase(self, op: Op, note: str = "") -> None:
        """Erase an op whose results are unused; raises ``ValueError`` if one is used."""
        used = [value.name for value in op.results if value.users]
        if used:
            raise ValueError(f"cannot erase {op.name}: %{used[0]} is used")
        text, function = print_op(op), _parent(op).name
        for value in op.operands:
            if value.owner is not None:
                self.touched.append(value.owner)
        _parent(op).unlink(op)
        self.journal.changes.append(
            Change(self.rule, "erase", function, (text,), (), op.scope, op.loc, note)
        )

    def replace_uses(self, old: Value, new: Value) -> None:
        """Redirect every use of ``old`` to ``new``."""
        users = list(old.users)
        before = tuple(print_op(op) for op in users)
        self._redirect(old, new)
        if users:
            self._note("redirect", users[0], before, users)

    def set_operand(self, op: Op, name: str, value: Value | Sequence[Value] | None) -> None:
        """Change one operand field of ``op``; a variadic field takes a sequence."""
        before = print_op(op)
        old = op.__dict__[name]
        for item in old if isinstance(old, tuple) else (old,) if old is not None else ():
            count = item.users.pop(op) - 1
            if count:
                item.users[op] = count
        made = tuple(value) if isinstance(value, Sequence) else value
        op._set(name, made)
        for item in made if isinstance(made, tuple) else (made,) if made is not None else ():
            item.users[op] = item.users.get(op, 0) + 1
        self._note("operand", op, (before,), (op,))
        self.touched.append(op)

    def set_attributes(self, op: Op, **attributes: Any) -> None:
        """Change declared attributes of ``op``; values are checked as in the constructor.

        Values that the op has already are no change.
        """
        before = print_op(op)
        spec = type(op).spec().attributes
        made = {name: spec[name].coerce(value) for name, value in attributes.items()}
        if all(getattr(op, name) == value for name, value in made.items()):
            return
        for name, value in made.items():
            op._set(name, value)
        self._note("attribute", op, (before,), (op,))
        self.touched.append(op)

    def annotate(self, op: Op, **annotations: Any) -> None:
        """Set annotations, written ``xbar__start_ns=1.0`` for ``xbar.start_ns``."""
        before = print_op(op)
        for name, value in annotations.items():
            key = name.replace("__", ".")
            load_dialect_of(key)
            if key not in ANNOTATIONS:
                raise ValueError(f"no dialect declares the annotation {key}")
            op.annotations[key] = ANNOTATIONS[key].kind.coerce(value)
        if print_op(op) == before:
            return
        self._note("annotate", op, (before,), (op,))

    # -- functions and module --------------------------------------------------------------------

    def add_argument(
        self, function: Function, value_type: Type, name: str = "", state: str | None = None
    ) -> Value:
        """Append an argument to a function."""
        value = function.add_argument(value_type, name, state)
        self._module_change("argument", function.name, f"%{value.name}: {value_type}")
        return value

    def remove_argument(self, function: Function, value: Value) -> None:
        """Take away an argument that nothing uses; raises ``ValueError`` if something does."""
        if value.users:
            raise ValueError(f"cannot remove %{value.name}: it is used")
        index = function.arguments.index(value)
        del function.arguments[index], function.argument_states[index]
        self._module_change("argument", function.name, f"removed %{value.name}")

    def set_results(self, function: Function, results: Iterable[FunctionResult]) -> None:
        """Declare the results of a function anew."""
        function.results = list(results)
        self._module_change("results", function.name, str(function.results))

    def set_target(self, function: Function, target: str | None) -> None:
        """Say which target a function is compiled for."""
        function.target = target
        self._module_change("target", function.name, str(target))

    def add_function(self, function: Function) -> Function:
        """Add a function to the module."""
        self._module_change("function", function.name, f"@{function.name}")
        return self.module.add_function(function)

    def add_resource(self, resource: Resource) -> Resource:
        """Declare a resource."""
        self._module_change("resource", "", f"@{resource.name} : {resource.type}")
        return self.module.add_resource(resource)

    def remove_resource(self, name: str) -> None:
        """Drop a resource that nothing refers to any more."""
        del self.module.resources[name]
        self._module_change("resource", "", f"removed @{name}")

    def add_state(self, state: State) -> State:
        """Declare a state."""
        self._module_change("state", "", f"@{state.name} : {state.type}")
        return self.module.add_state(state)

    def remove_state(self, name: str) -> None:
        """Drop a state that no function takes or gives."""
        del self.module.states[name]
        self._module_change("state", "", f"removed @{name}")

    def set_phase(self, phase: str) -> None:
        """Move the module to a phase; the verifier checks that it may stand there."""
        self.module.phase = phase
        self._module_change("phase", "", phase)

    def set_resource_file(self, name: str | None) -> None:
        """Name the file that holds the resources' bytes."""
        self.module.resource_file = name

    def discard(self, ops: Iterable[Op]) -> None:
        """Drop the uses of detached ops that were built and are not inserted after all."""
        for op in ops:
            for value in op.operands:
                value.users.pop(op, None)

    def refuse(self, op: Op, reason: str) -> None:
        """Record that the rule at work matched ``op`` but was refused, and why."""
        self.journal.refusals.append((self.rule, print_op(op), reason))

    # -- inside ----------------------------------------------------------------------------------

    def _redirect(self, old: Value, new: Value) -> None:
        if old is new:
            return
        for op in list(old.users):
            for declared in type(op).spec().operands:
                held = op.__dict__[declared.name]
                if held is old:
                    op._set(declared.name, new)
                elif declared.variadic and old in held:
                    op._set(declared.name, tuple(new if item is old else item for item in held))
            new.users[op] = new.users.get(op, 0) + old.users.pop(op)
            self.touched.append(op)

    def _adopt(self, op: Op, sources: Sequence[Op]) -> None:
        if not op.scope:
            op._set("scope", common_scope(source.scope for source in sources))
        if not op.loc:
            op._set("loc", fuse_locations(sources))

    def _note(self, kind: str, anchor: Op, before: Sequence[str], after: Sequence[Op]) -> None:
        function = anchor.parent.name if anchor.parent is not None else ""
        texts = tuple(print_op(op) for op in after)
        self.journal.changes.append(
            Change(self.rule, kind, function, tuple(before), texts, anchor.scope, anchor.loc)
        )

    def _module_change(self, kind: str, function: str, text: str) -> None:
        self.journal.changes.append(Change(self.rule, kind, function, (), (text,)))


def _parent(op: Op) -> Function:
    if op.parent is None:
        raise ValueError(f"{op.name} is not in a function")
    return op.parent


RewriteFunction = Callable[[Op, Rewriter], bool]
"""Tries to rewrite at ``op``; returns whether it changed anything."""


@dataclass(frozen=True)
class RewriteRule:
    """A named rewrite for the ops called ``ops`` (empty: every op)."""

    name: str
    ops: tuple[str, ...]
    apply: RewriteFunction


def rewrite_rule(*ops: str | type[Op]) -> Callable[[RewriteFunction], RewriteRule]:
    """Decorator: make a function ``(op, rewriter) -> bool`` a :class:`RewriteRule`."""

    def make(function: RewriteFunction) -> RewriteRule:
        names = tuple(op if isinstance(op, str) else op.name for op in ops)
        return RewriteRule(function.__name__.replace("_", "-"), names, function)

    return make


def apply_rules(module: Module, rules: Sequence[RewriteRule], rewriter: Rewriter) -> bool:
    """Apply rules until none changes anything; returns whether any did.

    A worklist holds ops that may have become rewritable. Raises ``RuntimeError`` if rules undo
    each other without end.
    """
    by_op: dict[str, list[RewriteRule]] = {}
    everywhere = [rule for rule in rules if not rule.ops]
    for rule in rules:
        for name in rule.ops:
            by_op.setdefault(name, []).append(rule)
    work = list(module.walk())
    work.reverse()
    budget = 100 * (len(work) + 10)
    changed = False
    outer = rewriter.rule
    while work:
        op = work.pop()
        for rule in (*by_op.get(op.name, ()), *everywhere):
            if op.parent is None:
                break
            rewriter.rule, rewriter.touched = f"{outer}/{rule.name}" if outer else rule.name, []
            if rule.apply(op, rewriter):
                changed = True
                budget -= 1
                if budget < 0:
                    raise RuntimeError(f"rewrite rules do not settle, last was {rule.name}")
                for item in rewriter.touched:
                    work.append(item)
                    for value in item.results:
                        work.extend(value.users)
                work.append(op)
    rewriter.rule = outer
    _forget_detached(module)
    return changed


def _forget_detached(module: Module) -> None:
    """Drop the uses of ops that a rule made before it refused, and that stand nowhere."""
    for function in module.functions.values():
        values = [*function.arguments, *(value for op in function.ops for value in op.results)]
        for value in values:
            for user in [user for user in value.users if user.parent is None]:
                del value.users[user]
