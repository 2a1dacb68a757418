"""Target files: finding them, changing single keys, validating, and writing canonical TOML.

A target is a TOML file with a top-level ``backend``; the rest is the backend's to validate. Presets
lie in the ``targets`` package of a backend and in packages registered in the entry-point group
``imcc.targets``, one file for each target. A file that names a preset as its ``base`` holds only
what differs from it.
"""

from __future__ import annotations

import copy
import datetime
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from imcc.backends.api import Target, find_backend
from imcc.ir import codes
from imcc.ir.diagnostics import (
    Diagnostic,
    DiagnosticError,
    Location,
    error,
    nearest,
    text_window,
)
from imcc.ir.plugins import plugin_packages

if TYPE_CHECKING:
    from pydantic import BaseModel

    Model = TypeVar("Model", bound=BaseModel)

MAX_BYTES = 1 << 20
"""A larger file is no target file and is not read."""
MAX_DEPTH = 32
"""Tables within tables; more are no target, and more than Python's stack holds."""
MAX_DOTS = 1000
"""Dots in one line: the time to read a dotted key grows with their square."""


@dataclass(frozen=True)
class TargetFile:
    """An installed target: its name, backend, file, and the ``summary`` its file gives."""

    name: str
    backend: str
    path: Path
    summary: str


@lru_cache(maxsize=1)
def _presets() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for _, folder in plugin_packages("imcc.targets", "targets"):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def list_targets() -> list[TargetFile]:
    """All installed targets, sorted by name. A file that does not parse raises ``BAD_TARGET``."""
    made: list[TargetFile] = []
    for name, path in sorted(_presets().items()):
        data = _read_whole(path)
        backend, summary = str(data.get("backend", "")), str(data.get("summary", ""))
        made.append(TargetFile(name, backend, path, summary))
    return made


def find_target(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Target:
    """The target called ``name_or_path``, or read from that TOML file, with keys overridden.

    ``overrides`` are strings such as ``"adc.bits=6"``; values are TOML values, and a bare word is
    taken as a string. Raises :class:`DiagnosticError`: ``UNKNOWN_TARGET`` with the nearest names,
    ``BAD_TARGET`` with the path of every bad key.
    """
    text = str(name_or_path)
    path = _presets().get(text)
    if path is None:
        given = Path(text)
        if given.suffix != ".toml" and not _is_file(given):
            raise error(
                codes.UNKNOWN_TARGET,
                f"unknown target {_short(repr(text))}",
                suggestions=nearest(text, _presets()),
                help=f"installed targets: {', '.join(sorted(_presets()))}; a path to a .toml file "
                "works too",
            )
        if not _is_file(given):
            raise error(
                codes.UNKNOWN_TARGET,
                f"there is no target file {_short(text)}",
                suggestions=nearest(given.stem, _presets()),
                help="`imcc targets` lists the installed ones",
            )
        path = given
    return load_target(path.stem, _read_whole(path), str(path), overrides)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False  # no file can have a name of that length


def load_target(
    name: str, data: dict[str, Any], origin: str, overrides: Sequence[str] = ()
) -> Target:
    """Validate target data by the backend that it names; see :func:`find_target`."""
    changed = copy.deepcopy(data)
    # A component of the library is taken as a whole; what else is set for it comes after.
    for item in sorted(overrides, key=lambda item: not _setting_key(item).endswith(".library")):
        _override(changed, item)
    while True:
        try:
            return _loaded(name, changed, origin)
        except DiagnosticError as wrong:
            if not overrides:
                raise
            if _without_replaced(changed, wrong.diagnostics, overrides):
                continue
            blamed = _blamed(wrong.diagnostics, overrides, name, data, origin)
            raise DiagnosticError(blamed) from None


def _loaded(name: str, data: dict[str, Any], origin: str) -> Target:
    backend = data.get("backend")
    if not isinstance(backend, str):
        raise error(
            codes.BAD_TARGET,
            f"{origin}: key backend: expected the name of a backend, found "
            f"{'nothing' if backend is None else toml_value(backend)}",
            text=Location(origin, 1),
            help='add the line backend = "crossbar"',
        )
    return find_backend(backend).load_target(name, data, origin)


def _setting_key(setting: str) -> str:
    return ".".join(part.strip() for part in setting.partition("=")[0].split("."))


_FAULTY_KEY = re.compile(r"(unknown )?key (\S+?)(?=:|$| is missing)( is missing)?")


def _without_replaced(
    data: dict[str, Any], faults: Sequence[Diagnostic], overrides: Sequence[str]
) -> bool:
    """Take out what the file says for a model that a setting replaces; whether there was any."""
    keys = {_setting_key(item) for item in overrides}
    found = False
    for item in faults:
        place = _FAULTY_KEY.search(item.message)
        if place is None or not place[1]:
            continue
        table, _, last = place[2].rpartition(".")
        if f"{table}.model" in keys and place[2] not in keys:
            held: Any = data
            for part in table.split("."):
                held = held.get(part) if isinstance(held, dict) else None
            if isinstance(held, dict):
                found |= held.pop(last, None) is not None
    return found


def _blamed(
    faults: Sequence[Diagnostic],
    overrides: Sequence[str],
    name: str,
    data: dict[str, Any],
    origin: str,
) -> list[Diagnostic]:
    """A fault of keys that were set for this run is that of the settings, not of the file.

    A fault that names no such key is theirs as well where the file alone has none.
    """
    # Of settings of one key the last holds.
    overrides = list({_setting_key(item): item for item in overrides}.values())
    try:
        _loaded(name, copy.deepcopy(data), origin)
        unnamed: Sequence[str] = overrides
    except DiagnosticError:
        unnamed = ()
    made = []
    for item in faults:
        said = item.message.removeprefix(f"{origin}: ")
        named = [setting for setting in overrides if _concerns(_setting_key(setting), said)]
        settings = named or unnamed
        if settings:
            shown = ", ".join(_short(repr(setting)) for setting in dict.fromkeys(settings))
            what = "setting" if len(settings) == 1 else "settings"
            item = item.at(message=f"{what} {shown}: {said}")
            if item.text is not None and item.text.file == origin:
                item = item.at(text=None, window="")
        made.append(item)
    return made


def _concerns(key: str, said: str) -> bool:
    """Whether a fault speaks of a key that was set, or of what stands in a table that was."""

    def word(text: str) -> bool:
        return re.search(rf"(?<![\w.]){re.escape(text)}(?![\w]|\.\w)", said) is not None

    inside = key.removeprefix("dynamic.")
    if word(key) or (
        inside != key and said.startswith("with the keys of dynamic") and word(inside)
    ):
        return True
    place = _FAULTY_KEY.match(said)
    if place is None:
        return False
    unknown, at, missing = place.groups()
    table, _, last = key.rpartition(".")
    if at.startswith(f"{key}."):
        return True
    if missing and last == "model":
        return at.rpartition(".")[0] == table
    return key.startswith(f"{at}.") and (bool(unknown) or word(last))


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise error(codes.BAD_TARGET, f"{path} is larger than {MAX_BYTES} bytes")
        raw = path.read_bytes()
    except OSError as wrong:
        raise error(codes.BAD_TARGET, f"{path} cannot be read: {wrong.strerror or wrong}") from None
    try:
        # Some editors put a byte order mark in front.
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise error(
            codes.BAD_TARGET,
            f"{path} is not in UTF-8: byte 0x{raw[wrong.start]:02x}",
            text=Location(str(path), raw.count(b"\n", 0, wrong.start) + 1),
            help="save the file in UTF-8, the encoding of TOML",
        ) from None
    for number, written in enumerate(text.splitlines(), 1):
        if written.count(".") > MAX_DOTS:
            raise error(
                codes.BAD_TARGET,
                f"{path} has a line of more than {MAX_DOTS} dots",
                text=Location(str(path), number),
            )
    try:
        data = tomllib.loads(text)
        _check_depth(data, str(path))
        return data
    except RecursionError:
        raise error(
            codes.BAD_TARGET,
            f"{path} is not TOML that can be read: brackets lie too deep in one another",
        ) from None
    except ValueError as wrong:
        # TOMLDecodeError, or a number of more digits than Python converts.
        line, column = _place(str(wrong))
        raise error(
            codes.BAD_TARGET,
            f"{path} is not TOML: {wrong}",
            text=Location(str(path), line, column),
            window=text_window(text, line, column),
            help="`imcc targets NAME` prints a valid file",
        ) from None


def _check_depth(data: dict[str, Any], what: str) -> None:
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise error(codes.BAD_TARGET, f"{what}: tables lie more than {MAX_DEPTH} deep")
        level = [inner for table in level for inner in table.values() if isinstance(inner, dict)]


def _read_whole(path: Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The data of a file on top of that of its ``base``, which is a preset."""
    data = _read(path)
    if "base" not in data:
        return data
    base = data.pop("base")
    preset = _presets().get(base) if isinstance(base, str) else None
    if preset is None or base in above:
        wrong = "a preset that is based on this one" if preset else "no installed target"
        raise error(
            codes.BAD_TARGET,
            f"{path}: key base: {toml_value(base)} is {wrong}",
            suggestions=nearest(base, _presets()) if isinstance(base, str) else (),
            help=f"installed targets: {', '.join(sorted(_presets()))}",
        )
    return merged(_read_whole(preset, (*above, base)), data)


def merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base``, changed in place: tables key by key, models and figures as a whole."""
    for key, value in changes.items():
        held = base.get(key)
        # Figures with a source, components of a library and models with keys of their own are
        # taken or left as a whole.
        both = isinstance(held, dict) and isinstance(value, dict)
        both = both and not {"source", "model", "library"} & set(value)
        base[key] = merged(held, value) if both else value  # type: ignore[arg-type]
    return base


def _place(message: str) -> tuple[int, int]:
    # tomllib writes "... (at line 3, column 7)" and has no attributes for it in python 3.11.
    numbers = [int(part) for part in "".join(c if c.isdigit() else " " for c in message).split()]
    return (numbers[-2], numbers[-1]) if "(at line" in message and len(numbers) > 1 else (1, 0)


def _override(data: dict[str, Any], item: str) -> None:
    key, equals, value = item.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts) or len(parts) > MAX_DEPTH or not value.strip():
        raise error(
            codes.BAD_TARGET,
            f"{_short(repr(item))} does not set a key of the target",
            help="write KEY.PATH=VALUE, for instance adc.bits=6",
        )
    try:
        made = tomllib.loads(f"value = {value}")
        parsed = made["value"] if set(made) == {"value"} else value.strip()
        _check_depth(made, f"setting {_short(repr(item))}")
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    except (ValueError, RecursionError) as wrong:
        raise error(
            codes.BAD_TARGET,
            f"{item[:80]!r}: the value is not TOML: {wrong}",
            help="write KEY.PATH=VALUE, for instance adc.bits=6",
        ) from None
    held = data
    for index, part in enumerate(parts[:-1]):
        inner = held.setdefault(part, {})
        if not isinstance(inner, dict):
            raise error(
                codes.BAD_TARGET,
                f"{item!r}: {'.'.join(parts[: index + 1])} is a value, not a table",
            )
        held = inner
    if parts[-1] == "library":
        held.clear()
    held[parts[-1]] = parsed


# -- canonical text -----------------------------------------------------------------------------


def toml_value(value: Any) -> str:
    """One TOML value on one line."""
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isinf(value) or math.isnan(value):
            return str(value)
        return repr(value)
    if isinstance(value, int):
        # Python refuses to write long integers in decimal; TOML reads them in hexadecimal too.
        return str(value) if value.bit_length() < 4096 else hex(value)
    if isinstance(value, str):
        # JSON escapes are TOML escapes, but for DEL, which TOML wants escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        shown = (f"{_key(key)} = {toml_value(item)}" for key, item in value.items())
        return "{ " + ", ".join(shown) + " }"
    raise TypeError(f"TOML has no form for {type(value).__name__}")


def write_toml(data: Mapping[str, Any]) -> str:
    """Canonical TOML: keys in the order given, values before tables, absent (None) keys left out.

    ``tomllib.loads(write_toml(data))`` equals ``data`` without its None values.
    """
    lines: list[str] = []
    _write_table(data, (), lines)
    return "\n".join(lines).strip("\n") + "\n"


def _write_table(data: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    plain = {k: v for k, v in data.items() if v is not None and not isinstance(v, Mapping)}
    tables = {k: v for k, v in data.items() if isinstance(v, Mapping)}
    if path and (plain or not tables):
        lines.extend(("", f"[{'.'.join(map(_key, path))}]"))
    lines.extend(f"{_key(key)} = {toml_value(value)}" for key, value in plain.items())
    for key, value in tables.items():
        _write_table(value, (*path, key), lines)


def _key(key: str) -> str:
    bare = key and all(char.isascii() and (char.isalnum() or char in "_-") for char in key)
    return key if bare else toml_value(key)


# -- validation ---------------------------------------------------------------------------------


def validate(model: type[Model], data: Mapping[str, Any], origin: str) -> Model:
    """Validate target data by a pydantic model.

    Raises :class:`DiagnosticError` with one ``BAD_TARGET`` for each bad key: its path, what was
    found, what is allowed, and the nearest key for an unknown one.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(data, strict=True)
    except ValidationError as wrong:
        items = [_diagnostic(model, dict(item), origin) for item in wrong.errors(include_url=False)]
        raise DiagnosticError(items) from None


def _diagnostic(model: type[BaseModel], item: Mapping[str, Any], origin: str) -> Diagnostic:
    path = tuple(item["loc"])
    shown = ".".join(_key(str(part)) for part in path)
    kind = item["type"]
    if kind == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        return Diagnostic(
            codes.BAD_TARGET,
            f"{origin}: unknown key {shown}",
            suggestions=nearest(str(path[-1]), known),
            help=f"keys here: {', '.join(known) or 'none'}",
        )
    if kind == "missing":
        return Diagnostic(
            codes.BAD_TARGET,
            f"{origin}: key {shown} is missing",
            help=_help_at(model, path) or "`imcc targets NAME` prints a valid file",
        )
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if kind in _BOUNDS:
        message = _bounds_at(model, path) or message
    found = item.get("input")
    plain = isinstance(found, (bool, int, float, str, datetime.date, datetime.time))
    suffix = ""
    if plain or isinstance(found, list):
        suffix = f", found {_short(toml_value(found))}"
    elif isinstance(found, Mapping) and path and kind != "value_error":
        suffix = ", found a table"
    where = f"key {shown}: " if path else ""
    return Diagnostic(
        codes.BAD_TARGET, f"{origin}: {where}{message}{suffix}", help=_help_at(model, path)
    )


_BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


def _bounds_at(model: type[BaseModel], path: tuple[Any, ...]) -> str:
    """The range of the key at ``path``, for a value that is outside of it."""
    field = _field_at(model, path)
    if field is None:
        return ""
    rules = [*field.metadata, *_metadata(field.annotation)]
    lows = [(rule.ge, "at least") for rule in rules if getattr(rule, "ge", None) is not None]
    lows += [(rule.gt, "above") for rule in rules if getattr(rule, "gt", None) is not None]
    tops = [(rule.le, "at most") for rule in rules if getattr(rule, "le", None) is not None]
    tops += [(rule.lt, "below") for rule in rules if getattr(rule, "lt", None) is not None]
    if not lows or not tops:
        return ""
    (low, over), (top, under) = max(lows), min(tops)
    return f"must be {over} {low:g} and {under} {top:g}"


def _metadata(annotation: Any) -> list[Any]:
    """Rules of all ``Annotated`` within an annotation."""
    from typing import get_args

    made: list[Any] = []
    for rule in getattr(annotation, "__metadata__", ()):
        made += getattr(rule, "metadata", None) or [rule]
    for inner in get_args(annotation):
        made += _metadata(inner)
    return made


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def model_of(annotation: Any) -> Any:
    """The pydantic model that an annotation holds (itself, or as the values of a table)."""
    from typing import get_args

    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = model_of(inner)
        if found is not None:
            return found
    return None


def _keys_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    current: Any = model
    for part in path:
        field = current.model_fields.get(part)
        if field is not None:
            current = model_of(field.annotation)
        if current is None:
            return []
    return list(current.model_fields)


def _field_at(model: type[BaseModel], path: tuple[Any, ...]) -> Any:
    """The last field on the way to ``path``, which may end within its value; None without one."""
    current: Any = model
    found = None
    for part in path:
        field = current.model_fields.get(part)
        if field is None:
            continue
        found = field
        inner = model_of(field.annotation)
        if inner is None:
            break
        current = inner
    return found


def _help_at(model: type[BaseModel], path: tuple[Any, ...]) -> str:
    field = _field_at(model, path)
    return (field.description or "") if field is not None else ""
