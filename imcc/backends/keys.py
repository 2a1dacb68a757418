"""What the target files of all backends share: strict tables, components with sourced figures."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from imcc.ir.cost import Figure


class Keys(BaseModel):
    """A table of a target file: no key left unexplained, no number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Component(Keys):
    """A component's figures. An absent figure is unknown, and is reported so, not as 0."""

    energy_pj: float | None = Field(default=None, ge=0, description="energy of one event")
    area_um2: float | None = Field(default=None, ge=0, description="area of one instance")
    leakage_uw: float | None = Field(default=None, ge=0, description="leakage of one instance")
    per: str = Field(description="what one event is")
    node_nm: float = Field(gt=0, description="technology node of the figures")
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
