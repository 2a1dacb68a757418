"""``quant``: quantised tensors and their integer arithmetic.

A code ``q`` stands for ``real = scale * (q - zero_point)``. Every op has one integer meaning:
rounding is to nearest, ties to even; accumulation is in 32-bit integers (the verifier refuses
sizes that could overflow); padding of a convolution is with the input's zero point.
"""

from __future__ import annotations

from imcc.ir.dialects.attention import product_shape
from imcc.ir.dialects.core import not_the_batch, tensor
from imcc.ir.dialects.windows import ConvolutionWindow
from imcc.ir.ops import Op, Value, attribute, operand, result
from imcc.ir.types import FLOATS, QuantType, TensorType, Type

SEMANTICS = "imcc.ir.semantics.quant"


def largest_product_sum(x: QuantType, weight: QuantType, terms: int) -> int:
    """The largest absolute value that a sum of ``terms`` products of codes can take."""
    spread_x = max(abs(x.minimum), abs(x.maximum)) if x.symmetric else x.maximum - x.minimum
    spread_w = (
        max(abs(weight.minimum), abs(weight.maximum))
        if weight.symmetric
        else weight.maximum - weight.minimum
    )
    return terms * spread_x * spread_w


class Quantize(Op, name="quant.quantize"):
    """Real to code: ``y = clamp(round(x / scale) + zero_point, minimum, maximum)``.

    Rounding is to nearest, ties to even. ``scale`` is a scalar, or a vector along ``axis`` of the
    result's element type. Gradients pass straight through inside the range and are zero outside.
    """

    example = (
        "%x: tensor<Bx4xf32>, %s: tensor<f32> => "
        "%y = quant.quantize %x, %s {bits = 8, signed = false} : tensor<Bx4xq<u8>>"
    )

    x: Value = operand(TensorType, elements=FLOATS)
    scale: Value = operand(TensorType, elements=FLOATS, doc="positive; [] or [axis size]")
    zero_point: Value | None = operand(
        TensorType, elements={"i32"}, default=None, doc="shaped like scale; absent means 0"
    )
    bits: int = attribute(minimum=1, maximum=32, unit="bit")
    signed: bool = attribute()
    axis: int | None = attribute(default=None, minimum=0)
    y: Value = result()

    def infer(self) -> Type:
        """``x`` with quantised elements; asymmetric if there is a zero point."""
        symmetric = self.zero_point is None
        made = QuantType(self.bits, self.signed, self.axis, None, symmetric)
        return tensor(self.x).with_element(made)

    def verify(self) -> None:
        """Scale and zero point have the shape that the axis asks for."""
        _check_scale(self, tensor(self.y), self.scale, self.zero_point)


class Dequantize(Op, name="quant.dequantize"):
    """Code to real: ``y = (x - zero_point) * scale``.

    With groups the scale has one more axis: ``[axis size, groups]``, a scale for each run of
    ``group`` elements of the last axis.
    """

    example = (
        "%x: tensor<Bx4xq<s8>>, %s: tensor<f32> => %y = quant.dequantize %x, %s : tensor<Bx4xf32>"
    )

    x: Value = operand(TensorType, quantised=True)
    scale: Value = operand(TensorType, elements=FLOATS)
    zero_point: Value | None = operand(TensorType, elements={"i32"}, default=None)
    y: Value = result()

    def infer(self) -> Type:
        """``x`` with the element type of the scale."""
        return tensor(self.x).with_element(tensor(self.scale).element)

    def verify(self) -> None:
        """Scale and zero point have the shape that the element type asks for."""
        _check_scale(self, tensor(self.x), self.scale, self.zero_point)


class FakeQuantize(Op, name="quant.fake_quantize"):
    """Real to code and back with a scale found at run time, one for each token.

    A token is what shares all leading indices: the range [lo, hi] is that of its last axis,
    extended to hold 0. Asymmetric: ``s = (hi - lo) / (2^bits - 1)``, ``z = round(-lo / s)``,
    ``y = s * (clamp(round(x / s) + z, 0, 2^bits - 1) - z)``. Symmetric:
    ``s = max(-lo, hi) / (2^(bits-1) - 1)`` and z = 0. A token of zeros stays. Gradients pass
    straight through.
    """

    example = "%x: tensor<BxSx8xf32> => %y = quant.fake_quantize %x {bits = 4} : tensor<BxSx8xf32>"

    x: Value = operand(TensorType, elements=FLOATS)
    bits: int = attribute(minimum=2, maximum=16, unit="bit")
    symmetric: bool = attribute(default=False)
    y: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        return self.x.type

    def verify(self) -> None:
        """A token needs an axis."""
        if tensor(self.x).rank < 1:
            raise self.fail("a scalar has no token axis")


class _Accumulating(Op):
    x: Value = operand(TensorType, quantised=True, doc="codes of the input, one scale per tensor")
    weight: Value = operand(TensorType, quantised=True, doc="codes, [N, ...]")
    x_zero_point: Value | None = operand(
        TensorType, elements={"i32"}, default=None, doc="scalar; absent means 0"
    )
    weight_zero_point: Value | None = operand(
        TensorType,
        elements={"i32"},
        default=None,
        doc="shaped like the scale of the weight; absent means 0",
    )

    def check_elements(self, terms: int) -> None:
        """Element types that have an integer meaning, without overflow of 32 bits."""
        x, weight = tensor(self.x).quant, tensor(self.weight).quant
        if x.axis is not None or x.group is not None:
            raise self.fail("the input needs one scale per tensor")
        if weight.axis not in (None, 0):
            raise self.fail("weights need scales per tensor or per output channel (axis=0)")
        if self.weight_zero_point is not None:
            _check_scale(self, tensor(self.weight), self.weight_zero_point, self.weight_zero_point)
        elif not weight.symmetric:
            raise self.fail("asymmetric weight codes need weight_zero_point")
        if not x.symmetric and self.x_zero_point is None:
            raise self.fail("asymmetric input codes need x_zero_point")
        _check_accumulation(self, x, weight, terms)


class Linear(_Accumulating, name="quant.linear"):
    """Integer product: ``y[..., n] = sum_k (x[..., k] - zx) * (weight[n, k] - zw[n])`` in 32 bits.

    Weights in groups give the sum of each group ``j`` of inputs by itself:
    ``y[..., n, j] = sum_{k in j} (x[..., k] - zx) * (weight[n, k] - zw[n, j])``;
    ``quant.rescale_groups`` scales and adds them.
    """

    example = (
        "%x: tensor<Bx4xq<u8>>, %w: tensor<3x4xq<s8, axis=0>> => "
        "%y = quant.linear %x, %w : tensor<Bx3xi32>"
    )

    y: Value = result(doc="[..., N], with groups [..., N, groups]")

    def infer(self) -> Type:
        """Leading axes of ``x``, then N (and groups), as i32."""
        x, weight = tensor(self.x), tensor(self.weight)
        if weight.rank != 2 or x.rank < 1 or x.shape[-1] != weight.shape[1]:
            raise self.fail(f"{x} and weight {weight} do not multiply")
        group, terms = weight.quant.group, weight.shape[1]
        groups = () if group is None or not isinstance(terms, int) else (-(-terms // group),)
        return TensorType((*x.shape[:-1], weight.shape[0], *groups), "i32")

    def verify(self) -> None:
        """Codes that accumulate without overflow."""
        terms = tensor(self.weight).shape[1]
        if tensor(self.weight).quant.group is not None and tensor(self.weight).quant.axis != 0:
            raise self.fail("groups of weights need scales per output channel too (axis=0)")
        self.check_elements(terms if isinstance(terms, int) else 1)


class Conv(_Accumulating, ConvolutionWindow, name="quant.conv"):
    """Integer convolution over the last ``len(stride)`` axes, as ``nn.conv``, in 32-bit integers.

    ``y[b, n, p] = sum_{c, k} (x[b, c, q] - zx) * (weight[n, c, k] - zw[n])`` at the input position
    ``q = p * stride + k * dilation - padding``, with x = zx outside of the input.
    """

    example = (
        "%x: tensor<Bx3x8x8xq<u8>>, %w: tensor<4x3x3x3xq<s8, axis=0>> => "
        "%y = quant.conv %x, %w {stride = [1, 1], padding = [1, 1], dilation = [1, 1]} "
        ": tensor<Bx4x8x8xi32>"
    )

    y: Value = result(doc="[..., N, spatial]")

    def infer(self) -> Type:
        """Shape as ``nn.conv``, elements i32."""
        return TensorType(self.output_shape(tensor(self.x), tensor(self.weight)), "i32")

    def verify(self) -> None:
        """Codes that accumulate without overflow."""
        if tensor(self.weight).quant.group is not None:
            raise self.fail(
                "a convolution has no groups of scales", help="use one scale per output channel"
            )
        terms = 1
        for dim in tensor(self.weight).shape[1:]:
            terms *= dim if isinstance(dim, int) else 1
        self.check_elements(terms)


class Matmul(Op, name="quant.matmul"):
    """Integer product of two activations, accumulated in 32-bit integers.

    ``y[..., m, n] = sum_k (a[..., m, k] - za) * (b[..., k, n] - zb)``; leading axes broadcast, as
    those of ``nn.matmul``.
    """

    example = (
        "%a: tensor<Bx2x5x4xq<s8>>, %b: tensor<Bx2x4x3xq<s8>> => "
        "%y = quant.matmul %a, %b : tensor<Bx2x5x3xi32>"
    )

    a: Value = operand(TensorType, quantised=True, doc="codes, [..., M, K], one scale per tensor")
    b: Value = operand(TensorType, quantised=True, doc="codes, [..., K, N], one scale per tensor")
    a_zero_point: Value | None = operand(
        TensorType, elements={"i32"}, default=None, doc="scalar; absent means 0"
    )
    b_zero_point: Value | None = operand(
        TensorType, elements={"i32"}, default=None, doc="scalar; absent means 0"
    )
    y: Value = result(doc="[..., M, N]")

    def infer(self) -> Type:
        """Leading axes broadcast, then M and N, as i32."""
        return TensorType(product_shape(self, tensor(self.a), tensor(self.b)), "i32")

    def verify(self) -> None:
        """One scale per tensor, accumulation without overflow, no product over samples."""
        a, b = tensor(self.a), tensor(self.b)
        for kind, zero in ((a, self.a_zero_point), (b, self.b_zero_point)):
            if kind.quant.axis is not None or kind.quant.group is not None:
                raise self.fail(f"{kind} needs one scale per tensor")
            if not kind.quant.symmetric and zero is None:
                raise self.fail(f"asymmetric codes {kind} need a zero point")
        for size in b.shape[-2:]:
            not_the_batch(self, size, "multiplies a matrix with an axis")
        terms = a.shape[-1]
        _check_accumulation(self, a.quant, b.quant, terms if isinstance(terms, int) else 1)


class Rescale(Op, name="quant.rescale"):
    """Accumulator to real: ``y = acc * scale + bias`` along ``axis``.

    ``scale`` is the product of input and weight scales, scalar or one per channel of ``axis``
    (negative, from the back); ``bias`` is per channel.
    """

    example = (
        "%a: tensor<Bx3xi32>, %s: tensor<3xf32> => %y = quant.rescale %a, %s : tensor<Bx3xf32>"
    )

    acc: Value = operand(TensorType, elements={"i32", "f32", "f64"})
    scale: Value = operand(TensorType, elements=FLOATS, doc="[] or [C]")
    bias: Value | None = operand(TensorType, elements=FLOATS, default=None, doc="[C]")
    axis: int = attribute(default=-1, maximum=-1)
    y: Value = result()

    def infer(self) -> Type:
        """``acc`` with the element type of the scale."""
        return tensor(self.acc).with_element(tensor(self.scale).element)

    def verify(self) -> None:
        """Scale and bias fit the channel axis."""
        kind = tensor(self.acc)
        if -self.axis > kind.rank:
            raise self.fail(f"axis {self.axis} is outside of {kind}")
        channels = kind.shape[self.axis]
        for what, value in (("scale", self.scale), ("bias", self.bias)):
            if value is None or (what == "scale" and not tensor(value).shape):
                continue
            if tensor(value).shape != (channels,):
                raise self.fail(f"{what} is {value.type}, the axis has {channels} channels")


def _check_accumulation(op: Op, x: QuantType, weight: QuantType, terms: int) -> None:
    largest = largest_product_sum(x, weight, terms)
    if largest >= 2**31:
        raise op.fail(f"a sum of {terms} products can reach {largest}, beyond 32 bits")


class RescaleGroups(Op, name="quant.rescale_groups"):
    """Sums of groups to real: ``y[..., n] = sum_j acc[..., n, j] * scale[n, j] + bias[n]``.

    ``scale`` is the product of the input's scale and the weight's scale of each group.
    """

    example = (
        "%a: tensor<Bx3x2xi32>, %s: tensor<3x2xf32> => "
        "%y = quant.rescale_groups %a, %s : tensor<Bx3xf32>"
    )

    acc: Value = operand(TensorType, elements={"i32", "f32", "f64"}, doc="[..., N, groups]")
    scale: Value = operand(TensorType, elements=FLOATS, doc="[N, groups]")
    bias: Value | None = operand(TensorType, elements=FLOATS, default=None, doc="[N]")
    y: Value = result(doc="[..., N]")

    def infer(self) -> Type:
        """``acc`` without the axis of groups, with the element type of the scale."""
        kind = tensor(self.acc)
        if kind.rank < 2:
            raise self.fail(f"{kind} has no axes of channels and groups")
        return TensorType(kind.shape[:-1], tensor(self.scale).element)

    def verify(self) -> None:
        """Scale and bias fit the last two axes."""
        kind = tensor(self.acc)
        if tensor(self.scale).shape != kind.shape[-2:]:
            raise self.fail(f"scale is {self.scale.type}, the sums are {kind}")
        if self.bias is not None and tensor(self.bias).shape != kind.shape[-2:-1]:
            raise self.fail(f"bias is {self.bias.type}, the sums are {kind}")


def _check_scale(op: Op, codes: TensorType, scale: Value, zero_point: Value | None) -> None:
    quant = codes.quant
    shape: tuple[object, ...] = ()
    if quant.axis is not None:
        if quant.axis >= codes.rank:
            raise op.fail(f"axis {quant.axis} is outside of {codes}")
        shape = (codes.shape[quant.axis],)
    if quant.group is not None:
        last = codes.shape[-1]
        if not isinstance(last, int):
            raise op.fail("groups need a last axis of known size")
        shape = (*shape, -(-last // quant.group))
    if tensor(scale).shape != shape:
        raise op.fail(
            f"scale is {scale.type}, the codes {codes} need shape [{', '.join(map(str, shape))}]"
        )
    if zero_point is not None and tensor(zero_point).shape != shape:
        raise op.fail(f"zero point is {zero_point.type}, scale is {scale.type}")
    if zero_point is None and not quant.symmetric:
        raise op.fail(f"asymmetric codes {codes} need a zero point")
