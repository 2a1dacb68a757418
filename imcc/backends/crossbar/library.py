"""Components from publications, and what becomes of their figures at another node.

A component of a target file is either written out or named: ``library = "noc_router"`` takes its
figures from ``library.toml``, and keys beside it replace single figures. Where the target states
``technology.node_nm``, figures of another node are scaled when the file is read.

Energy goes with ``E(V) = a V^2 + b V + c`` of each node at its nominal supply, area by a table
over nodes; both are the fits of Stillmaker and Baas, Integration 58, 2017 (table 2 and 3), between
nodes linear. Supplies are those of the ITRS for high performance. Leakage power is scaled as
energy at the same time of activity, as hwcomponents does: no law of its own was found. Off-chip
memory does not scale (``scales = false``).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

from imcc.ir import codes
from imcc.ir.diagnostics import error, nearest

NODES_NM = (130.0, 90.0, 65.0, 45.0, 32.0, 20.0, 16.0, 14.0, 10.0, 7.0)
SUPPLY_V = (1.3, 1.2, 1.1, 1.0, 0.9, 0.8, 0.8, 0.8, 0.75, 0.7)
AREA = (1.0, 0.44, 0.23, 0.16, 0.072, 0.033, 0.03, 0.027, 0.016, 0.0092)
"""Area of a circuit at each node over that at 130 nm."""
ENERGY = (
    (7.171, -6.709, 2.904),
    (4.762, -4.781, 2.092),
    (3.755, -4.398, 1.975),
    (1.103, -0.362, 0.2767),
    (0.9559, -0.7823, 0.471),
    (0.373, -0.1582, 0.04104),
    (0.2958, -0.1241, 0.03024),
    (0.2363, -0.09675, 0.02239),
    (0.2068, -0.09311, 0.02375),
    (0.1776, -0.09097, 0.02447),
)
ENERGY_KEYS = ("energy_pj", "energy_pj_by_bits", "leakage_uw")
AREA_KEYS = ("area_um2", "area_um2_by_bits")


@lru_cache(maxsize=1)
def library() -> dict[str, dict[str, Any]]:
    """All components of ``library.toml`` by name."""
    text = resources.files(__package__).joinpath("library.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _between(node_nm: float, values: tuple[float, ...]) -> float:
    for position in range(len(NODES_NM) - 1):
        high, low = NODES_NM[position], NODES_NM[position + 1]
        if low <= node_nm <= high:
            share = (high - node_nm) / (high - low)
            return (1 - share) * values[position] + share * values[position + 1]
    raise ValueError(f"no scaling is known at {node_nm:g} nm: {NODES_NM[-1]:g} to {NODES_NM[0]:g}")


def energy_factor(from_nm: float, to_nm: float) -> float:
    """What a figure of energy at one node is multiplied with at another."""
    held = tuple(a * v**2 + b * v + c for (a, b, c), v in zip(ENERGY, SUPPLY_V, strict=True))
    return _between(to_nm, held) / _between(from_nm, held)


def area_factor(from_nm: float, to_nm: float) -> float:
    """What an area at one node is multiplied with at another."""
    return _between(to_nm, AREA) / _between(from_nm, AREA)


def resolved(data: dict[str, Any], origin: str) -> dict[str, Any]:
    """Target data whose components are written out and, where asked for, scaled to one node.

    Raises :class:`DiagnosticError` for a name that the library does not hold, for a name beside
    figures with a source of their own, and for a node outside the fits.
    """
    components = data.get("components")
    if not isinstance(components, Mapping):
        return data
    technology = data.get("technology")
    node = technology.get("node_nm") if isinstance(technology, Mapping) else None
    made: dict[str, Any] = {}
    for name, table in components.items():
        if isinstance(table, Mapping):
            table = _named(name, dict(table), origin)
            if isinstance(node, (int, float)) and _is_node(node):
                table = _scaled(name, table, float(node), origin)
        made[name] = table
    return {**data, "components": made}


def _is_node(value: Any) -> bool:
    """Whether figures can be scaled to it; validation refuses what is no node at all."""
    return type(value) in (int, float) and NODES_NM[-1] <= value <= NODES_NM[0]


def _named(name: str, table: dict[str, Any], origin: str) -> dict[str, Any]:
    if "library" not in table:
        return table
    wanted = table.pop("library")
    held = library().get(wanted) if isinstance(wanted, str) else None
    if held is None:
        raise error(
            codes.BAD_TARGET,
            f"{origin}: key components.{name}.library: {wanted!r} is not in the library",
            suggestions=nearest(str(wanted), library()),
            help=f"components: {', '.join(library())}",
        )
    if "source" in table:
        raise error(
            codes.BAD_TARGET,
            f"{origin}: components.{name} has both a library component and a source of its own",
            help="name one of the library, or write the figures and their source out",
        )
    made = {key: value for key, value in held.items() if key not in _replaced(table)}
    return {**made, **table}


def _replaced(table: Mapping[str, Any]) -> set[str]:
    """Keys of the library that a figure given beside its name stands for."""
    pairs = (("energy_pj", "energy_pj_by_bits"), ("area_um2", "area_um2_by_bits"))
    return {key for pair in pairs if set(pair) & set(table) for key in pair}


def _scaled(name: str, table: dict[str, Any], node: float, origin: str) -> dict[str, Any]:
    held = table.get("node_nm")
    if not isinstance(held, (int, float)) or isinstance(held, bool) or not 0 < held < math.inf:
        return table
    if held == node or table.get("scales", True) is not True:
        return table
    if not _is_node(held):
        raise error(
            codes.BAD_TARGET,
            f"{origin}: key components.{name}.node_nm: figures at {held:g} nm cannot be scaled to "
            f"{node:g} nm, only those from {NODES_NM[-1]:g} to {NODES_NM[0]:g} nm",
            help="give figures of a node within that range, or leave technology.node_nm out",
        )
    energy, area = energy_factor(float(held), node), area_factor(float(held), node)
    made = dict(table)
    for keys, factor in ((ENERGY_KEYS, energy), (AREA_KEYS, area)):
        for key in keys:
            value = made.get(key)
            if isinstance(value, Mapping):
                made[key] = {bits: _times(figure, factor) for bits, figure in value.items()}
            elif value is not None:
                made[key] = _times(value, factor)
    made["node_nm"] = node
    said = f"scaled from {held:g} nm: energy x {energy:.4g}, area x {area:.4g}"
    made["note"] = f"{made['note']}; {said}" if made.get("note") else said
    return made


def _times(value: Any, factor: float) -> Any:
    """A figure times a factor, to six digits; what is no number is left for validation."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return float(f"{value * factor:.6g}")
