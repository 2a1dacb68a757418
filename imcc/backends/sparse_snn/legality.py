"""Which neutral ops the accelerator takes, and why not the others."""

from __future__ import annotations

from imcc.backends.sparse_snn.dialect import MAX_WORD_BITS
from imcc.backends.sparse_snn.target import SparseTarget
from imcc.ir.dialects import core, nn, quant, snn
from imcc.ir.dialects.core import tensor
from imcc.ir.ops import Op, Value
from imcc.ir.rules import LEGAL

QUANTISE_FIRST = (
    "run quantize-spikes, calibrate-activations, quantize-weights and integer-arithmetic before "
    "compress-spikes; the target's default pipeline does"
)

NEURON_OPS: tuple[str | type[Op], ...] = (
    core.Constant,
    core.Return,
    core.Reshape,
    core.Permute,
    core.Expand,
    core.Slice,
    core.Concat,
    core.Pad,
    core.Add,
    core.Subtract,
    core.Multiply,
    quant.Quantize,
    quant.Dequantize,
    quant.Rescale,
    nn.BatchNorm,
    nn.MaxPool,
    nn.AvgPool,
    nn.AdaptiveAvgPool,
    nn.Mean,
    nn.Sum,
    snn.LeakyIntegrator,
    snn.LeakyIntegrateAndFire,
)
"""What the neuron units, the output compressor and addressing do, as the interpreter."""


@LEGAL.register(*NEURON_OPS, backend="sparse_snn")
def _neuron(op: Op, target: SparseTarget) -> str | None:
    return None


@LEGAL.register(
    core.Divide,
    nn.Softmax,
    nn.LayerNorm,
    nn.Gelu,
    nn.Silu,
    nn.Sigmoid,
    nn.Tanh,
    backend="sparse_snn",
)
def _no_unit(op: Op, target: SparseTarget) -> str | None:
    return "neuron units add, multiply and compare; they have no division, root or exponential"


@LEGAL.register(
    nn.Relu,
    nn.LeakyRelu,
    nn.Clamp,
    nn.Hardswish,
    nn.Hardsigmoid,
    backend="sparse_snn",
)
def _not_spiking(op: Op, target: SparseTarget) -> str | None:
    return (
        "neurons of this accelerator spike; a network with graded activations has to be made "
        "spiking first, or mapped to another target"
    )


@LEGAL.register(nn.Matmul, nn.Attention, backend="sparse_snn")
def _two_run_time_operands(op: Op, target: SparseTarget) -> str | None:
    return (
        "both operands are computed at run time: fibers of the second run along columns, and the "
        "output compressor makes fibers of rows only"
    )


@LEGAL.register(nn.Linear, nn.Conv, backend="sparse_snn")
def _float(op: nn.Linear | nn.Conv, target: SparseTarget) -> str | None:
    owner = op.weight.owner
    if isinstance(owner, quant.Dequantize):
        owner = owner.x.owner
    if not isinstance(owner, core.Constant):
        return "the weight is computed at run time; only constant weights can be compressed"
    return "the accumulators add integer codes, this product is in floating point"


@LEGAL.register(quant.Linear, quant.Conv, backend="sparse_snn")
def _product(op: quant.Linear | quant.Conv, target: SparseTarget) -> str | None:
    if not isinstance(op.weight.owner, core.Constant):
        return "the weight is computed at run time; only constant weights can be compressed"
    weight, x = tensor(op.weight).quant, tensor(op.x).quant
    if weight.group is not None or op.weight_zero_point is not None:
        return (
            "fibers hold the weights that are not 0, which needs one scale for each output channel "
            'and no zero point: quantize-weights{scheme="symmetric"} without a group'
        )
    held = target.keys.format.weight_bits
    if weight.bits > held:
        return f"weights of {weight.bits} bits, the target stores {held}"
    if x.signed:
        return (
            "words hold spikes or unsigned codes; "
            'calibrate-activations{scheme="affine"} gives unsigned codes'
        )
    steps = timesteps(op.x)
    if steps is not None and steps > MAX_WORD_BITS:
        return f"{steps} timesteps do not fit a word of {MAX_WORD_BITS} bits"
    if x.bits > MAX_WORD_BITS:
        return f"codes of {x.bits} bits do not fit a word of {MAX_WORD_BITS} bits"
    return None


def has_time_axis(value: Value) -> bool:
    """Whether the first axis of spikes is time: that of the neuron which fired them."""
    while value.owner is not None and not isinstance(value.owner, snn.LeakyIntegrateAndFire):
        if not value.owner.operands:
            return True
        value = value.owner.operands[0]
    return value.owner.time_axis if isinstance(value.owner, snn.LeakyIntegrateAndFire) else True


def timesteps(codes: Value) -> int | None:
    """Timesteps of an operand of spike codes; None for codes of several bits or without time."""
    kind = tensor(codes)
    if kind.quant.bits != 1 or kind.quant.signed or not has_time_axis(codes):
        return None
    steps = kind.shape[0] if kind.rank else None
    return steps if isinstance(steps, int) else None
