"""From integer products to products of fibers: the rules that ``compress-spikes`` applies."""

from __future__ import annotations

from dataclasses import dataclass, field

from imcc.backends.sparse_snn.dialect import CompressWeights, PackCodes, PackSpikes, Product
from imcc.backends.sparse_snn.legality import has_time_axis, timesteps
from imcc.ir.dialects import core, quant
from imcc.ir.dialects.core import tensor
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.ir.rules import LOWER


@dataclass
class Compression:
    """What lowering rules share: which words are dropped, and what is compressed already."""

    silence: int = 0
    fibers: dict[Value, Value] = field(default_factory=dict)
    weights: dict[tuple[object, str], Value] = field(default_factory=dict)


@LOWER.register(quant.Linear, quant.Conv, backend="sparse_snn")
def _product(op: quant.Linear | quant.Conv, rewriter: Rewriter, shared: Compression) -> None:
    made: list[Op] = []
    packed = shared.fibers.get(op.x)
    if packed is None:
        pack: PackSpikes | PackCodes
        spikes = tensor(op.x).quant.bits == 1 and op.x_zero_point is None
        if spikes and (timesteps(op.x) is not None or not has_time_axis(op.x)):
            pack = PackSpikes(x=op.x, silence=shared.silence, time_axis=has_time_axis(op.x))
        else:
            pack = PackCodes(x=op.x)
        made.append(pack)
        packed = shared.fibers[op.x] = pack.fibers
    source = op.weight.owner
    if not isinstance(source, core.Constant):
        raise op.fail("the weight is not a constant")
    key = (op.parent, str(source.value))
    weights = shared.weights.get(key)
    if weights is None:
        compress = CompressWeights(codes=op.weight)
        made.append(compress)
        weights = shared.weights[key] = compress.weights
    kernel: tuple[int, ...] = ()
    stride, padding, dilation, groups = kernel, kernel, kernel, 1
    if isinstance(op, quant.Conv):
        groups, stride, padding, dilation = op.groups, op.stride, op.padding, op.dilation
        kernel = tuple(size for size in tensor(op.weight).shape[2:] if isinstance(size, int))
    product = Product(
        a=packed,
        b=weights,
        x_zero_point=op.x_zero_point,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    rewriter.replace(op, [*made, product], product.y)
