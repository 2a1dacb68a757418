"""The keys of a crossbar target: what they mean, their units, their ranges, how they fit together.

pydantic validates them, with no key left unexplained. Those of components have a file of their own.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from imcc.backends.crossbar.component_keys import Components
from imcc.backends.crossbar.noise import NoiseKeys
from imcc.backends.keys import (
    BitsPerNanosecond,
    Bytes,
    Delay,
    Few,
    Keys,
    Many,
    Microsiemens,
    Nanoseconds,
    Ohms,
    Seconds,
    Steps,
    Writes,
)


class Wires(Keys):
    """Resistance of word and bit lines."""

    model: Literal["none", "exact", "fast"] = Field(
        default="none",
        description="none, the exact solution of the circuit, or two ladders for each cell",
    )
    word_line_ohm: Ohms = Field(default=0.0, description="a word line from one column to the next")
    bit_line_ohm: Ohms = Field(default=0.0, description="a bit line from one row to the next")
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
    offset_lsb: Steps = Field(
        default=0.0,
        description="standard deviation of a driver's error, fixed for a chip: of the size of its "
        "pulse (1 bit) or added to its output (more bits), in input steps",
    )


class Adc(Keys):
    """Converters of the columns."""

    bits: int = Field(ge=1, le=16, description="bits of one conversion")
    columns_per_adc: int = Field(
        ge=1, le=4096, description="columns that take turns at one converter"
    )
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
        ge=1e-6,
        le=1e12,
        description="column sum of the top code, in units of one level times one input step",
    )
    offset_lsb: Steps = Field(
        default=0.0,
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
        default=None,
        ge=0,
        le=2**63 - 1,
        description="one map of faults for all trials; absent: one for each",
    )

    @model_validator(mode="after")
    def _share(self) -> Stuck:
        if self.off_fraction + self.on_fraction > 1:
            raise ValueError("off_fraction and on_fraction add up to more than 1")
        return self


class Device(Keys):
    """One memory cell."""

    g_max_us: Microsiemens = Field(description="conductance of the highest level, in microsiemens")
    on_off_ratio: float = Field(ge=1.001, le=1e15, description="g_max / g_min")
    levels: int | None = Field(
        default=None,
        ge=2,
        le=65536,
        description="levels that the device can hold; absent: as many as asked",
    )
    read_time_s: Seconds = Field(
        default=0.0, description="time from the end of programming to the reads, in seconds"
    )
    endurance_cycles: Writes | None = Field(
        default=None, description="writes that a cell takes; absent: not limited"
    )
    endurance_writes: Writes | None = Field(
        default=None, description="writes that a cell bears; absent: not known"
    )
    stuck: Stuck = Field(default=Stuck(), description="faulty cells")
    write_noise: NoiseKeys = Field(description="noise of writing; its model says which keys")
    variation: NoiseKeys = Field(description="spread from device to device, kept through writes")
    drift: NoiseKeys = Field(description="change from programming to read_time_s")
    read_noise: NoiseKeys = Field(description="noise of reading; its model says which keys")


class Hierarchy(Keys):
    """Chip > tile > PE > crossbar."""

    crossbars_per_pe: Few = Field(description="crossbars in one processing element")
    pes_per_tile: Few = Field(description="processing elements in one tile")
    tiles_per_chip: Many | None = Field(
        default=None, description="tiles on the chip; absent: as many as it takes"
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

    flit_bits: Few = Field(default=256, description="bits that a link moves in one cycle")
    hop_ns: Delay = Field(default=1.0, description="from one router to the next")


class OffChip(Keys):
    """Memory outside the chip, which holds inputs, outputs and weights before programming."""

    bits_per_ns: BitsPerNanosecond = Field(
        default=1000.0, description="bandwidth; 1000 bits a nanosecond are 125 GB/s"
    )


class Timing(Keys):
    """Durations."""

    clock_ns: Nanoseconds = Field(description="period of the digital clock")
    read_ns: Nanoseconds = Field(description="applying an input digit until columns settle")
    conversion_ns: Nanoseconds = Field(description="one conversion of an ADC")
    write_ns: Nanoseconds = Field(description="one write pulse, for all cells of a row")


class Digital(Keys):
    """Units for what is not a matrix product."""

    lanes: Many = Field(description="32-bit lanes of a vector unit")
    per: Literal["chip", "tile"] = Field(
        default="chip", description="one vector unit, or one on each tile for its layer's ops"
    )
    buffer_word_bits: Few = Field(
        description="bits of one buffer access that components.buffer_* count"
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
    cache: Literal["rewrite", "keep"] = Field(
        default="rewrite",
        description="keys and values of past tokens that a step of decoding takes as arguments: "
        "written anew in each call, or kept in the cells, to which the new ones are added",
    )
    pulses_per_cell: float = Field(
        default=2.0,
        ge=1,
        le=1e6,
        description="pulses that a cell gets in one write, on average, without verify: an erasing "
        "one, since it holds a matrix before, and those that set its level",
    )
    pulses_per_row: float | None = Field(
        default=None,
        ge=1,
        le=1e6,
        description="pulses until the slowest cell of a row is done; absent: pulses_per_cell",
    )
    rows_at_once: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="rows of one crossbar that a write pulse sets together",
    )
    columns_at_once: int | None = Field(
        default=None, ge=1, le=4096, description="columns of a row written together; absent: all"
    )
    arrays_at_once: Many | None = Field(
        default=None, description="crossbars of a matrix written together; absent: all"
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
    """What data do to costs: which rows inputs drive, and what happens where they drive none."""

    source: Literal["assumed", "profiled"] = Field(
        default="assumed",
        description="rows that inputs drive: input_bit_density, or counted on calibration data",
    )
    input_bit_density: float = Field(
        default=0.5, ge=0, le=1, description="assumed share of input bits that are 1"
    )
    samples: int = Field(
        default=8, ge=1, le=10**6, description="calibration samples that are counted when profiled"
    )
    idle_reads: Literal["convert", "skip"] = Field(
        default="convert",
        description="a run of rows of which an input digit drives none: converted like any other, "
        "or neither read nor converted (its sum is 0); needs profiled activity to count",
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
    lanes: Many = Field(default=64, description="32-bit lanes of a layer's gradient unit")
    buffer_bytes: Bytes = Field(
        default=65536, description="capacity of one buffer, whose area buffer_read gives"
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
    activity: ActivityKeys = Field(default=ActivityKeys(), description="activity of data")
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
            one = (2**array.cell_bits - 1) * (2**self.dac.bits - 1)
            largest, sign = array.rows * one, adc.converts == "pair"
            codes = 2 ** (adc.bits - sign) - 1
            if largest > codes:
                fit = f" or array.rows = {codes // one}" if codes >= one else ""
                raise ValueError(
                    f'adc.range = "exact": a column of {array.rows} rows sums to up to {largest}, '
                    f"adc.bits = {adc.bits} has codes up to {codes}: it takes adc.bits = "
                    f"{largest.bit_length() + sign}{fit}"
                )
        if self.activity.idle_reads == "skip" and (adc.offset_lsb or self.dac.offset_lsb):
            raise ValueError(
                'activity.idle_reads = "skip" takes a run without driven rows for 0, which offsets '
                "of converters or drivers would change: set adc.offset_lsb and dac.offset_lsb to 0"
            )
        if array.wires.model != "none" and array.grouped != "separate":
            raise ValueError(
                f'array.wires.model = "{array.wires.model}" needs array.grouped = "separate": IR '
                "drop between groups that share an array is not modelled"
            )
        return self
