"""Which neutral ops crossbar hardware takes, and why not the others."""

from __future__ import annotations

from imcc.backends.crossbar.dialect import slices_of
from imcc.backends.crossbar.lowering import coded_state
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.dialects import core, nn, quant, snn
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Monomial
from imcc.ir.ops import Op
from imcc.ir.rules import LEGAL
from imcc.passes.learning.adapting import state_of

QUANTISE_FIRST = (
    "run calibrate-activations, quantize-weights and integer-arithmetic before map-crossbars; "
    "the target's default pipeline does"
)

MATRIX_OPS = (quant.Linear, quant.Conv)

DIGITAL_OPS: tuple[str | type[Op], ...] = (
    snn.LeakyIntegrator,
    snn.LeakyIntegrateAndFire,
    core.Constant,
    core.Return,
    core.Reshape,
    core.Permute,
    core.Expand,
    core.Iota,
    core.Gather,
    core.Slice,
    core.Concat,
    core.Pad,
    core.Add,
    core.Subtract,
    core.Multiply,
    core.Divide,
    core.Power,
    core.Compare,
    core.Where,
    core.Unary,
    core.Cast,
    core.CumulativeSum,
    quant.Quantize,
    quant.Dequantize,
    quant.Rescale,
    quant.RescaleGroups,
    nn.BatchNorm,
    nn.LayerNorm,
    nn.RmsNorm,
    nn.Matmul,
    nn.MaxPool,
    nn.AvgPool,
    nn.AdaptiveAvgPool,
    nn.Mean,
    nn.Sum,
    nn.Max,
    nn.Relu,
    nn.Clamp,
    nn.LeakyRelu,
    nn.Sigmoid,
    nn.Tanh,
    nn.Gelu,
    nn.Silu,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Softmax,
)
"""What the vector unit and the buffers do; floating point, exactly as the interpreter."""


@LEGAL.register(*DIGITAL_OPS, backend="crossbar")
def _digital(op: Op, target: CrossbarTarget) -> str | None:
    return None


@LEGAL.register(nn.Attention, backend="crossbar")
def _attention(op: nn.Attention, target: CrossbarTarget) -> str | None:
    return "the hardware has no unit for attention as a whole; decompose-attention takes it apart"


@LEGAL.register(nn.Linear, nn.Conv, backend="crossbar")
def _float(op: nn.Linear | nn.Conv, target: CrossbarTarget) -> str | None:
    if not _constant(op.weight.owner) and not state_of(op, op.weight):
        return "the weight is computed at run time; crossbars hold constant weights only"
    return "crossbars hold integer codes, this product is in floating point"


@LEGAL.register(quant.Linear, quant.Conv, backend="crossbar")
def _matrix(op: quant.Linear | quant.Conv, target: CrossbarTarget) -> str | None:
    x, weight = tensor(op.x), tensor(op.weight)
    if not isinstance(op.weight.owner, core.Constant) and not coded_state(op, op.weight):
        return "the weight is computed at run time; crossbars hold constant weights only"
    fixed = op.parent.fixed_batch if op.parent is not None else None
    batch = Monomial(1, ("B",)) if fixed is None else fixed
    spatial = weight.rank - 2
    leading = x.shape[: x.rank - spatial - 1]
    axis = x.batch_axis or 0
    if not leading[axis:] or leading[axis] != batch:
        return (
            f"the input {x} needs the batch {batch} as its first axis or behind the time axis, for "
            "each sample and trial draws its own noise"
        )
    if x.quant.bits > 16:
        return f"inputs of {x.quant.bits} bits: at most 16"
    magnitude = weight.quant.bits - int(weight.quant.signed)
    if magnitude < 1:
        return "signed weights need at least 2 bits"
    array = target.keys.array
    cells = slices_of(weight.quant.bits, weight.quant.signed, array.cell_bits, array.encoding)
    if array.encoding == "differential" and weight.quant.signed:
        cells *= 2
    if cells > array.columns - (array.encoding == "bias_column"):
        return (
            f"one weight takes {cells} columns, an array has {array.columns}; "
            "use fewer weight bits or more bits in a cell"
        )
    return None


def _constant(owner: Op | None) -> bool:
    """Whether a weight is a constant, dequantised or not."""
    if isinstance(owner, quant.Dequantize):
        owner = owner.x.owner
    return isinstance(owner, core.Constant)
