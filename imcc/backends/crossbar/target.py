"""The keys of a crossbar target: what they mean, their units, their ranges, how they fit together.

The file is validated by pydantic with no key left unexplained; :class:`CrossbarTarget` is what the
rules of this backend get.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    create_model,
    field_validator,
    model_validator,
)

from imcc.backends.api import Target
from imcc.backends.crossbar.library import resolved
from imcc.backends.crossbar.noise import (
    CellScale,
    NoiseKeys,
    NoiseModel,
    NoNoiseKeys,
    find_noise_model,
    noise_model_names,
)
from imcc.backends.keys import Component, Keys
from imcc.ir.diagnostics import DiagnosticError, did_you_mean


class Wires(Keys):
    """Resistance of word and bit lines."""

    model: Literal["none", "exact", "fast"] = Field(
        default="none",
        description="none, the exact solution of the circuit, or two ladders for each cell",
    )
    word_line_ohm: float = Field(
        default=0.0, ge=0, description="a word line from one column to the next"
    )
    bit_line_ohm: float = Field(
        default=0.0, ge=0, description="a bit line from one row to the next"
    )
    source: str = Field(default="", description="where the resistances come from")

    @model_validator(mode="after")
    def _sourced(self) -> Wires:
        if self.model != "none" and not (self.word_line_ohm or self.bit_line_ohm):
            raise ValueError("a model of wires needs word_line_ohm or bit_line_ohm above 0")
        return self


Encoding = Literal["differential", "sign_arrays", "offset", "bias_column"]


class Array(Keys):
    """One crossbar."""

    rows: int = Field(ge=1, le=4096, description="word lines of one crossbar")
    columns: int = Field(ge=2, le=4096, description="bit lines of one crossbar")
    cell_bits: int = Field(ge=1, le=8, description="bits of one cell: 2^cell_bits levels")
    weight_bits: int = Field(
        default=8, ge=2, le=8, description="bits that the default pipeline quantises weights to"
    )
    encoding: Encoding = Field(
        default="differential",
        description="signed weights: in pairs of columns; positive and negative ones in arrays of "
        "their own; with 2^(bits-1) added, taken off digitally (offset) or by the reading of a "
        "column of that value in each array (bias_column)",
    )
    dummy_column: bool = Field(
        default=True,
        description="subtract the current of a column of off cells before conversion, so that a "
        "finite on/off ratio adds no offset to the column sum",
    )
    kernel_mapping: Literal["im2col", "per_position"] = Field(
        default="im2col",
        description="rows of a convolution: the whole window, or arrays for each kernel position",
    )
    grouped: Literal["separate", "diagonal", "stacked"] = Field(
        default="separate",
        description="groups of a grouped convolution: arrays of their own; side by side on rows "
        "and columns of their own, read at once; on top of one another, read in turn",
    )
    wires: Wires = Field(default=Wires(), description="IR drop")


class Technology(Keys):
    """The process that the chip is made in."""

    node_nm: float | None = Field(
        default=None,
        ge=7,
        le=130,
        description="node that figures of other nodes are scaled to; absent: none is scaled",
    )


class Dac(Keys):
    """Drivers of the rows."""

    bits: int = Field(default=1, ge=1, le=8, description="input bits applied in one read")
    offset_lsb: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation of a driver's error, fixed for a chip: of the size of its "
        "pulse (1 bit) or added to its output (more bits), in input steps",
    )


class Adc(Keys):
    """Converters of the columns."""

    bits: int = Field(ge=1, le=16, description="bits of one conversion")
    columns_per_adc: int = Field(ge=1, description="columns that take turns at one converter")
    converts: Literal["column", "pair"] = Field(
        default="column", description="each column, or the difference of a differential pair"
    )
    range: Literal["calibrated", "full", "exact", "fixed"] = Field(
        default="calibrated",
        description="what the top code stands for: the largest sum in calibration, the largest "
        "possible sum, one code for each possible sum (refused if bits are too few), full_scale",
    )
    full_scale: float | None = Field(
        default=None,
        gt=0,
        description="column sum of the top code, in units of one level times one input step",
    )
    offset_lsb: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation of a converter's offset, fixed for a chip, in its steps",
    )
    sample_and_hold: bool = Field(
        default=False,
        description="whether all columns are sampled at one read, whose conversions overlap the "
        "next read; else columns that share a converter are read in turn",
    )

    @model_validator(mode="after")
    def _scale(self) -> Adc:
        if (self.full_scale is None) == (self.range == "fixed"):
            raise ValueError('full_scale is needed with range = "fixed", and only there')
        return self


class Stuck(Keys):
    """Cells that no write changes."""

    off_fraction: float = Field(default=0.0, ge=0, le=1, description="share of cells at g_min")
    on_fraction: float = Field(default=0.0, ge=0, le=1, description="share of cells at g_max")
    map_seed: int | None = Field(
        default=None, ge=0, description="one map of faults for all trials; absent: one for each"
    )

    @model_validator(mode="after")
    def _share(self) -> Stuck:
        if self.off_fraction + self.on_fraction > 1:
            raise ValueError("off_fraction and on_fraction add up to more than 1")
        return self


class Device(Keys):
    """One memory cell."""

    g_max_us: float = Field(gt=0, description="conductance of the highest level, in microsiemens")
    on_off_ratio: float = Field(gt=1, description="g_max / g_min")
    levels: int | None = Field(
        default=None, ge=2, description="levels that the device can hold; absent: as many as asked"
    )
    read_time_s: float = Field(
        default=0.0, ge=0, description="time from the end of programming to the reads, in seconds"
    )
    endurance_cycles: float | None = Field(
        default=None, gt=0, description="writes that a cell takes; absent: not limited"
    )
    endurance_writes: float | None = Field(
        default=None, ge=1, description="writes that a cell bears; absent: not known"
    )
    stuck: Stuck = Field(default=Stuck(), description="faulty cells")
    write_noise: NoiseKeys = Field(description="noise of writing; its model says which keys")
    variation: NoiseKeys = Field(description="spread from device to device, kept through writes")
    drift: NoiseKeys = Field(description="change from programming to read_time_s")
    read_noise: NoiseKeys = Field(description="noise of reading; its model says which keys")


class Hierarchy(Keys):
    """Chip > tile > PE > crossbar."""

    crossbars_per_pe: int = Field(ge=1, description="crossbars in one processing element")
    pes_per_tile: int = Field(ge=1, description="processing elements in one tile")
    tiles_per_chip: int | None = Field(
        default=None, ge=1, description="tiles on the chip; absent: as many as it takes"
    )
    share_tiles: bool = Field(default=False, description="whether one tile may serve two layers")
    partial_sums: Literal["tree", "chain"] = Field(
        default="tree",
        description="how sums of a layer's tiles are added up: in pairs, or from tile to tile",
    )
    max_copies: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="copies of the slowest matrix, which share its positions; others get as many "
        "as keep up with it, fewer where the chip's tiles run out",
    )


class Scheduling(Keys):
    """In which order layers work."""

    mode: Literal["sequential", "pipelined"] = Field(
        default="sequential",
        description="one op after another; or layers at the same time on successive inputs",
    )
    handover: Literal["rows", "whole"] = Field(
        default="rows",
        description="a pipelined layer starts with the first rows, tokens or samples of the layer "
        "before, or when that is done",
    )


class Network(Keys):
    """The network between tiles: a square mesh, the vector unit and the pins in its middle."""

    flit_bits: int = Field(default=256, ge=1, description="bits that a link moves in one cycle")
    hop_ns: float = Field(default=1.0, ge=0, description="from one router to the next")


class OffChip(Keys):
    """Memory outside the chip, which holds inputs, outputs and weights before programming."""

    bits_per_ns: float = Field(
        default=1000.0, gt=0, description="bandwidth; 1000 bits a nanosecond are 125 GB/s"
    )


class Timing(Keys):
    """Durations."""

    clock_ns: float = Field(gt=0, description="period of the digital clock")
    read_ns: float = Field(gt=0, description="applying an input digit until columns settle")
    conversion_ns: float = Field(gt=0, description="one conversion of an ADC")
    write_ns: float = Field(gt=0, description="one write pulse, for all cells of a row")


class Digital(Keys):
    """Units for what is not a matrix product."""

    lanes: int = Field(ge=1, description="32-bit lanes of a vector unit")
    per: Literal["chip", "tile"] = Field(
        default="chip", description="one vector unit, or one on each tile for its layer's ops"
    )
    buffer_word_bits: int = Field(
        ge=1, description="bits of one buffer access that components.buffer_* count"
    )


class Dynamic(Keys):
    """Matrices that are computed at run time: where they are held, and how they are written.

    The tables change keys of the target for these matrices alone, as a target file changes those
    of its ``base``: a second device beside that of the weights.
    """

    matrices: Literal["digital", "crossbar"] = Field(
        default="digital",
        description="products of two activations: by the vector unit, or by crossbars that are "
        "written at run time",
    )
    pulses_per_cell: float = Field(
        default=2.0,
        ge=1,
        description="pulses that a cell gets in one write, on average, without verify: an erasing "
        "one, since it holds a matrix before, and those that set its level",
    )
    pulses_per_row: float | None = Field(
        default=None,
        ge=1,
        description="pulses until the slowest cell of a row is done; absent: pulses_per_cell",
    )
    rows_at_once: int = Field(
        default=1, ge=1, description="rows of one crossbar that a write pulse sets together"
    )
    columns_at_once: int | None = Field(
        default=None, ge=1, description="columns of a row written together; absent: all"
    )
    arrays_at_once: int | None = Field(
        default=None, ge=1, description="crossbars of a matrix written together; absent: all"
    )
    array: dict[str, Any] = Field(default={}, description="keys of `array` that differ")
    dac: dict[str, Any] = Field(default={}, description="keys of `dac` that differ")
    adc: dict[str, Any] = Field(default={}, description="keys of `adc` that differ")
    device: dict[str, Any] = Field(default={}, description="keys of `device` that differ")
    timing: dict[str, Any] = Field(default={}, description="keys of `timing` that differ")
    components: dict[str, Any] = Field(
        default={}, description="components of these arrays whose figures differ"
    )

    @model_validator(mode="after")
    def _slowest(self) -> Dynamic:
        if self.pulses_per_row is not None and self.pulses_per_row < self.pulses_per_cell:
            raise ValueError("pulses_per_row is below pulses_per_cell, the mean over its cells")
        return self

    @property
    def changes(self) -> dict[str, dict[str, Any]]:
        """The tables that change keys of the target."""
        names = ("array", "dac", "adc", "device", "timing", "components")
        return {name: held for name in names if (held := getattr(self, name))}


class Compatibility(Keys):
    """A closed-form cost model of another tool, in the report beside that of events."""

    model: Literal["none", "spikesim"] = Field(default="none", description="which one")
    device: Literal["rram", "sram"] = Field(
        default="rram", description="crossbars that the model takes its constants of"
    )
    order: Literal["any", "refuse"] = Field(
        default="any", description="layers whose PE counts decrease: compute all the same, refuse"
    )


class ActivityKeys(Keys):
    """Assumptions about data where a cost depends on it."""

    input_bit_density: float = Field(
        default=0.5, ge=0, le=1, description="share of input bits that are 1"
    )


class Learning(Keys):
    """How weights adapt where they are."""

    weights: Literal["digital", "cells"] = Field(
        default="digital",
        description="where the exact weight is kept: in a digital memory, from which cells are "
        "written when a code changes, or in the cells alone, which are read back",
    )
    rounding: Literal["nearest", "stochastic"] = Field(
        default="nearest", description="how an exact weight becomes a code"
    )
    write: Literal["program", "pulses"] = Field(
        default="program",
        description="a cell is programmed to its new level, or moves by a pulse for each level",
    )
    transposed: Literal["array", "copy"] = Field(
        default="array",
        description="back-propagation reads the weights from their columns, or from a copy of the "
        "transposed matrix that is written with every update",
    )
    shared_converters: bool = Field(
        default=False,
        description="rows that are read from the columns use the converters of the columns, "
        "through a multiplexer; else they have converters of their own",
    )
    update_density: float = Field(
        default=1.0, ge=0, le=1, description="assumed share of cells that one update writes"
    )
    schedule: Literal["layer_parallel", "sequential"] = Field(
        default="layer_parallel",
        description="an op of an adaptation step starts when its operands and its unit are there, "
        "or one after the other",
    )
    units: Literal["layer", "chip"] = Field(
        default="layer",
        description="gradients are computed beside the tiles of each layer, or by the vector unit",
    )
    lanes: int = Field(default=64, ge=1, description="32-bit lanes of a layer's gradient unit")
    buffer_bytes: int = Field(
        default=65536, ge=1, description="capacity of one buffer, whose area buffer_read gives"
    )


class CrossbarComponent(Component):
    """A component whose energy and area may depend on the resolution of the converters."""

    energy_pj_by_bits: dict[str, float] | None = Field(
        default=None,
        description="energy of one event by resolution, log-linear between; instead of energy_pj",
    )

    area_um2_by_bits: dict[str, float] | None = Field(
        default=None,
        description="area of one instance by resolution, log-linear between; instead of area_um2",
    )
    scales: bool = Field(
        default=True, description="whether technology.node_nm applies: not to what is off the chip"
    )

    @field_validator("energy_pj_by_bits", "area_um2_by_bits")
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
        if self.area_um2 is not None and self.area_um2_by_bits is not None:
            raise ValueError("area_um2 and area_um2_by_bits exclude each other")
        return self

    def energy(self, bits: int) -> float | None:
        """Energy of one event in pJ at a resolution, or None if there is no figure for it."""
        table = self.energy_pj_by_bits
        return self.energy_pj if table is None else log_linear(table, bits)

    def area(self, bits: int) -> float | None:
        """Area of one instance in um2 at a resolution, or None if there is no figure for it."""
        table = self.area_um2_by_bits
        return self.area_um2 if table is None else log_linear(table, bits)


def log_linear(table: Mapping[str, float], bits: int) -> float | None:
    """A figure by resolution: between two of the table its logarithm is linear in the bits.

    Beyond the table nothing is known: None.
    """
    if str(bits) in table:
        return table[str(bits)]
    known = sorted((int(key), value) for key, value in table.items())
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
    lookup: CrossbarComponent = Field(
        default=CrossbarComponent(per="lookup", node_nm=32, source="no figure"),
        description="table of a function in one vector lane: exp, inverse, root, sigmoid",
    )
    membrane: CrossbarComponent = Field(
        default=CrossbarComponent(per="buffer word", node_nm=32, source="no figure"),
        description="read or write access to the memory of neurons' membranes",
    )
    htree: CrossbarComponent = Field(
        default=CrossbarComponent(per="bit", node_nm=32, source="no figure"),
        description="wires from a tile's buffer to its crossbars and back",
    )
    noc: CrossbarComponent = Field(
        default=CrossbarComponent(per="flit and hop", node_nm=32, source="no figure"),
        description="router and link between neighbouring tiles, one router for each tile",
    )
    off_chip: CrossbarComponent = Field(
        default=CrossbarComponent(per="bit", node_nm=32, source="no figure"),
        description="access to memory outside the chip",
    )


class TargetKeys(Keys):
    """A crossbar target file."""

    backend: Literal["crossbar"] = Field(description="the backend's name")
    summary: str = Field(default="", description="one line for `imcc targets`")
    technology: Technology = Field(default=Technology(), description="the process")
    array: Array = Field(description="one crossbar")
    dac: Dac = Field(default=Dac(), description="row drivers")
    adc: Adc = Field(description="column converters")
    device: Device = Field(description="one cell")
    hierarchy: Hierarchy = Field(description="how crossbars are grouped")
    timing: Timing = Field(description="durations")
    digital: Digital = Field(description="vector unit and buffers")
    dynamic: Dynamic = Field(default=Dynamic(), description="matrices computed at run time")
    scheduling: Scheduling = Field(default=Scheduling(), description="order of layers")
    network: Network = Field(default=Network(), description="network between tiles")
    off_chip: OffChip = Field(default=OffChip(), description="memory outside the chip")
    compatibility: Compatibility = Field(
        default=Compatibility(), description="figures as another tool computes them"
    )
    activity: ActivityKeys = Field(default=ActivityKeys(), description="assumed activity of data")
    learning: Learning = Field(default=Learning(), description="weights that adapt")
    components: Components = Field(description="energy, area and leakage figures with sources")

    @model_validator(mode="after")
    def _fit(self) -> TargetKeys:
        array, adc, device = self.array, self.adc, self.device
        if adc.columns_per_adc > array.columns:
            raise ValueError(
                f"adc.columns_per_adc ({adc.columns_per_adc}) exceeds array.columns "
                f"({array.columns})"
            )
        if device.levels is not None and 2**array.cell_bits > device.levels:
            raise ValueError(
                f"array.cell_bits ({array.cell_bits}) needs {2**array.cell_bits} levels, "
                f"device.levels is {device.levels}"
            )
        pairs = array.encoding in ("differential", "sign_arrays")
        if adc.converts == "pair" and not pairs:
            raise ValueError(
                'adc.converts = "pair" needs array.encoding = "differential" or "sign_arrays"'
            )
        if adc.converts == "pair" and adc.bits < 2:
            raise ValueError("adc.bits must be at least 2 for signed conversions of pairs")
        if adc.range == "exact":
            largest = array.rows * (2**array.cell_bits - 1) * (2**self.dac.bits - 1)
            codes = 2 ** (adc.bits - 1) - 1 if adc.converts == "pair" else 2**adc.bits - 1
            if largest > codes:
                raise ValueError(
                    f'adc.range = "exact": a column of {array.rows} rows sums to up to {largest}, '
                    f"adc.bits = {adc.bits} has codes up to {codes}"
                )
        if array.wires.model != "none" and array.grouped != "separate":
            raise ValueError(
                f'array.wires.model = "{array.wires.model}" needs array.grouped = "separate": IR '
                "drop between groups that share an array is not modelled"
            )
        return self


NOISE_TABLES = {
    "write": ("write_noise", "gaussian_write"),
    "device": ("variation", "none"),
    "drift": ("drift", "none"),
    "read": ("read_noise", "gaussian_read"),
}
"""Kind of a noise model to its table in ``device`` and the model that an empty table means."""


@lru_cache(maxsize=64)
def _keys_with(*chosen: str) -> type[TargetKeys]:
    """:class:`TargetKeys` whose noise tables have the keys of these models, one for each kind."""
    tables: dict[str, Any] = {}
    for (kind, (table, usual)), name in zip(NOISE_TABLES.items(), chosen, strict=True):
        base = find_noise_model(name).Keys if name in noise_model_names() else NoNoiseKeys
        held = base.model_fields["model"]
        default: Any = usual if name == usual else ...
        choice: Any = (
            Annotated[str, AfterValidator(partial(_noise_model, kind))],
            Field(default, description=held.description),
        )
        made: Any = create_model(base.__name__, __base__=base, __doc__=base.__doc__, model=choice)
        described = Device.model_fields[table].description
        tables[table] = (made, Field(default_factory=made, description=described))
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
        what = "variation between devices" if kind == "device" else kind
        raise ValueError(f"must be a model of {what if what == 'drift' else what + ' noise'}")
    return name


def _chosen(data: Mapping[str, Any], table: str, usual: str) -> str:
    """The noise model that target data names; the usual one where it names none."""
    name: Any = data
    for key in ("device", table, "model"):
        name = name.get(key) if isinstance(name, Mapping) else None
    return name if isinstance(name, str) else usual


def _resolved(data: dict[str, Any], chosen: Sequence[str], folder: Path) -> dict[str, Any]:
    """Target data in which noise tables hold what their files say."""
    device = data.get("device")
    if not isinstance(device, Mapping):
        return data
    made = dict(device)
    for (table, _), name in zip(NOISE_TABLES.values(), chosen, strict=True):
        if isinstance(made.get(table), Mapping) and name in noise_model_names():
            made[table] = find_noise_model(name).Keys.resolve(dict(made[table]), folder)
    return {**data, "device": made}


SECOND = "dynamic_"
"""What the names of components of a second device's arrays begin with."""

ARRAY_COMPONENTS = ("cell_read", "cell_write", "row_driver", "column_driver", "adc", "shift_add")


@dataclass(frozen=True)
class CrossbarTarget(Target):
    """A validated crossbar target: ``keys`` is its typed form."""

    keys: TargetKeys = None  # type: ignore[assignment]
    written: CrossbarTarget | None = None
    """The target as it is for matrices written at run time, where that differs."""

    @property
    def dynamic(self) -> CrossbarTarget:
        """The target as it is for matrices written at run time."""
        return self.written or self

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
    def cell_scale(self) -> CellScale:
        """What noise models need to know of a cell."""
        device = self.keys.device
        return CellScale(device.g_max_us, 1 / device.on_off_ratio, device.read_time_s)

    @property
    def write_noise(self) -> NoiseModel:
        """The write-noise model; fractions of g_max."""
        return self._noise(self.keys.device.write_noise)

    @property
    def variation(self) -> NoiseModel:
        """The model of the spread between devices; fractions of g_max."""
        return self._noise(self.keys.device.variation)

    @property
    def drift(self) -> NoiseModel:
        """The drift model; fractions of g_max."""
        return self._noise(self.keys.device.drift)

    @property
    def read_noise(self) -> NoiseModel:
        """The read-noise model; fractions of g_max."""
        return self._noise(self.keys.device.read_noise)

    def _noise(self, keys: NoiseKeys) -> NoiseModel:
        return find_noise_model(keys.model).create(keys, self.cell_scale)

    @property
    def cells_are_exact(self) -> bool:
        """Whether every programmed cell reads as exactly its level."""
        return self.write_noise.silent and self.only_writes_err

    @property
    def only_writes_err(self) -> bool:
        """Whether the noise of writing is all that makes a cell differ from its level."""
        keys = self.keys
        return (
            self.variation.silent
            and self.drift.silent
            and not (keys.device.stuck.off_fraction or keys.device.stuck.on_fraction)
            and keys.array.wires.model == "none"
            and not (keys.dac.offset_lsb or keys.adc.offset_lsb)
        )

    @property
    def top_code(self) -> int:
        """The largest code of a converter."""
        bits = self.keys.adc.bits
        return int(2 ** (bits - 1) - 1 if self.keys.adc.converts == "pair" else 2**bits - 1)

    def largest_column_sum(self, rows: int) -> float:
        """The largest column sum of ``rows`` cells: every cell and every input digit at its top."""
        top = self.levels - 1 + self.column_offset
        inputs: int = 2**self.keys.dac.bits - 1
        return rows * top * inputs

    def initial_step(self, rows: int) -> float:
        """Converter step before calibration: by ``adc.range``; at least 1 unless it is fixed."""
        adc = self.keys.adc
        if adc.full_scale is not None:
            return adc.full_scale / self.top_code
        return max(1.0, self.largest_column_sum(rows) / self.top_code)

    @property
    def mux_steps(self) -> int:
        """Conversions that one converter makes for each input digit."""
        columns = 2 if self.keys.adc.converts == "pair" else 1
        return -(-self.keys.adc.columns_per_adc // columns)

    @property
    def adcs_per_crossbar(self) -> int:
        """Converters of one crossbar."""
        return -(-self.keys.array.columns // self.keys.adc.columns_per_adc)

    @property
    def crossbars_per_tile(self) -> int:
        """Crossbars of one tile."""
        return self.keys.hierarchy.crossbars_per_pe * self.keys.hierarchy.pes_per_tile

    def components(self) -> dict[str, CrossbarComponent]:
        """All components by name; those of a second device's arrays have a prefix."""
        held = self.keys.components
        made = {name: getattr(held, name) for name in Components.model_fields}
        if self.written is not None and self.two_devices:
            own = self.written.keys.components
            made |= {f"{SECOND}{name}": getattr(own, name) for name in ARRAY_COMPONENTS}
        return made

    @property
    def two_devices(self) -> bool:
        """Whether run-time matrices lie in arrays or converters with figures of their own."""
        held = self.keys.dynamic
        return self.written is not None and bool(held.components or held.adc)

    def run_time(self, component: str) -> str:
        """Name of a component of the arrays that run-time matrices lie in."""
        return f"{SECOND}{component}" if self.two_devices else component

    def _held(self, component: str) -> tuple[CrossbarComponent, int]:
        """A component, and the resolution of the converters that it works with."""
        keys = self.keys
        if self.written is not None and component.startswith(SECOND):
            keys, component = self.written.keys, component.removeprefix(SECOND)
        made: CrossbarComponent = getattr(keys.components, component)
        return made, keys.adc.bits

    def energy_pj(self, component: str) -> float | None:
        """Energy of one event of a component, or None if unknown."""
        made, bits = self._held(component)
        return made.energy(bits)

    def area_um2(self, component: str) -> float | None:
        """Area of one instance of a component, or None if unknown."""
        made, bits = self._held(component)
        return made.area(bits)

    def figures(self, component: str) -> dict[str, Any]:
        """The figures of a component as plain data, with unit, node and source."""
        held, _ = self._held(component)
        return held.figures(self.energy_pj(component), self.area_um2(component))


def load(name: str, data: dict[str, Any], origin: str) -> CrossbarTarget:
    """Validate target data; see :func:`imcc.backends.targets.find_target` for what it raises."""
    from imcc.backends.targets import write_toml

    keys, full = _validated(data, origin)
    changes = copy.deepcopy(keys.dynamic.changes)
    if keys.device.read_time_s:
        # What an inference writes is read at once, however long ago the weights were programmed.
        changes.setdefault("device", {}).setdefault("read_time_s", 0.0)
    written = _written(name, full, origin, changes)
    full["dynamic"] = {key: value for key, value in full["dynamic"].items() if value != {}}
    if written is not None and keys.dynamic.device:
        # What noise tables name in other files is read in, so that the text is complete.
        for table, _ in NOISE_TABLES.values():
            if table in keys.dynamic.device:
                full["dynamic"]["device"][table] = written.data["device"][table]
    return CrossbarTarget(name, "crossbar", full, write_toml(full), origin, keys, written)


def _validated(data: dict[str, Any], origin: str) -> tuple[TargetKeys, dict[str, Any]]:
    """The typed form of target data, and the data with all that it leaves open filled in."""
    from imcc.backends.targets import validate

    chosen = [_chosen(data, table, usual) for table, usual in NOISE_TABLES.values()]
    data = resolved(_resolved(data, chosen, Path(origin).parent), origin)
    keys = validate(_keys_with(*chosen), data, origin)
    return keys, keys.model_dump(exclude_none=True)


def _written(
    name: str, full: dict[str, Any], origin: str, changes: Mapping[str, Any]
) -> CrossbarTarget | None:
    """The target for matrices written at run time; faults are those of the table ``dynamic``."""
    from imcc.backends.targets import merged, write_toml

    if not changes:
        return None
    data = copy.deepcopy({key: value for key, value in full.items() if key != "dynamic"})
    try:
        keys, made = _validated(merged(data, changes), origin)
    except DiagnosticError as wrong:
        raise DiagnosticError(
            [item.at(message=_of_dynamic(item.message, origin)) for item in wrong.diagnostics]
        ) from None
    return CrossbarTarget(name, "crossbar", made, write_toml(made), origin, keys)


def _of_dynamic(message: str, origin: str) -> str:
    """A fault of a changed key, with the place where the change stands."""
    said = message.removeprefix(f"{origin}: ")
    for what in ("key ", "unknown key "):
        if said.startswith(what):
            return f"{origin}: {what}dynamic.{said.removeprefix(what)}"
    return f"{origin}: with the keys of dynamic, {said}"
