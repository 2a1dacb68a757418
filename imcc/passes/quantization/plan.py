"""Which layer is quantised how: one format for all, and a plan file for exceptions.

A plan is TOML: tables ``[[layer]]`` with a ``pattern`` over the weight's dotted name (``*`` and
``?`` as in file names) and what differs from the pass's options. Rules that match add up, a later
one over an earlier one; one behind a ``skip`` starts from the options again::

    [[layer]]
    pattern = "model.layers.*.mlp.*"
    bits = 3
    group = 64

    [[layer]]
    pattern = "lm_head.*"
    skip = true
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticCollector, error, nearest
from imcc.passes.quantization.blocks import Block, Layer, constant_weight
from imcc.passes.quantization.grid import WeightFormat

KEYS = ("pattern", "bits", "group", "scheme", "granularity", "skip")
BITS = range(2, 9)


@dataclass(frozen=True)
class Rule:
    """One ``[[layer]]`` table; None means as the pass's options say."""

    pattern: str
    bits: int | None = None
    group: int | None = None
    scheme: str | None = None
    granularity: str | None = None
    skip: bool = False

    def apply(self, form: WeightFormat) -> WeightFormat | None:
        """The format after this rule; None if the layer is skipped."""
        if self.skip:
            return None
        if self.bits is not None:
            form = replace(form, bits=self.bits)
        if self.scheme is not None:
            form = replace(form, symmetric=self.scheme == "symmetric")
        if self.granularity is not None:
            form = replace(form, per_tensor=self.granularity == "tensor", group=None)
        if self.group is not None:
            form = replace(form, per_tensor=False, group=self.group or None)
        return form


def read_plan(path: str) -> tuple[Rule, ...]:
    """The rules of a plan file; raises :class:`DiagnosticError` that names every bad key."""
    if not path:
        raise error(codes.BAD_OPTION, "the name of the plan file is empty")
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as wrong:
        raise error(codes.BAD_OPTION, f"plan {path} cannot be read: {wrong}") from None
    found = DiagnosticCollector()
    rules: list[Rule] = []
    for key in data:
        if key != "layer":
            found.add(_bad(path, f"has no key {key!r}", suggestions=nearest(key, ["layer"])))
    tables = data.get("layer", [])
    for index, table in enumerate(tables if isinstance(tables, list) else [tables]):
        where = f"layer[{index}]"
        if not isinstance(table, dict):
            found.add(_bad(path, f"{where} is no table"))
            continue
        problems = list(_problems(where, table))
        for problem in problems:
            found.add(_bad(path, problem))
        if not problems:
            rules.append(Rule(**table))
    found.raise_errors()
    return tuple(rules)


def has_bits(name: str, rules: Sequence[Rule]) -> bool:
    """Whether a rule says how many bits a weight gets."""
    said = False
    for rule in rules:
        if fnmatch.fnmatchcase(name, rule.pattern):
            said = not rule.skip and (said or rule.bits is not None)
    return said


def annotate(
    blocks: Sequence[Block], default: WeightFormat, rules: Sequence[Rule]
) -> dict[Layer, WeightFormat]:
    """The format of every layer that is quantised.

    Groups run along the last axis of a matrix: a convolution gets a scale for each output channel
    instead. Raises :class:`DiagnosticError` for a rule that matches no weight.
    """
    formats: dict[Layer, WeightFormat] = {}
    matched: set[str] = set()
    names: list[str] = []
    for block in blocks:
        for layer in block.layers:
            source = constant_weight(layer)
            name = str(source.value) if source is not None else ""
            names.append(name)
            form: WeightFormat | None = default
            for rule in rules:
                if fnmatch.fnmatchcase(name, rule.pattern):
                    matched.add(rule.pattern)
                    form = rule.apply(form or default)
            if form is not None:
                formats[layer] = form if layer.name == "nn.linear" else replace(form, group=None)
    for rule in rules:
        if rule.pattern not in matched:
            raise error(
                codes.BAD_OPTION,
                f"the plan's pattern {rule.pattern!r} matches no weight",
                suggestions=nearest(rule.pattern, names),
                help="patterns are over names of weights such as " + ", ".join(names[:3]),
            )
    return formats


def _problems(where: str, table: dict[str, Any]) -> list[str]:
    made: list[str] = []
    for key in table:
        if key not in KEYS:
            hint = nearest(key, KEYS)
            made.append(
                f"{where}.{key} is unknown" + (f"; did you mean {hint[0]}?" if hint else "")
            )
    allowed: dict[str, tuple[str, Any]] = {
        "pattern": ("a string", lambda v: isinstance(v, str) and bool(v)),
        "bits": ("2 to 8", lambda v: type(v) is int and v in BITS),
        "group": ("0 (none), 2 or more", lambda v: type(v) is int and v >= 0 and v != 1),
        "scheme": ("symmetric or asymmetric", lambda v: v in ("symmetric", "asymmetric")),
        "granularity": ("channel or tensor", lambda v: v in ("channel", "tensor")),
        "skip": ("true or false", lambda v: isinstance(v, bool)),
    }
    for key, (what, holds) in allowed.items():
        if key in table and not holds(table[key]):
            made.append(f"{where}.{key} is {table[key]!r}; allowed: {what}")
    if table.get("granularity") == "tensor" and table.get("group"):
        made.append(f'{where} has granularity = "tensor" and a group: choose one')
    if "pattern" not in table:
        made.append(f"{where} needs a pattern")
    return made


def _bad(path: str, message: str, suggestions: Sequence[str] = ()) -> Diagnostic:
    return Diagnostic(
        codes.BAD_OPTION,
        f"plan {path}: {message}",
        suggestions=tuple(suggestions),
        help="keys of [[layer]]: " + ", ".join(KEYS),
    )
