"""The keys of a sparse-SNN target: what they mean, their units, their ranges.

One table ``rules`` per engine holds what the public material on the accelerator leaves open; what
each choice stands for, why the default is the default, and what every other choice gives is in
``docs/decisions``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from imcc.backends.api import Target
from imcc.backends.keys import Bytes, Component, Few, Keys
from imcc.ir import codes
from imcc.ir.diagnostics import Location, error, nearest


class Array(Keys):
    """The processing elements."""

    elements: int = Field(ge=1, le=1024, description="processing elements")


class Format(Keys):
    """How operands are stored."""

    weight_bits: int = Field(default=8, ge=2, le=16, description="bits of a weight, sign included")
    pointer_bits: int = Field(default=32, ge=1, le=64, description="bits of a fiber's pointer")


class Cache(Keys):
    """The global buffer."""

    bytes: Bytes = Field(ge=1024, description="capacity")
    banks: Few = Field(description="banks, each with one port")
    line_bytes: Few = Field(ge=8, multiple_of=8, description="bytes of one access of a bank")


class Dram(Keys):
    """The memory behind the cache."""

    bandwidth_gb_s: float = Field(ge=1e-9, le=1e9, description="bandwidth in 10^9 bytes per second")


class Clock(Keys):
    """The one clock."""

    frequency_mhz: float = Field(ge=1e-6, le=1e9, description="frequency")


class LaggyPrefixSum(Keys):
    """The slow prefix sum over the mask of spikes."""

    adders: int = Field(ge=1, le=128, description="positions that it advances in a cycle")


class Fifo(Keys):
    """FIFOs of matched positions and weights, between the join and the corrections."""

    depth: int = Field(ge=1, le=1024, description="entries of each FIFO")


class Accumulators(Keys):
    """Pseudo- and correction accumulators."""

    pseudo_bits: int | None = Field(
        default=None, ge=2, le=62, description="width; absent: as many bits as the layer needs"
    )
    correction_bits: int | None = Field(
        default=None, ge=2, le=62, description="width; absent: as many bits as the layer needs"
    )
    overflow: Literal["wrap", "saturate"] = Field(
        default="wrap", description="what an accumulator does beyond its width"
    )


Mapping = Literal["rows", "rows-columns"]
Ports = Literal["ideal", "random"]


class _Rules(Keys):
    bank_conflicts: Ports = Field(
        description="random: requests of different elements meet in banks at random; ideal: never"
    )
    spikes: Literal["silenced", "original"] = Field(
        description="whether the engine sees spikes after silencing neurons that spike once, or "
        "before; where a workload has both"
    )


class _RowRules(_Rules):
    mapping: Mapping = Field(
        description="rows: elements that find no row of spikes idle; rows-columns: they take "
        "other columns of weights"
    )


class _InnerJoinRules(_RowRules):
    empty_chunk_cycles: int = Field(
        ge=0, le=1, description="cycles of a chunk in which nothing matches"
    )
    broadcast: Literal["barrier", "queued", "none"] = Field(
        description="a fiber of weights goes to all elements at once and the next follows when "
        "all are done (barrier) or as each is done (queued); none: each element fetches its own"
    )


class TemporalParallelRules(_InnerJoinRules):
    """What is open for the fully temporal-parallel engine."""

    laggy_scope: Literal["matched-chunk", "every-chunk", "row"] = Field(
        description="the laggy prefix sum runs for chunks that match, for every chunk, or once "
        "for each row of spikes, its offsets being kept for all columns"
    )
    laggy_early_stop: bool = Field(
        description="the laggy prefix sum stops at the last matched position of the chunk"
    )
    corrections: Literal["overlapped", "serial", "streamed"] = Field(
        description="corrections run beside the join of the same pair, in its place, or into the "
        "next pair"
    )


class SequentialRules(_InnerJoinRules):
    """What is open for the inner product with sequential timesteps."""

    cycles_per_match: int = Field(ge=1, le=4, description="cycles of one match")
    weight_reads: Literal["once", "per-timestep"] = Field(
        description="a fiber of weights is read from the cache once for a pair, or T times"
    )


class OuterProductRules(_RowRules):
    """What is open for the outer product."""

    empty_fiber_cycles: int = Field(
        ge=0, le=1, description="cycles of a (k, t) without spikes or without weights"
    )
    psum_accesses: int = Field(
        ge=1, le=3, description="accesses of a cache bank that one update of a partial sum takes"
    )


class GustavsonRules(_RowRules):
    """What is open for Gustavson's product."""

    empty_fiber_cycles: int = Field(
        ge=0, le=1, description="cycles of a row of weights that is empty"
    )
    partial_fibers: Literal["ideal", "read-back", "write-and-read"] = Field(
        description="cycles that a partial fiber takes: none, one per element for reading it "
        "again, or two for writing and reading"
    )


class SystolicRules(_Rules):
    """What is open for the dense array."""

    skip_silent: bool = Field(description="whether a position silent in all timesteps is skipped")
    fill: Literal["per-tile", "hidden"] = Field(
        description="whether filling and draining the array costs cycles for every tile"
    )


class Components(Keys):
    """The component library that all engines share."""

    dram: Component = Field(description="the memory behind the cache")
    cache_read: Component = Field(description="read access of the cache")
    cache_write: Component = Field(description="write access of the cache")
    crossbar: Component = Field(description="switch between banks and elements")
    buffer: Component = Field(description="operand buffers and FIFOs inside of an element")
    adder: Component = Field(description="adders, per bit of width")
    join: Component = Field(description="AND of two masks and priority encoder")
    fast_prefix_sum: Component = Field(description="prefix sum over a chunk in one cycle")
    laggy_adder: Component = Field(description="one adder of the laggy prefix sum in one cycle")
    neuron_multiply: Component = Field(description="multiplication of a membrane by its decay")


class Published(Keys):
    """Totals that the accelerator's authors give, to stand beside ours. Nothing is scaled to it."""

    area_mm2: float = Field(gt=0, le=1e6, description="area")
    power_mw: float = Field(gt=0, le=1e9, description="power")
    cache_area_mm2: float = Field(gt=0, le=1e6, description="area of the cache")
    cache_power_mw: float = Field(gt=0, le=1e9, description="power of the cache")
    source: str = Field(min_length=1, description="where the totals come from")


class _TargetKeys(Keys):
    backend: Literal["sparse_snn"] = Field(description="the backend's name")
    summary: str = Field(default="", description="one line for `imcc targets`")
    array: Array = Field(description="processing elements")
    format: Format = Field(default=Format(), description="storage of operands")
    cache: Cache = Field(description="global buffer")
    dram: Dram = Field(description="memory behind the cache")
    clock: Clock = Field(description="clock")
    components: Components = Field(description="energy and area figures with sources")
    published: Published | None = Field(default=None, description="totals to compare with")


class TemporalParallelKeys(_TargetKeys):
    """A target of the fully temporal-parallel engine."""

    engine: Literal["temporal-parallel"] = Field(description="the dataflow")
    laggy: LaggyPrefixSum = Field(description="slow prefix sum")
    fifo: Fifo = Field(description="FIFOs of an element")
    accumulators: Accumulators = Field(default=Accumulators(), description="accumulators")
    rules: TemporalParallelRules = Field(description="choices that the public material leaves open")


class SequentialKeys(_TargetKeys):
    """A target of the inner product with sequential timesteps."""

    engine: Literal["sequential"] = Field(description="the dataflow")
    rules: SequentialRules = Field(description="choices that the public material leaves open")


class Psums(Keys):
    """Partial sums in the cache."""

    bits: int = Field(ge=8, le=32, description="bits of one partial sum")
    cache_share: float = Field(gt=0, lt=1, description="share of the cache that holds them")


class OuterProductKeys(_TargetKeys):
    """A target of the outer product."""

    engine: Literal["outer-product"] = Field(description="the dataflow")
    psums: Psums = Field(description="partial sums")
    rules: OuterProductRules = Field(description="choices that the public material leaves open")


class Merger(Keys):
    """The merger of an element."""

    radix: int = Field(ge=2, le=1024, description="fibers that it merges at a time")
    psum_bits: int = Field(ge=8, le=32, description="bits of a partial sum in a partial fiber")


class GustavsonKeys(_TargetKeys):
    """A target of Gustavson's product."""

    engine: Literal["gustavson"] = Field(description="the dataflow")
    merger: Merger = Field(description="merger of an element")
    rules: GustavsonRules = Field(description="choices that the public material leaves open")


class Systolic(Keys):
    """The shape of the dense array."""

    rows: Few = Field(description="output neurons at a time")
    columns: Few = Field(description="timesteps at a time")


class SystolicKeys(_TargetKeys):
    """A target of the dense systolic array."""

    engine: Literal["systolic"] = Field(description="the dataflow")
    systolic: Systolic = Field(description="shape of the array")
    rules: SystolicRules = Field(description="choices that the public material leaves open")


TargetKeys = TemporalParallelKeys | SequentialKeys | OuterProductKeys | GustavsonKeys | SystolicKeys
ENGINES: dict[str, type[TargetKeys]] = {
    "temporal-parallel": TemporalParallelKeys,
    "sequential": SequentialKeys,
    "outer-product": OuterProductKeys,
    "gustavson": GustavsonKeys,
    "systolic": SystolicKeys,
}


@dataclass(frozen=True)
class SparseTarget(Target):
    """A validated sparse-SNN target: ``keys`` is its typed form."""

    keys: TargetKeys = None  # type: ignore[assignment]

    @property
    def cycle_ns(self) -> float:
        """Period of the clock."""
        return 1e3 / self.keys.clock.frequency_mhz

    @property
    def dram_bytes_per_cycle(self) -> float:
        """DRAM bandwidth in bytes per cycle."""
        return self.keys.dram.bandwidth_gb_s * self.cycle_ns

    def bank_accesses_per_cycle(self, requesters: int) -> float:
        """Accesses per cycle that banks serve when ``requesters`` ask in every cycle.

        With random conflicts, ``b (1 - (1 - 1/b)^r)`` of b single-ported banks are busy when r
        independent requests fall on them uniformly (Strecker, "Analysis of the instruction
        execution rate in certain computer structures", 1970).
        """
        banks = self.keys.cache.banks
        if self.keys.rules.bank_conflicts == "ideal":
            return float(min(banks, requesters))
        return float(banks * (1.0 - (1.0 - 1.0 / banks) ** requesters))

    def components(self) -> dict[str, Component]:
        """All components by name."""
        held = self.keys.components
        return {name: getattr(held, name) for name in Components.model_fields}

    def energy_pj(self, component: str) -> float | None:
        """Energy of one event of a component, or None if unknown."""
        held: Component = getattr(self.keys.components, component)
        return held.energy_pj

    def figures(self, component: str) -> dict[str, Any]:
        """The figures of a component as plain data, with unit, node and source."""
        held: Component = getattr(self.keys.components, component)
        return held.figures()


def load(name: str, data: dict[str, Any], origin: str) -> SparseTarget:
    """Validate target data; see :func:`imcc.backends.targets.find_target` for what it raises."""
    from imcc.backends.targets import toml_value, validate, write_toml

    engine = data.get("engine")
    model = ENGINES.get(engine) if isinstance(engine, str) else None
    if model is None:
        plain = isinstance(engine, (bool, int, float, str, list))
        raise error(
            codes.BAD_TARGET,
            f"{origin}: key engine: expected the name of an engine, found "
            f"{toml_value(engine) if plain else 'nothing'}",
            text=Location(origin, 1),
            suggestions=nearest(str(engine), ENGINES),
            help=f"engines: {', '.join(ENGINES)}",
        )
    keys = validate(model, data, origin)
    full = keys.model_dump(exclude_none=True)
    return SparseTarget(name, "sparse_snn", full, write_toml(full), origin, keys)
