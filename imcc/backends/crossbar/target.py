"""A crossbar target: its file read and validated; what the rules of this backend ask of it.

The keys are those of ``target_keys.py``, with the tables of noise models as their plugins say.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, create_model

from imcc.backends.api import Target
from imcc.backends.crossbar.component_keys import Components, CrossbarComponent
from imcc.backends.crossbar.library import resolved
from imcc.backends.crossbar.noise import (
    CellScale,
    NoiseKeys,
    NoiseModel,
    find_noise_model,
    noise_model_names,
    noise_models,
)
from imcc.backends.crossbar.target_keys import Device, TargetKeys
from imcc.ir.diagnostics import DiagnosticError, did_you_mean

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
        base = find_noise_model(name).Keys if _is_model(kind, name) else _AnyKeys
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


class _AnyKeys(NoiseKeys):
    """A table whose model is none of its kind: that is its fault, whatever else stands in it."""

    model_config = ConfigDict(extra="ignore")


def _noise_model(kind: str, name: str) -> str:
    if not _is_model(kind, name):
        known = noise_models(kind)
        what = {"device": "variation between devices", "drift": "drift"}.get(kind, f"{kind} noise")
        raise ValueError(
            f"must be a model of {what}: {', '.join(known)}{did_you_mean(name, known)}"
        )
    return name


def _is_model(kind: str, name: str) -> bool:
    return name in noise_model_names() and find_noise_model(name).kind in (kind, "any")


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
    for (kind, (table, _)), name in zip(NOISE_TABLES.items(), chosen, strict=True):
        if isinstance(made.get(table), Mapping) and _is_model(kind, name):
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
