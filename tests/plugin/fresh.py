"""Fresh copies of the plugin, installed as pip would, and processes that see them."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

PACKAGE = Path(__file__).parent / "package"
ROOT = PACKAGE.parents[2]
MODEL = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

def example_inputs():
    return (torch.zeros(1, 8),)

def calibration_data():
    return [(torch.rand(32, 8),)]
"""
# Runs commands of `imcc` one after another in one process.
RUN = """
import contextlib, io, json, sys
from imcc.cli.main import main
said = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    said.append([code, out.getvalue(), err.getvalue()])
json.dump(said, sys.stdout)
"""
BLOCK = re.compile(r"^`([\w./-]+)`:\n\n```(\w+)\n(.*?)```$", re.DOTALL | re.MULTILINE)


def page(name):
    return ROOT / "docs" / "how-to" / f"{name}.md"


def blocks(name):
    """Files of a how-to page: (path, content) pairs; parts of ``pyproject.toml`` one by one."""
    return [(path, content) for path, _, content in BLOCK.findall(page(name).read_text())]


def commands(name):
    """The command lines of a page, taken apart."""
    shells = re.findall(r"^```sh\n(.*?)```$", page(name).read_text(), re.DOTALL | re.MULTILINE)
    lines = [shlex.split(line) for block in shells for line in block.splitlines()]
    assert all(line[0] == "imcc" for line in lines)
    return [line[1:] for line in lines]


def register(folder):
    """What an installation leaves behind: metadata with the entry points of the project."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"imcc_example-{project['version']}.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items()), ""]
    info.joinpath("entry_points.txt").write_text("\n".join(lines))


def call(site, commands, cwd):
    """Run command lines of ``imcc``; (exit code, stdout, stderr) of each."""
    made = run(site, ["-c", RUN, json.dumps(commands)], cwd)
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def run(site, arguments, cwd):
    """A Python process that sees what is installed in ``site``."""
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
