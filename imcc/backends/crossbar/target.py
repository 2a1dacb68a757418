"""The keys of a crossbar target: what they mean, their units, their ranges, how they fit together.

The file is validated by pydantic with no key left unexplained; :class:`CrossbarTarget` is what the
rules of this backend get.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    create_model,
    field_validator,
    model_validator,
)

from imcc.backends.api import Target
from imcc.backends.crossbar.noise import (
    NoiseKeys,
    NoiseModel,
    NoNoiseKeys,
    find_noise_model,
    noise_model_names,
)
from imcc.backends.keys import Component, Keys
from imcc.ir.diagnostics import did_you_mean


class Array(Keys):
    """One crossbar."""

    rows: int = Field(ge=1, le=4096, description="word lines of one crossbar")
    columns: int = Field(ge=2, le=4096, description="bit lines of one crossbar, even")
    cell_bits: int = Field(ge=1, le=8, description="bits of one cell: 2^cell_bits levels")
    encoding: Literal["differential"] = Field(
        default="differential", description="positive and negative weights in a pair of columns"
    )
    dummy_column: bool = Field(
        default=True,
        description="subtract the current of a column of off cells before conversion, so that a "
        "finite on/off ratio adds no offset to the column sum",
    )

    @field_validator("columns")
    @classmethod
    def _even(cls, columns: int) -> int:
        if columns % 2:
            raise ValueError("must be even, for a differential pair takes two columns")
        return columns


class Dac(Keys):
    """Drivers of the rows."""

    bits: int = Field(default=1, ge=1, le=8, description="input bits applied in one read")


class Adc(Keys):
    """Converters of the columns."""

    bits: int = Field(ge=1, le=16, description="bits of one conversion")
    columns_per_adc: int = Field(ge=1, description="columns that take turns at one converter")


class Device(Keys):
    """One memory cell."""

    g_max_us: float = Field(gt=0, description="conductance of the highest level, in microsiemens")
    on_off_ratio: float = Field(gt=1, description="g_max / g_min")
    write_noise: NoiseKeys = Field(description="noise of writing; its model says which keys")
    read_noise: NoiseKeys = Field(description="noise of reading; its model says which keys")


class Hierarchy(Keys):
    """Chip > tile > PE > crossbar."""

    crossbars_per_pe: int = Field(ge=1, description="crossbars in one processing element")
    pes_per_tile: int = Field(ge=1, description="processing elements in one tile")
    tiles_per_chip: int | None = Field(
        default=None, ge=1, description="tiles on the chip; absent: as many as it takes"
    )
    share_tiles: bool = Field(default=False, description="whether one tile may serve two layers")


class Timing(Keys):
    """Durations."""

    clock_ns: float = Field(gt=0, description="period of the digital clock")
    read_ns: float = Field(gt=0, description="applying an input digit until columns settle")
    conversion_ns: float = Field(gt=0, description="one conversion of an ADC")
    write_ns: float = Field(gt=0, description="one write pulse, for all cells of a row")


class Digital(Keys):
    """Units for what is not a matrix product."""

    lanes: int = Field(ge=1, description="32-bit lanes of the chip's vector unit")
    buffer_word_bits: int = Field(
        ge=1, description="bits of one buffer access that components.buffer_* count"
    )


class ActivityKeys(Keys):
    """Assumptions about data where a cost depends on it."""

    input_bit_density: float = Field(
        default=0.5, ge=0, le=1, description="share of input bits that are 1"
    )


class CrossbarComponent(Component):
    """A component whose energy may depend on the resolution of the converters."""

    energy_pj_by_bits: dict[str, float] | None = Field(
        default=None,
        description="energy of one event by resolution, log-linear between; instead of energy_pj",
    )

    @field_validator("energy_pj_by_bits")
    @classmethod
    def _bits(cls, table: dict[str, float] | None) -> dict[str, float] | None:
        for key, value in (table or {}).items():
            if not key.isdigit() or not value > 0:
                raise ValueError("needs keys that are bits and values above 0")
        return table

    @model_validator(mode="after")
    def _one(self) -> CrossbarComponent:
        if self.energy_pj is not None and self.energy_pj_by_bits is not None:
            raise ValueError("energy_pj and energy_pj_by_bits exclude each other")
        return self

    def energy(self, bits: int) -> float | None:
        """Energy of one event in pJ at a resolution, or None if there is no figure for it.

        Between two resolutions of the table the logarithm of the energy is linear in the bits;
        beyond the table nothing is known.
        """
        if self.energy_pj_by_bits is None:
            return self.energy_pj
        known = sorted((int(key), value) for key, value in self.energy_pj_by_bits.items())
        for (low, first), (high, last) in zip(known, known[1:] or known, strict=False):
            if low <= bits <= high:
                share = (bits - low) / (high - low) if high > low else 0.0
                return math.exp((1 - share) * math.log(first) + share * math.log(last))
        return None


class Components(Keys):
    """All components that the cost rules count."""

    cell_read: CrossbarComponent = Field(description="a cell under an applied input bit")
    cell_write: CrossbarComponent = Field(description="a cell under a write pulse")
    row_driver: CrossbarComponent = Field(description="the driver of one row")
    column_driver: CrossbarComponent = Field(description="driver and multiplexer of one column")
    adc: CrossbarComponent = Field(description="an analog-to-digital converter")
    shift_add: CrossbarComponent = Field(description="shift-and-add behind one converter")
    buffer_read: CrossbarComponent = Field(description="read access to a tile's buffer")
    buffer_write: CrossbarComponent = Field(description="write access to a tile's buffer")
    alu_add: CrossbarComponent = Field(description="addition or comparison of one vector lane")
    alu_multiply: CrossbarComponent = Field(description="multiplication of one vector lane")


class TargetKeys(Keys):
    """A crossbar target file."""

    backend: Literal["crossbar"] = Field(description="the backend's name")
    summary: str = Field(default="", description="one line for `imcc targets`")
    array: Array = Field(description="one crossbar")
    dac: Dac = Field(default=Dac(), description="row drivers")
    adc: Adc = Field(description="column converters")
    device: Device = Field(description="one cell")
    hierarchy: Hierarchy = Field(description="how crossbars are grouped")
    timing: Timing = Field(description="durations")
    digital: Digital = Field(description="vector unit and buffers")
    activity: ActivityKeys = Field(default=ActivityKeys(), description="assumed activity of data")
    components: Components = Field(description="energy, area and leakage figures with sources")

    @model_validator(mode="after")
    def _fit(self) -> TargetKeys:
        columns, share = self.array.columns, self.adc.columns_per_adc
        if share > columns or columns % share:
            raise ValueError(f"adc.columns_per_adc ({share}) must divide array.columns ({columns})")
        return self


@lru_cache(maxsize=64)
def _keys_with(write: str, read: str) -> type[TargetKeys]:
    """:class:`TargetKeys` whose noise tables have the keys of these models."""
    tables: dict[str, Any] = {}
    for kind, name in (("write", write), ("read", read)):
        base = find_noise_model(name).Keys if name in noise_model_names() else NoNoiseKeys
        held = base.model_fields["model"]
        default = {} if held.is_required() else {"default": held.default}
        choice: Any = (
            Annotated[str, AfterValidator(partial(_noise_model, kind))],
            Field(description=held.description, **default),
        )
        table: Any = create_model(base.__name__, __base__=base, __doc__=base.__doc__, model=choice)
        described = Device.model_fields[f"{kind}_noise"].description
        tables[f"{kind}_noise"] = (table, Field(default_factory=table, description=described))
    device: Any = create_model("Device", __base__=Device, __doc__=Device.__doc__, **tables)
    described = TargetKeys.model_fields["device"].description
    return create_model(
        "TargetKeys",
        __base__=TargetKeys,
        __doc__=TargetKeys.__doc__,
        device=(device, Field(description=described)),
    )


def _noise_model(kind: str, name: str) -> str:
    if name not in noise_model_names():
        known = noise_model_names()
        raise ValueError(f"must be one of {', '.join(known)}{did_you_mean(name, known)}")
    if find_noise_model(name).kind not in (kind, "any"):
        raise ValueError(f"must be a model of {kind} noise")
    return name


def _chosen(data: Mapping[str, Any], kind: str) -> str:
    """The noise model that target data names; its default where it names none."""
    name: Any = data
    for key in ("device", f"{kind}_noise", "model"):
        name = name.get(key) if isinstance(name, Mapping) else None
    return name if isinstance(name, str) else f"gaussian_{kind}"


@dataclass(frozen=True)
class CrossbarTarget(Target):
    """A validated crossbar target: ``keys`` is its typed form."""

    keys: TargetKeys = None  # type: ignore[assignment]

    @property
    def levels(self) -> int:
        """Levels of a cell."""
        return int(2**self.keys.array.cell_bits)

    @property
    def off_level(self) -> float:
        """``g_min`` in units of one level step: ``(levels - 1) / (on_off_ratio - 1)``."""
        return (self.levels - 1) / (self.keys.device.on_off_ratio - 1)

    @property
    def column_offset(self) -> float:
        """What each applied input step adds to a column sum besides the level: 0 if cancelled."""
        return 0.0 if self.keys.array.dummy_column else self.off_level

    @property
    def write_noise(self) -> NoiseModel:
        """The write-noise model; fractions of g_max."""
        return self._noise(self.keys.device.write_noise)

    @property
    def read_noise(self) -> NoiseModel:
        """The read-noise model; fractions of g_max."""
        return self._noise(self.keys.device.read_noise)

    def _noise(self, keys: NoiseKeys) -> NoiseModel:
        return find_noise_model(keys.model).create(keys, 1 - 1 / self.keys.device.on_off_ratio)

    def largest_column_sum(self, rows: int) -> float:
        """The largest column sum of ``rows`` cells: every cell and every input digit at its top."""
        top = self.levels - 1 + self.column_offset
        inputs: int = 2**self.keys.dac.bits - 1
        return rows * top * inputs

    def full_range_step(self, rows: int) -> float:
        """Converter step that loses nothing to clipping: 1 where that is lossless too."""
        codes: int = 2**self.keys.adc.bits - 1
        return max(1.0, self.largest_column_sum(rows) / codes)

    @property
    def mux_steps(self) -> int:
        """Conversions that one converter makes for each input digit."""
        return self.keys.adc.columns_per_adc

    @property
    def adcs_per_crossbar(self) -> int:
        """Converters of one crossbar."""
        return self.keys.array.columns // self.keys.adc.columns_per_adc

    @property
    def crossbars_per_tile(self) -> int:
        """Crossbars of one tile."""
        return self.keys.hierarchy.crossbars_per_pe * self.keys.hierarchy.pes_per_tile

    def components(self) -> dict[str, CrossbarComponent]:
        """All components by name."""
        held = self.keys.components
        return {name: getattr(held, name) for name in Components.model_fields}

    def energy_pj(self, component: str) -> float | None:
        """Energy of one event of a component, or None if unknown."""
        made: CrossbarComponent = getattr(self.keys.components, component)
        return made.energy(self.keys.adc.bits)

    def figures(self, component: str) -> dict[str, Any]:
        """The figures of a component as plain data, with unit, node and source."""
        held: CrossbarComponent = getattr(self.keys.components, component)
        return held.figures(self.energy_pj(component))


def load(name: str, data: dict[str, Any], origin: str) -> CrossbarTarget:
    """Validate target data; see :func:`imcc.backends.targets.find_target` for what it raises."""
    from imcc.backends.targets import validate, write_toml

    keys = validate(_keys_with(_chosen(data, "write"), _chosen(data, "read")), data, origin)
    full = keys.model_dump(exclude_none=True)
    return CrossbarTarget(name, "crossbar", full, write_toml(full), origin, keys)
