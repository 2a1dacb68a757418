"""Parser: text to module, building ops while the LALR parser runs, without a tree.

Distinct type texts are taken apart once and remembered. Errors inside ops are gathered, so that
one run reports several; an error of syntax ends the run at its place.
"""

from __future__ import annotations

import gc
import json
import re
import threading
from functools import lru_cache
from importlib import resources as package_files
from typing import TYPE_CHECKING, Any, cast

from imcc.ir import codes
from imcc.ir.attributes import ANNOTATIONS, Symbol
from imcc.ir.diagnostics import (
    Diagnostic,
    DiagnosticCollector,
    DiagnosticError,
    Location,
    did_you_mean,
    nearest,
    text_window,
)
from imcc.ir.dims import parse_dim
from imcc.ir.module import (
    FORMAT_VERSION,
    Function,
    FunctionResult,
    Module,
    Resource,
    State,
)
from imcc.ir.ops import OPS, Op, Value
from imcc.ir.registry import load_dialect_of, op_class
from imcc.ir.text.syntax_errors import syntax_error
from imcc.ir.types import DIALECT_TYPES, FLOATS, QuantType, SpikesType, TensorType, Type

if TYPE_CHECKING:
    from lark import Lark, Token

MAX_LIST_DEPTH = 8
_LOCK = threading.RLock()
_HEADER = re.compile(r"\A\s*//\s*imc\s+([0-9]{1,9})\s*$", re.MULTILINE)
_PLACE = re.compile(r'("(?:[^"\\\n]|\\.)*"):([0-9]{1,9})')


def parse_module(text: str, file: str = "<text>") -> Module:
    """Parse the text of a module; ``file`` names it in diagnostics.

    The module is not verified: call :func:`imcc.ir.verifier.verify`. Raises
    :class:`DiagnosticError` with every fault found.
    """
    header = _HEADER.search(text[:4096])
    if header is None:
        raise DiagnosticError(
            Diagnostic(
                codes.FORMAT_VERSION,
                "the first line does not say which format version this is",
                text=Location(file, 1),
                window=text_window(text[:2000], 1),
                help=f"start the file with the line `// imc {FORMAT_VERSION}`",
            )
        )
    if int(header.group(1)) != FORMAT_VERSION:
        raise DiagnosticError(
            Diagnostic(
                codes.FORMAT_VERSION,
                f"format version {header.group(1)}; this release reads {FORMAT_VERSION}",
                text=Location(file, text[: header.start(1)].count("\n") + 1),
                help="create the file again from the model with this release",
            )
        )
    with _LOCK:
        parser = _parser()
        state = _Builder(file, text)
        _DELEGATE.builder = state
        # Everything built here stays alive: collecting cycles meanwhile only walks it again.
        collecting = gc.isenabled()
        gc.disable()
        try:
            parser.parse(text, start="module")
        except DiagnosticError as failed:
            state.errors.add(failed)
        except _lark_errors() as wrong:
            state.errors.add(syntax_error(wrong, text, file))
        finally:
            _DELEGATE.builder = None
            if collecting:
                gc.enable()
    state.errors.raise_errors()
    if state.module is None:
        raise DiagnosticError(Diagnostic(codes.SYNTAX, "no module", text=Location(file, 1)))
    return state.module


@lru_cache(maxsize=65536)
def parse_type(text: str) -> Type:
    """Parse the text of one type; raises :class:`DiagnosticError`."""
    with _LOCK:
        parser = _parser()
        held, _DELEGATE.builder = _DELEGATE.builder, _Builder("<type>", text)
        try:
            return cast(Type, parser.parse(text, start="type"))
        except _lark_errors() as wrong:
            found = syntax_error(wrong, text, "<type>")
            raise DiagnosticError(
                Diagnostic(
                    codes.BAD_TYPE,
                    f"{text[:80]} is not a type: {found.message}",
                    help="write tensor<Bx3xf32>, tensor<16x27xq<s8, axis=0>>, spikes<4xBx8> or "
                    "a dialect's !name.type<field=value>",
                )
            ) from None
        except ValueError as wrong:
            raise DiagnosticError(Diagnostic(codes.BAD_TYPE, str(wrong))) from None
        finally:
            _DELEGATE.builder = held


class _Builder:
    """State of one parse."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self.lines: list[str] | None = None
        self.errors = DiagnosticCollector()
        self.module: Module | None = None
        self.phase = "captured"
        self.sizes: dict[str, int] = {}
        self.resource_file: str | None = None
        self.items: list[Resource | State | Function] = []
        self.function: Function | None = None
        self.values: dict[str, Value] = {}

    def place(self, token: Token) -> Location:
        return Location(self.file, token.line or 0, token.column or 0)

    def window(self, place: Location) -> str:
        if self.lines is None:
            self.lines = self.text.splitlines()
        return text_window(self.lines, place.line, place.column)

    def fault(self, code: codes.Code, message: str, token: Token, **more: Any) -> None:
        place = self.place(token)
        self.errors.add(Diagnostic(code, message, text=place, window=self.window(place), **more))

    def type(self, token: Token) -> Type:
        try:
            return parse_type(str(token))
        except DiagnosticError as wrong:
            place = self.place(token)
            raise DiagnosticError(
                [item.at(text=place, window=self.window(place)) for item in wrong.diagnostics]
            ) from None


class _Delegate:
    """Callbacks of the grammar's rules; works on the current :class:`_Builder`."""

    builder: _Builder | None = None

    @property
    def state(self) -> _Builder:
        if self.builder is None:
            raise RuntimeError("parser callback outside of a parse")
        return self.builder

    # -- module level ------------------------------------------------------------------------

    def phase(self, children: list[Token]) -> None:
        self.state.phase = _string(children[0])

    def size(self, children: list[Token]) -> tuple[Token, Token]:
        return children[0], children[1]

    def sizes(self, children: list[Any]) -> None:
        for symbol, number in children:
            if len(symbol) != 1 or not number.isdigit() or int(number) < 1:
                self.state.fault(
                    codes.BAD_ATTRIBUTE,
                    f"{symbol}={number} is not the size of a symbol",
                    number,
                    help="write sizes(S=128): a letter and a positive integer",
                )
                continue
            self.state.sizes[str(symbol)] = int(number)

    def resource_file(self, children: list[Token]) -> None:
        self.state.resource_file = _string(children[0])

    def digest(self, children: list[Token]) -> str:
        return _string(children[0])

    def init(self, children: list[Token]) -> str:
        return children[0][1:]

    def resource(self, children: list[Any]) -> None:
        state = self.state
        kind = state.type(children[1])
        if not isinstance(kind, TensorType):
            state.fault(codes.BAD_TYPE, f"a resource is a tensor, not {kind}", children[1])
            return
        digest = children[2] if len(children) > 2 else None
        place = state.place(children[0])
        state.items.append(Resource(children[0][1:], kind, digest, place))

    def state_rule(self, children: list[Any]) -> None:
        state = self.state
        init = children[2] if len(children) > 2 else None
        place = state.place(children[0])
        state.items.append(State(children[0][1:], state.type(children[1]), init, place))

    def module(self, children: list[Any]) -> None:
        state = self.state
        made = Module(children[0][1:], phase=state.phase, resource_file=state.resource_file)
        made.sizes = state.sizes
        made.source = state.text
        for item in state.items:
            try:
                if isinstance(item, Resource):
                    if item.name in made.resources:
                        raise ValueError(f"resource @{item.name} is declared twice")
                    made.add_resource(item)
                elif isinstance(item, State):
                    made.add_state(item)
                else:
                    made.add_function(item)
            except ValueError as wrong:
                place = item.text_loc or Location(state.file, 1)
                state.errors.add(
                    Diagnostic(
                        codes.REDEFINED,
                        str(wrong),
                        text=place,
                        window=state.window(place),
                        help="give one of the two another name",
                    )
                )
        state.module = made

    # -- functions ---------------------------------------------------------------------------

    def state_mark(self, children: list[Token]) -> str:
        return children[0][1:]

    def argument(self, children: list[Any]) -> tuple[Token, Type, str | None]:
        mark = children[2] if len(children) > 2 else None
        return children[0], self.state.type(children[1]), mark

    def arguments(self, children: list[Any]) -> list[Any]:
        return children

    def function_result(self, children: list[Any]) -> FunctionResult:
        mark = children[1] if len(children) > 1 else None
        return FunctionResult(self.state.type(children[0]), mark)

    def one_result(self, children: list[Any]) -> tuple[FunctionResult, ...]:
        return tuple(children)

    results = one_result

    def target(self, children: list[Token]) -> tuple[str, str]:
        return ("target", _string(children[0]))

    def function_head(self, children: list[Any]) -> None:
        state = self.state
        name, rest = children[0], children[1:]
        arguments = rest.pop(0) if isinstance(rest[0], list) else []
        results = rest.pop(0)
        target = rest[0][1] if rest else None
        made = Function(name[1:], results=results, target=target, text_loc=state.place(name))
        state.values = {}
        for token, kind, mark in arguments:
            if token in state.values:
                state.fault(codes.REDEFINED, f"argument {token} is defined twice", token)
                continue
            state.values[token] = made.add_argument(kind, token[1:], mark)
        state.function = made

    def function(self, children: list[Any]) -> None:
        state = self.state
        if state.function is not None:
            state.items.append(state.function)
        state.function = None

    # -- ops ---------------------------------------------------------------------------------

    def op_results(self, children: list[Token]) -> tuple[str, list[Token]]:
        return ("results", children)

    def positional(self, children: list[Token]) -> Token:
        return children[0]

    def named(self, children: list[Token]) -> tuple[Token, Token]:
        return (children[0], children[1])

    def operands(self, children: list[Any]) -> tuple[str, list[Any]]:
        return ("operands", children)

    def pair(self, children: list[Any]) -> tuple[Token, Any]:
        return (children[0], children[1])

    def attributes(self, children: list[Any]) -> tuple[str, list[Any]]:
        return ("attributes", children)

    def types(self, children: list[Token]) -> tuple[str, list[Token]]:
        return ("types", children)

    def op(self, children: list[Any]) -> None:
        state = self.state
        name: Token | None = None
        results: list[Token] = []
        operands: list[Any] = []
        pairs: list[tuple[Token, Any]] = []
        types: list[Token] = []
        loc: tuple[Location, ...] = ()
        for child in children:
            if type(child) is not tuple:
                if name is None:
                    name = child
                else:
                    loc = _places(str(child))
            elif child[0] == "results":
                results = child[1]
            elif child[0] == "operands":
                operands = child[1]
            elif child[0] == "attributes":
                pairs = child[1]
            else:
                types = child[1]
        if name is None or state.function is None:
            raise RuntimeError("op outside of a function")
        held = tuple(state.type(token) for token in types)
        if len(held) != len(results):
            state.fault(
                codes.SYNTAX,
                f"{name} names {len(results)} results but gives {len(held)} types",
                name,
                help="write one type for each result after the colon",
            )
        made = self._build(name, operands, pairs, held, results, loc)
        values: tuple[Value, ...]
        if made is None:
            values = tuple(Value(kind, token[1:]) for token, kind in zip(results, held))  # noqa: B905
        else:
            values = made.results
        for token, value in zip(results, values):  # noqa: B905
            if token in state.values:
                state.fault(
                    codes.REDEFINED,
                    f"{token} is defined twice",
                    token,
                    help="every value is defined once; use another name",
                )
            state.values[token] = value
        if made is not None:
            state.function.append(made)

    def _build(
        self,
        name: Token,
        operands: list[Any],
        pairs: list[tuple[Token, Any]],
        types: tuple[Type, ...],
        results: list[Token],
        loc: tuple[Location, ...],
    ) -> Op | None:
        state = self.state
        cls = op_class(name)
        if cls is None:
            state.fault(
                codes.UNKNOWN_OP,
                f"unknown op {name}",
                name,
                suggestions=nearest(name, OPS),
                help="`imcc ops` lists every op; a plugin's op needs the plugin installed",
            )
            return None
        faults = len(state.errors.items)
        spec = cls.spec()
        bound: dict[str, Any] = {}
        positional: list[Value | None] = []
        for item in operands:
            if type(item) is tuple:
                key, token = item
                value = self._value(token)
                if key not in spec.optional_operands:
                    state.fault(
                        codes.BAD_OPERANDS,
                        f"{name} has no optional operand {str(key)!r}",
                        key,
                        suggestions=nearest(key, spec.optional_operands),
                    )
                elif key in bound:
                    state.fault(codes.BAD_OPERANDS, f"operand {key} is given twice", key)
                bound[str(key)] = value
            else:
                positional.append(self._value(item))
        required = spec.required_operands
        variadic = spec.variadic_operand
        if len(positional) < len(required) or (len(positional) > len(required) and not variadic):
            wanted = ", ".join(item.name for item in required) or "none"
            more = f", then any number of {variadic.name}" if variadic else ""
            state.fault(
                codes.BAD_OPERANDS,
                f"{name} takes {len(required)} operands by position ({wanted}{more}), "
                f"found {len(positional)}",
                name,
                help=f"`imcc ops {name}` shows the declaration",
            )
        else:
            for declared, value in zip(required, positional):  # noqa: B905
                bound[declared.name] = value
            if variadic:
                bound[variadic.name] = tuple(positional[len(required) :])
        attributes: dict[str, Any] = {}
        annotations: dict[str, Any] = {}
        scope = ""
        for key, value in pairs:
            declared_attribute = spec.attributes.get(key)
            if key == "scope" and isinstance(value, str):
                scope = value
            elif key in attributes or key in annotations:
                state.fault(codes.BAD_ATTRIBUTE, f"attribute {key} is given twice", key)
            elif declared_attribute is not None:
                try:
                    attributes[str(key)] = declared_attribute.coerce(value)
                except ValueError as wrong:
                    state.fault(codes.BAD_ATTRIBUTE, f"{name}: attribute {key}: {wrong}", key)
            elif key in ANNOTATIONS or ("." in key and load_dialect_of(key) and key in ANNOTATIONS):
                try:
                    annotations[str(key)] = ANNOTATIONS[key].kind.coerce(value)
                except ValueError as wrong:
                    state.fault(codes.BAD_ATTRIBUTE, f"{name}: annotation {key}: {wrong}", key)
            else:
                state.fault(
                    codes.BAD_ATTRIBUTE,
                    f"{name} has no attribute {str(key)!r}",
                    key,
                    suggestions=nearest(key, [*spec.attributes, *ANNOTATIONS, "scope"]),
                    help=f"`imcc ops {name}` lists them",
                )
        for key, declared_attribute in spec.attributes.items():
            if declared_attribute.required and key not in attributes:
                state.fault(
                    codes.BAD_ATTRIBUTE,
                    f"{name} lacks the attribute {key!r} ({declared_attribute.kind.name})",
                    name,
                )
        expected = spec.results
        if not (len(expected) == 1 and expected[0].variadic) and len(results) != len(expected):
            state.fault(
                codes.SYNTAX, f"{name} has {len(expected)} results, {len(results)} named", name
            )
        if len(state.errors.items) > faults:
            return None
        names = tuple(token[1:] for token in results)
        made = cls.build(bound, attributes, types, names, scope, loc)
        made._set("text_loc", state.place(name))
        made.annotations.update(annotations)
        return made

    def _value(self, token: Token) -> Value | None:
        state = self.state
        value = state.values.get(token)
        if value is None:
            state.fault(
                codes.UNDEFINED_VALUE,
                f"{token} is not defined before this use",
                token,
                suggestions=nearest(token, state.values),
                help="define it as a function argument or by an earlier op",
            )
        return value

    # -- attribute values --------------------------------------------------------------------

    def number(self, children: list[Token]) -> Any:
        token = children[0]
        try:
            if any(mark in token for mark in ".eE"):
                return float(token)
            return int(token)
        except ValueError:
            state = self.state
            state.fault(codes.TOO_DEEP, "a number of too many digits", token)
            return 0

    def string(self, children: list[Token]) -> str:
        return _string(children[0])

    def symbol(self, children: list[Token]) -> Symbol:
        return Symbol(children[0][1:])

    def dim(self, children: list[Token]) -> Any:
        return parse_dim(str(children[0]))

    def word(self, children: list[Token]) -> Any:
        word = str(children[0])
        return {"true": True, "false": False, "none": None}.get(word, _FLOAT_WORDS.get(word))

    def list(self, children: Any) -> tuple[Any, ...]:
        made = tuple(children)
        if _depth(made) > MAX_LIST_DEPTH:
            raise DiagnosticError(
                Diagnostic(
                    codes.TOO_DEEP,
                    f"lists nested deeper than {MAX_LIST_DEPTH}",
                    text=Location(self.state.file, 1),
                )
            )
        return made

    # -- types -------------------------------------------------------------------------------

    def tensor(self, children: Any) -> Type:
        return TensorType(_shape(children[0][len("tensor<") :]), str(children[1]))

    def quant_field(self, children: Any) -> tuple[str, int]:
        return (str(children[0]), self.number([children[1]]))

    def quant_flag(self, children: Any) -> tuple[str, bool]:
        return (str(children[0]), True)

    def quantised(self, children: Any) -> Type:
        shape = _shape(children[0][len("tensor<") :])
        sign, bits = children[1][2], int(children[1][3:])
        parts = dict(children[2:])
        unknown = set(parts) - {"axis", "group", "asymmetric"}
        if unknown:
            raise ValueError(f"quantised elements have no {', '.join(sorted(unknown))}")
        axis, group = parts.get("axis"), parts.get("group")
        wrong = [
            not 1 <= bits <= 32,
            axis is not None and (type(axis) is not int or not 0 <= axis < len(shape)),
            group is not None and (type(group) is not int or group < 1),
            parts.get("asymmetric", True) is not True,
        ]
        if any(wrong):
            raise ValueError("quantised elements need 1 to 32 bits, an axis of the shape, group>0")
        element = QuantType(bits, sign == "s", axis, group, "asymmetric" not in parts)
        return TensorType(shape, element)

    def spikes(self, children: Any) -> Type:
        *dims, last = children[0][len("spikes<") : -1].split("x")
        if last in FLOATS:
            return SpikesType(_shape("x".join(dims)), last)
        return SpikesType(_shape("x".join([*dims, last])))

    def field(self, children: Any) -> tuple[str, Any]:
        return (str(children[0]), children[1])

    def dialect(self, children: Any) -> Type:
        name = str(children[0])[1:-1]
        load_dialect_of(name)
        cls = DIALECT_TYPES.get(name)
        if cls is None:
            raise ValueError(f"unknown type !{name}{did_you_mean(name, DIALECT_TYPES)}")
        fields = dict(children[1:])
        if len(fields) != len(children) - 1:
            raise ValueError(f"a field of !{name} is given twice")
        return cls.from_fields(fields)


_FLOAT_WORDS = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}
_DELEGATE = _Delegate()


@lru_cache(maxsize=65536)
def _places(text: str) -> tuple[Location, ...]:
    """The places of ``loc("file":line, ...)``; the grammar has checked the form."""
    return tuple(
        Location(_string(file), int(line)) for file, line in _PLACE.findall(text[len("loc(") :])
    )


def _shape(text: str) -> tuple[Any, ...]:
    return tuple(parse_dim(part) for part in text.split("x") if part)


def _string(token: str) -> str:
    try:
        return cast(str, json.loads(token))
    except ValueError:
        raise DiagnosticError(
            Diagnostic(codes.SYNTAX, f"string {token[:60]} has an escape that JSON does not know")
        ) from None


def _depth(value: Any) -> int:
    # Inner lists were checked when they closed, so this recursion is bounded too.
    if not isinstance(value, tuple):
        return 0
    return 1 + max(map(_depth, value), default=0)


@lru_cache(maxsize=1)
def _parser() -> Lark:
    from lark import Lark

    grammar = package_files.files("imcc.ir.text").joinpath("grammar.lark").read_text()
    return Lark(
        grammar,
        parser="lalr",
        lexer="contextual",
        start=["module", "type"],
        transformer=_DELEGATE,
        maybe_placeholders=False,
    )


def _lark_errors() -> tuple[type[Exception], ...]:
    from lark.exceptions import UnexpectedInput

    return (UnexpectedInput,)
