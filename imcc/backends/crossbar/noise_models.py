"""More models of cells: state-dependent noise, measured tables, drift, phase-change memory."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from imcc.backends.crossbar.noise import CellScale, Kind, NoiseKeys, NoiseModel
from imcc.backends.keys import Seconds
from imcc.ir import codes
from imcc.ir.diagnostics import Location, error, nearest


class _Gaussian(NoiseModel):
    """``max(0, mean(g) + deviation(g) e)`` with e a standard normal."""

    def mean(self, g: Tensor) -> Tensor:
        """Mean before clipping at 0."""
        return g

    def deviation(self, g: Tensor) -> Tensor:
        """Standard deviation before clipping at 0."""
        raise NotImplementedError

    def sample(self, g: Tensor, normal: Tensor) -> Tensor:
        """Clipped at conductance 0."""
        return (self.mean(g) + self.deviation(g) * normal).clamp_min(0.0)

    def moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form for a normal clipped at 0."""
        return clipped_moments(self.mean(g), self.deviation(g))


UNCLIPPED = 9.0
"""Deviations from 0 beyond which a normal loses nothing to clipping that a float64 resolves."""


def clipped_moments(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``max(0, mean + deviation e)``, e a standard normal."""
    m, s = mean.to(torch.float64), deviation.to(torch.float64).clamp_min(1e-300)
    z = m / s
    if z.numel() and float(z.min()) > UNCLIPPED:
        return mean, (s**2).to(mean.dtype)
    inside = torch.special.ndtr(z)
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    first = m * inside + s * density
    second = (m**2 + s**2) * inside + m * s * density
    variance = (second - first**2).clamp_min(0)
    return first.to(mean.dtype), variance.to(mean.dtype)


class ProportionalKeys(NoiseKeys):
    """Deviation in proportion to the conductance."""

    sigma_fraction: float = Field(
        ge=0, le=1, description="standard deviation as a fraction of the cell's conductance"
    )


@dataclass(frozen=True)
class _Proportional(_Gaussian):
    """``g' = max(0, g (1 + sigma e))``."""

    Keys: ClassVar[type[NoiseKeys]] = ProportionalKeys

    sigma: float

    @classmethod
    def create(cls, keys: ProportionalKeys, cell: CellScale) -> NoiseModel:
        """From ``sigma_fraction``."""
        return cls(keys.sigma_fraction)

    @property
    def silent(self) -> bool:
        """When sigma is 0."""
        return self.sigma == 0

    def deviation(self, g: Tensor) -> Tensor:
        """``sigma g``."""
        return self.sigma * g


class ProportionalWrite(_Proportional):
    """``g' = max(0, g (1 + sigma e))`` at each write, e a standard normal.

    Source: variation stated as a share of the conductance, as in TReX (20 % for FeFET) and CrossSim
    ("NormalProportionalDevice").
    """

    kind: ClassVar[Kind] = "write"


class ProportionalRead(_Proportional):
    """``g' = max(0, g (1 + sigma e))``, fresh at each read.

    Source: as :class:`ProportionalWrite`; TReX takes 10 % for FeFET.
    """

    kind: ClassVar[Kind] = "read"


class GaussianVariation(_Proportional):
    """``g' = max(0, g (1 + sigma e))`` with one e for each cell of a chip: device to device.

    A cell keeps its e through all writes. A write that verifies reads the cell back and corrects
    it. Source: spread of the conductance range over devices, as in MLP+NeuroSim 3.0
    ("conductanceRangeVar").
    """

    kind: ClassVar[Kind] = "device"


class ClipFormerWriteKeys(NoiseKeys):
    """Write noise that grows with the distance from both ends of the range."""

    gamma: float = Field(ge=0, le=100, description="strength; the source sweeps 3, 4, 5")
    sigma_fraction: float = Field(
        ge=0, le=1, description="standard deviation for gamma = 1; the source does not state it"
    )
    bounded: bool = Field(
        default=False, description="whether conductances stay within [0, g_max] or only above 0"
    )


@dataclass(frozen=True)
class ClipFormerWrite(_Gaussian):
    """``g' = g + gamma sqrt((g - g_min)(g_max - g_min)) e``, e normal with deviation ``sigma``.

    Source: ClipFormer, arXiv 2402.02586, write noise of K and V in attention. Only the product
    gamma sigma matters, and the source does not give sigma. ``strength`` is the product.
    """

    kind: ClassVar[Kind] = "write"
    Keys: ClassVar[type[NoiseKeys]] = ClipFormerWriteKeys

    strength: float
    g_min: float
    bounded: bool = False

    @classmethod
    def create(cls, keys: ClipFormerWriteKeys, cell: CellScale) -> NoiseModel:
        """From ``gamma``, ``sigma_fraction`` and ``bounded``."""
        return cls(keys.gamma * keys.sigma_fraction, cell.g_min, keys.bounded)

    @property
    def silent(self) -> bool:
        """When gamma or sigma is 0."""
        return self.strength == 0

    def deviation(self, g: Tensor) -> Tensor:
        """``gamma sigma sqrt((g - g_min)(1 - g_min))``."""
        return self.strength * ((g - self.g_min).clamp_min(0) * (1 - self.g_min)).sqrt()

    def sample(self, g: Tensor, normal: Tensor) -> Tensor:
        """Clipped at 0, and at g_max where ``bounded``."""
        made = super().sample(g, normal)
        return made.clamp_max(1.0) if self.bounded else made

    def moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form for a normal clipped at one or both ends."""
        if not self.bounded:
            return super().moments(g)
        # max(0, min(x, 1)) = max(0, x) - max(0, x - 1), whose product is max(0, x - 1) x.
        mean, deviation = self.mean(g).double(), self.deviation(g).double()
        low, low_variance = clipped_moments(mean, deviation)
        top, top_variance = clipped_moments(mean - 1, deviation)
        both = top_variance + top**2 + top
        first = low - top
        second = (low_variance + low**2) + (top_variance + top**2) - 2 * both
        return first.to(g.dtype), (second - first**2).clamp_min(0).to(g.dtype)


class PowerLawDriftKeys(NoiseKeys):
    """Conductance that falls with a power of time."""

    exponent: float = Field(ge=0, le=1, description="mean drift exponent nu")
    exponent_deviation: float = Field(
        default=0.0, ge=0, le=1, description="standard deviation of nu over cells"
    )
    reference_s: Seconds = Field(
        ge=1e-15, description="time after programming of the first read, t0"
    )


@dataclass(frozen=True)
class PowerLawDrift(NoiseModel):
    """``g(t) = g (t / t0)^-nu`` with nu normal over cells, t = t0 + ``device.read_time_s``.

    Source: the usual law of structural relaxation in phase-change memory, for instance Le Gallo et
    al., Adv. Electron. Mater. 4, 2018. ``log_time`` is ``ln(t / t0)``.
    """

    kind: ClassVar[Kind] = "drift"
    Keys: ClassVar[type[NoiseKeys]] = PowerLawDriftKeys

    exponent: float
    spread: float
    log_time: float

    @classmethod
    def create(cls, keys: PowerLawDriftKeys, cell: CellScale) -> NoiseModel:
        """From the exponent, its deviation and the time."""
        ratio = 1 + cell.read_time_s / keys.reference_s
        return cls(keys.exponent, keys.exponent_deviation, math.log(ratio))

    @property
    def silent(self) -> bool:
        """At time 0, or if nothing drifts."""
        return self.log_time == 0 or (self.exponent == 0 and self.spread == 0)

    def sample(self, g: Tensor, normal: Tensor) -> Tensor:
        """At the time of reading."""
        return g * torch.exp(-self.log_time * (self.exponent + self.spread * normal))

    def moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The factor is log-normal."""
        mean, spread = -self.log_time * self.exponent, (self.log_time * self.spread) ** 2
        factor = math.exp(mean + spread / 2)
        return g * factor, g**2 * factor**2 * math.expm1(spread)


PCM_REFERENCE_S = 20.0
PCM_READ_S = 250e-9


class PcmKeys(NoiseKeys):
    """Measured phase-change memory; ``scale`` 1 is as measured."""

    scale: float = Field(default=1.0, ge=0, le=10, description="1: as measured, 0: off")


@dataclass(frozen=True)
class PcmWrite(_Gaussian):
    """Programming noise of phase-change memory: ``g' = max(0, g + s(g) e)``.

    ``s = scale (0.26348 + 1.9650 g - 1.1731 g^2) / 25``, g and s as fractions of g_max (25 uS in
    the measurement). Source: Nandakumar et al., ICECS 2019, doi 10.1109/ICECS46596.2019.8964852,
    with the coefficients that IBM's aihwkit uses (PCMLikeNoiseModel).
    """

    kind: ClassVar[Kind] = "write"
    Keys: ClassVar[type[NoiseKeys]] = PcmKeys

    scale: float = 1.0

    @classmethod
    def create(cls, keys: PcmKeys, cell: CellScale) -> NoiseModel:
        """From ``scale``."""
        return cls(keys.scale)

    @property
    def silent(self) -> bool:
        """When scale is 0."""
        return self.scale == 0

    def deviation(self, g: Tensor) -> Tensor:
        """The measured polynomial."""
        made: Tensor = (0.26348 + 1.9650 * g - 1.1731 * g**2).clamp_min(0) * (self.scale / 25.0)
        return made


@dataclass(frozen=True)
class PcmDrift(NoiseModel):
    """Drift of phase-change memory: ``g(t) = g (t / t0)^-|nu|``, t0 = 20 s, t = t0 + read time.

    nu is normal with mean ``clamp(0.0244 - 0.0155 ln g, 0.049, 0.1)`` and deviation
    ``clamp(-0.0059 - 0.0125 ln g, 0.008, 0.045)``, g as a fraction of g_max. Source: as
    :class:`PcmWrite`. ``log_time`` is ``ln(t / t0)``.
    """

    kind: ClassVar[Kind] = "drift"
    Keys: ClassVar[type[NoiseKeys]] = PcmKeys

    scale: float
    log_time: float

    @classmethod
    def create(cls, keys: PcmKeys, cell: CellScale) -> NoiseModel:
        """From ``scale`` and the time."""
        return cls(keys.scale, math.log(1 + cell.read_time_s / PCM_REFERENCE_S))

    @property
    def silent(self) -> bool:
        """At time 0."""
        return self.scale == 0 or self.log_time == 0

    def _exponent(self, g: Tensor) -> tuple[Tensor, Tensor]:
        logarithm = torch.log(g.clamp_min(1e-7))
        mean = (0.0244 - 0.0155 * logarithm).clamp(0.049, 0.1)
        return mean, (-0.0059 - 0.0125 * logarithm).clamp(0.008, 0.045)

    def sample(self, g: Tensor, normal: Tensor) -> Tensor:
        """At the time of reading."""
        mean, deviation = self._exponent(g)
        exponent = (mean + deviation * normal).abs() * self.scale
        return g * torch.exp(-self.log_time * exponent)

    def moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form: ``E exp(-k |nu|)`` for a normal nu."""
        mean, deviation = (item.double() for item in self._exponent(g))

        def transform(k: float) -> Tensor:
            shifted = mean - k * deviation**2
            up = torch.exp(-k * mean + (k * deviation) ** 2 / 2)
            down = torch.exp(k * mean + (k * deviation) ** 2 / 2)
            below = -(mean + k * deviation**2) / deviation
            made: Tensor = up * torch.special.ndtr(shifted / deviation)
            made += down * torch.special.ndtr(below)
            return made

        k = self.log_time * self.scale
        first, second = transform(k), transform(2 * k)
        variance = (second - first**2).clamp_min(0)
        return (g * first).to(g.dtype), (g.double() ** 2 * variance).to(g.dtype)


@dataclass(frozen=True)
class PcmRead(_Gaussian):
    """1/f noise of phase-change memory: ``g' = max(0, g (1 + q sqrt(ln((t + tr) / (2 tr))) e))``.

    ``q = min(0.0088 / g^0.65, 0.2)``, g as a fraction of g_max, tr = 250 ns the duration of a read,
    t = 20 s + ``device.read_time_s``. Source: as :class:`PcmWrite`, which draws this once for an
    evaluation; here it is drawn at each read. ``factor`` is ``scale sqrt(ln(...))``.
    """

    kind: ClassVar[Kind] = "read"
    Keys: ClassVar[type[NoiseKeys]] = PcmKeys

    factor: float

    @classmethod
    def create(cls, keys: PcmKeys, cell: CellScale) -> NoiseModel:
        """From ``scale`` and the time."""
        time = PCM_REFERENCE_S + cell.read_time_s
        return cls(keys.scale * math.sqrt(math.log((time + PCM_READ_S) / (2 * PCM_READ_S))))

    @property
    def silent(self) -> bool:
        """When scale is 0."""
        return self.factor == 0

    def deviation(self, g: Tensor) -> Tensor:
        """The measured law."""
        made: Tensor = g * (0.0088 / g.clamp_min(1e-7) ** 0.65).clamp_max(0.2) * self.factor
        return made


TABLE_TOP = 1e12
"""The largest conductance in microsiemens and time in seconds (30,000 years)."""
TableValue = Annotated[float, Field(ge=0, le=TABLE_TOP)]
TABLE_COLUMNS = ("state", "mean", "deviation", "time")


class TableKeys(NoiseKeys):
    """Cells measured by the user."""

    path: str = Field(
        default="", description="CSV with the columns state, mean, deviation (uS) and time (s)"
    )
    rows: list[list[TableValue]] = Field(
        min_length=1, description="what the file at `path` holds: state, mean, deviation, time"
    )

    @field_validator("rows")
    @classmethod
    def _rows(cls, rows: list[list[float]]) -> list[list[float]]:
        for row in rows:
            if len(row) != len(TABLE_COLUMNS):
                raise ValueError(f"needs rows of {', '.join(TABLE_COLUMNS)}")
        if len({(row[3], row[0]) for row in rows}) < len(rows):
            raise ValueError("lists a state twice at one time")
        return rows

    @classmethod
    def resolve(cls, table: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Read ``path``, relative to the target file, into ``rows``."""
        path = table.get("path")
        if not isinstance(path, str) or not path or "rows" in table:
            return table
        return {**table, "rows": read_table(folder / path)}


def read_table(path: Path) -> list[list[float]]:
    """Rows ``[state, mean, deviation, time]`` of a CSV file; raises ``BAD_TARGET``."""
    try:
        # Spreadsheets put a byte order mark in front.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = [name.strip() for name in reader.fieldnames or ()]
            for wanted in TABLE_COLUMNS:
                if wanted not in names:
                    raise error(
                        codes.BAD_TARGET,
                        f"{path} has no column {wanted!r}",
                        text=Location(str(path), 1),
                        suggestions=nearest(wanted, names),
                        help=f"the first line must name the columns {','.join(TABLE_COLUMNS)}, "
                        "with commas between them",
                    )
            reader.fieldnames = names
            rows: list[list[float]] = []
            lines: dict[tuple[float, float], int] = {}
            for row in reader:
                try:
                    made = [float(row[name]) for name in TABLE_COLUMNS]
                    if not all(map(math.isfinite, made)):
                        raise ValueError
                except (TypeError, ValueError):
                    raise error(
                        codes.BAD_TARGET,
                        f"{path} has a row that is not four numbers",
                        text=Location(str(path), reader.line_num),
                        help="conductances in microsiemens, times in seconds",
                    ) from None
                wrong = _fault(made, lines)
                if wrong:
                    raise error(
                        codes.BAD_TARGET,
                        f"{path}: {wrong}",
                        text=Location(str(path), reader.line_num),
                    )
                lines[made[0], made[3]] = reader.line_num
                rows.append(made)
    except (OSError, UnicodeDecodeError, csv.Error) as wrong:
        raise error(
            codes.BAD_TARGET,
            f"{path} cannot be read: {wrong}",
            help="save the table as CSV in UTF-8",
        ) from None
    if not rows:
        raise error(codes.BAD_TARGET, f"{path} names its columns but has no row")
    return rows


def _fault(row: list[float], lines: Mapping[tuple[float, float], int]) -> str:
    """What is wrong with a row, given the lines of states and times before it."""
    for name, value in zip(TABLE_COLUMNS, row, strict=True):
        if not 0 <= value <= TABLE_TOP:
            return f"{name} is {value:g}, must be at least 0 and at most {TABLE_TOP:g}"
    first = lines.get((row[0], row[3]))
    if first is None:
        return ""
    return f"lists the state {row[0]:g} twice at time {row[3]:g}, first on line {first}"


@dataclass(frozen=True)
class TableWrite(_Gaussian):
    """``g' = max(0, m(g, t) + s(g, t) e)`` with mean m and deviation s from the user's table.

    Both are linear between the states of the table and between times (in ln(1 + t / 1 s)), and
    constant beyond either end. t is ``device.read_time_s``, so that retention measured at several
    times is drift as well. ``states``, ``means`` and ``deviations`` are at t, fractions of g_max.
    """

    kind: ClassVar[Kind] = "write"
    Keys: ClassVar[type[NoiseKeys]] = TableKeys

    states: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    @classmethod
    def create(cls, keys: TableKeys, cell: CellScale) -> NoiseModel:
        """Interpolate the rows to the time of reading."""
        times = sorted({row[3] for row in keys.rows})
        states = sorted({row[0] for row in keys.rows})
        at = torch.tensor(states, dtype=torch.float64)
        means, deviations = [], []
        for time in times:
            rows = sorted(row for row in keys.rows if row[3] == time)
            known, mean, deviation = (
                torch.tensor([row[index] for row in rows], dtype=torch.float64)
                for index in range(3)
            )
            means.append(_interpolate(at, known, mean))
            deviations.append(_interpolate(at, known, deviation))
        logs = torch.log1p(torch.tensor(times, dtype=torch.float64))
        now = torch.log1p(torch.tensor([cell.read_time_s], dtype=torch.float64))
        made = []
        for table in (torch.stack(means), torch.stack(deviations)):
            columns = [_interpolate(now, logs, column)[0] / cell.g_max_us for column in table.T]
            made.append(tuple(float(value) for value in columns))
        return cls(tuple(state / cell.g_max_us for state in states), made[0], made[1])

    @property
    def silent(self) -> bool:
        """When every state is held exactly."""
        return self.means == self.states and not any(self.deviations)

    def mean(self, g: Tensor) -> Tensor:
        """From the table."""
        return self._at(g, self.means)

    def deviation(self, g: Tensor) -> Tensor:
        """From the table."""
        return self._at(g, self.deviations)

    def _at(self, g: Tensor, values: tuple[float, ...]) -> Tensor:
        known = torch.tensor(self.states, dtype=torch.float64)
        table = torch.tensor(values, dtype=torch.float64)
        return _interpolate(g.to(torch.float64), known, table).to(g.dtype)


def _interpolate(x: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """Linear between ``known`` (ascending), constant beyond its ends."""
    if len(known) == 1:
        return values[0].expand_as(x)
    right = torch.searchsorted(known, x.contiguous()).clamp(1, len(known) - 1)
    low, high = known[right - 1], known[right]
    share = ((x - low) / (high - low)).clamp(0, 1)
    made: Tensor = values[right - 1] * (1 - share) + values[right] * share
    return made
