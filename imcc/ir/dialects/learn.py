"""``learn``: errors, gradients and weight updates, for adapting a network where it runs.

Gradients are written out as ops, so that they are mapped, scheduled and costed as everything else
is. An op that only moves elements needs none of its own here: its adjoint moves them back.
"""

from __future__ import annotations

from typing import Literal

from imcc.ir.dialects.core import broadcast, tensor
from imcc.ir.dialects.error_codes import Fold, QuantizeError, StochasticQuantize, TransposedProduct
from imcc.ir.dialects.layer_gradients import (
    ActivationGradient,
    BatchNormGradient,
    ClampGradient,
    IntegratorGradient,
    NormGradient,
    SliceGradient,
    SoftmaxGradient,
    same_shape,
)
from imcc.ir.dialects.nn import Pool
from imcc.ir.dialects.snn import Neuron
from imcc.ir.dialects.windows import ConvolutionWindow
from imcc.ir.dims import Dim
from imcc.ir.ops import Op, Value, attribute, operand, result
from imcc.ir.types import FLOATS, TensorType, Type

__all__ = [
    "ActivationGradient",
    "BatchNormGradient",
    "ClampGradient",
    "Fold",
    "IntegratorGradient",
    "NormGradient",
    "QuantizeError",
    "SliceGradient",
    "SoftmaxGradient",
    "StochasticQuantize",
    "TransposedProduct",
]

SEMANTICS = "imcc.ir.semantics.learn"


class OutputError(Op, name="learn.output_error"):
    """Derivative of the mean loss over a batch in the outputs ``y`` ``[B, N]``.

    ``cross_entropy``: ``e = (softmax(y) - t) / B`` with t the one-hot label. ``squared``:
    ``e = 2 (y - t) / (B N)``, the derivative of the mean squared difference to the one-hot label.
    A label outside of 0 ... N-1 is refused when the program runs.
    """

    example = (
        "%y: tensor<Bx10xf32>, %labels: tensor<Bxi64> => "
        "%e = learn.output_error %y, %labels : tensor<Bx10xf32>"
    )

    y: Value = operand(TensorType, elements=FLOATS, doc="[B, N]")
    labels: Value = operand(TensorType, elements={"i64"}, doc="[B], classes 0 to N-1")
    loss: Literal["cross_entropy", "squared"] = attribute(default="cross_entropy")
    e: Value = result()

    def infer(self) -> Type:
        """The type of ``y``."""
        y = tensor(self.y)
        if y.rank != 2 or tensor(self.labels).shape != y.shape[:1]:
            raise self.fail(f"outputs {y} and labels {self.labels.type} are not [B, N] and [B]")
        return y


class LinearWeightGradient(Op, name="learn.linear_weight_gradient"):
    """``dW[n, k] = sum over all leading axes of dy[..., n] x[..., k]``."""

    example = (
        "%x: tensor<Bx4xf32>, %dy: tensor<Bx3xf32> => "
        "%dw = learn.linear_weight_gradient %x, %dy : tensor<3x4xf32>"
    )

    x: Value = operand(TensorType, elements=FLOATS, doc="[..., K], the layer's input")
    dy: Value = operand(TensorType, elements=FLOATS, doc="[..., N]")
    dw: Value = result(doc="[N, K]")

    def infer(self) -> Type:
        """``[N, K]``."""
        x, dy = tensor(self.x), tensor(self.dy)
        if x.rank < 1 or x.shape[:-1] != dy.shape[:-1]:
            raise self.fail(f"{x} and {dy} have different leading axes")
        return dy.with_shape((dy.shape[-1], x.shape[-1]))


class LinearInputGradient(Op, name="learn.linear_input_gradient"):
    """``dx[..., k] = sum_n dy[..., n] W[n, k]``: a read of the transposed weight."""

    example = (
        "%dy: tensor<Bx3xf32>, %w: tensor<3x4xf32> => "
        "%dx = learn.linear_input_gradient %dy, %w : tensor<Bx4xf32>"
    )

    dy: Value = operand(TensorType, elements=FLOATS, doc="[..., N]")
    weight: Value = operand(TensorType, elements=FLOATS, doc="[N, K]")
    dx: Value = result(doc="[..., K]")

    def infer(self) -> Type:
        """Leading axes of ``dy``, then K."""
        dy, weight = tensor(self.dy), tensor(self.weight)
        if weight.rank != 2 or dy.rank < 1 or dy.shape[-1] != weight.shape[0]:
            raise self.fail(f"{dy} and weight {weight} do not multiply")
        return dy.with_shape((*dy.shape[:-1], weight.shape[1]))


class ConvWeightGradient(ConvolutionWindow, name="learn.conv_weight_gradient"):
    """``dW[n, c, k] = sum_{b, p} dy[b, n, p] x[b, c, p * stride + k * dilation - padding]``."""

    example = (
        "%x: tensor<Bx3x8x8xf32>, %dy: tensor<Bx4x8x8xf32>, %w: tensor<4x3x3x3xf32> => "
        "%dw = learn.conv_weight_gradient %x, %dy, %w {stride = [1, 1], padding = [1, 1], "
        "dilation = [1, 1]} : tensor<4x3x3x3xf32>"
    )

    x: Value = operand(TensorType, elements=FLOATS, doc="[..., C, spatial], the layer's input")
    dy: Value = operand(TensorType, elements=FLOATS, doc="[..., N, spatial']")
    weight: Value = operand(TensorType, elements=FLOATS, doc="the weight; only its shape counts")
    dw: Value = result()

    def infer(self) -> Type:
        """The type of the weight."""
        wanted = self.output_shape(tensor(self.x), tensor(self.weight))
        if tensor(self.dy).shape != wanted:
            raise self.fail(f"dy is {self.dy.type}, the convolution gives {list(wanted)}")
        return tensor(self.weight)


class ConvInputGradient(ConvolutionWindow, name="learn.conv_input_gradient"):
    """The transposed convolution: ``dx`` such that ``<dy, conv(x)> = <dx, x>`` for all x."""

    example = (
        "%dy: tensor<Bx4x8x8xf32>, %w: tensor<4x3x3x3xf32>, %x: tensor<Bx3x8x8xf32> => "
        "%dx = learn.conv_input_gradient %dy, %w, %x {stride = [1, 1], padding = [1, 1], "
        "dilation = [1, 1]} : tensor<Bx3x8x8xf32>"
    )

    dy: Value = operand(TensorType, elements=FLOATS, doc="[..., N, spatial']")
    weight: Value = operand(TensorType, elements=FLOATS, doc="[N, C / groups, kernel]")
    x: Value = operand(TensorType, elements=FLOATS, doc="the input; only its shape counts")
    dx: Value = result()

    def infer(self) -> Type:
        """The type of the input."""
        wanted = self.output_shape(tensor(self.x), tensor(self.weight))
        if tensor(self.dy).shape != wanted:
            raise self.fail(f"dy is {self.dy.type}, the convolution gives {list(wanted)}")
        return tensor(self.x)


class SumTo(Op, name="learn.sum_to"):
    """The adjoint of broadcasting: ``factor * dy`` summed over the axes that ``like`` lacks."""

    example = (
        "%dy: tensor<BxSx4xf32>, %b: tensor<4xf32> => %db = learn.sum_to %dy, %b : tensor<4xf32>"
    )

    dy: Value = operand(TensorType, elements=FLOATS)
    like: Value = operand(TensorType, elements=FLOATS, doc="only its shape counts")
    factor: float = attribute(default=1.0)
    db: Value = result()

    def infer(self) -> Type:
        """The type of ``like``."""
        dy, like = tensor(self.dy), tensor(self.like)
        if broadcast(self, dy.shape, like.shape) != dy.shape:
            raise self.fail(f"{like} does not broadcast to {dy}")
        return like


class Spread(Op, name="learn.spread"):
    """The adjoint of a mean or sum over ``axes`` of x: ``dx = factor * dy``, repeated along them.

    ``dy`` lacks the axes, or has size 1 there; ``factor`` is 1 for a sum, 1 / count for a mean.
    """

    example = (
        "%dy: tensor<Bx3xf32>, %x: tensor<Bx3x8x8xf32> => "
        "%dx = learn.spread %dy, %x {axes = [-2, -1], factor = 0.015625} : tensor<Bx3x8x8xf32>"
    )

    dy: Value = operand(TensorType, elements=FLOATS)
    x: Value = operand(TensorType, elements=FLOATS, doc="only its shape counts")
    axes: tuple[int, ...] = attribute(maximum=-1, doc="distinct axes of x, from the back")
    factor: float = attribute(default=1.0)
    dx: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        x, dy = tensor(self.x), tensor(self.dy)
        if not self.axes or any(-axis > x.rank for axis in self.axes):
            raise self.fail(f"axes {list(self.axes)} are not axes of {x}")
        gone = {axis % x.rank for axis in self.axes}
        kept = tuple(size for axis, size in enumerate(x.shape) if axis not in gone)
        ones: tuple[Dim, ...] = tuple(
            1 if axis in gone else size for axis, size in enumerate(x.shape)
        )
        if dy.shape not in (kept, ones):
            raise self.fail(f"dy is {dy}, expected {list(kept)}")
        return x


class ReluGradient(Op, name="learn.relu_gradient"):
    """``dx = dy`` where ``x > 0``, else ``negative_slope * dy``."""

    example = (
        "%dy: tensor<Bx4xf32>, %x: tensor<Bx4xf32> => "
        "%dx = learn.relu_gradient %dy, %x : tensor<Bx4xf32>"
    )

    dy: Value = operand(TensorType, elements=FLOATS)
    x: Value = operand(TensorType, elements=FLOATS)
    negative_slope: float = attribute(default=0.0)
    dx: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        return same_shape(self, self.dy, self.x)


class MaxPoolGradient(Pool, name="learn.max_pool_gradient"):
    """Each gradient goes to the element that was largest in its window (the first, on ties)."""

    example = (
        "%x: tensor<Bx3x8x8xf32>, %dy: tensor<Bx3x4x4xf32> => "
        "%dx = learn.max_pool_gradient %x, %dy {kernel = [2, 2], stride = [2, 2], "
        "padding = [0, 0], dilation = [1, 1]} : tensor<Bx3x8x8xf32>"
    )

    dilation: tuple[int, ...] = attribute(minimum=1)
    dy: Value = operand(TensorType, elements=FLOATS)
    dx: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        return _pooled(self, self.pooled(self.dilation), self.dy)


class AvgPoolGradient(Pool, name="learn.avg_pool_gradient"):
    """Each gradient is shared evenly by the elements of its window."""

    example = (
        "%x: tensor<Bx3x8x8xf32>, %dy: tensor<Bx3x4x4xf32> => "
        "%dx = learn.avg_pool_gradient %x, %dy {kernel = [2, 2], stride = [2, 2], "
        "padding = [0, 0]} : tensor<Bx3x8x8xf32>"
    )

    count_include_pad: bool = attribute(default=True)
    dy: Value = operand(TensorType, elements=FLOATS)
    dx: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        return _pooled(self, self.pooled((1,) * len(self.kernel)), self.dy)


class NeuronGradient(Neuron, name="learn.lif_gradient"):
    """The gradient of ``snn.lif`` in its input, through time, with the neuron's surrogate.

    With the membrane equations of ``snn.lif``, ``dx`` is what back-propagation through the time
    steps gives for the gradient ``dy`` of the spikes and ``dv`` of the membrane; the step
    function's derivative is the surrogate's. With ``through_time = false`` each step is for
    itself, ``dx[t] = dy[t] phi'(h[t]) dh[t]/dx[t]``: what one step did to later ones is left out.
    """

    example = (
        "%x: tensor<4xBx8xf32>, %dy: tensor<4xBx8xf32> => "
        '%dx = learn.lif_gradient %x, dy=%dy {leak = 0.5, surrogate = "triangle"} '
        ": tensor<4xBx8xf32>"
    )

    through_time: bool = attribute(default=True, doc="whether gradients pass between time steps")
    dy: Value | None = operand(
        TensorType, elements=FLOATS, default=None, doc="gradient of the spikes, [T, ...]"
    )
    dv: Value | None = operand(
        TensorType, elements=FLOATS, default=None, doc="gradient of the membrane, [T, ...]"
    )
    dx: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        for gradient in (self.dy, self.dv):
            if gradient is not None:
                same_shape(self, gradient, self.x)
        return tensor(self.x)

    def verify(self) -> None:
        """As for the neuron, and there is a gradient."""
        super().verify()
        if self.dy is None and self.dv is None:
            raise self.fail("needs the gradient of the spikes or of the membrane")


class Update(Op, name="learn.update"):
    """A step of gradient descent: ``w' = w - rate * dw``; what a write to the weight stores."""

    example = (
        "%w: tensor<3x4xf32>, %dw: tensor<3x4xf32> => "
        "%next = learn.update %w, %dw {rate = 0.1} : tensor<3x4xf32>"
    )

    weight: Value = operand(TensorType, elements=FLOATS)
    dw: Value = operand(TensorType, elements=FLOATS)
    rate: float = attribute(minimum=0.0, doc="learning rate")
    next_weight: Value = result()

    def infer(self) -> Type:
        """The type of the weight."""
        return same_shape(self, self.dw, self.weight)


def _pooled(op: Pool, wanted: TensorType, dy: Value) -> TensorType:
    if tensor(dy).shape != wanted.shape:
        raise op.fail(f"dy is {dy.type}, the pooling gives {wanted}")
    return tensor(op.x)
