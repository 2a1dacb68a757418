"""The form of a report, checked when one is read from an artifact.

Fields that readers of reports rely on are listed; others pass. The driver writes reports, and
``docs/reference/report-schema.md`` describes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imcc.ir import codes
from imcc.ir.cost import SCHEMA_VERSION
from imcc.ir.diagnostics import error


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Model(_Part):
    name: str


class _Target(_Part):
    name: str
    backend: str
    sha256: str


class _Layer(_Part):
    name: str
    ops: list[str] = []
    energy_pj: float | None
    busy_ns: float
    start_ns: float = 0.0
    end_ns: float = 0.0
    area_um2: float
    events: dict[str, float] = {}
    energy_by_component_pj: dict[str, float] = {}
    resources: dict[str, int] = {}
    instances: dict[str, int] = {}
    unknown: str | None = None


class _Figure(_Part):
    value: float
    unit: str
    node_nm: float | None = None
    source: str
    note: str = ""


class _Component(_Part):
    energy_pj: float | None = None
    leakage_pj: float | None = None
    area_um2: float | None = None
    instances: int | None = None
    events: dict[str, float] = {}
    figures: dict[str, _Figure] = {}


class _Pass(_Part):
    pass_: str = Field(alias="pass")
    seconds: float
    changes: int


class _EntryPoint(_Part):
    energy_pj: float
    latency_ns: float
    area_um2: float
    leakage_pj: float = 0.0
    interval_ns: float | None = None
    layers: list[_Layer]
    components: dict[str, _Component]
    unknown: list[str]
    activity: str = ""
    provenance: dict[str, Any] = {}
    writing: dict[str, Any] | None = None


class _Statistics(_Part):
    mean: float
    std: float | None = None
    ci95: list[float] | None = Field(min_length=2, max_length=2)
    trials: int
    per_trial: list[float] = []


class _Level(_Statistics):
    sigma_fraction: float


class _CheckedPass(_Part):
    pass_: str = Field(alias="pass")
    before: float
    after: float
    change: float


class _Accuracy(_Part):
    samples: int
    metric: str
    float_: float = Field(alias="float")
    float_ci95: list[float] | None = Field(min_length=2, max_length=2)
    noise_free: float
    noise_free_ci95: list[float] | None = Field(min_length=2, max_length=2)
    noisy: _Statistics | None
    write_noise_sweep: list[_Level]
    passes: list[_CheckedPass] | None = None


class _Report(_Part):
    schema_version: int = Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    imcc_version: str
    model: _Model
    targets: list[_Target] = Field(min_length=1)
    seed: int
    passes: list[_Pass] = []
    energy_pj: float
    resources: dict[str, int]
    entry_points: dict[str, _EntryPoint]
    accuracy: _Accuracy | None
    warnings: list[Any]
    signature: dict[str, Any] | None


def check_report(report: dict[str, Any], file: Path) -> None:
    """Raise an ``ARTIFACT`` diagnostic that names keys of another form than the driver writes."""
    try:
        made = _Report.model_validate(report)
    except ValidationError as wrong:
        places = [
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in wrong.errors()[:5]
        ]
        raise error(
            codes.ARTIFACT,
            f"{file} is not a report of schema version {SCHEMA_VERSION}",
            reason="; ".join(places),
            help="compile the model again",
        ) from None
    if "inference" not in made.entry_points:
        raise error(
            codes.ARTIFACT,
            f"{file} has no cost of the entry point inference",
            help="compile the model again",
        )
