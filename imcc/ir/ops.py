"""Op declarations: one typed class per op drives constructor, printer, parser and verifier.

An op class lists its operands, attributes and results as annotated fields and may define two
methods, ``infer`` (result types from operands and attributes) and ``verify`` (its own rule)::

    class Linear(Op, name="nn.linear"):
        x: Value = operand(TensorType, elements=FLOATS, doc="[..., K]")
        weight: Value = operand(TensorType, elements=FLOATS, doc="[N, K]")
        bias: Value | None = operand(TensorType, elements=FLOATS, default=None, doc="[N]")
        y: Value = result(doc="[..., N]")

In text, required operands come by position, a variadic operand takes the remaining positions,
optional operands are written ``bias=%b``. Ops are immutable from outside: every change goes
through :class:`imcc.ir.rewriting.Rewriter`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, dataclass_transform, get_type_hints

from imcc.ir import codes
from imcc.ir.attributes import ANNOTATIONS, Kind, Symbol, coerce, kind_of
from imcc.ir.diagnostics import Diagnostic, DiagnosticError, Location
from imcc.ir.types import Type

if TYPE_CHECKING:
    from imcc.ir.module import Function

_MISSING: Any = inspect.Parameter.empty
_NO_KIND = Kind("")


class Value:
    """A typed result of an op or an argument of a function; unique by name in its function.

    ``owner`` is the defining op, or None for a function argument. ``users`` maps each op that
    reads the value to how often it does.
    """

    __slots__ = ("name", "owner", "type", "users")

    def __init__(self, value_type: Type, name: str = "", owner: Op | None = None) -> None:
        self.type = value_type
        self.name = name
        self.owner = owner
        self.users: dict[Op, int] = {}

    def __repr__(self) -> str:
        return f"%{self.name or '?'}: {self.type}"


@dataclass(frozen=True)
class OperandSpec:
    """Declaration of an operand: accepted type classes and element types."""

    types: tuple[type[Type], ...]
    elements: frozenset[str] | None = None
    quantised: bool | None = None
    optional: bool = False
    variadic: bool = False
    consumes: bool = False
    doc: str = ""
    name: str = ""

    def refuse(self, value_type: Type) -> str | None:
        """Why the operand does not accept the type, or None."""
        if not isinstance(value_type, self.types):
            accepted = " or ".join(item.__name__ for item in self.types)
            return f"expected {accepted}, found {value_type}"
        element = getattr(value_type, "element", None)
        if isinstance(element, str):
            if self.quantised:
                return f"expected quantised elements q<...>, found {element}"
            if self.elements is not None and element not in self.elements:
                return f"expected elements {', '.join(sorted(self.elements))}, found {element}"
        elif element is not None and not self.quantised:
            plain = self.quantised is False or self.elements is not None
            return f"expected elements that are not quantised, found {element}" if plain else None
        return None


@dataclass(frozen=True)
class AttributeSpec:
    """Declaration of an attribute: kind (from the annotation), default, unit and range."""

    default: Any = _MISSING
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""
    doc: str = ""
    name: str = ""
    kind: Kind = _NO_KIND

    @property
    def required(self) -> bool:
        """Whether the attribute has no default."""
        return self.default is _MISSING

    def coerce(self, value: Any) -> Any:
        """The canonical value; raises ``ValueError`` with the reason."""
        return coerce(self.kind, value, self.minimum, self.maximum)


@dataclass(frozen=True)
class ResultSpec:
    """Declaration of a result."""

    variadic: bool = False
    doc: str = ""
    name: str = ""


def operand(
    *types: type[Type],
    elements: Iterable[str] | None = None,
    quantised: bool | None = None,
    variadic: bool = False,
    consumes: bool = False,
    default: Any = _MISSING,
    doc: str = "",
) -> Any:
    """Declare an operand.

    ``elements`` limits the plain element types; ``quantised`` True demands, False forbids
    quantised elements (None allows both unless ``elements`` is given). ``consumes`` marks an
    operand that takes over a linear handle. ``default=None`` makes the operand optional.
    """
    optional = default is None
    wanted = frozenset(elements) if elements is not None else None
    return OperandSpec(types or (Type,), wanted, quantised, optional, variadic, consumes, doc)


def attribute(
    *,
    default: Any = _MISSING,
    minimum: float | None = None,
    maximum: float | None = None,
    unit: str = "",
    doc: str = "",
) -> Any:
    """Declare an attribute with optional default, range and unit."""
    return AttributeSpec(default, minimum, maximum, unit, doc)


def result(*, variadic: bool = False, init: Literal[False] = False, doc: str = "") -> Any:
    """Declare a result; its type comes from ``infer``."""
    return ResultSpec(variadic, doc)


def common(*, default: Any = None) -> Any:
    """Declare one of the fields that every op has (scope, loc); used by :class:`Op` alone."""
    return default


@dataclass(frozen=True)
class OpSpec:
    """All declared fields of an op class, in order."""

    operands: tuple[OperandSpec, ...]
    attributes: dict[str, AttributeSpec]
    results: tuple[ResultSpec, ...]

    @property
    def required_operands(self) -> tuple[OperandSpec, ...]:
        """Operands written by position, one value each."""
        return tuple(o for o in self.operands if not o.optional and not o.variadic)

    @property
    def variadic_operand(self) -> OperandSpec | None:
        """The operand that takes the remaining positions, if declared."""
        return next((o for o in self.operands if o.variadic), None)

    @property
    def optional_operands(self) -> dict[str, OperandSpec]:
        """Operands written by name."""
        return {o.name: o for o in self.operands if o.optional}


OPS: dict[str, type[Op]] = {}
"""Every declared op by name. Filled when a dialect is loaded (:mod:`imcc.ir.registry`)."""


@dataclass_transform(
    kw_only_default=True, field_specifiers=(operand, attribute, result, common), eq_default=False
)
class _Declared:
    """Tells type checkers that annotated fields of subclasses make a constructor.

    What every op has besides its declared fields is annotated here, out of that constructor.
    """

    if TYPE_CHECKING:
        annotations: dict[str, Any]
        text_loc: Location | None
        parent: Function | None
        prev: Op | None
        next: Op | None
        results: tuple[Value, ...]


class Op(_Declared):
    """Base of all ops. Construct with keyword arguments named like the declared fields.

    ``scope`` is the dotted module path in the user's model, ``loc`` the places in the user's file.
    The ClassVars ``name`` (with dialect prefix), ``draws`` (the op draws noise: never merged,
    duplicated or reordered), ``writes`` (it changes physical state) and ``terminator`` describe
    the op; ``example`` is an op line used by the reference page and the completeness test, with
    ``%name: type`` arguments declared before ``=>``.
    """

    name: ClassVar[str] = ""
    draws: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    terminator: ClassVar[bool] = False
    example: ClassVar[str] = ""

    scope: str = common(default="")
    loc: tuple[Location, ...] = common(default=())

    if not TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None:
            scope = fields.pop("scope", "")
            loc = fields.pop("loc", ())
            spec = type(self).spec()
            values = self.__dict__
            given = dict(fields)
            for declared in spec.operands:
                value = given.pop(declared.name, () if declared.variadic else None)
                if declared.variadic:
                    value = tuple(value)
                elif value is None and not declared.optional:
                    raise TypeError(f"{self.name} needs the operand {declared.name!r}")
                values[declared.name] = value
            for declared in spec.attributes.values():
                if declared.name in given:
                    try:
                        values[declared.name] = declared.coerce(given.pop(declared.name))
                    except ValueError as wrong:
                        message = f"{self.name}: attribute {declared.name} {wrong}"
                        raise DiagnosticError(
                            Diagnostic(codes.BAD_ATTRIBUTE, message, model=tuple(loc), scope=scope)
                        ) from None
                elif declared.required:
                    raise TypeError(f"{self.name} needs the attribute {declared.name!r}")
                else:
                    values[declared.name] = declared.default
            if given:
                raise TypeError(f"{self.name} has no field {', '.join(map(repr, given))}")
            self._start(scope, loc)
            inferred = self.infer()
            types = inferred if isinstance(inferred, tuple) else (inferred,)
            self._make_results(types)

    def __init_subclass__(cls, *, name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            if name in OPS and OPS[name].__qualname__ != cls.__qualname__:
                raise ValueError(f"op {name} is declared twice")
            cls.name = name
            OPS[name] = cls

    # -- construction ----------------------------------------------------------------------------

    def _start(self, scope: str, loc: Iterable[Location]) -> None:
        values = self.__dict__
        values["scope"] = scope
        values["loc"] = tuple(loc)
        values["annotations"] = {}
        values["text_loc"] = None
        values["parent"] = None
        values["prev"] = None
        values["next"] = None
        for value in self.operands:
            value.users[self] = value.users.get(self, 0) + 1

    def _make_results(self, types: tuple[Type, ...], names: tuple[str, ...] = ()) -> None:
        spec = type(self).spec()
        made = tuple(
            Value(kind, names[index] if index < len(names) else "", self)
            for index, kind in enumerate(types)
        )
        values = self.__dict__
        values["results"] = made
        if len(spec.results) == 1 and spec.results[0].variadic:
            values[spec.results[0].name] = made
        else:
            for declared, value in zip(spec.results, made, strict=False):
                values[declared.name] = value

    @classmethod
    def build(
        cls,
        operands: Mapping[str, Any],
        attributes: Mapping[str, Any],
        types: tuple[Type, ...],
        names: tuple[str, ...],
        scope: str,
        loc: tuple[Location, ...],
    ) -> Op:
        """Build from parsed parts, with the types the text states; the verifier checks them."""
        made = cls.__new__(cls)
        spec = cls.spec()
        values = made.__dict__
        for item in spec.operands:
            values[item.name] = operands.get(item.name, () if item.variadic else None)
        for key, declared in spec.attributes.items():
            values[key] = attributes.get(key, declared.default)
        made._start(scope, loc)
        made._make_results(types, names)
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"ops are changed through a Rewriter; {self.name}.{name} was assigned")

    def _set(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    # -- what every op has -----------------------------------------------------------------------

    @classmethod
    def spec(cls) -> OpSpec:
        """The declared fields; computed once per class from its annotations."""
        cached = cls.__dict__.get("_spec")
        if cached is None:
            cached = _collect(cls)
            cls._spec = cached  # type: ignore[attr-defined]
        return cached

    @property
    def operands(self) -> tuple[Value, ...]:
        """All operand values in declared order, absent optional ones left out."""
        return tuple(value for _, value in self.named_operands())

    def named_operands(self) -> Iterator[tuple[OperandSpec, Value]]:
        """Pairs of declaration and value; a variadic operand yields one pair per value."""
        values = self.__dict__
        for declared in type(self).spec().operands:
            held = values[declared.name]
            if declared.variadic:
                for value in held:
                    yield declared, value
            elif held is not None:
                yield declared, held

    @property
    def attributes(self) -> dict[str, Any]:
        """Attribute values by name, defaults included."""
        values = self.__dict__
        return {name: values[name] for name in type(self).spec().attributes}

    @property
    def result(self) -> Value:
        """The single result; raises ``ValueError`` if there is not exactly one."""
        if len(self.results) != 1:
            raise ValueError(f"{self.name} has {len(self.results)} results")
        return self.results[0]

    def symbols(self) -> Iterator[Symbol]:
        """All symbols that the attributes refer to."""
        for value in self.attributes.values():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Symbol):
                    yield item

    # -- rules of the op itself ------------------------------------------------------------------

    def infer(self) -> Type | tuple[Type, ...]:
        """Result types from operands and attributes; a single type or a tuple."""
        raise NotImplementedError(f"{self.name} declares results but no infer()")

    def verify(self) -> None:
        """The op's own rule; call :meth:`fail` where it is broken."""

    def fail(self, message: str, *, reason: str = "", help: str = "") -> DiagnosticError:
        """A diagnostic error at this op, for ``raise self.fail(...)`` in infer and verify."""
        return DiagnosticError(self.diagnostic(codes.OP_INVALID, message, reason=reason, help=help))

    def diagnostic(self, code: codes.Code, message: str, **fields: Any) -> Diagnostic:
        """A diagnostic that carries this op's places and scope."""
        return Diagnostic(
            code,
            f"{self.name}: {message}",
            text=self.text_loc,
            model=self.loc,
            scope=self.scope,
            **fields,
        )

    def check_annotations(self) -> Iterator[str]:
        """What is wrong with the op's annotations."""
        for key, value in self.annotations.items():
            declared = ANNOTATIONS.get(key)
            if declared is None:
                yield f"annotation {key} is not declared by any loaded dialect"
                continue
            try:
                declared.kind.coerce(value)
            except ValueError as wrong:
                yield f"annotation {key}: {wrong}"

    def __repr__(self) -> str:
        from imcc.ir.text.printer import print_op

        return print_op(self)


def _collect(cls: type[Op]) -> OpSpec:
    hints: dict[str, Any] | None = None
    operands: list[OperandSpec] = []
    attributes: dict[str, AttributeSpec] = {}
    results: list[ResultSpec] = []
    for base in reversed(cls.__mro__):
        for name, declared in vars(base).items():
            if isinstance(declared, OperandSpec):
                operands.append(_named(declared, name))
            elif isinstance(declared, AttributeSpec):
                if hints is None:
                    hints = get_type_hints(cls)
                kind = kind_of(hints[name])
                fields = {**declared.__dict__, "name": name, "kind": kind}
                made = AttributeSpec(**fields)
                if not made.required and made.default is not None:
                    made = AttributeSpec(**{**fields, "default": kind.coerce(made.default)})
                attributes[name] = made
            elif isinstance(declared, ResultSpec):
                results.append(_named(declared, name))
    return OpSpec(tuple(operands), attributes, tuple(results))


def _named(declared: Any, name: str) -> Any:
    return type(declared)(**{**declared.__dict__, "name": name})
