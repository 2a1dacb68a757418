"""Attribute kinds: what an annotation on an op, type or pass field admits, and its text.

The same kinds serve op attributes, fields of dialect types and pass options, so that all three
parse, print and complain in one way. A kind is derived from the field's annotation: ``int``,
``float``, ``bool``, ``str``, ``Literal["a", "b"]``, :class:`Symbol`, ``Dim``, ``tuple[X, ...]``,
``tuple[X, X]`` and ``X | None``.
"""

from __future__ import annotations

import json
import math
import types as pytypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin

from imcc.ir.diagnostics import did_you_mean
from imcc.ir.dims import Dim, Monomial


class Symbol(str):
    """A reference ``@name`` to a resource, state or function of the module."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"@{self!s}"


@dataclass(frozen=True, slots=True)
class Kind:
    """One admissible form of value.

    ``base`` is the python type checked for; ``items`` the kinds of a tuple; ``repeated`` tells
    ``tuple[X, ...]`` from a tuple of fixed length; ``choices`` the strings of a ``Literal``.
    """

    name: str
    base: type | None = None
    items: tuple[Kind, ...] = ()
    repeated: bool = False
    choices: tuple[str, ...] = ()
    optional: bool = False

    def coerce(self, value: Any) -> Any:
        """Return ``value`` in canonical form; raise ``ValueError`` that says what is expected."""
        if value is None and self.optional:
            return None
        if self.choices:
            if value not in self.choices or not isinstance(value, str):
                hint = did_you_mean(value, self.choices) if isinstance(value, str) else ""
                raise ValueError(f"expected {self.name}, found {format_value(value)}{hint}")
            return value
        if self.base is tuple:
            if not isinstance(value, (tuple, list)):
                raise ValueError(f"expected {self.name}, found {format_value(value)}")
            if self.repeated:
                return tuple(self.items[0].coerce(item) for item in value)
            if len(value) != len(self.items):
                raise ValueError(f"expected {self.name}, found {len(value)} items")
            return tuple(kind.coerce(item) for kind, item in zip(self.items, value, strict=True))
        if self.base is float and type(value) is int:
            return float(value)
        if self.base is Monomial:
            if type(value) is int or isinstance(value, Monomial):
                return value
        elif self.base is int:
            if type(value) is int:
                return value
        elif self.base is str:
            if type(value) is str:
                return value
        elif self.base is not None and isinstance(value, self.base):
            return value
        raise ValueError(f"expected {self.name}, found {format_value(value)}")


@lru_cache(maxsize=1024)
def kind_of(annotation: Any) -> Kind:
    """The kind that a field's annotation stands for; raises ``TypeError`` for any other."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation == Dim or annotation is Monomial:
        return Kind("a dimension such as 16 or 4*B", Monomial)
    if origin in (Union, pytypes.UnionType):
        rest = [item for item in args if item is not type(None)]
        if len(rest) == 1 and len(rest) < len(args):
            inner = kind_of(rest[0])
            return Kind(
                inner.name, inner.base, inner.items, inner.repeated, inner.choices, optional=True
            )
        if set(rest) == {int, Monomial}:
            return Kind("a dimension such as 16 or 4*B", Monomial, optional=len(rest) < len(args))
        raise TypeError(f"no attribute kind for {annotation}")
    if origin is Literal:
        return Kind("one of " + ", ".join(json.dumps(arg) for arg in args), choices=args)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            item = kind_of(args[0])
            return Kind(f"a list, each item {item.name}", tuple, (item,), repeated=True)
        items = tuple(kind_of(arg) for arg in args)
        return Kind(f"a list of {len(items)} items", tuple, items)
    names = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        Symbol: "a symbol such as @name",
    }
    if annotation in names:
        return Kind(names[annotation], annotation)
    raise TypeError(f"no attribute kind for {annotation}")


def format_value(value: Any) -> str:
    """The text of an attribute value, the same in IR, types and pipelines."""
    if value is True:
        return "true"
    if value is False:
        return "false"
    if value is None:
        return "none"
    if isinstance(value, Symbol):
        return f"@{value!s}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        if math.isnan(value):
            return "nan"
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        return repr(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {format_value(item)}" for key, item in value.items()) + "}"
    return str(value)


@dataclass(frozen=True)
class Annotation:
    """A discardable attribute ``dialect.name`` that any op may carry, declared by a dialect.

    Placement and schedule write annotations; evaluation never reads them.
    """

    name: str
    kind: Kind
    unit: str = ""
    doc: str = ""


ANNOTATIONS: dict[str, Annotation] = {}


def declare_annotation(name: str, form: Any, *, unit: str = "", doc: str = "") -> str:
    """Declare an annotation by name with its form (a type such as ``float``); returns the name."""
    ANNOTATIONS[name] = Annotation(name, kind_of(form), unit, doc)
    return name


def coerce(kind: Kind, value: Any, minimum: float | None, maximum: float | None) -> Any:
    """``value`` in the kind's canonical form and in range; raises ``ValueError`` that says why."""
    made = kind.coerce(value)
    wrong = _out_of_range(made, minimum, maximum)
    if wrong:
        raise ValueError(wrong)
    return made


def _out_of_range(value: Any, minimum: float | None, maximum: float | None) -> str | None:
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, (int, float)) and not isinstance(item, bool):
            if isinstance(item, float) and math.isnan(item):
                return "is not a number"
            if minimum is not None and item < minimum:
                return f"must be at least {minimum}, found {format_value(item)}"
            if maximum is not None and item > maximum:
                return f"must be at most {maximum}, found {format_value(item)}"
    return None
