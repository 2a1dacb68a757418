"""Syntax errors in words: what was found, and what could stand there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, Location, nearest, text_window

if TYPE_CHECKING:
    from lark.exceptions import UnexpectedInput

_HUMAN = {
    "VALUE": "a value such as %x",
    "SYMBOL": "a symbol such as @name",
    "TYPE": "a type such as tensor<Bx3xf32>",
    "OP_NAME": "an op such as nn.relu",
    "STRING": "a string",
    "NUMBER": "a number",
    "NAME": "a name",
    "DIM": "a dimension such as 4*B",
    "WORD": "true, false or none",
    "$END": "the end of the text",
    "MODULE": "'module'",
    "PHASE": "'phase'",
    "RESOURCES": "'resources'",
    "RESOURCE": "'resource'",
    "STATE": "'state'",
    "FUNC": "'func'",
    "INIT": "'init'",
    "SHA256": "'sha256'",
    "TARGET": "'target'",
    "LOC": 'a place such as loc("model.py":3)',
    "_LBRACE": "'{'",
    "RBRACE": "'}'",
    "LPAR": "'('",
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "_COMMA": "','",
    "_COLON": "':'",
    "_EQUAL": "'='",
    "MORETHAN": "'>'",
}


def syntax_error(wrong: Any, text: str, file: str) -> Diagnostic:
    """The diagnostic of lark's ``UnexpectedInput``: what stood there, and what could."""
    from lark.exceptions import UnexpectedCharacters, UnexpectedToken

    failed: UnexpectedInput = wrong
    line, column = max(failed.line, 1), max(failed.column, 1)
    expected: set[str] = set()
    if isinstance(failed, UnexpectedToken):
        found = "the end of the text" if failed.token.type == "$END" else repr(str(failed.token))
        expected = set(failed.accepts or failed.expected)
        if failed.token.type == "$END":
            line = text.count("\n") + (0 if text.endswith("\n") else 1)
            line, column = max(line, 1), 1
    elif isinstance(failed, UnexpectedCharacters):
        position = failed.pos_in_stream or 0
        found = repr(text[position : position + 12].split("\n")[0])
        expected = set(failed.allowed or ())
    else:
        found = "the end of the text"
    terminals = getattr(failed, "_terminals_by_name", None) or {}
    names = sorted(_HUMAN.get(item) or _shown(item, terminals) for item in expected)
    words = [name.strip("'") for name in names] + (
        ["tensor", "spikes"] if "TYPE" in expected else []
    )
    return Diagnostic(
        codes.SYNTAX,
        f"unexpected {found}",
        text=Location(file, line, column),
        window=text_window(text, line, column),
        suggestions=nearest("".join(re.findall(r"^'(\w+)", found)), words),
        reason=f"expected {', '.join(names)}" if names else "",
        help="`imcc ops NAME` shows how an op is written" if "OP_NAME" in expected else "",
    )


def _shown(name: str, terminals: Any) -> str:
    """A terminal that the table does not name, by its text where it has one."""
    pattern = getattr(terminals.get(name), "pattern", None)
    fixed = getattr(pattern, "type", "") == "str"
    return repr(str(pattern.value)) if pattern is not None and fixed else name.lower()
