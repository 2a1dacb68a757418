"""Gradients of normalisations, activations and integrators. Part of the dialect ``learn``."""

from __future__ import annotations

from typing import Literal

from imcc.ir.dialects.core import normalise_axis, tensor
from imcc.ir.dialects.snn import Integrator
from imcc.ir.ops import Op, Value, attribute, operand, result
from imcc.ir.types import FLOATS, TensorType, Type


def same_shape(op: Op, gradient: Value, value: Value) -> TensorType:
    """The type of a value that has a gradient; fails where their shapes differ."""
    if tensor(gradient).shape != tensor(value).shape:
        raise op.fail(f"the gradient is {gradient.type}, the value {value.type}")
    return tensor(value)


class NormGradient(Op, name="learn.norm_gradient"):
    """Gradient of a normalisation of trailing axes in its input.

    With ``g = dy weight``, means over the axes of sizes ``normalized_shape``,
    ``r = 1 / sqrt(var + eps)`` and ``n = (x - mean) r``: ``dx = r (g - mean(g) - n mean(g n))``;
    without ``centred`` (``nn.rms_norm``) ``r = 1 / sqrt(mean(x^2) + eps)``, ``n = x r`` and
    ``dx = r (g - n mean(g n))``.
    """

    example = (
        "%x: tensor<Bx4xf32>, %dy: tensor<Bx4xf32> => "
        "%dx = learn.norm_gradient %x, %dy {normalized_shape = [4]} : tensor<Bx4xf32>"
    )

    x: Value = operand(TensorType, elements=FLOATS)
    dy: Value = operand(TensorType, elements=FLOATS)
    weight: Value | None = operand(TensorType, elements=FLOATS, default=None)
    normalized_shape: tuple[int, ...] = attribute(minimum=1, doc="sizes of the trailing axes")
    eps: float = attribute(default=1e-5, minimum=0)
    centred: bool = attribute(default=True, doc="false: by the root mean square alone")
    dx: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        x = same_shape(self, self.dy, self.x)
        count = len(self.normalized_shape)
        if not count or x.shape[-count:] != self.normalized_shape:
            raise self.fail(f"{x} does not end in {list(self.normalized_shape)}")
        return x


class BatchNormGradient(Op, name="learn.batch_norm_gradient"):
    """Gradient of ``nn.batch_norm``: ``dx = dy weight[c] / sqrt(var[c] + eps)``.

    Statistics are stored ones and stay as they are.
    """

    example = (
        "%dy: tensor<Bx4x8xf32>, %v: tensor<4xf32> => "
        "%dx = learn.batch_norm_gradient %dy, %v {axis = -2} : tensor<Bx4x8xf32>"
    )

    dy: Value = operand(TensorType, elements=FLOATS)
    var: Value = operand(TensorType, elements=FLOATS, doc="[C], not negative")
    weight: Value | None = operand(TensorType, elements=FLOATS, default=None, doc="[C]")
    axis: int = attribute(maximum=-1, doc="the axis of channels, from the back")
    eps: float = attribute(default=1e-5, minimum=0)
    dx: Value = result()

    def infer(self) -> Type:
        """The type of ``dy``."""
        dy = tensor(self.dy)
        channels = dy.shape[normalise_axis(self, self.axis, dy.rank)]
        for value in (self.var, self.weight):
            if value is not None and tensor(value).shape != (channels,):
                raise self.fail(f"{value.type} does not hold a number for each of {channels}")
        return dy


class ActivationGradient(Op, name="learn.activation_gradient"):
    """``dx = dy f'(x)`` for an activation f, elementwise; ``nn`` says what each computes.

    ``gelu_tanh`` is ``nn.gelu`` with its approximation by tanh.
    """

    example = (
        "%x: tensor<Bx4xf32>, %dy: tensor<Bx4xf32> => "
        '%dx = learn.activation_gradient %x, %dy {function = "gelu"} : tensor<Bx4xf32>'
    )

    x: Value = operand(TensorType, elements=FLOATS)
    dy: Value = operand(TensorType, elements=FLOATS)
    function: Literal[
        "gelu", "gelu_tanh", "hardsigmoid", "hardswish", "sigmoid", "silu", "tanh"
    ] = attribute()
    dx: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        return same_shape(self, self.dy, self.x)


class ClampGradient(Op, name="learn.clamp_gradient"):
    """``dx = dy`` where ``minimum <= x <= maximum``, else 0; an absent limit is infinite."""

    example = (
        "%x: tensor<Bx4xf32>, %dy: tensor<Bx4xf32> => "
        "%dx = learn.clamp_gradient %x, %dy {minimum = 0.0, maximum = 6.0} : tensor<Bx4xf32>"
    )

    x: Value = operand(TensorType, elements=FLOATS)
    dy: Value = operand(TensorType, elements=FLOATS)
    minimum: float | None = attribute(default=None)
    maximum: float | None = attribute(default=None)
    dx: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        return same_shape(self, self.dy, self.x)


class SoftmaxGradient(Op, name="learn.softmax_gradient"):
    """``dx_i = y_i (dy_i - sum_j dy_j y_j)`` along one axis, y being what ``nn.softmax`` gave."""

    example = (
        "%y: tensor<Bx4xf32>, %dy: tensor<Bx4xf32> => "
        "%dx = learn.softmax_gradient %y, %dy : tensor<Bx4xf32>"
    )

    y: Value = operand(TensorType, elements=FLOATS)
    dy: Value = operand(TensorType, elements=FLOATS)
    axis: int = attribute(default=-1, maximum=-1)
    dx: Value = result()

    def infer(self) -> Type:
        """The type of ``y``."""
        normalise_axis(self, self.axis, tensor(self.y).rank)
        return same_shape(self, self.dy, self.y)


class SliceGradient(Op, name="learn.slice_gradient"):
    """The adjoint of ``core.slice``: ``dx[..., start + i step, ...] = dy[..., i, ...]``, else 0."""

    example = (
        "%x: tensor<Bx8xf32>, %dy: tensor<Bx4xf32> => "
        "%dx = learn.slice_gradient %x, %dy {axis = 1, start = 2} : tensor<Bx8xf32>"
    )

    x: Value = operand(TensorType, elements=FLOATS, doc="only its shape counts")
    dy: Value = operand(TensorType, elements=FLOATS)
    axis: int = attribute(doc="the axis, from the front")
    start: int = attribute(minimum=0)
    step: int = attribute(default=1, minimum=1)
    dx: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        x, dy = tensor(self.x), tensor(self.dy)
        axis = normalise_axis(self, self.axis, x.rank)
        rest = (*x.shape[:axis], *x.shape[axis + 1 :])
        if dy.rank != x.rank or (*dy.shape[:axis], *dy.shape[axis + 1 :]) != rest:
            raise self.fail(f"{dy} is no slice of {x}")
        size, part = x.shape[axis], dy.shape[axis]
        known = isinstance(size, int) and isinstance(part, int)
        if known and self.start + (int(str(part)) - 1) * self.step >= int(str(size)):
            raise self.fail(f"{part} elements from {self.start} do not fit size {size}")
        return x


class IntegratorGradient(Integrator, name="learn.li_gradient"):
    """The gradient of ``snn.li`` in its input, through time.

    ``dy`` is the gradient of what the next op sees, ``dv`` that of the state after each step.
    """

    example = (
        "%x: tensor<4xBx8xf32>, %dy: tensor<4xBx8xf32> => "
        "%dx = learn.li_gradient %x, dy=%dy {leak = 0.5} : tensor<4xBx8xf32>"
    )

    read: Literal["state", "jump"] = attribute(default="state")
    dy: Value | None = operand(TensorType, elements=FLOATS, default=None, doc="[T, ...]")
    dv: Value | None = operand(TensorType, elements=FLOATS, default=None, doc="[T, ...]")
    dx: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        for gradient in (self.dy, self.dv):
            if gradient is not None:
                same_shape(self, gradient, self.x)
        return tensor(self.x)

    def verify(self) -> None:
        """There is a gradient."""
        if self.dy is None and self.dv is None:
            raise self.fail("needs the gradient of what is read or of the state")
