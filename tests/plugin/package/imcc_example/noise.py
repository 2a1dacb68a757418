"""Noise models for crossbar targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from imcc.backends.crossbar.noise import CellScale, Kind, NoiseKeys, NoiseModel


class LognormalKeys(NoiseKeys):
    """What the model takes from a target file."""

    sigma_log: float = Field(ge=0, le=1, description="standard deviation of ln(g')")


@dataclass(frozen=True)
class LognormalWrite(NoiseModel):
    """``g' = g exp(s e - s^2 / 2)``, e a standard normal: the spread grows with g, the mean stays.

    ``E[g'] = g`` and ``var[g'] = g^2 (exp(s^2) - 1)``, the moments of a log-normal.
    """

    kind: ClassVar[Kind] = "write"
    Keys: ClassVar[type[NoiseKeys]] = LognormalKeys

    sigma: float

    @classmethod
    def create(cls, keys: LognormalKeys, cell: CellScale) -> LognormalWrite:
        """From ``sigma_log``; the range of the cell plays no part in a relative error."""
        return cls(keys.sigma_log)

    @property
    def silent(self) -> bool:
        """When sigma is 0."""
        return self.sigma == 0

    def moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """``(g, g^2 (exp(s^2) - 1))``."""
        return g, g**2 * math.expm1(self.sigma**2)

    def sample(self, g: Tensor, normal: Tensor) -> Tensor:
        """One write of each cell."""
        return g * torch.exp(self.sigma * normal - self.sigma**2 / 2)
