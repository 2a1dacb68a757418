"""Dimensions: an integer, or a monomial ``c*B*S`` in symbols such as batch B and sequence S.

Monomials are enough for the networks in view, keep equality decidable, and let a reshape be
verified by comparing two products.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Monomial:
    """``coefficient * symbols[0] * symbols[1] ...``; ``symbols`` is sorted and not empty."""

    coefficient: int
    symbols: tuple[str, ...]

    def __str__(self) -> str:
        head = [] if self.coefficient == 1 else [str(self.coefficient)]
        return "*".join([*head, *self.symbols])

    def evaluate(self, values: Mapping[str, int]) -> int:
        """The integer value with each symbol bound; raises ``KeyError`` for an unbound symbol."""
        result = self.coefficient
        for symbol in self.symbols:
            result *= values[symbol]
        return result


Dim: TypeAlias = int | Monomial


def product(dims: Iterable[Dim]) -> Dim:
    """The product of dimensions, an integer when no symbol occurs."""
    coefficient = 1
    symbols: list[str] = []
    for dim in dims:
        if isinstance(dim, int):
            coefficient *= dim
        else:
            coefficient *= dim.coefficient
            symbols.extend(dim.symbols)
    if coefficient == 0 or not symbols:
        return coefficient
    return Monomial(coefficient, tuple(sorted(symbols)))


def quotient(whole: Dim, part: Dim) -> Dim | None:
    """``whole / part`` where it is a dimension again, else None."""
    sizes = [
        (dim, ()) if isinstance(dim, int) else (dim.coefficient, dim.symbols)
        for dim in (whole, part)
    ]
    (number, held), (by, symbols) = sizes
    rest = list(held)
    for symbol in symbols:
        if symbol not in rest:
            return None
        rest.remove(symbol)
    if not by or number % by:
        return None
    return Monomial(number // by, tuple(rest)) if rest else number // by


def evaluate(dim: Dim, values: Mapping[str, int]) -> int:
    """The integer value of a dimension with symbols bound by ``values``."""
    return dim if isinstance(dim, int) else dim.evaluate(values)


@lru_cache(maxsize=4096)
def parse_dim(text: str) -> Dim:
    """Parse ``128``, ``B`` or ``4*B*S``; raises ``ValueError`` otherwise."""
    coefficient = 1
    symbols: list[str] = []
    for part in text.split("*"):
        if part.isdigit():
            coefficient *= int(part)
        elif len(part) == 1 and "A" <= part <= "Z":
            symbols.append(part)
        else:
            raise ValueError(f"{text!r} is not a dimension")
    return Monomial(coefficient, tuple(sorted(symbols))) if symbols else coefficient
