"""The reference pages, from the registries themselves: ops, passes, targets, codes, commands.

``make docs`` writes them to ``docs/generated``; ``python docs/generate_reference.py DIR`` to DIR.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def generate(folder: Path) -> None:
    """Write all pages into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "ops": _ops,
        "passes": _passes,
        "targets": _targets,
        "diagnostics": _diagnostics,
        "command-line": _commands,
        "changelog": _changelog,
    }
    for name, lines in pages.items():
        text = "\n".join(lines()).rstrip() + "\n"
        file = folder / f"{name}.md"
        # An unchanged page keeps its time stamp, so that only what changed is built again.
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    if not rows:
        return
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in row)
        yield f"| {' | '.join(cells)} |"
    yield ""


def _prose(documented: Any) -> Iterator[str]:
    """A docstring as Markdown: double backticks are code in both, literal blocks are indented."""
    yield inspect.cleandoc(getattr(documented, "__doc__", None) or "").replace("::\n\n", ":\n\n")
    yield ""


def _code(text: str, language: str = "text") -> Iterator[str]:
    yield f"```{language}"
    yield text.rstrip("\n")
    yield "```"
    yield ""


def _ops() -> Iterator[str]:
    from imcc.cli.listing import show_op
    from imcc.ir.ops import OPS
    from imcc.ir.registry import load_all_dialects

    dialects = load_all_dialects()
    yield "# Ops"
    yield ""
    yield "Each op is one declaration; `imcc ops NAME` prints it."
    yield "[The IR](../explanation/ir.md) says how ops are written."
    yield ""
    for prefix in sorted(dialects):
        yield f"## {prefix}"
        yield ""
        yield from _prose(dialects[prefix])
        for name in sorted(OPS):
            if name.split(".", 1)[0] != prefix:
                continue
            _, data = show_op(name)
            yield f"### {name}"
            yield ""
            yield from _prose(OPS[name])
            for title in ("operands", "attributes", "results"):
                rows = [(f"`{item['name']}`", item["text"]) for item in data[title]]
                yield from _table((title, ""), rows)
            yield from _code(OPS[name].example)


def _passes() -> Iterator[str]:
    from imcc.cli.listing import show_pass
    from imcc.passes.infrastructure import find_pass, pass_names

    yield "# Passes"
    yield ""
    yield "A pipeline is text: `fold-batch-norm, quantize-weights{bits=4}`."
    yield "`imcc passes NAME` prints what stands here."
    yield ""
    for name in pass_names():
        _, data = show_pass(name)
        yield f"## {name}"
        yield ""
        yield from _prose(find_pass(name))
        facts = [("promise", data["promise"]), ("needs", ", ".join(data["needs"]) or "nothing")]
        phases = (data["requires_phase"] or "any", data["ensures_phase"] or "as before")
        facts.append(("phase", f"{phases[0]}, then {phases[1]}"))
        yield from _table(("", ""), facts)
        rows = [(f"`{item['name']}`", item["text"]) for item in data["options"]]
        yield from _table(("option", ""), rows)


def _targets() -> Iterator[str]:
    from imcc.backends.targets import find_target, list_targets

    yield "# Targets"
    yield ""
    yield "What hardware is installed, with every key. `imcc targets NAME` prints the file;"
    yield "[change the hardware](../how-to/change-the-hardware.md) says how to make another."
    yield ""
    described: set[str] = set()
    for item in list_targets():
        target = find_target(item.name)
        yield f"## {item.name}"
        yield ""
        yield f"{item.summary}. Backend `{item.backend}`."
        yield ""
        keys = getattr(target, "keys", None)
        if keys is not None and type(keys).__name__ + item.backend not in described:
            described.add(type(keys).__name__ + item.backend)
            yield from _table(("key", "meaning", "range, default"), list(_keys(type(keys))))
        yield from _code(target.text, "toml")


def _keys(model: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    from imcc.backends.targets import model_of

    for name, field in model.model_fields.items():
        inner = model_of(field.annotation)
        text = field.description or ""
        if inner is not None and not isinstance(inner, str):
            yield (f"`{path}{name}`", text, "table")
            yield from _keys(inner, f"{path}{name}.")
            continue
        limits = [str(part) for part in field.metadata if "=" in str(part)]
        if not field.is_required():
            limits.append(f"default {field.get_default(call_default_factory=False)!r}")
        yield (f"`{path}{name}`", text, ", ".join(limits))


def _diagnostics() -> Iterator[str]:
    from imcc.ir.codes import CODES

    yield "# Diagnostics"
    yield ""
    yield "Every message of imcc has a code that never changes its meaning;"
    yield "`imcc explain CODE` prints its page."
    yield ""
    for code in CODES.values():
        yield f"## {code.id}: {code.title}"
        yield ""
        yield from _code(code.page)


def _commands() -> Iterator[str]:
    import click

    from imcc.cli.main import cli

    yield "# Command line"
    yield ""
    root = click.Context(cli, info_name="imcc", max_content_width=90)
    yield from _code(cli.get_help(root))
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=name, parent=root, max_content_width=90)
        yield f"## imcc {name}"
        yield ""
        yield from _code(command.get_help(context))


def _changelog() -> Iterator[str]:
    yield (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
