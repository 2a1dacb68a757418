"""The keys of a target of the backend ``nearmem``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from imcc.backends.api import Target
from imcc.backends.keys import Component, Few, Keys, Nanoseconds
from imcc.backends.targets import validate, write_toml


class Lanes(Keys):
    """The arithmetic."""

    count: Few = Field(description="lanes that work at once")
    clock_ns: Nanoseconds = Field(description="period of the clock; a lane does one step in it")


class Buffer(Keys):
    """The memory beside the lanes."""

    word_bits: Few = Field(ge=8, multiple_of=8, description="bits of one access")


class Components(Keys):
    """All components that the cost rules count."""

    mac: Component = Field(description="8-bit multiplication and 32-bit addition of a lane")
    alu: Component = Field(description="32-bit floating-point addition or comparison of a lane")
    multiply: Component = Field(description="32-bit floating-point multiplication of a lane")
    buffer: Component = Field(description="one access of the buffer")


class NearMemoryKeys(Keys):
    """A target file of the backend ``nearmem``."""

    backend: Literal["nearmem"] = Field(description="the backend's name")
    summary: str = Field(default="", description="one line for `imcc targets`")
    lanes: Lanes = Field(description="the arithmetic")
    buffer: Buffer = Field(description="the memory beside the lanes")
    components: Components = Field(description="energy and area figures with sources")


@dataclass(frozen=True)
class NearMemoryTarget(Target):
    """A validated target: ``keys`` is its typed form."""

    keys: NearMemoryKeys = None  # type: ignore[assignment]

    def component(self, name: str) -> Component:
        """The figures of a component."""
        made: Component = getattr(self.keys.components, name)
        return made


def load(name: str, data: dict[str, Any], origin: str) -> NearMemoryTarget:
    """Validate target data; raises ``BAD_TARGET`` for each bad key."""
    keys = validate(NearMemoryKeys, data, origin)
    full = keys.model_dump(exclude_none=True)
    return NearMemoryTarget(name, "nearmem", full, write_toml(full), origin, keys)
