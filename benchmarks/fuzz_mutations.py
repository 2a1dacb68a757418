"""Mutations of valid inputs: most know the grammar, so that faults lie behind the parser too."""

from __future__ import annotations

import json
import random
import re
import zipfile
from pathlib import Path

TOKEN = re.compile(
    r'"(?:[^"\\\n]|\\.)*"'
    r'|(?:tensor|spikes|![a-z][\w.]*)<(?:[^<>\n"]|"[^"\n]*"|<[^<>\n]*>)*>'
    r"|[%@][A-Za-z0-9_][\w./-]*|[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*"
    r"|-?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|[A-Za-z_]\w*|[^\sA-Za-z0-9_]"
)
NUMBERS = ["0", "1", "-1", "2", "3", "7", "17", "255", "4096", "2147483648", "99999999999999999999"]
REALS = ["0.0", "-0.0", "1.0", "0.5", "1e-45", "1e308", "1e999", "nan", "inf", "-inf"]
STRINGS = ['""', '"x"', '"../../etc/passwd"', '"\\u0000"', '"äöü"', '"' + "a" * 300 + '"']
ELEMENTS = ["f64", "f32", "f16", "bf16", "i64", "i32", "i8", "u8", "i1", "q<s8>", "q<u4, axis=0>",
            "q<s8, axis=1, group=2>", "q<u8, asymmetric>", "q<s32>", "q<s1>"]  # fmt: skip
DIMS = ["0", "1", "2", "3", "8", "B", "2*B", "B*S", "1000000", "18446744073709551616"]
NOISE = [" ", "\n", "\t", "\0", "\x7f", "é", "\u2028", "{", "}", "<", ">", "(", '"', "%", "@", "//"]


def kind_of(token: str) -> str:
    """The class of a token: tokens of one class can stand for one another in the grammar."""
    if token[0] in '%@"':
        return token[0]
    if "<" in token and len(token) > 1:
        return "type"
    if token[0].isdigit() or (token[0] == "-" and len(token) > 1):
        return "real" if any(mark in token for mark in ".eE") else "number"
    if "." in token:
        return "dotted"
    return "word" if token[0].isalpha() else "mark"


def mutate_ir(text: str, others: list[str], rng: random.Random) -> str:
    """A few mutations of IR text: mostly tokens for tokens of their class, lines, characters."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        choice = rng.random()
        if choice < 0.70:
            text = _swap_token(text, others, rng)
        elif choice < 0.88:
            text = _move_lines(text, rng)
        elif choice < 0.95:
            text = _noise(text, rng)
        else:
            text = _structure(text, rng)
    return text


def _swap_token(text: str, others: list[str], rng: random.Random) -> str:
    tokens = [found for found in TOKEN.finditer(text) if kind_of(found[0]) != "mark"]
    # The header says which format version it is; most mutants should get past it.
    tokens = [found for found in tokens if found.start() > 8] or tokens
    if not tokens:
        return text
    old = rng.choice(tokens)
    new = _other_token(old[0], text if rng.random() < 0.6 else rng.choice(others), rng)
    return text[: old.start()] + new + text[old.end() :]


def _other_token(old: str, text: str, rng: random.Random) -> str:
    kind = kind_of(old)
    if kind == "type" and rng.random() < 0.7:
        return _other_type(old, rng)
    pool = {"number": NUMBERS, "real": [*REALS, *NUMBERS], '"': STRINGS}.get(kind, [])
    if pool and rng.random() < 0.6:
        return rng.choice(pool)
    same = [found[0] for found in TOKEN.finditer(text) if kind_of(found[0]) == kind]
    return rng.choice(same) if same else old


def _other_type(old: str, rng: random.Random) -> str:
    """One dimension or the element type of a type replaced; or its text at one place."""
    found = re.fullmatch(r"(tensor|spikes)<(.*?)(x?)((?:[a-z][a-z]?[0-9]+|q<.*>)?)>", old)
    if found is None:
        return re.sub(r"[0-9]+", lambda number: rng.choice([number[0], *NUMBERS[:9]]), old)
    head, dims, cross, element = found.groups()
    parts = dims.split("x") if dims else []
    choice = rng.random()
    if choice < 0.4 and parts:
        parts[rng.randrange(len(parts))] = rng.choice(DIMS)
    elif choice < 0.55:
        parts.insert(rng.randint(0, len(parts)), rng.choice(DIMS))
    elif choice < 0.7 and parts:
        del parts[rng.randrange(len(parts))]
    elif element:
        element = rng.choice(ELEMENTS)
    return f"{head}<{'x'.join(parts)}{cross if parts else ''}{element}>"


def _move_lines(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    if len(lines) < 3:
        return text
    first, second = rng.randrange(1, len(lines)), rng.randrange(1, len(lines))
    choice = rng.random()
    if choice < 0.35:
        del lines[first]
    elif choice < 0.65:
        lines.insert(second, lines[first])
    else:
        lines[first], lines[second] = lines[second], lines[first]
    return "".join(lines)


def _noise(text: str, rng: random.Random) -> str:
    place = rng.randint(0, len(text))
    choice = rng.random()
    if choice < 0.3:
        return text[:place]
    if choice < 0.6:
        return text[:place] + text[place + rng.choice([1, 1, 5, 80]) :]
    return text[:place] + rng.choice(NOISE) * rng.choice([1, 1, 3]) + text[place:]


def _structure(text: str, rng: random.Random) -> str:
    depth = rng.choice([5, 9, 200, 5000])
    place = text.find("{", text.find("{") + 1)
    nested = "[" * depth + "1" + "]" * depth
    return rng.choice(
        [
            text[: place + 1] + f"x = {nested}, " + text[place + 1 :],
            text.replace("// imc 1", f"// imc {rng.choice([0, 2, 99, '1.0', ''])}", 1),
            text + text,
            text * 40,
            "",
        ]
    )


def mutate_target(text: str, rng: random.Random) -> str:
    """A few mutations of TOML: values of other kinds and ranges, keys, lines, characters."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        lines = text.splitlines(keepends=True)
        keyed = [number for number, line in enumerate(lines) if " = " in line]
        if not keyed:
            return text
        number, choice = rng.choice(keyed), rng.random()
        key, _, value = lines[number].rstrip("\n").partition(" = ")
        if choice < 0.55:
            lines[number] = f"{key} = {_other_value(value, rng)}\n"
        elif choice < 0.65:
            renamed = rng.choice([key + "s", key[:-1] or "k", '"a b"', "zz", "base", "backend"])
            lines[number] = f"{renamed} = {value}\n"
        elif choice < 0.75:
            del lines[number]
        elif choice < 0.85:
            head = rng.choice(["[zz]", "[adc.bits]", "[array]", "[[components]]", "[a.b.c.d.e.f]"])
            lines.insert(rng.randint(0, len(lines)), head + "\n")
        elif choice < 0.92:
            return _move_lines(text, rng)
        else:
            return _noise(text, rng)
        text = "".join(lines)
    return text


def _other_value(value: str, rng: random.Random) -> str:
    numeric = value[:1].isdigit()
    near = ["0", "-1", "1", "2", "3", "5", "16", "64", "127", "4096", "1e9", "0.5", "1e-9", "1e300"]
    if numeric and rng.random() < 0.7:
        return rng.choice(near)
    strange = ["nan", "inf", "true", "[]", "[1, 2]", "{}", "{a = 1}", "1979-05-27", '"text"', '""']
    return rng.choice([*strange, "9" * 400, '"' + "a" * 5000 + '"', "0x10", "07:32:00", "'none'"])


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flipped, cut, doubled or overwritten bytes."""
    if not content:
        return bytes([rng.randrange(256)])
    place, size = rng.randrange(len(content)), rng.choice([1, 4, 64, 1024])
    return rng.choice(
        [
            content[:place],
            content[:place]
            + bytes([content[place] ^ (1 << rng.randrange(8))])
            + content[place + 1 :],
            content[:place] + rng.randbytes(size) + content[place + size :],
            content[:place] + content[place + size :],
            content + content[place : place + size],
            b"",
        ]
    )


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """One place of a JSON document replaced, removed or added."""
    data = json.loads(content)
    held, steps = data, rng.randint(1, 6)
    for _ in range(steps):
        keys = list(held) if isinstance(held, dict) else list(range(len(held)))
        if not keys:
            break
        key = rng.choice(keys)
        inner = held[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
            held = inner
            continue
        choice = rng.random()
        if choice < 0.2:
            del held[key]
        elif choice < 0.3 and isinstance(held, dict):
            held["../" + str(key)] = held.pop(key)
        else:
            values = [None, True, -1, 10**30, 1.5, 1e308, "", "../x", "x" * 999, [], {}, [[]], "*"]
            held[key] = rng.choice([*values, json.loads("[" * 50 + "]" * 50), [held[key]]])
        break
    return json.dumps(data).encode()


def write_zip(folder: Path, file: Path, rng: random.Random) -> None:
    """An archive of a folder, now and then with names, links or sizes that it should not have."""
    with zipfile.ZipFile(file, "w") as archive:
        for item in sorted(folder.iterdir()):
            archive.write(item, item.name, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
        choice = rng.random()
        if choice < 0.15:
            name = rng.choice(
                ["../out", "/etc/x", "a/b", "manifest.json", "a\\b", "\x01", "..", "x"]
            )
            archive.writestr(name, b"x")
        elif choice < 0.2:
            link = zipfile.ZipInfo("link")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, b"/etc/passwd")
        elif choice < 0.25:
            archive.writestr("big", bytes(100_000_000), zipfile.ZIP_DEFLATED)
