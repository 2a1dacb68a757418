"""``nn``: layers of neural networks in floating point, for inference.

Every op accepts any number of leading axes, so that time and batch are never merged: a convolution
reads ``[..., C, spatial]``, a linear layer ``[..., K]``. Axes are counted from the back
(``-1`` is the last), which keeps their meaning whatever stands in front.
"""

from __future__ import annotations

from typing import Literal

from imcc.ir.dialects.attention import Attention, Matmul
from imcc.ir.dialects.core import moved, not_the_batch, tensor
from imcc.ir.dialects.windows import ConvolutionWindow, windowed_shape
from imcc.ir.dims import Dim
from imcc.ir.ops import Op, Value, attribute, operand, result
from imcc.ir.types import FLOATS, NUMBERS, TensorType, Type

__all__ = ["Attention", "Matmul"]

SEMANTICS = "imcc.ir.semantics.nn"


def _same_element(op: Op, *values: Value | None) -> None:
    kinds = [tensor(value) for value in values if value is not None]
    for kind in kinds[1:]:
        if kind.element != kinds[0].element:
            raise op.fail(f"element types {kinds[0].element} and {kind.element} differ")


def _check_vector(op: Op, what: str, value: Value | None, size: Dim) -> None:
    if value is not None and tensor(value).shape != (size,):
        raise op.fail(f"{what} is {value.type}, expected shape [{size}]")


def _size_at(op: Op, kind: TensorType, axis: int) -> Dim:
    if -axis > kind.rank:
        raise op.fail(f"axis {axis} is outside of {kind}")
    return kind.shape[axis]


class _Layer(Op):
    x: Value = operand(TensorType, elements=FLOATS)
    weight: Value = operand(TensorType, elements=FLOATS)
    bias: Value | None = operand(TensorType, elements=FLOATS, default=None, doc="[N]")

    def verify(self) -> None:
        """One element type, and a bias with one number per output."""
        _same_element(self, self.x, self.weight, self.bias)
        _check_vector(self, "bias", self.bias, tensor(self.weight).shape[0])


class Linear(_Layer, name="nn.linear"):
    """Affine map of the last axis: ``y[..., n] = sum_k x[..., k] * weight[n, k] + bias[n]``.

    ``x`` is ``[..., K]``, ``weight`` is ``[N, K]``, ``bias`` is ``[N]``, ``y`` is ``[..., N]``.
    """

    example = (
        "%x: tensor<Bx4xf32>, %w: tensor<3x4xf32>, %b: tensor<3xf32> => "
        "%y = nn.linear %x, %w, bias=%b : tensor<Bx3xf32>"
    )

    y: Value = result(doc="[..., N]")

    def infer(self) -> Type:
        """Leading axes of ``x``, then N."""
        x, weight = tensor(self.x), tensor(self.weight)
        if weight.rank != 2 or x.rank < 1 or x.shape[-1] != weight.shape[1]:
            raise self.fail(f"{x} and weight {weight} do not multiply")
        return x.with_shape((*x.shape[:-1], weight.shape[0]))


class Conv(_Layer, ConvolutionWindow, name="nn.conv"):
    """Convolution (cross-correlation) over the last ``len(stride)`` axes, one to three.

    ``y[..., n, p] = bias[n] + sum_{c, k} x[..., g + c, p * stride + k * dilation - padding]
    * weight[n, c, k]`` with x = 0 outside of the input and g the first channel of n's group.
    ``x`` is ``[..., C, spatial]``, ``weight`` is ``[N, C / groups, kernel]``, ``y`` is
    ``[..., N, spatial']`` with
    ``spatial' = floor((spatial + 2 padding - dilation (kernel - 1) - 1) / stride) + 1``.
    """

    example = (
        "%x: tensor<Bx3x8x8xf32>, %w: tensor<4x3x3x3xf32> => "
        "%y = nn.conv %x, %w {stride = [1, 1], padding = [1, 1], dilation = [1, 1]} "
        ": tensor<Bx4x8x8xf32>"
    )

    y: Value = result(doc="[..., N, spatial]")

    def infer(self) -> Type:
        """Leading axes of ``x``, N, and the sizes that the window leaves."""
        x, weight = tensor(self.x), tensor(self.weight)
        return x.with_shape(self.output_shape(x, weight))


class BatchNorm(Op, name="nn.batch_norm"):
    """Normalisation by stored statistics, per channel of ``axis`` (Ioffe and Szegedy, 2015).

    ``y = (x - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]``; an absent weight is 1, an
    absent bias 0. ``y`` is shaped like ``x``.
    """

    example = (
        "%x: tensor<Bx4x8xf32>, %m: tensor<4xf32>, %v: tensor<4xf32> => "
        "%y = nn.batch_norm %x, %m, %v {axis = -2} : tensor<Bx4x8xf32>"
    )

    x: Value = operand(TensorType, elements=FLOATS)
    mean: Value = operand(TensorType, elements=FLOATS, doc="[C]")
    var: Value = operand(TensorType, elements=FLOATS, doc="[C], not negative")
    weight: Value | None = operand(TensorType, elements=FLOATS, default=None, doc="[C]")
    bias: Value | None = operand(TensorType, elements=FLOATS, default=None, doc="[C]")
    axis: int = attribute(maximum=-1, doc="the axis of channels, from the back")
    eps: float = attribute(default=1e-5, minimum=0)
    y: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        return tensor(self.x)

    def verify(self) -> None:
        """One number per channel, one element type."""
        channels = _size_at(self, tensor(self.x), self.axis)
        _same_element(self, self.x, self.mean, self.var, self.weight, self.bias)
        for what in ("mean", "var", "weight", "bias"):
            _check_vector(self, what, getattr(self, what), channels)


class _TrailingNorm(Op):
    x: Value = operand(TensorType, elements=FLOATS)
    weight: Value | None = operand(TensorType, elements=FLOATS, default=None)
    normalized_shape: tuple[int, ...] = attribute(minimum=1, doc="sizes of the trailing axes")
    eps: float = attribute(default=1e-5, minimum=0)

    def infer(self) -> Type:
        """The type of ``x``."""
        return tensor(self.x)

    def verify(self) -> None:
        """The normalised axes are the trailing ones of ``x``; weight and bias have their shape."""
        shape, count = tensor(self.x).shape, len(self.normalized_shape)
        if not count or shape[-count:] != self.normalized_shape:
            raise self.fail(f"{self.x.type} does not end in {list(self.normalized_shape)}")
        _same_element(self, *self.operands)
        for what in ("weight", "bias"):
            value: Value | None = getattr(self, what, None)
            if value is not None and tensor(value).shape != self.normalized_shape:
                raise self.fail(
                    f"{what} is {value.type}, expected shape {list(self.normalized_shape)}"
                )


class LayerNorm(_TrailingNorm, name="nn.layer_norm"):
    """Normalisation of the trailing axes by their own statistics (Ba et al., 2016).

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``; mean and (biased) variance are taken over
    the trailing axes of sizes ``normalized_shape``, which weight and bias share. ``y`` is shaped
    like ``x``.
    """

    example = (
        "%x: tensor<Bx5x4xf32>, %w: tensor<4xf32> => "
        "%y = nn.layer_norm %x, weight=%w {normalized_shape = [4]} : tensor<Bx5x4xf32>"
    )

    bias: Value | None = operand(TensorType, elements=FLOATS, default=None)
    y: Value = result()


class RmsNorm(_TrailingNorm, name="nn.rms_norm"):
    """Normalisation of the trailing axes by their root mean square (Zhang and Sennrich, 2019).

    ``y = x / sqrt(mean(x^2) + eps) * weight``; the mean is taken over the trailing axes of sizes
    ``normalized_shape``, which weight shares. ``y`` is shaped like ``x``.
    """

    example = (
        "%x: tensor<Bx5x4xf32>, %w: tensor<4xf32> => "
        "%y = nn.rms_norm %x, weight=%w {normalized_shape = [4]} : tensor<Bx5x4xf32>"
    )

    y: Value = result()


class Pool(Op):
    """A window that slides over the last axes: what poolings and their gradients share."""

    x: Value = operand(TensorType, elements=FLOATS, doc="[..., C, spatial]")
    kernel: tuple[int, ...] = attribute(minimum=1)
    stride: tuple[int, ...] = attribute(minimum=1)
    padding: tuple[int, ...] = attribute(minimum=0)
    ceil_mode: bool = attribute(default=False, doc="round the output size up")

    def pooled(self, dilation: tuple[int, ...]) -> TensorType:
        """``x`` with the sizes that the window leaves."""
        x = tensor(self.x)
        if not 1 <= len(self.kernel) <= 3:
            raise self.fail(f"has {len(self.kernel)} spatial axes, 1 to 3 are supported")
        for kernel, padding in zip(self.kernel, self.padding, strict=False):
            if 2 * padding > kernel:
                raise self.fail(f"padding {padding} is more than half of the kernel {kernel}")
        return x.with_shape(
            windowed_shape(
                self,
                x,
                self.kernel,
                self.stride,
                self.padding,
                dilation,
                ceil_mode=self.ceil_mode,
            )
        )


class MaxPool(Pool, name="nn.max_pool"):
    """Largest of each window: ``y[..., p] = max_k x[..., p * stride + k * dilation - padding]``.

    Padding counts as minus infinity. ``x`` is ``[..., C, spatial]``, ``y`` is
    ``[..., C, spatial']`` with sizes as ``nn.conv`` (rounded up with ``ceil_mode``).
    """

    example = (
        "%x: tensor<Bx3x8x8xf32> => "
        "%y = nn.max_pool %x {kernel = [2, 2], stride = [2, 2], padding = [0, 0], "
        "dilation = [1, 1]} : tensor<Bx3x4x4xf32>"
    )

    dilation: tuple[int, ...] = attribute(minimum=1)
    y: Value = result()

    def infer(self) -> Type:
        """``x`` with the sizes that the window leaves; the largest of spikes is a spike."""
        return moved(self.x).with_shape(self.pooled(self.dilation).shape)


class AvgPool(Pool, name="nn.avg_pool"):
    """Mean of each window: ``y[..., p] = sum_k x[..., p * stride + k - padding] / count``.

    Padding counts as 0; ``count`` is the kernel's size, or with ``count_include_pad = false`` the
    number of elements inside of the input. Sizes are as ``nn.max_pool``.
    """

    example = (
        "%x: tensor<Bx3x8x8xf32> => "
        "%y = nn.avg_pool %x {kernel = [2, 2], stride = [2, 2], padding = [0, 0]} "
        ": tensor<Bx3x4x4xf32>"
    )

    count_include_pad: bool = attribute(default=True)
    y: Value = result()

    def infer(self) -> Type:
        """``x`` with the sizes that the window leaves."""
        return self.pooled((1,) * len(self.kernel))


class AdaptiveAvgPool(Op, name="nn.adaptive_avg_pool"):
    """Mean over windows that tile the input to a given output size.

    ``y[..., i] = mean x[..., floor(i n / m) : ceil((i + 1) n / m)]`` for input size n and output
    size m, on each of the last ``len(output)`` axes.
    """

    example = (
        "%x: tensor<Bx3x8x8xf32> => "
        "%y = nn.adaptive_avg_pool %x {output = [1, 1]} : tensor<Bx3x1x1xf32>"
    )

    x: Value = operand(TensorType, elements=FLOATS, doc="[..., C, spatial]")
    output: tuple[int, ...] = attribute(minimum=1, doc="sizes of the trailing axes of y")
    y: Value = result()

    def infer(self) -> Type:
        """``x`` with the trailing axes replaced by ``output``."""
        x, count = tensor(self.x), len(self.output)
        if not 1 <= count <= 3 or x.rank < count + 1:
            raise self.fail(f"{x} does not have a channel axis and {count} spatial axes")
        if not all(isinstance(size, int) for size in x.shape[-count:]):
            raise self.fail(f"{x} has spatial axes of symbolic size")
        return x.with_shape((*x.shape[:-count], *self.output))


class _Reduction(Op):
    x: Value = operand(TensorType, elements=NUMBERS)
    axes: tuple[int, ...] = attribute(maximum=-1, doc="distinct, from the back")
    keepdim: bool = attribute(default=False)

    def infer(self) -> Type:
        """``x`` without the axes, or with size 1 there."""
        x = tensor(self.x)
        if not self.axes or len(set(self.axes)) != len(self.axes):
            raise self.fail(f"axes {list(self.axes)} must be distinct and at least one")
        for axis in self.axes:
            not_the_batch(self, _size_at(self, x, axis), f"reduces axis {axis}")
        gone = {axis % x.rank for axis in self.axes}
        shape: list[Dim] = []
        for index, size in enumerate(x.shape):
            if index not in gone:
                shape.append(size)
            elif self.keepdim:
                shape.append(1)
        return x.with_shape(tuple(shape))


class Mean(_Reduction, name="nn.mean"):
    """Mean over some axes: ``y = sum_axes x / count``; with ``keepdim`` they stay with size 1."""

    example = "%x: tensor<Bx3x8x8xf32> => %y = nn.mean %x {axes = [-2, -1]} : tensor<Bx3xf32>"

    y: Value = result()

    def verify(self) -> None:
        """A mean of integers is no integer."""
        if tensor(self.x).element not in FLOATS:
            raise self.fail(f"takes the mean of {tensor(self.x).element}")


class Sum(_Reduction, name="nn.sum"):
    """Sum over some axes: ``y = sum_axes x``; with ``keepdim`` they stay with size 1."""

    example = "%x: tensor<Bx3x8x8xf32> => %y = nn.sum %x {axes = [-2, -1]} : tensor<Bx3xf32>"

    y: Value = result()


class Max(_Reduction, name="nn.max"):
    """Largest over some axes: ``y = max_axes x``; with ``keepdim`` they stay with size 1."""

    example = "%x: tensor<Bx3x8x8xf32> => %y = nn.max %x {axes = [-2, -1]} : tensor<Bx3xf32>"

    y: Value = result()


class _Elementwise(Op):
    x: Value = operand(TensorType, elements=FLOATS)

    def infer(self) -> Type:
        """The type of ``x``."""
        return tensor(self.x)


class Relu(_Elementwise, name="nn.relu"):
    """Rectifier: ``y = max(x, 0)``, elementwise."""

    example = "%x: tensor<Bx4xf32> => %y = nn.relu %x : tensor<Bx4xf32>"

    y: Value = result()


class Clamp(_Elementwise, name="nn.clamp"):
    """Limits: ``y = min(max(x, minimum), maximum)``, elementwise; an absent limit is infinite."""

    example = (
        "%x: tensor<Bx4xf32> => %y = nn.clamp %x {minimum = 0.0, maximum = 6.0} : tensor<Bx4xf32>"
    )

    minimum: float | None = attribute(default=None)
    maximum: float | None = attribute(default=None)
    y: Value = result()

    def verify(self) -> None:
        """At least one limit, and in order."""
        if self.minimum is None and self.maximum is None:
            raise self.fail("needs minimum or maximum")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise self.fail(f"minimum {self.minimum} is above maximum {self.maximum}")


class LeakyRelu(_Elementwise, name="nn.leaky_relu"):
    """Leaky rectifier: ``y = x if x > 0 else negative_slope * x``, elementwise."""

    example = "%x: tensor<Bx4xf32> => %y = nn.leaky_relu %x : tensor<Bx4xf32>"

    negative_slope: float = attribute(default=0.01)
    y: Value = result()


class Sigmoid(_Elementwise, name="nn.sigmoid"):
    """Logistic function: ``y = 1 / (1 + exp(-x))``, elementwise."""

    example = "%x: tensor<Bx4xf32> => %y = nn.sigmoid %x : tensor<Bx4xf32>"

    y: Value = result()


class Tanh(_Elementwise, name="nn.tanh"):
    """Hyperbolic tangent: ``y = (exp(x) - exp(-x)) / (exp(x) + exp(-x))``, elementwise."""

    example = "%x: tensor<Bx4xf32> => %y = nn.tanh %x : tensor<Bx4xf32>"

    y: Value = result()


class Gelu(_Elementwise, name="nn.gelu"):
    """Gaussian error linear unit (Hendrycks and Gimpel, 2016): ``y = x * Phi(x)``, elementwise.

    ``Phi`` is the standard normal distribution function; with ``approximate = "tanh"``
    ``y = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))``.
    """

    example = '%x: tensor<Bx4xf32> => %y = nn.gelu %x {approximate = "tanh"} : tensor<Bx4xf32>'

    approximate: Literal["none", "tanh"] = attribute(default="none")
    y: Value = result()


class Silu(_Elementwise, name="nn.silu"):
    """Sigmoid linear unit, or swish: ``y = x / (1 + exp(-x))``, elementwise."""

    example = "%x: tensor<Bx4xf32> => %y = nn.silu %x : tensor<Bx4xf32>"

    y: Value = result()


class Hardswish(_Elementwise, name="nn.hardswish"):
    """Piecewise swish (Howard et al., 2019): ``y = x * min(max(x + 3, 0), 6) / 6``, elementwise."""

    example = "%x: tensor<Bx4xf32> => %y = nn.hardswish %x : tensor<Bx4xf32>"

    y: Value = result()


class Hardsigmoid(_Elementwise, name="nn.hardsigmoid"):
    """Piecewise linear sigmoid: ``y = min(max(x + 3, 0), 6) / 6``, elementwise."""

    example = "%x: tensor<Bx4xf32> => %y = nn.hardsigmoid %x : tensor<Bx4xf32>"

    y: Value = result()


class Softmax(_Elementwise, name="nn.softmax"):
    """Normalised exponentials along one axis: ``y_i = exp(x_i) / sum_j exp(x_j)``."""

    example = "%x: tensor<Bx4xf32> => %y = nn.softmax %x : tensor<Bx4xf32>"

    axis: int = attribute(default=-1, maximum=-1)
    y: Value = result()

    def verify(self) -> None:
        """The axis exists and is not the batch."""
        not_the_batch(
            self, _size_at(self, tensor(self.x), self.axis), f"normalises axis {self.axis}"
        )
