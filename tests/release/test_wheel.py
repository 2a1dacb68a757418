"""What the wheel and the source archive hold."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import imcc, sys
from imcc.backends.targets import find_target, list_targets
from imcc.ir.registry import load_all_dialects
from imcc.ir.text import parse_module
from imcc.passes.infrastructure import find_pass, pass_names
from imcc.testing.examples import example_module
from imcc.ir.ops import OPS
print(imcc.__file__)
load_all_dialects()
for name in OPS:
    example_module(OPS[name])
for name in pass_names():
    find_pass(name)
for item in list_targets():
    find_target(item.name)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    build = pytest.importorskip("hatchling.build")
    folder, held = tmp_path_factory.mktemp("dist"), os.getcwd()
    os.chdir(ROOT)
    try:
        return folder / build.build_wheel(str(folder)), folder / build.build_sdist(str(folder))
    finally:
        os.chdir(held)


def test_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        (points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert b"imcc.cli.main:main" in wheel.read(points)
    ours = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "imcc").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == ours
    kinds = {Path(name).suffix for name in ours}
    assert {".py", ".lark", ".toml", ".typed"} <= kinds
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_source_archive_can_build_and_test(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "constraints.txt",
                 "imcc/ir/text/grammar.lark", "tests/conftest.py", "docs/conf.py",
                 "examples/digits_cnn/digits_cnn.safetensors"):  # fmt: skip
        assert name in names
    assert not [name for name in names if name.startswith((".ci", "out/", "docs/generated"))]


def test_unpacked_wheel_works_from_another_folder(built, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    made = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == str(site / "imcc" / "__init__.py")
