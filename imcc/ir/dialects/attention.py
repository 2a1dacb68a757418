"""``nn.matmul`` and ``nn.attention``: products of two activations. Part of the dialect ``nn``."""

from __future__ import annotations

from typing import Literal

from imcc.ir.dialects.core import broadcast, not_the_batch, tensor
from imcc.ir.dims import Dim
from imcc.ir.ops import Op, Value, attribute, operand, result
from imcc.ir.types import BOOLEAN, FLOATS, TensorType, Type


def product_shape(op: Op, a: TensorType, b: TensorType) -> tuple[Dim, ...]:
    """Shape of ``a @ b``: leading axes broadcast, then M and N; fails if they do not multiply."""
    if a.rank < 2 or b.rank < 2 or a.shape[-1] != b.shape[-2]:
        raise op.fail(f"{a} and {b} do not multiply")
    return (*broadcast(op, a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])


class Matmul(Op, name="nn.matmul"):
    """Product of two activations: ``y[..., m, n] = sum_k a[..., m, k] * b[..., k, n]``.

    ``a`` is ``[..., M, K]``, ``b`` is ``[..., K, N]``; leading axes broadcast.
    """

    example = (
        "%a: tensor<Bx2x5x4xf32>, %b: tensor<Bx2x4x3xf32> => "
        "%y = nn.matmul %a, %b : tensor<Bx2x5x3xf32>"
    )

    a: Value = operand(TensorType, elements=FLOATS, doc="[..., M, K]")
    b: Value = operand(TensorType, elements=FLOATS, doc="[..., K, N]")
    y: Value = result(doc="[..., M, N]")

    def infer(self) -> Type:
        """Leading axes broadcast, then M and N."""
        a, b = tensor(self.a), tensor(self.b)
        if a.element != b.element:
            raise self.fail(f"element types {a.element} and {b.element} differ")
        return a.with_shape(product_shape(self, a, b))

    def verify(self) -> None:
        """Samples of a batch are not multiplied with one another."""
        for size in tensor(self.b).shape[-2:]:
            not_the_batch(self, size, "multiplies a matrix with an axis")


class Attention(Op, name="nn.attention"):
    """Attention (Vaswani et al., 2017), with query heads in groups (Ainslie et al., 2023).

    ``s = scale * query @ key^T``, ``y = p @ value`` with ``p = softmax(s + mask)`` along the keys,
    or ``p = s * mask`` with ``normalise = "none"``. ``query`` is ``[..., H, L, E]``, ``key``
    ``[..., G, S, E]``, ``value`` ``[..., G, S, V]`` with H a multiple of G: query head h reads
    key head ``floor(h / (H / G))``. ``mask`` broadcasts to ``[..., H, L, S]``; a floating-point
    mask is added (multiplied without normalisation), an ``i1`` mask says which keys are seen.
    ``causal`` hides keys ``j > i`` from query i and needs L = S. A query that sees no key
    gives 0. ``y`` is ``[..., H, L, V]``.
    """

    example = (
        "%q: tensor<Bx4xSx8xf32>, %k: tensor<Bx2xSx8xf32>, %v: tensor<Bx2xSx8xf32> => "
        "%y = nn.attention %q, %k, %v {scale = 0.5, causal = true} : tensor<Bx4xSx8xf32>"
    )

    query: Value = operand(TensorType, elements=FLOATS, doc="[..., H, L, E]")
    key: Value = operand(TensorType, elements=FLOATS, doc="[..., G, S, E]")
    value: Value = operand(TensorType, elements=FLOATS, doc="[..., G, S, V]")
    mask: Value | None = operand(
        TensorType, elements=FLOATS | BOOLEAN, default=None, doc="broadcasts to [..., H, L, S]"
    )
    scale: float = attribute(doc="factor of the scores, commonly 1 / sqrt(E)")
    causal: bool = attribute(default=False, doc="query i sees keys 0 .. i only")
    normalise: Literal["softmax", "none"] = attribute(default="softmax")
    y: Value = result(doc="[..., H, L, V]")

    def infer(self) -> Type:
        """The shape of ``query`` with V as its last axis."""
        query, key, value = tensor(self.query), tensor(self.key), tensor(self.value)
        for other in (key, value):
            if other.element != query.element:
                raise self.fail(f"element types {query.element} and {other.element} differ")
            if other.rank != query.rank or other.shape[:-3] != query.shape[:-3]:
                raise self.fail(f"leading axes of {query} and {other} differ")
        if query.rank < 3 or key.shape[-1] != query.shape[-1]:
            raise self.fail(f"query {query} and key {key} do not multiply")
        if key.shape[-3:-1] != value.shape[-3:-1]:
            raise self.fail(f"key {key} and value {value} differ in heads or length")
        return query.with_shape((*query.shape[:-1], value.shape[-1]))

    def verify(self) -> None:
        """Whole groups of heads, a mask that broadcasts, equal lengths where causal."""
        query, key = tensor(self.query), tensor(self.key)
        heads, groups = query.shape[-3], key.shape[-3]
        if not isinstance(heads, int) or not isinstance(groups, int) or heads % groups:
            raise self.fail(f"{heads} query heads do not share {groups} key heads evenly")
        length, keys = query.shape[-2], key.shape[-2]
        if self.causal and length != keys:
            raise self.fail(f"causal attention of {length} queries to {keys} keys")
        if self.mask is None:
            return
        mask = tensor(self.mask)
        if mask.element not in ("i1", query.element):
            raise self.fail(f"mask {mask} has other elements than {query}")
        scores = (*query.shape[:-1], keys)
        if broadcast(self, mask.shape, scores) != scores:
            raise self.fail(f"mask {mask} does not broadcast to {query.with_shape(scores)}")

    @property
    def groups(self) -> int:
        """How many query heads share one key head."""
        heads, shared = tensor(self.query).shape[-3], tensor(self.key).shape[-3]
        if not isinstance(heads, int) or not isinstance(shared, int):
            raise self.fail("the numbers of heads are symbolic")
        return heads // shared
