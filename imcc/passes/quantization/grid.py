"""Quantisation grids of weights: which real values the codes of a weight can stand for.

A weight ``[N, ...]`` is seen as rows ``[R, G, g]``: one row for each output channel (or one for the
tensor), G groups of g elements along it. A last group that is short is padded with zeros, which
move no range, since every range holds 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imcc.ir.semantics.quant import expand_groups
from imcc.ir.types import QuantType


@dataclass(frozen=True)
class WeightFormat:
    """How a weight is coded: ``bits``, symmetric or asymmetric, what shares a scale.

    ``group`` runs along the last axis of a matrix; None means one scale for each output channel,
    or for the whole tensor if ``per_tensor``.
    """

    bits: int
    symmetric: bool = True
    per_tensor: bool = False
    group: int | None = None

    @property
    def element(self) -> QuantType:
        """The element type of the codes: signed if symmetric, unsigned if asymmetric."""
        axis = None if self.per_tensor else 0
        return QuantType(self.bits, self.symmetric, axis, self.group, self.symmetric)

    @property
    def bits_per_scale(self) -> int:
        """Bits that a scale costs when stored: 16, plus the zero point's."""
        return 16 + (0 if self.symmetric else self.bits)

    def rows(self, weight: Tensor) -> Tensor:
        """``weight`` as ``[R, G, g]``."""
        flat = weight.reshape(1, -1) if self.per_tensor else weight.flatten(1)
        size = self.group or flat.shape[1]
        short = -flat.shape[1] % size
        if short:
            flat = torch.nn.functional.pad(flat, (0, short))
        return flat.reshape(flat.shape[0], -1, size)

    def unrows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of :meth:`rows` for a weight of ``shape``."""
        flat = rows.flatten(1)
        length = shape.numel() if self.per_tensor else shape[1:].numel()
        return flat[:, :length].reshape(shape)


@dataclass(frozen=True)
class Grid:
    """``real = scale * (code - zero_point)``; both factors are ``[R, G, 1]``."""

    format: WeightFormat
    scale: Tensor
    zero_point: Tensor

    @classmethod
    def of_range(cls, form: WeightFormat, low: Tensor, high: Tensor) -> Grid:
        """The grid over ``[low, high]``, each ``[R, G, 1]`` with ``low <= 0 <= high``.

        Symmetric: ``scale = max(-low, high) / maximum``. Asymmetric: ``scale = (high - low) /
        (2^bits - 1)`` and ``zero_point = round(-low / scale)`` (Jacob et al., CVPR 2018, eq. 1).
        A range of nothing but 0 gets scale 1.
        """
        element = form.element
        if form.symmetric:
            width = torch.maximum(-low, high) / element.maximum
        else:
            width = (high - low) / (element.maximum - element.minimum)
        scale = torch.where(width > 0, width, torch.ones_like(width))
        zero = torch.zeros_like(scale) if form.symmetric else torch.round(-low / scale)
        return cls(form, scale, zero.clamp(element.minimum, element.maximum))

    @classmethod
    def fit(cls, form: WeightFormat, weight: Tensor, shrink: Tensor | float = 1.0) -> Grid:
        """The grid over the smallest range that holds each group, times ``shrink``.

        The scale is rounded to the weight's dtype first: codes divide by what is multiplied back.
        """
        rows = form.rows(weight)
        low = rows.amin(-1, keepdim=True).clamp(max=0) * shrink
        high = rows.amax(-1, keepdim=True).clamp(min=0) * shrink
        return cls.of_range(form, low, high)

    def codes(self, weight: Tensor) -> Tensor:
        """Nearest codes of ``weight`` as ``[R, G, g]``, ties to even."""
        rows = self.format.rows(weight).double()
        return self.clamp(torch.round(rows / self.scale.double()) + self.zero_point.double())

    def clamp(self, codes: Tensor) -> Tensor:
        """Codes inside the range of the element type."""
        return codes.clamp(self.format.element.minimum, self.format.element.maximum)

    def real(self, codes: Tensor, shape: torch.Size) -> Tensor:
        """The weight of ``shape`` that codes ``[R, G, g]`` stand for."""
        made = (codes - self.zero_point).to(self.scale.dtype) * self.scale
        return self.format.unrows(made, shape)

    def nearest(self, weight: Tensor) -> Tensor:
        """``weight`` rounded to the grid."""
        return self.real(self.codes(weight), weight.shape)

    def scaled(self, factor: Tensor) -> Grid:
        """The grid with every scale times ``factor``, the codes' meaning changed with it."""
        return replace(self, scale=self.scale * factor)

    def expanded(self, values: Tensor, shape: torch.Size) -> Tensor:
        """A factor ``[R, G, 1]`` broadcast to a weight of ``shape``."""
        return expand_groups(self.stored(values), self.format.element, tuple(shape))

    def stored(self, values: Tensor) -> Tensor:
        """A factor ``[R, G, 1]`` in the shape that the element type asks for."""
        if self.format.per_tensor:
            return values.reshape(())
        return values[..., 0] if self.format.group is not None else values[:, 0, 0]


@dataclass(frozen=True)
class Coded:
    """A quantised weight: codes ``[R, G, g]`` on a grid."""

    codes: Tensor
    grid: Grid


def nearest_codes(form: WeightFormat, weight: Tensor) -> tuple[Tensor, ...]:
    """Nearest codes of a weight on the grid of its range, the scale, and the zero point if any.

    Codes are floats with the gradient of ``weight / scale``: rounding passes gradients straight
    through, and the grid is taken for constant.
    """
    grid = Grid.fit(form, weight.detach())
    scaled = form.rows(weight).double() / grid.scale.double()
    codes = grid.codes(weight.detach()) + (scaled - scaled.detach())
    made = form.unrows(codes, weight.shape).to(torch.float32)
    scale = grid.stored(grid.scale).to(weight.dtype)
    return (made, scale) if form.symmetric else (made, scale, grid.stored(grid.zero_point).int())
