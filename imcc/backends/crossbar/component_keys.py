"""Keys of a crossbar target's components: energy, area and leakage of each, and their sources."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field, field_validator, model_validator

from imcc.backends.keys import Component, Keys, Picojoules, SquareMicrometres

BITS = tuple(str(bits) for bits in range(1, 17))
"""Resolutions that a converter may have."""


class CrossbarComponent(Component):
    """A component whose energy and area may depend on the resolution of the converters."""

    energy_pj_by_bits: dict[str, Picojoules] | None = Field(
        default=None,
        description="energy of one event by resolution, log-linear between; instead of energy_pj",
    )

    area_um2_by_bits: dict[str, SquareMicrometres] | None = Field(
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
            if key not in BITS or not value > 0:
                raise ValueError("needs keys that are bits, 1 to 16, and values above 0")
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
