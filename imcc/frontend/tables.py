"""Tables of positions: tensors of whole numbers that depend on no input, in closed form.

Models build masks and position ids from ``arange``, comparisons and running sums. With sizes known
they are constants. With a symbolic sequence length they are kept here as what they are: a
:class:`Table` is ``offset + sum_k coefficients[k] * i_k`` over the indices of its axes, a
:class:`Relations` holds where each of some such sums is not negative. Both broadcast. An operation
that leaves these forms gives None, and the tensor is then computed when the program runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Row: TypeAlias = tuple[int, ...]
"""One coefficient for each axis, then the offset."""


@dataclass(frozen=True)
class Table:
    """``y[i] = offset + sum_k coefficients[k] * i_k``; sizes are integers or torch's symbols."""

    sizes: tuple[Any, ...]
    coefficients: Row
    offset: int
    dtype: torch.dtype = torch.int64

    @property
    def uniform(self) -> bool:
        """Whether all elements are equal."""
        return not any(self.coefficients)

    def tensor(self) -> Tensor:
        """The tensor; all sizes must be integers."""
        return _sum((*self.coefficients, self.offset), self.sizes).to(self.dtype)


@dataclass(frozen=True)
class Relations:
    """``y[i]`` holds where ``row . (i, 1) >= 0`` for every row; no row: true everywhere."""

    sizes: tuple[Any, ...]
    rows: tuple[Row, ...] = ()

    def tensor(self) -> Tensor:
        """The tensor; all sizes must be integers."""
        made = torch.ones(self.sizes, dtype=torch.bool)
        for row in self.rows:
            made = made & (_sum(row, self.sizes) >= 0)
        return made

    def inverse(self) -> Relations | None:
        """Where the relations do not hold, if that is again a form."""
        if not self.rows:
            return Relations(self.sizes, ((*[0] * len(self.sizes), -1),))
        if len(self.rows) > 1:
            return None
        (row,) = self.rows
        return Relations(self.sizes, ((*[-item for item in row[:-1]], -row[-1] - 1),))

    def without_causal(self) -> tuple[bool, Relations]:
        """Whether a row says "column at most line" over the last two axes, and the other rows."""
        rank = len(self.sizes)
        if rank < 2:
            return False, self
        causal = (*[0] * (rank - 2), 1, -1, 0)
        rest = tuple(row for row in self.rows if row != causal)
        return len(rest) < len(self.rows), Relations(self.sizes, rest)


Form: TypeAlias = Table | Relations


def _sum(row: Row, sizes: tuple[Any, ...]) -> Tensor:
    made = torch.full(sizes, row[-1], dtype=torch.int64)
    for axis, factor in enumerate(row[:-1]):
        if factor:
            shape = [1] * len(sizes)
            shape[axis] = -1
            made = made + factor * torch.arange(sizes[axis]).reshape(shape)
    return made


def is_static(form: Form) -> bool:
    """Whether all sizes are integers."""
    return all(type(size) is int for size in form.sizes)


# -- evaluation of one exported node --------------------------------------------------------------

Handler: TypeAlias = Callable[..., "Form | None"]
_HANDLERS: dict[str, Handler] = {}


def evaluate(name: str, meta: Any, arguments: dict[str, Any]) -> Form | None:
    """The closed form of a node's result, or None.

    ``name`` is the op without ``aten.``, ``meta`` the result's fake tensor, ``arguments`` are by
    the names of the schema.
    """
    handler = _HANDLERS.get(name)
    if handler is None or not isinstance(meta, Tensor) or meta.dtype.is_complex:
        return None
    made = handler(meta, **arguments)
    if isinstance(made, Table) and meta.dtype == torch.bool:
        # A constant number taken as a truth value.
        return _truth(made.sizes, made.offset != 0) if made.uniform else None
    if isinstance(made, Relations) and meta.dtype != torch.bool:
        return None
    return made


def _handles(*names: str) -> Callable[[Handler], Handler]:
    def add(handler: Handler) -> Handler:
        for name in names:
            _HANDLERS[name] = handler
        return handler

    return add


def _truth(sizes: tuple[Any, ...], value: bool) -> Relations:
    return Relations(sizes, () if value else ((*[0] * len(sizes), -1),))


def _integers(*items: Any) -> bool:
    return all(type(item) is int for item in items)


@_handles("arange", "arange.start", "arange.start_step")
def _arange(meta: Tensor, end: Any, start: Any = 0, step: Any = 1, **_: Any) -> Form | None:
    return _table(meta, (step, start)) if _integers(start, step) else None


@_handles("ones", "new_ones", "ones_like")
def _ones(meta: Tensor, **_: Any) -> Form | None:
    return _constant(meta, 1)


@_handles("zeros", "new_zeros", "zeros_like")
def _zeros(meta: Tensor, **_: Any) -> Form | None:
    return _constant(meta, 0)


@_handles("full", "full_like", "new_full", "scalar_tensor")
def _full(meta: Tensor, fill_value: Any = None, s: Any = None, **_: Any) -> Form | None:
    return _constant(meta, s if fill_value is None else fill_value)


def _constant(meta: Tensor, value: Any) -> Form | None:
    sizes = tuple(meta.shape)
    if meta.dtype == torch.bool:
        return _truth(sizes, bool(value)) if isinstance(value, (bool, int)) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return Table(sizes, (0,) * len(sizes), value, meta.dtype) if _integers(value) else None


# -- arithmetic and comparison --------------------------------------------------------------------


def _row(given: Any, rank: int) -> Row | None:
    """The row of a table or an integer, aligned to ``rank`` trailing axes."""
    if type(given) is int:
        return (*[0] * rank, given)
    if isinstance(given, Table):
        return (*[0] * (rank - len(given.sizes)), *given.coefficients, given.offset)
    return None


def _combined(meta: Tensor, a: Any, b: Any, left: int, right: int) -> Row | None:
    rows = _row(a, meta.dim()), _row(b, meta.dim())
    if rows[0] is None or rows[1] is None:
        return None
    return tuple(left * x + right * y for x, y in zip(rows[0], rows[1], strict=True))


def _table(meta: Tensor, row: Row | None) -> Table | None:
    if row is None:
        return None
    *made, offset = _clean(meta, row)
    return Table(tuple(meta.shape), tuple(made), offset, meta.dtype)


def _clean(meta: Tensor, row: Row) -> Row:
    """The row without coefficients of axes of size 1, whose index is 0."""
    pairs = zip(row, meta.shape, strict=False)
    return (*[0 if _is_one(size) else item for item, size in pairs], row[-1])


@_handles("add.Tensor", "add.Scalar")
def _add(meta: Tensor, x: Any, other: Any, alpha: Any = 1) -> Form | None:
    return _table(meta, _combined(meta, x, other, 1, alpha)) if _integers(alpha) else None


@_handles("sub.Tensor", "sub.Scalar")
def _sub(meta: Tensor, x: Any, other: Any, alpha: Any = 1) -> Form | None:
    return _table(meta, _combined(meta, x, other, 1, -alpha)) if _integers(alpha) else None


@_handles("rsub.Scalar", "rsub.Tensor")
def _rsub(meta: Tensor, x: Any, other: Any, alpha: Any = 1) -> Form | None:
    return _table(meta, _combined(meta, other, x, 1, -alpha)) if _integers(alpha) else None


@_handles("neg")
def _neg(meta: Tensor, x: Any) -> Form | None:
    return _table(meta, _combined(meta, 0, x, 1, -1))


@_handles("mul.Tensor", "mul.Scalar")
def _mul(meta: Tensor, x: Any, other: Any) -> Form | None:
    if isinstance(x, Relations) or isinstance(other, Relations):
        return _and(meta, x, other)
    for table, factor in ((x, other), (other, x)):
        if isinstance(factor, Table) and factor.uniform:
            factor = factor.offset
        if type(factor) is int:
            row = _row(table, meta.dim())
            return _table(meta, None if row is None else tuple(factor * item for item in row))
    return None


@_handles("le.Tensor", "le.Scalar")
def _le(meta: Tensor, x: Any, other: Any) -> Form | None:
    return _relation(meta, _combined(meta, other, x, 1, -1), 0)


@_handles("lt.Tensor", "lt.Scalar")
def _lt(meta: Tensor, x: Any, other: Any) -> Form | None:
    return _relation(meta, _combined(meta, other, x, 1, -1), -1)


@_handles("ge.Tensor", "ge.Scalar")
def _ge(meta: Tensor, x: Any, other: Any) -> Form | None:
    return _relation(meta, _combined(meta, x, other, 1, -1), 0)


@_handles("gt.Tensor", "gt.Scalar")
def _gt(meta: Tensor, x: Any, other: Any) -> Form | None:
    return _relation(meta, _combined(meta, x, other, 1, -1), -1)


@_handles("eq.Tensor", "eq.Scalar")
def _eq(meta: Tensor, x: Any, other: Any) -> Form | None:
    row = _combined(meta, x, other, 1, -1)
    if row is None:
        return None
    if not any(row[:-1]):
        return _truth(tuple(meta.shape), row[-1] == 0)
    row = _clean(meta, row)
    return Relations(tuple(meta.shape), (row, tuple(-item for item in row)))


@_handles("ne.Tensor", "ne.Scalar")
def _ne(meta: Tensor, x: Any, other: Any) -> Form | None:
    row = _combined(meta, x, other, 1, -1)
    if row is None or any(row[:-1]):
        return None
    return _truth(tuple(meta.shape), row[-1] != 0)


def _relation(meta: Tensor, row: Row | None, strict: int) -> Form | None:
    if row is None:
        return None
    row = _clean(meta, (*row[:-1], row[-1] + strict))
    # Indices are not negative, so neither is such a sum.
    always = all(item >= 0 for item in row)
    return Relations(tuple(meta.shape), () if always else (row,))


@_handles(
    "__and__.Tensor", "bitwise_and.Tensor", "logical_and", "__and__.Scalar", "bitwise_and.Scalar"
)
def _and(meta: Tensor, x: Any, other: Any) -> Form | None:
    rows: dict[Row, None] = {}
    for item in (x, other):
        if isinstance(item, bool):
            item = _truth((), item)
        if not isinstance(item, Relations):
            return None
        lead = (0,) * (meta.dim() - len(item.sizes))
        rows.update(dict.fromkeys((*lead, *row) for row in item.rows))
    return Relations(tuple(meta.shape), tuple(rows))


@_handles("bitwise_not", "logical_not")
def _not(meta: Tensor, x: Any) -> Form | None:
    return x.inverse() if isinstance(x, Relations) else None


# -- structure ------------------------------------------------------------------------------------


def _moved(meta: Tensor, x: Any, rows: Callable[[Row], Row | None]) -> Form | None:
    """The form with every row changed by ``rows``, under the result's sizes."""
    if isinstance(x, Table):
        return _table(meta, rows((*x.coefficients, x.offset)))
    if not isinstance(x, Relations):
        return None
    made = [rows(row) for row in x.rows]
    if any(row is None for row in made):
        return None
    return Relations(tuple(meta.shape), tuple(_clean(meta, row) for row in made if row is not None))


@_handles("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "squeeze.dim", "squeeze.dims")
def _reshape(meta: Tensor, x: Any, **_: Any) -> Form | None:
    if not isinstance(x, (Table, Relations)):
        return None
    # Axes of size 1 come and go; the others must stay as they are.
    kept = [axis for axis, size in enumerate(x.sizes) if not _is_one(size)]
    places = [axis for axis, size in enumerate(meta.shape) if not _is_one(size)]
    same = len(kept) == len(places) and all(
        _same(x.sizes[a], meta.shape[b]) for a, b in zip(kept, places, strict=True)
    )

    def rows(row: Row) -> Row | None:
        made = [0] * meta.dim()
        if not same:
            return (*made, row[-1]) if not any(row[:-1]) else None
        for source, place in zip(kept, places, strict=True):
            made[place] = row[source]
        return (*made, row[-1])

    return _moved(meta, x, rows)


def _is_one(size: Any) -> bool:
    return type(size) is int and size == 1


def _same(a: Any, b: Any) -> bool:
    if type(a) is int or type(b) is int:
        return type(a) is type(b) and a == b
    return bool(a.node.expr == b.node.expr)


@_handles("expand")
def _expand(meta: Tensor, x: Any, **_: Any) -> Form | None:
    lead = meta.dim() - len(getattr(x, "sizes", ()))
    return _moved(meta, x, lambda row: (*[0] * lead, *row))


@_handles("permute")
def _permute(meta: Tensor, x: Any, dims: Sequence[int]) -> Form | None:
    rank = meta.dim()
    return _moved(meta, x, lambda row: (*[row[axis % rank] for axis in dims], row[-1]))


@_handles("transpose.int")
def _transpose(meta: Tensor, x: Any, dim0: int, dim1: int) -> Form | None:
    axes = list(range(meta.dim()))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return _permute(meta, x, axes)


@_handles("slice.Tensor")
def _slice(
    meta: Tensor, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1
) -> Form | None:
    first = 0 if start is None else start
    if not isinstance(x, (Table, Relations)):
        return None
    if not _integers(first, step) or (first < 0 and not _integers(x.sizes[dim])):
        return None
    if first < 0:
        first = max(0, first + x.sizes[dim])
    axis = dim % meta.dim()

    def rows(row: Row) -> Row:
        made = list(row)
        made[-1] += row[axis] * first
        made[axis] *= step
        return tuple(made)

    return _moved(meta, x, rows)


@_handles("select.int")
def _select(meta: Tensor, x: Any, dim: int, index: Any) -> Form | None:
    axis = dim % (meta.dim() + 1)
    if not isinstance(x, (Table, Relations)):
        return None
    if type(index) is not int or (index < 0 and not _integers(x.sizes[axis])):
        return None
    at = index if index >= 0 else index + x.sizes[axis]
    return _moved(meta, x, lambda row: (*row[:axis], *row[axis + 1 : -1], row[-1] + row[axis] * at))


@_handles("clone", "alias", "detach", "contiguous", "lift_fresh_copy", "_to_copy", "type_as")
def _same_value(meta: Tensor, x: Any, **_: Any) -> Form | None:
    return _moved(meta, x, lambda row: row)


@_handles("diff")
def _diff(
    meta: Tensor, x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None
) -> Form | None:
    if not isinstance(x, Table) or n != 1 or append is not None:
        return None
    axis = dim % meta.dim()
    step = x.coefficients[axis]
    if prepend is not None:
        # The first difference is that to the prepended element.
        if not isinstance(prepend, Table) or not _is_one(prepend.sizes[axis]):
            return None
        ahead = [*prepend.coefficients]
        ahead[axis] = step
        if tuple(ahead) != x.coefficients or x.offset - prepend.offset != step:
            return None
    return Table(tuple(meta.shape), (0,) * meta.dim(), step, meta.dtype)


@_handles("cumsum")
def _cumsum(meta: Tensor, x: Any, dim: int, dtype: Any = None) -> Form | None:
    if isinstance(x, Relations):
        zero = (*[0] * len(x.sizes), -1)
        if x.rows and zero not in x.rows:
            return None
        x = Table(x.sizes, (0,) * len(x.sizes), 0 if x.rows else 1)
    if not isinstance(x, Table) or not x.uniform:
        return None
    made = [0] * meta.dim()
    made[dim] = x.offset
    return Table(tuple(meta.shape), tuple(made), x.offset, meta.dtype)


@_handles("index.Tensor")
def _index(meta: Tensor, x: Any, indices: Sequence[Any]) -> Form | None:
    if isinstance(x, Table) and x.uniform:
        return _constant(meta, x.offset)
    if isinstance(x, Relations) and not x.rows:
        return Relations(tuple(meta.shape))
    if not isinstance(x, (Table, Relations)) or len(indices) != len(x.sizes):
        return None
    inner = [_row(item, meta.dim()) for item in indices]
    negative = [row is not None and any(item < 0 for item in row) for row in inner]
    if any(row is None for row in inner) or any(negative):
        return None
    held = [row for row in inner if row is not None]

    def rows(row: Row) -> Row:
        # A sum of positions at positions that are sums themselves is such a sum again.
        made = [0] * meta.dim() + [row[-1]]
        for factor, index in zip(row[:-1], held, strict=True):
            made = [have + factor * item for have, item in zip(made, index, strict=True)]
        return tuple(made)

    return _moved(meta, x, rows)
