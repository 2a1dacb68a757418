"""What sparse products compute: evaluation rules of ``sparse``, and the operands of the engines.

Where the target does not bound its accumulators, every engine's sums are the exact integers (a
test shows it), so they are computed as one dense product; where it does, the engine itself runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imcc.backends.sparse_snn import dialect, engines
from imcc.backends.sparse_snn.dialect import FibersType, WeightsType
from imcc.backends.sparse_snn.fibers import Words
from imcc.backends.sparse_snn.product import Product, StoredSpikes
from imcc.backends.sparse_snn.target import SparseTarget, TemporalParallelKeys
from imcc.backends.sparse_snn.windows import filter_rows, window_rows
from imcc.ir.dialects.quant import largest_product_sum
from imcc.ir.rules import EVAL
from imcc.ir.semantics.interpreter import EvalContext
from imcc.ir.semantics.nn import convolve
from imcc.ir.types import QuantType

EXACT_FLOAT32 = 2**24


@dataclass(frozen=True)
class Packed:
    """Fibers at run time: the bits or codes that the words hold.

    ``codes`` is ``[T, ...]`` of 0 and 1 for spikes, the codes themselves otherwise.
    """

    kind: FibersType
    codes: Tensor

    def words(self) -> Words:
        """The words, time packed."""
        if self.kind.kind == "codes" or not self.kind.time_axis:
            return self.codes.detach().to(torch.int64).numpy().astype(np.uint32)
        steps = torch.arange(self.kind.word_bits, dtype=torch.int64)
        shifted = self.codes.detach().to(torch.int64) << steps.reshape(
            -1, *(1,) * (self.codes.dim() - 1)
        )
        return shifted.sum(0).numpy().astype(np.uint32)


@dataclass(frozen=True)
class Weights:
    """Compressed weights at run time."""

    kind: WeightsType
    codes: Tensor


@EVAL.register(dialect.PackSpikes, backend="sparse_snn")
def _pack_spikes(op: dialect.PackSpikes, ctx: EvalContext, *, x: Tensor) -> Packed:
    kind = op.fibers.type
    if not isinstance(kind, FibersType):
        raise TypeError(f"{op.fibers!r} is not fibers")
    if not op.silence:
        return Packed(kind, x)
    counts = x.sum(0, keepdim=True) if op.time_axis else x
    return Packed(kind, torch.where(counts > op.silence, x, torch.zeros_like(x)))


@EVAL.register(dialect.PackCodes, backend="sparse_snn")
def _pack_codes(op: dialect.PackCodes, ctx: EvalContext, *, x: Tensor) -> Packed:
    kind = op.fibers.type
    if not isinstance(kind, FibersType):
        raise TypeError(f"{op.fibers!r} is not fibers")
    return Packed(kind, x)


@EVAL.register(dialect.CompressWeights, backend="sparse_snn")
def _compress(op: dialect.CompressWeights, ctx: EvalContext, *, codes: Tensor) -> Weights:
    kind = op.weights.type
    if not isinstance(kind, WeightsType):
        raise TypeError(f"{op.weights!r} is not weights")
    return Weights(kind, codes)


@EVAL.register(dialect.Product, backend="sparse_snn")
def _product(
    op: dialect.Product, ctx: EvalContext, *, a: Packed, b: Weights, x_zero_point: Tensor | None
) -> Tensor:
    zero = 0 if x_zero_point is None else int(x_zero_point)
    if bounded(ctx.target):
        return _engine_sums(op, a, b, zero, ctx.target)
    bits = 1 if a.kind.kind == "spikes" else a.kind.word_bits
    largest = largest_product_sum(QuantType(bits, False), QuantType(b.kind.bits), b.kind.terms)
    dtype = torch.float32 if largest < EXACT_FLOAT32 else torch.float64
    x, weight = a.codes.detach().to(dtype) - zero, b.codes.detach().to(dtype)
    if not op.kernel:
        return torch.nn.functional.linear(x, weight.reshape(len(weight), -1))
    return convolve(x, weight, None, op.stride, op.padding, op.dilation, op.groups)


def bounded(target: object) -> bool:
    """Whether accumulators of the target have a fixed width and may overflow."""
    if not isinstance(target, SparseTarget) or not isinstance(target.keys, TemporalParallelKeys):
        return False
    held = target.keys.accumulators
    return held.pseudo_bits is not None or held.correction_bits is not None


def products(
    op: dialect.Product,
    a: Packed,
    b: Weights,
    zero: int = 0,
    result: StoredSpikes | None = None,
) -> Iterator[Product]:
    """The operands of each group of a product, all leading axes of the words flattened into rows.

    ``result`` is what the neurons behind it put out (over all groups); by default every bit.
    """
    words = a.words()
    weights = b.codes.detach().to(torch.int64).numpy().astype(np.int32)
    count = len(op.kernel)
    lead = words.ndim - count - 1
    planes = words.reshape(-1, *words.shape[lead:])
    per_group = planes.shape[1] // op.groups
    outputs = len(weights) // op.groups
    for group in range(op.groups):
        part = planes[:, group * per_group : (group + 1) * per_group]
        rows = part
        if count:
            rows = np.concatenate([_rows(plane, op, zero) for plane in part])
        kernel = filter_rows(weights[group * outputs : (group + 1) * outputs])
        stored = part.reshape(len(part), per_group, -1).transpose(0, 2, 1).reshape(-1, per_group)
        neurons = len(rows) * outputs
        out = StoredSpikes(len(rows), outputs, neurons, neurons * a.kind.word_bits)
        if result is not None:
            share = 1 / op.groups
            out = replace(out, active=result.active * share, spikes=result.spikes * share)
        yield Product(
            np.ascontiguousarray(rows),
            kernel,
            a.kind.word_bits,
            StoredSpikes.of(stored),
            out,
            neurons=False,
        )


def _rows(plane: Words, op: dialect.Product, zero: int) -> NDArray[np.uint32]:
    return window_rows(plane, op.kernel, op.stride, op.padding, op.dilation, fill=zero)


def _engine_sums(
    op: dialect.Product, a: Packed, b: Weights, zero: int, target: SparseTarget
) -> Tensor:
    """The sums as the engine's accumulators leave them."""
    made = [engines.run(item, target).sums for item in products(op, a, b, zero)]
    sums = torch.from_numpy(np.concatenate(made, axis=1).astype(np.float64))
    if a.kind.kind == "codes":
        digits = 2.0 ** torch.arange(a.kind.word_bits, dtype=torch.float64)
        sums = sums @ digits - zero * b.codes.to(torch.float64).reshape(len(b.codes), -1).sum(1)
        sums = sums[..., None]
    count = len(op.kernel)
    leading = a.codes.shape[1 if a.kind.kind == "spikes" and a.kind.time_axis else 0 :]
    leading = leading[: len(leading) - count - 1]
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(
            a.codes.shape[a.codes.dim() - count :],
            op.kernel,
            op.stride,
            op.padding,
            op.dilation,
            strict=True,
        )
    ]
    shaped = sums.reshape(*leading, *sizes, sums.shape[1], sums.shape[2])
    # [..., spatial, N, T] to [T, ..., N, spatial].
    shaped = shaped.movedim(-1, 0).movedim(-1, len(leading) + 1)
    has_time = a.kind.kind == "spikes" and a.kind.time_axis
    return (shaped if has_time else shaped[0]).contiguous()
