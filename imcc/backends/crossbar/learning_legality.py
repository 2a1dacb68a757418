"""Which ops of ``learn`` crossbar hardware takes, and why not the others."""

from __future__ import annotations

from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.dialects import learn
from imcc.ir.ops import Op
from imcc.ir.rules import LEGAL

CODES_FIRST = "run quantize-learning before map-crossbars; the target's default pipeline does"

DIGITAL: tuple[type[Op], ...] = (
    learn.OutputError,
    learn.LinearWeightGradient,
    learn.ConvWeightGradient,
    learn.SumTo,
    learn.Spread,
    learn.ReluGradient,
    learn.MaxPoolGradient,
    learn.AvgPoolGradient,
    learn.NeuronGradient,
    learn.Update,
    learn.QuantizeError,
    learn.StochasticQuantize,
    learn.Fold,
    learn.NormGradient,
    learn.BatchNormGradient,
    learn.ActivationGradient,
    learn.ClampGradient,
    learn.SoftmaxGradient,
    learn.SliceGradient,
    learn.IntegratorGradient,
)
"""What the vector unit and the gradient units do; floating point, as the interpreter."""


@LEGAL.register(*DIGITAL, backend="crossbar")
def _digital(op: Op, target: CrossbarTarget) -> str | None:
    return None


@LEGAL.register(learn.LinearInputGradient, learn.ConvInputGradient, backend="crossbar")
def _float(op: Op, target: CrossbarTarget) -> str | None:
    return f"crossbars multiply integer codes; {CODES_FIRST}"


@LEGAL.register(learn.TransposedProduct, backend="crossbar")
def _transposed(op: learn.TransposedProduct, target: CrossbarTarget) -> str | None:
    if op.groups > 1:
        return (
            "no transposed read passes an error back through a grouped convolution; adapt by "
            'direct feedback (rule = "dfa"), or only layers behind it'
        )
    if target.keys.array.wires.model != "none" and target.keys.learning.transposed == "array":
        return (
            "IR drop of a read from the columns is not modelled; set array.wires.model or "
            'learning.transposed = "copy"'
        )
    return None
