"""What the target files of all backends share: units with bounds, strict tables, components.

Every number of a target file has a lower and an upper bound. Those of a unit stand here, once; they
are far outside of what any device or chip is known to have, and inside of what float64 carries
through a whole report: a value beyond them is a slip of unit or of the pen.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from imcc.ir.cost import Figure

Nanoseconds = Annotated[float, Field(ge=1e-6, le=1e12)]
"""A step of hardware: from a femtosecond to 1000 seconds."""
Delay = Annotated[float, Field(ge=0, le=1e12)]
"""A duration in ns that may be 0: up to 1000 seconds."""
Seconds = Annotated[float, Field(ge=0, le=1e12)]
"""Retention and drift: up to 30,000 years."""
Picojoules = Annotated[float, Field(ge=0, le=1e12)]
"""Energy of an event: up to a joule."""
SquareMicrometres = Annotated[float, Field(ge=0, le=1e12)]
"""Area: up to a square metre."""
Microwatts = Annotated[float, Field(ge=0, le=1e12)]
"""Power: up to a megawatt."""
Microsiemens = Annotated[float, Field(ge=1e-9, le=1e9)]
"""Conductance: from a femtosiemens to a kilosiemens."""
Ohms = Annotated[float, Field(ge=0, le=1e9)]
"""Resistance of a segment of wire."""
Nanometres = Annotated[float, Field(ge=1, le=1e5)]
"""A technology node: from one nanometre to 0.1 mm."""
BitsPerNanosecond = Annotated[float, Field(ge=1e-9, le=1e9)]
"""Bandwidth: from a bit a second to a million terabits a second."""
Steps = Annotated[float, Field(ge=0, le=65536)]
"""An error in steps of a converter or a driver: up to the range of 16 bits."""
Few = Annotated[int, Field(ge=1, le=65536)]
"""Parts of one part of the chip, bits of one word, wires of one bus."""
Many = Annotated[int, Field(ge=1, le=10**9)]
"""Parts of a whole chip."""
Bytes = Annotated[int, Field(ge=1, le=10**12)]
"""Capacity of a memory: up to a terabyte."""
Writes = Annotated[float, Field(ge=1, le=1e24)]
"""Writes that a cell bears."""


class Keys(BaseModel):
    """A table of a target file: no key left unexplained, no number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Component(Keys):
    """A component's figures. An absent figure is unknown, and is reported so, not as 0."""

    energy_pj: Picojoules | None = Field(default=None, description="energy of one event")
    area_um2: SquareMicrometres | None = Field(default=None, description="area of one instance")
    leakage_uw: Microwatts | None = Field(default=None, description="leakage of one instance")
    per: str = Field(description="what one event is")
    node_nm: Nanometres = Field(description="technology node of the figures")
    source: str = Field(min_length=1, description="where the figures come from")
    note: str = Field(default="", description="what to know when using them")

    def figures(
        self, energy_pj: float | None = None, area_um2: float | None = None
    ) -> dict[str, Any]:
        """The figures as plain data, with unit, node and source; absent ones are left out.

        ``energy_pj`` and ``area_um2`` stand for the component's own where those depend on other
        keys.
        """
        made: dict[str, Any] = {}
        for key, value, unit in (
            ("energy", self.energy_pj if energy_pj is None else energy_pj, f"pJ per {self.per}"),
            ("area", self.area_um2 if area_um2 is None else area_um2, "um2"),
            ("leakage", self.leakage_uw, "uW"),
        ):
            if value is not None:
                made[key] = Figure(value, unit, self.source, self.node_nm, self.note).to_json()
        return made
