"""What ``nearmem`` adds to programs: when each op runs. It has no ops of its own."""

from __future__ import annotations

from imcc.ir.attributes import declare_annotation

START = declare_annotation("nearmem.start_ns", float, unit="ns", doc="when the op starts")
END = declare_annotation("nearmem.end_ns", float, unit="ns", doc="when its result is complete")
