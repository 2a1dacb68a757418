"""Modules, functions, states and resources: what a program is made of.

A :class:`Module` holds resources (weights, out of line), states (values that outlive a call) and
functions. A :class:`Function` is one straight line of ops that ends in ``core.return``. Nothing
here changes a program except by building it: rewriting goes through
:class:`imcc.ir.rewriting.Rewriter`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from imcc.ir.diagnostics import Location
from imcc.ir.dims import Monomial
from imcc.ir.ops import Op, Value
from imcc.ir.types import TensorType, Type

FORMAT_VERSION = 1
"""Version of the text form; the first line of every file is ``// imc 1``."""

PHASES: tuple[str, ...] = ("captured", "optimized", "mapped", "placed", "scheduled")
"""Phases in order; :mod:`imcc.ir.phases` says what each may hold."""


@dataclass(frozen=True)
class Resource:
    """A constant tensor kept out of line: its type and the SHA-256 of its bytes (None: absent)."""

    name: str
    type: TensorType
    sha256: str | None = None
    text_loc: Location | None = field(default=None, compare=False)


@dataclass(frozen=True)
class State:
    """A value that outlives a call; ``init`` names the resource that it starts from, if any."""

    name: str
    type: Type
    init: str | None = None
    text_loc: Location | None = field(default=None, compare=False)


@dataclass(frozen=True)
class FunctionResult:
    """A declared result of a function; ``state`` names the state whose new value it is."""

    type: Type
    state: str | None = None


class Function:
    """A function: arguments, a straight line of ops, declared results.

    ``argument_states[i]`` names the state that argument ``i`` carries, or is None for an input.
    ``target`` names the hardware target the function is compiled for, once chosen. Ops form a
    doubly linked list, so that insertion and erasure cost the same wherever they happen.
    """

    def __init__(
        self,
        name: str,
        *,
        results: Iterable[FunctionResult] = (),
        target: str | None = None,
        text_loc: Location | None = None,
    ) -> None:
        self.name = name
        self.arguments: list[Value] = []
        self.argument_states: list[str | None] = []
        self.results: list[FunctionResult] = list(results)
        self.target = target
        self.text_loc = text_loc
        self.first: Op | None = None
        self.last: Op | None = None
        self.module: Module | None = None
        self._names: dict[str, int] = {}

    # -- reading ---------------------------------------------------------------------------------

    @property
    def ops(self) -> Iterator[Op]:
        """The ops in program order; the current op may be erased while iterating."""
        op = self.first
        while op is not None:
            following = op.next
            yield op
            op = following

    def __len__(self) -> int:
        return sum(1 for _ in self.ops)

    @property
    def terminator(self) -> Op | None:
        """The last op if it is a terminator."""
        return self.last if self.last is not None and self.last.terminator else None

    @property
    def inputs(self) -> list[Value]:
        """Arguments that are inputs of a call, not states."""
        return [
            value
            for value, state in zip(self.arguments, self.argument_states, strict=True)
            if state is None
        ]

    @property
    def fixed_batch(self) -> int | None:
        """The batch size where it is not free: axis 0 of the first input; None where it is."""
        shapes = [value.type.shape for value in self.inputs if isinstance(value.type, TensorType)]
        free = (isinstance(size, Monomial) for shape in shapes for size in shape[:2])
        if not shapes or any(free):
            return None
        size = shapes[0][0] if shapes[0] else 1
        return size if isinstance(size, int) else None

    def state_argument(self, state: str) -> Value | None:
        """The argument that carries ``state``, if the function takes it."""
        for value, name in zip(self.arguments, self.argument_states, strict=True):
            if name == state:
                return value
        return None

    def value_states(self) -> dict[Value, str]:
        """The state that a value carries: as an argument, or as what the function returns."""
        made: dict[Value, str] = {}
        last = self.terminator
        returned = zip(
            last.operands if last is not None else (),
            (item.state for item in self.results),
            strict=False,
        )
        for value, state in (
            *zip(self.arguments, self.argument_states, strict=True),
            *returned,
        ):
            if state is not None:
                made.setdefault(value, state)
        return made

    # -- building --------------------------------------------------------------------------------

    def add_argument(self, value_type: Type, name: str = "", state: str | None = None) -> Value:
        """Append an argument; returns its value."""
        value = Value(value_type, self.unique_name(name or state or "x"))
        self.arguments.append(value)
        self.argument_states.append(state)
        return value

    def append(self, op: Op) -> Op:
        """Append an op while the function is being built."""
        return self.insert(op, before=None)

    def insert(self, op: Op, before: Op | None) -> Op:
        """Link ``op`` in front of ``before`` (None: at the end). For builders and the Rewriter."""
        if op.parent is not None:
            raise ValueError(f"{op.name} is already in a function")
        previous = self.last if before is None else before.prev
        op._set("prev", previous)
        op._set("next", before)
        if previous is None:
            self.first = op
        else:
            previous._set("next", op)
        if before is None:
            self.last = op
        else:
            before._set("prev", op)
        op._set("parent", self)
        for value in op.results:
            value.name = self.unique_name(value.name)
        return op

    def unlink(self, op: Op) -> None:
        """Take ``op`` out and drop its uses. For the Rewriter."""
        if op.prev is None:
            self.first = op.next
        else:
            op.prev._set("next", op.next)
        if op.next is None:
            self.last = op.prev
        else:
            op.next._set("prev", op.prev)
        op._set("parent", None)
        for value in op.operands:
            count = value.users.pop(op, 0)
            if count > 1:
                value.users[op] = count - 1

    def unique_name(self, hint: str) -> str:
        """A value name not used in this function yet: the hint, or the hint with a number."""
        if not hint:
            number = self._names.get("", 0)
            while str(number) in self._names:
                number += 1
            self._names[""] = number + 1
            self._names[str(number)] = 0
            return str(number)
        if hint not in self._names:
            self._names[hint] = 0
            return hint
        while True:
            self._names[hint] += 1
            name = f"{hint}_{self._names[hint]}"
            if name not in self._names:
                self._names[name] = 0
                return name

    def __repr__(self) -> str:
        from imcc.ir.text.printer import print_function

        return print_function(self)


class Module:
    """A program: resources, states and functions under a name, in a phase.

    ``resource_file`` is the file name that holds the resources' bytes beside the text. ``sizes``
    are the sizes of symbols that costs are stated for, such as the sequence length ``{"S": 128}``;
    they bind nothing: a call takes any size. The batch counts as 1.
    """

    def __init__(
        self, name: str = "model", *, phase: str = "captured", resource_file: str | None = None
    ) -> None:
        self.name = name
        self.phase = phase
        self.resource_file = resource_file
        self.sizes: dict[str, int] = {}
        self.resources: dict[str, Resource] = {}
        self.states: dict[str, State] = {}
        self.functions: dict[str, Function] = {}
        self.source: str | None = None
        """The text the module was parsed from, for windows in diagnostics."""

    def add_function(self, function: Function) -> Function:
        """Add a function; raises ``ValueError`` if the name is taken."""
        if function.name in self.functions:
            raise ValueError(f"function @{function.name} exists")
        function.module = self
        self.functions[function.name] = function
        return function

    def add_resource(self, resource: Resource) -> Resource:
        """Add a resource; raises ``ValueError`` if the name stands for another one."""
        held = self.resources.get(resource.name)
        if held is not None and held != resource:
            raise ValueError(f"resource @{resource.name} exists with other contents")
        self.resources[resource.name] = resource
        return resource

    def add_state(self, state: State) -> State:
        """Add a state; raises ``ValueError`` if the name is taken."""
        if state.name in self.states:
            raise ValueError(f"state @{state.name} exists")
        self.states[state.name] = state
        return state

    def function(self, name: str = "inference") -> Function:
        """The function by name; raises ``KeyError``."""
        return self.functions[name]

    def walk(self) -> Iterator[Op]:
        """All ops of all functions in order."""
        for function in list(self.functions.values()):
            yield from function.ops

    def used_resources(self) -> set[str]:
        """Names of resources that an op or a state refers to."""
        used = {state.init for state in self.states.values() if state.init is not None}
        for op in self.walk():
            used.update(name for name in op.symbols() if name in self.resources)
        return used

    def clone(self) -> Module:
        """A deep copy, text places kept."""
        copy = Module(self.name, phase=self.phase, resource_file=self.resource_file)
        copy.source = self.source
        copy.sizes = dict(self.sizes)
        copy.resources = dict(self.resources)
        copy.states = dict(self.states)
        for function in self.functions.values():
            copy.add_function(clone_function(function))
        return copy

    def __repr__(self) -> str:
        from imcc.ir.text.printer import print_module

        return print_module(self)


def clone_function(function: Function, name: str | None = None) -> Function:
    """A copy of a function with its own values and ops."""
    copy = Function(
        name or function.name,
        results=function.results,
        target=function.target,
        text_loc=function.text_loc,
    )
    mapped: dict[Value, Value] = {}
    for value, state in zip(function.arguments, function.argument_states, strict=True):
        mapped[value] = copy.add_argument(value.type, value.name, state)
    for op in function.ops:
        mapped.update(zip(op.results, copy.append(clone_op(op, mapped)).results, strict=True))
    return copy


def clone_op(op: Op, mapped: dict[Value, Value]) -> Op:
    """A detached copy of ``op`` with operands replaced through ``mapped`` (absent: kept)."""
    operands: dict[str, object] = {}
    for declared in type(op).spec().operands:
        held = op.__dict__[declared.name]
        if declared.variadic:
            operands[declared.name] = tuple(mapped.get(value, value) for value in held)
        else:
            operands[declared.name] = None if held is None else mapped.get(held, held)
    made = type(op).build(
        operands,
        op.attributes,
        tuple(value.type for value in op.results),
        tuple(value.name for value in op.results),
        op.scope,
        op.loc,
    )
    made.annotations.update(op.annotations)
    made._set("text_loc", op.text_loc)
    return made


def structural_difference(left: Module, right: Module) -> str | None:
    """Where two modules first differ in meaning or names, or None if they are equal.

    Text places do not count; names, types, attributes, scopes and model places do.
    """
    for what in ("name", "phase", "sizes", "resource_file", "resources", "states"):
        if getattr(left, what) != getattr(right, what):
            return f"{what}: {getattr(left, what)!r} against {getattr(right, what)!r}"
    if list(left.functions) != list(right.functions):
        return f"functions: {list(left.functions)} against {list(right.functions)}"
    for name, function in left.functions.items():
        other = right.functions[name]
        signature = [
            (
                [(value.name, value.type) for value in item.arguments],
                item.argument_states,
                item.results,
                item.target,
            )
            for item in (function, other)
        ]
        if signature[0] != signature[1]:
            return f"signature of @{name}: {signature[0]} against {signature[1]}"
        ops, others = list(function.ops), list(other.ops)
        for index, (op, twin) in enumerate(zip(ops, others, strict=False)):
            if _op_key(op) != _op_key(twin):
                return f"op {index} of @{name}: {op!r} against {twin!r}"
        if len(ops) != len(others):
            return f"@{name} has {len(ops)} ops against {len(others)}"
    return None


def _op_key(op: Op) -> tuple[object, ...]:
    return (
        type(op),
        [(declared.name, value.name) for declared, value in op.named_operands()],
        op.attributes,
        op.annotations,
        [(value.name, value.type) for value in op.results],
        op.scope,
        op.loc,
    )
