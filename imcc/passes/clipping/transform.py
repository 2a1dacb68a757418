"""The transform of ClipFormer on values, as neutral ops in front of a product.

With the largest size M of a matrix' entries, a cell's smallest conductance ``g = g_min / g_max``
and the entry's size as a conductance ``G = g + (1 - g) |x| / M``, "subtract alpha g_min, floor at
g_min, clip at beta g_max" is on the entry itself

    T(x) = sign(x) min(max(|x| - a, 0), c),   a = alpha g M / (1 - g),   c = (beta - g) M / (1 - g)

Source: ClipFormer, arXiv 2402.02586, which states it on conductances.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from imcc.ir.dialects import core, nn, quant
from imcc.ir.dialects.core import tensor
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.passes.infrastructure.scalars import scalar_constant

if TYPE_CHECKING:
    from torch import Tensor

    from imcc.ir.semantics.resources import ResourceStore

AnyOp = TypeVar("AnyOp", bound=Op)
Codes: TypeAlias = Literal["keep", "refit", "stretch", "stretch-refit", "token"]

MAX_VALUES = 1 << 18
"""Values of one matrix kept to fit gains on; more are thinned by a fixed stride."""


@dataclass(frozen=True)
class Clip:
    """One setting of the transform: ``alpha >= 1``, ``g_min / g_max < beta <= 1``.

    ``gain`` is a factor on what codes stand for, beside that which a scale has.
    """

    alpha: float
    beta: float
    gain: float = 1.0


@dataclass
class Entries:
    """Sizes of a matrix' entries seen in calibration: the largest, and a sample of them."""

    largest: float = 0.0
    parts: list[Tensor] = field(default_factory=list)

    def add(self, values: Tensor, of: int) -> None:
        """Look at one of ``of`` batches."""
        flat = values.detach().abs().flatten().double()
        self.largest = max(self.largest, float(flat.max()))
        self.parts.append(flat[:: max(1, flat.numel() * of // MAX_VALUES)])

    def sizes(self) -> Tensor:
        """The sample."""
        import torch

        return torch.cat(self.parts)


@dataclass(frozen=True)
class Applied:
    """What was done to one matrix; all in the units of its entries, but ``changed`` (a share)."""

    largest: float
    subtracted: float
    limit: float
    gain: float
    step: float
    changed: float


def apply_clip(
    product: nn.Matmul,
    clip: Clip,
    codes: Codes,
    *,
    g_min: float,
    bits: int,
    seen: Entries,
    rewriter: Rewriter,
    store: ResourceStore,
) -> Applied:
    """Clip the right operand of ``product`` and give it codes.

    Their step is that of the unclipped range (``keep``, ``refit``) or of the clipped one
    (``stretch``). A gain, where it is refitted, minimises ``sum (|x| - gain T(|x|))^2`` over
    calibration. With ``clip.gain`` it is part of the scale that codes stand for, and costs nothing.
    """
    largest = seen.largest or 1.0
    subtracted = clip.alpha * g_min / (1 - g_min) * largest
    limit = (clip.beta - g_min) / (1 - g_min) * largest
    limit = min(limit, largest - subtracted)
    sizes = seen.sizes()
    made = (sizes - subtracted).clamp(0.0, limit)
    power = float((made**2).sum())
    refit = codes in ("refit", "stretch-refit") and power > 0
    gain = float((sizes * made).sum()) / power if refit else 1.0
    gain *= clip.gain
    top: int = 2 ** (bits - 1) - 1
    step = (limit if codes.startswith("stretch") else largest) / top
    writer = _Writer(product, rewriter, store)
    value = writer.shrunk(product.b, subtracted)
    value = writer.add(nn.Clamp(x=value, minimum=-limit, maximum=limit)).y
    writer.coded(value, step, gain, bits)
    changed = float(((sizes - subtracted) > limit).double().mean())
    return Applied(largest, subtracted, limit, gain, step, changed)


def apply_token_scale(
    what: str,
    product: nn.Matmul,
    *,
    bits: int,
    seen: Entries,
    rewriter: Rewriter,
    store: ResourceStore,
) -> Applied:
    """Divide each token's key or value by its largest size, found at run time.

    Codes cover [-1, 1]. A key's scale multiplies its column of scores, ``(Q k_j / s_j) s_j``; a
    value's scale multiplies the token's weight before the product, ``(p_j s_j) (v_j / s_j)``.
    """
    writer = _Writer(product, rewriter, store)
    axis = -2 if what == "key" else -1
    size = writer.add(core.Unary(x=product.b, function="abs")).y
    largest = writer.add(nn.Max(x=size, axes=(axis,), keepdim=True)).y
    # A token of zeros stays zeros: its scale is far below what any other has.
    tiny = (seen.largest or 1.0) * 2.0**-20
    scale = writer.add(nn.Clamp(x=largest, minimum=tiny)).y
    value = writer.add(core.Divide(a=product.b, b=scale)).y
    step: float = 1 / (2 ** (bits - 1) - 1)
    writer.coded(value, step, 1.0, bits)
    if what == "key":
        again = nn.Matmul(a=product.a, b=product.b)
        scaled = core.Multiply(a=again.y, b=scale)
        rewriter.replace(product, [again, scaled], scaled.y)
    else:
        axes = tuple(range(tensor(scale).rank))
        turned = writer.add(core.Permute(x=scale, axes=(*axes[:-2], axes[-1], axes[-2]))).y
        weights = writer.add(core.Multiply(a=product.a, b=turned)).y
        rewriter.set_operand(product, "a", weights)
    return Applied(seen.largest, 0.0, seen.largest, 1.0, step, 0.0)


class _Writer:
    """Inserts ops in front of a product."""

    def __init__(self, product: nn.Matmul, rewriter: Rewriter, store: ResourceStore) -> None:
        self.product, self.rewriter, self.store = product, rewriter, store

    def add(self, op: AnyOp) -> AnyOp:
        return self.rewriter.insert_before(self.product, op)

    def number(self, value: float, element: str) -> Value:
        return self.add(scalar_constant(self.rewriter, self.store, value, element)).y

    def shrunk(self, x: Value, by: float) -> Value:
        """``sign(x) max(|x| - by, 0)``, which is ``x - clamp(x, -by, by)``."""
        inner = self.add(nn.Clamp(x=x, minimum=-by, maximum=by)).y
        return self.add(core.Subtract(a=x, b=inner)).y

    def coded(self, value: Value, step: float, gain: float, bits: int) -> None:
        """Make codes of a value the right operand; a code stands for ``gain * step``."""
        element = str(tensor(value).element)
        inward = self.number(step, element)
        outward = inward if gain == 1.0 else self.number(step * gain, element)
        coded = self.add(quant.Quantize(x=value, scale=inward, bits=bits, signed=True))
        real = self.add(quant.Dequantize(x=coded.y, scale=outward))
        self.rewriter.set_operand(self.product, "b", real.y)
