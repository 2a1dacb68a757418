"""Noise models of cells: one interface, found through entry points, for every kind of deviation.

Kinds are what happens when: ``device`` (how one cell differs from the next, drawn once for a chip),
``write`` (from one write to the next), ``drift`` (between writing and reading) and ``read`` (from
one read to the next). Conductances are fractions of the largest one, ``g_max``. A model says what a
cell becomes (:meth:`NoiseModel.sample`, from standard normals) and its mean and variance
(:meth:`NoiseModel.moments`), which lets the simulator refer the noise of a column of cells to the
column's output. Other packages add models in the entry-point group ``imcc.noise_models``; the keys
that a model takes from a target file are the fields of its ``Keys``. More built-in models are in
``noise_models``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from imcc.backends.keys import Keys
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError, error, nearest
from imcc.ir.plugins import load_plugin, plugin_points

_SQRT2 = math.sqrt(2.0)


Kind = Literal["device", "write", "drift", "read", "any"]


class NoiseKeys(Keys):
    """The table of a noise model in a target file; models with parameters extend it."""

    model: str = Field(description="a noise model, or none")

    @classmethod
    def resolve(cls, table: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The table with what it names in other files read in, so that the target is complete.

        ``folder`` is that of the target file.
        """
        return table


@dataclass(frozen=True)
class CellScale:
    """What a model may need to know of the cell: its range, and when it is read.

    ``g_min`` is a fraction of ``g_max``; ``read_time_s`` counts from the end of programming.
    """

    g_max_us: float
    g_min: float
    read_time_s: float = 0.0

    @property
    def g_range(self) -> float:
        """``1 - g_min``."""
        return 1.0 - self.g_min


class NoiseModel(ABC):
    """Deviation of a cell. ``kind`` says when it is drawn.

    ``Keys`` declares what the model takes from the target file, with range and description.
    """

    kind: ClassVar[Kind]
    Keys: ClassVar[type[NoiseKeys]] = NoiseKeys

    @classmethod
    @abstractmethod
    def create(cls, keys: Any, cell: CellScale) -> NoiseModel:
        """Build from the target's table, a ``Keys``."""

    @property
    @abstractmethod
    def silent(self) -> bool:
        """Whether the model changes nothing."""

    @abstractmethod
    def moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the conductance of cells meant to have conductance ``g``."""

    @abstractmethod
    def sample(self, g: Tensor, normal: Tensor) -> Tensor:
        """Conductances of cells meant to have ``g``; ``normal`` holds a standard normal each."""

    @property
    def constant_variance(self) -> float | None:
        """The variance, if it is the same for every conductance and the mean is ``g``."""
        return None

    @property
    def pulses(self) -> float:
        """Expected write pulses of one cell."""
        return 1.0

    @property
    def verified(self) -> bool:
        """Whether a write reads the cell back, and so corrects what differs between devices."""
        return False


class NoNoiseKeys(NoiseKeys):
    """No parameters; those of the model that ``none`` replaces are left aside."""

    @classmethod
    def resolve(cls, table: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Without the parameters of other models, so that changing ``model`` alone is enough."""
        models = noise_models().values() if len(table) > 1 else ()
        known = {key for model in models for key in model.Keys.model_fields}
        return {key: value for key, value in table.items() if key not in known - {"model"}}


@dataclass(frozen=True)
class NoNoise(NoiseModel):
    """``g' = g``."""

    kind: ClassVar[Kind] = "any"
    Keys: ClassVar[type[NoiseKeys]] = NoNoiseKeys

    @classmethod
    def create(cls, keys: NoiseKeys, cell: CellScale) -> NoNoise:
        """No parameters."""
        return cls()

    @property
    def silent(self) -> bool:
        """Always."""
        return True

    def moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """``(g, 0)``."""
        return g, torch.zeros_like(g)

    def sample(self, g: Tensor, normal: Tensor) -> Tensor:
        """``g``."""
        return g

    @property
    def constant_variance(self) -> float | None:
        """Zero."""
        return 0.0


class GaussianWriteKeys(NoiseKeys):
    """Error of a cell after writing."""

    model: str = Field(default="gaussian_write", description="a write-noise model, or none")
    sigma_fraction: float = Field(
        default=0.0, ge=0, le=1, description="standard deviation as a fraction of g_max - g_min"
    )
    verify: bool = Field(default=False, description="rewrite a cell until it is within tolerance")
    tolerance_fraction: float = Field(
        default=0.02, ge=1e-6, le=1, description="accepted error as a fraction of g_max - g_min"
    )


@dataclass(frozen=True)
class GaussianWrite(NoiseModel):
    """``g' = max(0, g + s e)``, ``s = sigma_fraction * (g_max - g_min)``, e a standard normal.

    With verify, a cell is rewritten until ``|s e|`` is within ``tolerance_fraction`` of the range:
    e is then a normal truncated to ``[-a, a]``, ``a = tolerance_fraction / sigma_fraction``, after
    ``1 / P(|e| <= a)`` pulses on average. Source: additive programming error independent of the
    state, the model of CrossSim ("NormalIndependentDevice") and of ISAAC-style studies; truncation
    is what accepting within a tolerance does.

    ``sigma`` is s, in units of g_max; ``bound`` is a (infinite without verify).
    """

    kind: ClassVar[Kind] = "write"
    Keys: ClassVar[type[NoiseKeys]] = GaussianWriteKeys

    sigma: float
    bound: float = math.inf

    @classmethod
    def create(cls, keys: GaussianWriteKeys, cell: CellScale) -> GaussianWrite:
        """From ``sigma_fraction``, ``verify`` and ``tolerance_fraction``."""
        sigma = keys.sigma_fraction
        bound = math.inf
        if keys.verify and sigma > 0:
            bound = keys.tolerance_fraction / sigma
        return cls(sigma * cell.g_range, bound)

    @property
    def silent(self) -> bool:
        """When sigma is 0."""
        return self.sigma == 0

    @property
    def _inside(self) -> float:
        return 1.0 if math.isinf(self.bound) else math.erf(self.bound / _SQRT2)

    @property
    def pulses(self) -> float:
        """``1 / P(|e| <= a)``."""
        return 1.0 / self._inside

    @property
    def verified(self) -> bool:
        """With ``verify``."""
        return not math.isinf(self.bound)

    def moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form for the truncated normal, clipped at conductance 0."""
        if self.silent:
            return g, torch.zeros_like(g)
        wide = g.to(torch.float64)
        low = (-wide / self.sigma).clamp(-self.bound, self.bound)
        top = torch.full_like(low, self.bound)
        tail = 0.0 if math.isinf(self.bound) else self.bound * float(_density(top.flatten()[0]))
        zeroth = (_cumulative(top) - _cumulative(low)) / self._inside
        first = (_density(low) - _density(top)) / self._inside
        finite = torch.where(torch.isinf(low), torch.zeros_like(low), low)
        second = zeroth + (finite * _density(low) - tail) / self._inside
        mean = wide * zeroth + self.sigma * first
        square = wide**2 * zeroth + 2 * wide * self.sigma * first + self.sigma**2 * second
        return mean.to(g.dtype), (square - mean**2).clamp_min(0).to(g.dtype)

    def sample(self, g: Tensor, normal: Tensor) -> Tensor:
        """Truncation maps the quantile of ``normal`` into the quantiles of ``[-a, a]``."""
        if self.silent:
            return g
        if not math.isinf(self.bound):
            share = _cumulative(normal.to(torch.float64)) - 0.5
            normal = torch.special.ndtri(0.5 + share * self._inside).to(g.dtype)
        return (g + self.sigma * normal).clamp_min(0.0)


class GaussianReadKeys(NoiseKeys):
    """Fluctuation of a cell at each read."""

    model: str = Field(default="gaussian_read", description="a read-noise model, or none")
    sigma_fraction: float = Field(
        default=0.0, ge=0, le=1, description="standard deviation as a fraction of g_max"
    )


@dataclass(frozen=True)
class GaussianRead(NoiseModel):
    """``g' = g + sigma e``, ``sigma = sigma_fraction`` in units of g_max, fresh at every read.

    A column that applies ``x_k`` to cell k then has a normal error with variance
    ``sigma^2 * sum_k x_k^2``: the sum of independent normals is a normal, so drawing one number for
    each column is the same distribution as drawing one for each cell. The fluctuation of a current
    may go below 0, hence no clipping. Source: additive read noise as in CrossSim
    ("NormalIndependentDevice" read noise).
    """

    kind: ClassVar[Kind] = "read"
    Keys: ClassVar[type[NoiseKeys]] = GaussianReadKeys

    sigma: float

    @classmethod
    def create(cls, keys: GaussianReadKeys, cell: CellScale) -> GaussianRead:
        """From ``sigma_fraction``."""
        return cls(keys.sigma_fraction)

    @property
    def silent(self) -> bool:
        """When sigma is 0."""
        return self.sigma == 0

    def moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """``(g, sigma^2)``."""
        return g, torch.full_like(g, self.sigma**2)

    def sample(self, g: Tensor, normal: Tensor) -> Tensor:
        """One read of each cell."""
        return g + self.sigma * normal

    @property
    def constant_variance(self) -> float | None:
        """``sigma^2``."""
        return self.sigma**2


def _cumulative(z: Tensor) -> Tensor:
    made: Tensor = torch.special.ndtr(z)
    return made


def _density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


@lru_cache(maxsize=1)
def _points() -> dict[str, Any]:
    return {point.name: point for point in plugin_points("imcc.noise_models")}


def find_noise_model(name: str) -> type[NoiseModel]:
    """The model by name; raises ``BAD_TARGET`` with the nearest names if there is none."""
    point = _points().get(name)
    if point is None:
        raise error(
            codes.BAD_TARGET,
            f"unknown noise model {name!r}",
            suggestions=nearest(name, _points()),
            help=f"installed models: {', '.join(noise_model_names())}",
        )
    made = load_plugin(point, "noise model")
    if not (isinstance(made, type) and issubclass(made, NoiseModel)):
        raise error(codes.PLUGIN, f"{point.value} is not a NoiseModel")
    return made


def noise_model_names() -> list[str]:
    """Names of the installed models, sorted."""
    return sorted(_points())


def noise_models(kind: str | None = None) -> dict[str, type[NoiseModel]]:
    """Installed models by name, sorted, of one kind or all; those that do not load are left out."""
    made: dict[str, type[NoiseModel]] = {}
    for name in noise_model_names():
        try:
            model = find_noise_model(name)
        except DiagnosticError:
            continue  # whoever names it is told
        if kind is None or model.kind in (kind, "any"):
            made[name] = model
    return made
