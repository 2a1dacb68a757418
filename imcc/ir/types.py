"""Types of values: frozen, interned, with symbolic dimensions.

Two types are equal exactly when they are the same object, so comparing and hashing cost nothing.
A dialect adds types by subclassing :class:`DialectType`; their text is
``!dialect.name<field=value, ...>``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias, cast, get_type_hints

from imcc.ir.attributes import Kind, format_value, kind_of
from imcc.ir.diagnostics import did_you_mean
from imcc.ir.dims import Dim, Monomial, product

DTYPES: tuple[str, ...] = ("f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "i1")
FLOATS: frozenset[str] = frozenset({"f64", "f32", "f16", "bf16"})
INTEGERS: frozenset[str] = frozenset({"i64", "i32", "i16", "i8", "u8"})
NUMBERS: frozenset[str] = FLOATS | INTEGERS
BOOLEAN: frozenset[str] = frozenset({"i1"})


class _Interned(type):
    """Metaclass: constructing with equal fields returns the same object."""

    _made: ClassVar[dict[Any, Any]] = {}

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not kwargs:
            found = _Interned._made.get((cls, args))
            if found is not None:
                return found
        made = super().__call__(*args, **kwargs)
        fields = dataclasses.fields(made)
        key = (cls, tuple(getattr(made, item.name) for item in fields))
        made = _Interned._made.setdefault(key, made)
        if not kwargs and len(args) == len(fields):
            _Interned._made[(cls, args)] = made
        return made


@dataclasses.dataclass(frozen=True, eq=False)
class Type(metaclass=_Interned):
    """Base of all types. Equality is identity, since types are interned."""

    def __reduce__(self) -> Any:
        values = tuple(getattr(self, item.name) for item in dataclasses.fields(self))
        return (type(self), values)


@dataclasses.dataclass(frozen=True, eq=False)
class QuantType(Type):
    """Element type of quantised tensors: ``real = scale * (code - zero_point)``.

    ``bits`` and ``signed`` bound the integer code. ``axis`` is the axis that scales vary along
    (None: one scale per tensor), counted from the front; ``group`` splits the *last* axis into
    runs of that many elements with a scale each (the last run may be short). ``symmetric`` means a
    zero point of 0, and for signed codes the range ``-(2^(bits-1)-1) .. 2^(bits-1)-1``.
    """

    bits: int
    signed: bool = True
    axis: int | None = None
    group: int | None = None
    symmetric: bool = True

    def __str__(self) -> str:
        parts = [f"{'s' if self.signed else 'u'}{self.bits}"]
        if self.axis is not None:
            parts.append(f"axis={self.axis}")
        if self.group is not None:
            parts.append(f"group={self.group}")
        if not self.symmetric:
            parts.append("asymmetric")
        return f"q<{', '.join(parts)}>"

    @property
    def minimum(self) -> int:
        """Smallest code."""
        if not self.signed:
            return 0
        return int(-(2 ** (self.bits - 1)) + (1 if self.symmetric else 0))

    @property
    def maximum(self) -> int:
        """Largest code."""
        return int(2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1)


Element: TypeAlias = str | QuantType


@dataclasses.dataclass(frozen=True, eq=False)
class TensorType(Type):
    """``tensor<Bx3x32x32xf32>``: a dense tensor; ``shape`` is a tuple of dimensions."""

    shape: tuple[Dim, ...]
    element: Element = "f32"

    def __str__(self) -> str:
        return f"tensor<{'x'.join([*map(str, self.shape), str(self.element)])}>"

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def elements(self) -> Dim:
        """Number of elements, a monomial when a dimension is symbolic."""
        return product(self.shape)

    @property
    def batch_axis(self) -> int | None:
        """The first axis whose size holds the batch B, if one does."""
        for axis, size in enumerate(self.shape):
            if isinstance(size, Monomial) and "B" in size.symbols:
                return axis
        return None

    @property
    def dense(self) -> TensorType:
        """The type without the promise that elements are 0 or 1; a plain tensor is its own."""
        return self

    @property
    def quant(self) -> QuantType:
        """The quantised element type; raises ``TypeError`` on any other tensor."""
        if not isinstance(self.element, QuantType):
            raise TypeError(f"{self} is not quantised")
        return self.element

    @property
    def is_quantised(self) -> bool:
        """Whether the elements are quantised codes."""
        return isinstance(self.element, QuantType)

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        """The same element type with another shape."""
        return TensorType(tuple(shape), self.element)

    def with_element(self, element: Element) -> TensorType:
        """The same shape with another element type."""
        return TensorType(self.shape, element)


@dataclasses.dataclass(frozen=True, eq=False)
class SpikesType(TensorType):
    """``spikes<4xBx512>``: binary events, time leading; a tensor whose elements are 0 or 1.

    ``element`` is the type that they are computed with; f32 is not written, another one stands
    last: ``spikes<4xBx512xf64>``. Whatever accepts a tensor accepts spikes. Only ops that move
    elements without changing them give spikes again (see ``moved`` in the ``core`` dialect).
    """

    def __str__(self) -> str:
        element = () if self.element == "f32" else (str(self.element),)
        return f"spikes<{'x'.join([*map(str, self.shape), *element])}>"

    @property
    def dense(self) -> TensorType:
        """The same shape and elements as a plain tensor."""
        return TensorType(self.shape, self.element)

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        """Spikes of another shape."""
        return SpikesType(tuple(shape), self.element)


@dataclasses.dataclass(frozen=True, eq=False)
class DialectType(Type):
    """Base of the types a dialect declares; ``linear`` marks handles with one owner.

    Subclasses set ``name`` (``"xbar.matrix"``) and declare fields whose annotations are attribute
    kinds (:mod:`imcc.ir.attributes`).
    """

    name: ClassVar[str] = ""
    linear: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.name:
            DIALECT_TYPES[cls.name] = cls

    def __str__(self) -> str:
        fields = dataclasses.fields(self)
        shown = [f"{f.name}={format_value(getattr(self, f.name))}" for f in fields]
        return f"!{self.name}<{', '.join(shown)}>"

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> DialectType:
        """Build the type from parsed fields; raises ``ValueError`` that names the bad field."""
        kinds = cls._kinds()
        for key in values:
            if key not in kinds:
                hint = did_you_mean(key, kinds) or f"; it has {', '.join(kinds)}"
                raise ValueError(f"!{cls.name} has no field {key!r}{hint}")
        given: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            if item.name in values:
                try:
                    given[item.name] = kinds[item.name].coerce(values[item.name])
                except ValueError as wrong:
                    raise ValueError(f"field {item.name}: {wrong}") from None
            elif item.default is dataclasses.MISSING:
                raise ValueError(f"!{cls.name} needs the field {item.name!r}")
        return cls(**given)

    @classmethod
    def _kinds(cls) -> dict[str, Kind]:
        cached = cls.__dict__.get("_kinds_cache")
        if cached is None:
            hints = get_type_hints(cls)
            cached = {f.name: kind_of(hints[f.name]) for f in dataclasses.fields(cls)}
            cls._kinds_cache = cached  # type: ignore[attr-defined]
        return cast("dict[str, Kind]", cached)


DIALECT_TYPES: dict[str, type[DialectType]] = {}


def is_linear(value_type: Type) -> bool:
    """Whether values of the type have exactly one owner."""
    return isinstance(value_type, DialectType) and type(value_type).linear
