"""Errors as integer codes, for hardware that multiplies integers. Part of the dialect ``learn``."""

from __future__ import annotations

from imcc.ir.dialects.core import tensor
from imcc.ir.dialects.quant import largest_product_sum
from imcc.ir.dialects.windows import windowed_shape
from imcc.ir.dims import Dim
from imcc.ir.ops import Op, Value, attribute, operand, result
from imcc.ir.types import FLOATS, QuantType, TensorType, Type


class QuantizeError(Op, name="learn.quantize_error"):
    """Errors to signed codes with a scale found at run time, a power of two for each vector.

    A vector is what shares all but the last ``axes`` axes. With ``m = 2^(bits-1) - 1`` the scale is
    the smallest ``s = 2^e`` with ``max|x| <= s m``; ``codes = round(x / s)``, ties to even. A
    vector of zeros has scale 1. Errors shrink by orders of magnitude while a network learns, so
    that no range chosen beforehand holds; with a power of two, digital units shift.
    """

    example = (
        "%x: tensor<Bx4xf32> => %q, %s = learn.quantize_error %x "
        ": tensor<Bx4xq<s8>>, tensor<Bx1xf32>"
    )

    x: Value = operand(TensorType, elements=FLOATS, doc="[..., K] or [..., C, spatial]")
    bits: int = attribute(default=8, minimum=2, maximum=16, unit="bit")
    axes: int = attribute(default=1, minimum=1, doc="how many trailing axes share a scale")
    codes: Value = result()
    scale: Value = result(doc="shaped as x with size 1 along the trailing axes")

    def infer(self) -> tuple[Type, ...]:
        """Codes shaped like ``x``, and a scale for each vector."""
        x = tensor(self.x)
        if x.rank < self.axes:
            raise self.fail(f"{x} has fewer than {self.axes} axes")
        outer = x.shape[: x.rank - self.axes]
        shape: tuple[Dim, ...] = (*outer, *(1 for _ in range(self.axes)))
        return (x.with_element(QuantType(self.bits, True)), x.with_shape(shape))


class TransposedProduct(Op, name="learn.transposed_product"):
    """Integer product with the transposed weight: ``y[..., k] = sum_n x[..., n] w[n, k]``.

    With ``size`` the transposed convolution: ``y[..., c, i] = sum_{n, p, j} x[..., n, p]
    w[n, c, j]`` over the positions p and kernel places j with
    ``p * stride + j * dilation - padding = i``; ``size`` are the spatial sizes of y. In 32-bit
    integers.
    """

    example = (
        "%x: tensor<Bx3xq<s8>>, %w: tensor<3x4xq<s8, axis=0>> => "
        "%y = learn.transposed_product %x, %w : tensor<Bx4xi32>"
    )

    x: Value = operand(TensorType, quantised=True, doc="codes, [..., N] or [..., N, spatial']")
    weight: Value = operand(TensorType, quantised=True, doc="codes, [N, K] or [N, C/groups, j]")
    size: tuple[int, ...] = attribute(default=(), minimum=1, doc="empty: a plain product")
    stride: tuple[int, ...] = attribute(default=(), minimum=1)
    padding: tuple[int, ...] = attribute(default=(), minimum=0)
    dilation: tuple[int, ...] = attribute(default=(), minimum=1)
    groups: int = attribute(default=1, minimum=1)
    y: Value = result()

    def infer(self) -> Type:
        """``[..., K]`` or ``[..., C, size]``, elements i32."""
        x, weight = tensor(self.x), tensor(self.weight)
        spatial = len(self.size)
        outputs = weight.shape[0]
        if weight.rank != 2 + spatial or x.rank < 1 + spatial:
            raise self.fail(f"{x} and weight {weight} do not multiply")
        if x.shape[x.rank - 1 - spatial] != outputs:
            raise self.fail(f"{x} and weight {weight} do not multiply")
        leading = x.shape[: x.rank - 1 - spatial]
        if not spatial:
            return TensorType((*leading, weight.shape[1]), "i32")
        channels = weight.shape[1]
        if not isinstance(channels, int):
            raise self.fail("channels must have a known size")
        made = TensorType((*leading, channels * self.groups, *self.size), "i32")
        window = (self.stride, self.padding, self.dilation)
        if windowed_shape(self, made, weight.shape[2:], *window, outputs) != x.shape:
            raise self.fail(f"{x} is not what a convolution of {made} with {weight} gives")
        return made

    def verify(self) -> None:
        """Symmetric codes whose sums stay within 32 bits."""
        x, weight = tensor(self.x), tensor(self.weight)
        if not x.quant.symmetric or not weight.quant.symmetric or weight.quant.group is not None:
            raise self.fail("needs symmetric codes without groups of scales")
        terms = 1
        for size in (weight.shape[0], *weight.shape[2:]):
            terms *= size if isinstance(size, int) else 1
        if (largest := largest_product_sum(x.quant, weight.quant, terms)) >= 2**31:
            raise self.fail(f"a sum of {terms} products can reach {largest}, beyond 32 bits")


class StochasticQuantize(Op, name="learn.stochastic_quantize"):
    """Real to code, rounded up or down at random so that the mean is right (Gupta et al., 2015).

    ``y = clamp(floor(x / scale + u), minimum, maximum)`` with u uniform on [0, 1); without draws
    u = 1/2. ``scale`` is a vector along ``axis``.
    """

    draws = True
    example = (
        "%x: tensor<3x4xf32>, %s: tensor<3xf32> => "
        '%y = learn.stochastic_quantize %x, %s {bits = 8, stream = "w"} '
        ": tensor<3x4xq<s8, axis=0>>"
    )

    x: Value = operand(TensorType, elements=FLOATS)
    scale: Value = operand(TensorType, elements=FLOATS, doc="positive, [axis size]")
    bits: int = attribute(minimum=2, maximum=32, unit="bit")
    axis: int = attribute(default=0, minimum=0)
    stream: str = attribute(doc="name of its random draws, unique in the module")
    y: Value = result()

    def infer(self) -> Type:
        """Signed codes shaped like ``x``."""
        x = tensor(self.x)
        if self.axis >= x.rank or tensor(self.scale).shape != (x.shape[self.axis],):
            raise self.fail(f"scale {self.scale.type} does not fit axis {self.axis} of {x}")
        return x.with_element(QuantType(self.bits, True, self.axis))


class Fold(Op, name="learn.fold"):
    """The adjoint of cutting windows: ``y[..., c, i] = sum_{p, j} x[..., p, (c, j)]``.

    The sum is over positions p and places j with ``p * stride + j * dilation - padding = i``.
    ``x`` is ``[..., spatial', C prod(kernel)]``, ``y`` ``[..., C, size]``.
    """

    example = (
        "%x: tensor<Bx4x6xf32> => %y = learn.fold %x {size = [4], kernel = [3], stride = [1], "
        "padding = [1], dilation = [1]} : tensor<Bx2x4xf32>"
    )

    x: Value = operand(TensorType, elements=FLOATS)
    size: tuple[int, ...] = attribute(minimum=1, doc="spatial sizes of y, one to three")
    kernel: tuple[int, ...] = attribute(minimum=1)
    stride: tuple[int, ...] = attribute(minimum=1)
    padding: tuple[int, ...] = attribute(minimum=0)
    dilation: tuple[int, ...] = attribute(minimum=1)
    y: Value = result()

    def infer(self) -> Type:
        """``[..., C, size]``."""
        x, spatial = tensor(self.x), len(self.size)
        terms = 1
        for size in self.kernel:
            terms *= size
        last = x.shape[-1] if x.rank > spatial else None
        if not isinstance(last, int) or last % terms or not 1 <= spatial <= 3:
            raise self.fail(f"{x} does not hold windows of {list(self.kernel)}")
        leading = x.shape[: x.rank - 1 - spatial]
        made = x.with_shape((*leading, last // terms, *self.size))
        window = (self.stride, self.padding, self.dilation)
        if (
            windowed_shape(self, made, self.kernel, *window)[-spatial:]
            != x.shape[-spatial - 1 : -1]
        ):
            raise self.fail(f"{x} does not hold the windows of {made}")
        return made
