"""The keys of a target of the backend ``reference``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ReferenceTarget(BaseModel):
    """A target without hardware."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Literal["reference"] = Field(description="the backend's name")
    summary: str = Field(default="", description="one line for `imcc targets`")
