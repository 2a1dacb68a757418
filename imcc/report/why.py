"""Where a number of the report comes from: down to events, component figures and their sources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from imcc.driver.compiled import CompiledModel
from imcc.ir import codes
from imcc.ir.diagnostics import error, nearest
from imcc.report.costs import OpEntry, component_of, figure_of, op_entries
from imcc.report.tables import console_of, exact, plain, quantity

QUANTITIES = {"energy_pj": "pJ", "latency_ns": "ns", "area_um2": "um2"}
MAX_ROWS = 24
"""Rows of a table in the terminal; the JSON form has all."""


@dataclass(frozen=True)
class Reason:
    """A number and how it comes about: ``count`` times ``figure``, or the sum of ``terms``.

    ``value`` is None where it is not known. ``figure`` has ``value``, ``unit``, ``node_nm``,
    ``source`` and ``note``.
    """

    name: str
    value: float | None
    unit: str
    how: str = ""
    count: float | None = None
    figure: Mapping[str, Any] | None = None
    terms: tuple[Reason, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "how": self.how or None,
            "count": self.count,
            "figure": dict(self.figure) if self.figure is not None else None,
            "terms": [term.to_json() for term in self.terms],
        }


def why(compiled: CompiledModel, path: str) -> Reason:
    """Follow ``[@ENTRY.][NAME.]QUANTITY`` down to events and figures.

    ``NAME`` is a layer, a scope that holds layers (``block.*`` where a layer has that name too), or
    a component; without it the number is the entry point's total. The default entry point is
    ``inference``. Raises ``USAGE`` with the nearest names for one that does not exist.
    """
    points = compiled.report_data["entry_points"]
    entry, rest = _entry(points, path)
    name, _, kind = rest.rpartition(".")
    point = points[entry]
    layers = {layer["name"]: layer for layer in point["layers"]}
    known = list(dict.fromkeys([*layers, *_scopes(layers), *point["components"]]))
    if kind not in QUANTITIES:
        base, endings = (rest, tuple(QUANTITIES)) if rest in known else (name, ())
        raise error(
            codes.USAGE,
            f"{path!r} ends in no quantity",
            suggestions=tuple(
                f"{base}.{item}".lstrip(".") for item in endings or nearest(kind, QUANTITIES)
            ),
            help="end in .energy_pj, .latency_ns or .area_um2, as in stem.0.energy_pj",
        )
    ask = _Asked(compiled, entry, point, path, kind)
    if not name:
        return ask.total()
    scope = name.removesuffix(".*")
    inside = [layer for key, layer in layers.items() if key == scope or key.startswith(scope + ".")]
    if name in layers:
        return ask.layer(layers[name], len(inside) - 1)
    if inside:
        return ask.scope(inside)
    if name in point["components"]:
        return ask.component(name)
    raise error(
        codes.USAGE,
        f"@{entry} has no layer, scope or component {name!r}",
        suggestions=tuple(f"{item}.{kind}" for item in nearest(name, known)),
        help="`imcc report ARTIFACT --by layer` lists the layers, `--by component` the components",
    )


def _entry(points: Mapping[str, Any], path: str) -> tuple[str, str]:
    if not path.startswith("@"):
        return "inference", path
    entry, _, rest = path[1:].partition(".")
    if entry not in points:
        raise error(
            codes.USAGE,
            f"no entry point @{entry}",
            suggestions=tuple(f"@{item}" for item in nearest(entry, points)),
            help=f"entry points: {', '.join('@' + item for item in points)}",
        )
    return entry, rest


def _scopes(layers: Iterable[str]) -> list[str]:
    found: dict[str, None] = {}
    for name in layers:
        parts = name.split(".")
        found.update((".".join(parts[:count]), None) for count in range(1, len(parts)))
    return list(found)


@dataclass(frozen=True)
class _Asked:
    compiled: CompiledModel
    entry: str
    point: Mapping[str, Any]
    path: str
    kind: str

    @property
    def unit(self) -> str:
        return QUANTITIES[self.kind]

    def _made(self, value: float | None, how: str, terms: Iterable[Reason]) -> Reason:
        return Reason(self.path, value, self.unit, how, terms=tuple(terms))

    def total(self) -> Reason:
        value = self.point[self.kind]
        components = self.point["components"]
        if self.kind == "latency_ns" and "pipelined" in self.point["provenance"]["cost_model"]:
            return self._made(
                value,
                "end of the last op: layers overlap, these are on the critical path",
                self._critical(),
            )
        if self.kind == "latency_ns":
            return self._made(
                value,
                "end of the last op: the ops that follow one another without a gap before it",
                _chain(op_entries(self.compiled, self.entry), value),
            )
        if self.kind == "area_um2":
            return self._made(
                value,
                "sum over components: all instances on used tiles x area of one",
                (self._area(name, held.get("instances")) for name, held in components.items()),
            )
        terms = [
            self._component_energy(name, held)
            for name, held in components.items()
            if held.get("events")
        ]
        leaks = [self._leakage(name, held) for name, held in components.items()]
        return self._made(
            value,
            "sum over components: events x energy of one event"
            + (", plus leakage" if any(leaks) else ""),
            [*terms, *(leak for leak in leaks if leak is not None)],
        )

    def _critical(self) -> Iterable[Reason]:
        """Layers of the critical path, each from when the one before it lets it start."""
        layers = {layer["name"]: layer for layer in self.point["layers"]}
        now = 0.0
        for name in self.point.get("critical_path") or ():
            layer = layers[name]
            if layer["end_ns"] > now:
                how = f"from {exact(layer['start_ns'])} ns to {exact(layer['end_ns'])} ns"
                yield Reason(name, layer["end_ns"] - now, "ns", how)
                now = layer["end_ns"]

    def layer(self, layer: Mapping[str, Any], below: int) -> Reason:
        name = layer["name"]
        apart = f"; {below} layers below it count apart, see {name}.*.{self.kind}" if below else ""
        if self.kind == "latency_ns":
            terms = [
                Reason(
                    f"%{entry.name} = {entry.op.name}",
                    entry.busy_ns,
                    "ns",
                    entry.note or entry.free or entry.unknown,
                )
                for entry in op_entries(self.compiled, self.entry)
                if entry.layer == name
            ]
            return self._made(
                layer["busy_ns"], "sum over ops: how long each is at work" + apart, terms
            )
        if self.kind == "area_um2":
            return self._made(
                layer[self.kind],
                "sum over components: instances that are this layer's alone x area of one" + apart,
                (self._area(item, count) for item, count in (layer.get("instances") or {}).items()),
            )
        how = "sum over events: count x energy of one event" + apart
        if layer.get("unknown"):
            how += f"; not counted: {layer['unknown']}"
        return self._made(layer[self.kind], how, self._events(layer.get("events") or {}))

    def scope(self, layers: Sequence[Mapping[str, Any]]) -> Reason:
        key = "busy_ns" if self.kind == "latency_ns" else self.kind
        known = [layer[key] for layer in layers if layer[key] is not None]
        terms = [Reason(layer["name"], layer[key], self.unit) for layer in layers]
        return self._made(
            sum(known) if known else None,
            "sum over the layers of this scope"
            + (" (unknown ones left out)" if len(known) < len(layers) else ""),
            terms,
        )

    def component(self, name: str) -> Reason:
        held = self.point["components"][name]
        if self.kind == "latency_ns":
            raise error(
                codes.USAGE,
                f"a component has no latency: {self.path!r}",
                suggestions=(f"{name}.energy_pj", f"{name}.area_um2"),
            )
        if self.kind == "area_um2":
            made = self._area(name, held.get("instances"))
            return self._made(made.value, "all instances on used tiles x area of one", (made,))
        terms = [
            Reason(f"{layer['name']}: {term.name}", term.value, "pJ", "", term.count, term.figure)
            for layer in self.point["layers"]
            for term in self._events(
                {
                    event: count
                    for event, count in (layer.get("events") or {}).items()
                    if component_of(event) == name
                }
            )
        ]
        return self._made(
            held.get("energy_pj"), "sum over layers: events x energy of one event", terms
        )

    def _events(self, events: Mapping[str, float]) -> list[Reason]:
        made = []
        for event, count in events.items():
            figure = figure_of(self.point, component_of(event), "energy")
            value = None if figure is None else count * figure["value"]
            how = "no figure for it" if figure is None else ""
            made.append(Reason(event, value, "pJ", how, count, figure))
        return made

    def _component_energy(self, name: str, held: Mapping[str, Any]) -> Reason:
        terms = self._events(held.get("events") or {})
        if len(terms) == 1:
            return terms[0]
        return Reason(name, held.get("energy_pj"), "pJ", "", terms=tuple(terms))

    def _area(self, name: str, count: float | None) -> Reason:
        figure = figure_of(self.point, name, "area")
        if figure is None or count is None:
            why = "no instances of its own" if count is None else "no figure for it"
            return Reason(name, None, "um2", why, count, figure)
        return Reason(name, count * figure["value"], "um2", "", count, figure)

    def _leakage(self, name: str, held: Mapping[str, Any]) -> Reason | None:
        if held.get("leakage_pj") is None:
            return None
        how = f"{exact(held.get('instances') or 0)} instances x leakage x time to the next input"
        figure = figure_of(self.point, name, "leakage")
        return Reason(f"{name}: leakage", held["leakage_pj"], "pJ", how, None, figure)


def _chain(entries: Sequence[OpEntry], end: float) -> list[Reason]:
    """Ops back to back up to ``end``, in order of time; neighbours of one layer are one term."""
    by_end: dict[float, OpEntry] = {}
    for entry in entries:
        start, stop = entry.start_ns or 0.0, entry.end_ns or 0.0
        if stop > start:
            held = by_end.get(stop)
            # Of ops that end together, the one that started first determines the time.
            if held is None or start < (held.start_ns or 0.0):
                by_end[stop] = entry
    chain: list[OpEntry] = []
    now = end
    while now in by_end:
        entry = by_end[now]
        chain.append(entry)
        now = entry.start_ns if entry.start_ns is not None else 0.0
    made: list[tuple[str, float, float, list[str]]] = []
    for entry in reversed(chain):
        start, stop = entry.start_ns or 0.0, entry.end_ns or 0.0
        if made and made[-1][0] == entry.layer:
            name, first, _, ops = made[-1]
            made[-1] = (name, first, stop, [*ops, entry.op.name])
        else:
            made.append((entry.layer, start, stop, [entry.op.name]))
    return [
        Reason(name, stop - start, "ns", f"from {exact(start)} ns: {', '.join(ops)}")
        for name, start, stop, ops in made
    ]


def print_why(reason: Reason, file: IO[str]) -> None:
    """Print a reason as a table, costliest term first, with its sources below."""
    from rich import box
    from rich.table import Table

    console = console_of(file)
    shown_value = quantity(reason.value, reason.unit)
    in_full = f"{exact(reason.value)} {reason.unit}" if reason.value is not None else shown_value
    console.print(
        plain(f"{reason.name} = {shown_value}")
        + (f" ({in_full})" if in_full != shown_value else ""),
        style="bold",
    )
    console.print(plain(reason.how))
    rows = [(0, term) for term in reason.terms]
    if not any(term.how.startswith("from ") for term in reason.terms):
        rows.sort(key=lambda row: -(row[1].value or 0.0))
    shown: list[tuple[int, Reason]] = []
    for depth, term in rows[:MAX_ROWS]:
        shown.append((depth, term))
        shown += [(depth + 1, inner) for inner in term.terms]
    counted = any(term.count is not None or term.figure for _, term in shown)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("term")
    if counted:
        table.add_column("count", justify="right")
        table.add_column("x figure", justify="right")
    table.add_column("value", justify="right")
    table.add_column("share", justify="right")
    table.add_column("source" if counted else "how")
    sources: dict[str, int] = {}
    for depth, term in shown:
        row = ["  " * depth + plain(term.name)]
        if counted:
            figure = term.figure
            row.append(exact(term.count) if term.count is not None else "")
            row.append(plain(f"{figure['value']:g} {figure['unit']}") if figure else "")
        row.append(quantity(term.value, term.unit))
        total = reason.value
        row.append(f"{100 * term.value / total:.1f} %" if term.value is not None and total else "-")
        place = plain(term.how)
        if term.figure:
            number = sources.setdefault(_source(term.figure), len(sources) + 1)
            place = f"[{number}] {place}".strip()
        row.append(place)
        table.add_row(*row)
    console.print(table)
    if len(rows) > MAX_ROWS:
        console.print(f"  and {len(rows) - MAX_ROWS} more, see --json")
    for source, number in sources.items():
        console.print(plain(f"  [{number}] {source}"))


def _source(figure: Mapping[str, Any]) -> str:
    node = figure.get("node_nm")
    parts = [str(figure.get("source") or "no source")]
    if node is not None:
        parts.append(f"figure at {node:g} nm")
    if figure.get("note"):
        parts.append(str(figure["note"]))
    return "; ".join(parts)
