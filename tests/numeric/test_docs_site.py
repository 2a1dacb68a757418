"""The site: generated pages hold the whole registry, the tutorial runs, the build is strict."""

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest

from imcc.backends.targets import find_target, list_targets
from imcc.cli.main import cli, main
from imcc.ir.codes import CODES
from imcc.ir.ops import OPS
from imcc.ir.registry import load_all_dialects
from imcc.passes.infrastructure import pass_names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted({*DOCS.glob("*/*.md"), *DOCS.glob("*.md"), ROOT / "README.md"} - {
    *DOCS.glob("generated/*"), *DOCS.glob("_build/*")})  # fmt: skip
BLOCK = re.compile(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)```$", re.DOTALL | re.MULTILINE)
STEP = re.compile(r"^```(sh|python)\n(.*?)```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("reference", DOCS / "generate_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("generated")
    module.generate(folder)
    return {file.stem: file.read_text() for file in folder.iterdir()}


def test_generated_pages_hold_the_whole_registry(generated):
    load_all_dialects()
    # Dialects made by other tests in this process belong to no package.
    names = {name for name, op in OPS.items() if op.__module__.startswith("imcc.")}
    for page, wanted in {
        "ops": names,
        "passes": pass_names(),
        "targets": [item.name for item in list_targets()],
        "diagnostics": CODES,
        "command-line": [f"imcc {name}" for name in cli.commands],
    }.items():
        heads = {line.lstrip("# ").split(":")[0] for line in generated[page].splitlines()
                 if line.startswith("#")}  # fmt: skip
        assert set(wanted) <= heads, page
    assert "`device.g_max_us`" in generated["targets"] and "key" in generated["targets"]


def test_units_page_knows_every_unit():
    page = (DOCS / "reference" / "units.md").read_text()
    known = re.findall(r"`_([a-z0-9_]+)`", page)

    def names(table):
        for key, value in table.items():
            if isinstance(value, dict):
                yield from names(value)
            elif isinstance(value, float):
                yield key

    physical = re.compile(r"_(pj|fj|nj|uj|ns|us|ms|um2|mm2|uw|mw|nm|um|mhz|ghz|gb_s|v|ua|ohm|ff)$")
    used = {found[1] for item in list_targets() for name in names(find_target(item.name).data)
            if (found := physical.search(name))}  # fmt: skip
    assert {"pj", "ns", "um2"} <= used <= set(known)


def test_tutorial(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "tutorial" / "first-chip.md").read_text()
    for path, content in BLOCK.findall(text):
        (tmp_path / path).write_text(content)
    # Files were written above; what is left are the steps, in order.
    said = []
    for language, content in STEP.findall(BLOCK.sub("", text)):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            if language == "python":
                exec(compile(content, "tutorial", "exec"), {})
            for line in content.splitlines() if language == "sh" else ():
                # Two chips show the same as ten and take less time.
                words = [{"10": "2"}.get(word, word) for word in shlex.split(line)]
                assert words[0] == "imcc" and main(words[1:]) == 0, line
        said.append(out.getvalue())
    rows = {line.split()[0]: line.split()[1:] for line in said[-1].splitlines()[:-1]}
    accuracy = {name: float(row[0]) for name, row in rows.items()}
    energy = {name: float(row[1]) for name, row in rows.items()}
    # What the page says about them.
    assert energy["adc6"] == pytest.approx(11 / 12 * energy["first"], rel=0.02)
    assert abs(accuracy["adc6"] - accuracy["first"]) < 0.01
    assert accuracy["adc4"] < accuracy["first"] - 0.015
    assert "murmann" in "".join(said).lower(), "--why ends at a source"


def command_lines():
    """Lines of ``imcc`` in the shell blocks of all pages."""
    found = []
    for page in PAGES:
        language = None
        text = page.read_text().replace("\\\n", " ")
        # A pipeline in quotes may go on over lines.
        text = re.sub(r"--passes '[^'`]*'", lambda found: found[0].replace("\n", " "), text)
        for line in text.splitlines():
            if line.startswith("```"):
                language = line[3:].strip() if language is None else None
            elif language in ("", "sh", "console") and re.match(r"\s*imcc \w", line):
                for part in line.split("#")[0].split(";"):
                    found.append(pytest.param(part.strip(), id=f"{page.stem}: {part.strip()[:60]}"))
    return found


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_of_the_pages_are_valid(line):
    line = line.split(" > ")[0].split(" | ")[0]
    words = [word for word in shlex.split(line)[1:] if word not in ("...", "[OPTIONS]")]
    command = cli.commands[words[0]]
    try:
        command.make_context(words[0], words[1:])
    except click.UsageError as wrong:
        pytest.fail(f"{line}: {wrong.format_message()}")


def test_site_builds_without_warnings_and_fetches_nothing(tmp_path):
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    from sphinx.application import Sphinx

    said, warned = io.StringIO(), io.StringIO()
    source = tmp_path / "docs"
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("_build", "generated"))
    shutil.copy(ROOT / "CHANGELOG.md", tmp_path)
    app = Sphinx(
        source, source, tmp_path / "html", tmp_path / "trees", "html", status=said, warning=warned
    )
    app.build()
    assert warned.getvalue() == ""
    pages = list((tmp_path / "html").rglob("*.html"))
    assert len(pages) >= 25
    for page in pages:
        fetched = re.findall(
            r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^>]*>", page.read_text()
        )
        assert not fetched, page
