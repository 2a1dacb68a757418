"""``imcc doctor``: what this installation has, what it lacks, and what is broken.

Nothing that may be broken is imported here: modules and plugins load in processes of their own
(:mod:`imcc.cli.probe`), so that one which crashes or hangs is named. What only extras need is
looked up, not loaded.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from imcc._version import __version__

GROUPS = (
    "imcc.dialects",
    "imcc.passes",
    "imcc.backends",
    "imcc.targets",
    "imcc.noise_models",
    "imcc.rules",
    "imcc.frontend",
)
VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "IMCC_DATA",
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "amx_int8", "asimd", "sve")
PROBE_SECONDS = 180.0
"""A process that takes longer hangs; torch may need a minute from a cold disk."""


@dataclass(frozen=True)
class Package:
    """A distribution that imcc uses: its version (None: absent), and why it does not work."""

    name: str
    needed_by: str
    version: str | None
    problem: str | None = None

    @property
    def broken(self) -> bool:
        """Whether imcc cannot work properly as it is; an absent extra is no fault."""
        return self.problem is not None


@dataclass(frozen=True)
class Plugin:
    """An entry point: group, name, what it names, the distribution, and why it does not load."""

    group: str
    name: str
    value: str
    distribution: str
    problem: str | None = None


@dataclass(frozen=True)
class Examination:
    """Everything that ``imcc doctor`` found."""

    packages: tuple[Package, ...]
    plugins: tuple[Plugin, ...]
    system: Mapping[str, Any]
    variables: Mapping[str, str | None]
    notes: tuple[str, ...]
    torch: Mapping[str, Any] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """One line for each thing that is broken, with what to do."""
        found = [f"{item.name}: {item.problem}" for item in self.packages if item.broken]
        found += [
            f"{item.group} {item.name} ({item.value}, of {item.distribution}): {item.problem}; "
            "repair or uninstall that package"
            for item in self.plugins
            if item.problem is not None
        ]
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "imcc_version": __version__,
            "healthy": not self.problems,
            "problems": self.problems,
            "packages": [vars(item) for item in self.packages],
            "plugins": [vars(item) for item in self.plugins],
            "system": dict(self.system),
            "torch": dict(self.torch),
            "variables": dict(self.variables),
            "notes": list(self.notes),
        }

    def render(self) -> str:
        """The findings as text."""
        lines = [f"imcc {__version__}, Python {self.system['python']}, {self.system['platform']}"]
        lines += ["", "packages"]
        width = max(len(item.name) for item in self.packages)
        for item in self.packages:
            shown = item.version or "absent"
            mark = f"  BROKEN: {item.problem}" if item.broken else ""
            by = "" if item.needed_by == "imcc" else f"  (extra {item.needed_by})"
            lines.append(f"  {item.name:<{width}}  {shown}{by}{mark}")
        for extra in sorted({p.needed_by for p in self.packages if p.needed_by != "imcc"}):
            if any(p.version is None for p in self.packages if p.needed_by == extra):
                lines.append(f"  for the extra {extra}: pip install 'imcc[{extra}]'")
        lines += ["", "plugins"]
        for group in GROUPS:
            held = [item for item in self.plugins if item.group == group]
            if held:
                lines.append(f"  {group}: {', '.join(item.name for item in held)}")
        for plugin in self.plugins:
            if plugin.problem is not None:
                lines.append(f"  BROKEN: {plugin.group} {plugin.name}: {plugin.problem}")
        lines += ["", "machine"]
        for key in ("cpus", "cpu_features", "dot"):
            value = self.system[key]
            shown = ", ".join(value) if isinstance(value, list) else str(value)
            lines.append(f"  {key}: {shown or 'none'}")
        for key, value in self.torch.items():
            shown = ", ".join(value) if isinstance(value, list) else str(value)
            lines.append(f"  torch {key}: {shown or 'none'}")
        for name, held_value in self.variables.items():
            lines.append(f"  {name}: {'not set' if held_value is None else held_value}")
        lines += [f"note: {note}" for note in self.notes]
        problems = self.problems
        lines += ["", f"{len(problems)} problems" if problems else "everything works"]
        lines += [f"  {problem}" for problem in problems]
        return "\n".join(lines)


def examine() -> Examination:
    """Look at the installation; raises nothing for what it finds."""
    wanted = _requirements()
    points = [point for group in GROUPS for point in metadata.entry_points(group=group)]
    own = [name for name, by, _ in wanted if by == "imcc" and _version(name) is not None]
    modules = [f"module:{_module(name)}" for name in own]
    # Plugins import torch too: in one process it loads once.
    heavy = [name for name in modules if name == "module:torch"]
    heavy += [f"point:{point.group}:{point.name}" for point in points]
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(_probe, [heavy, [name for name in modules if name not in heavy]]))
    results = {name: result for part in parts for name, result in part.items()}
    packages = tuple(_package(name, extra, rule, results) for name, extra, rule in wanted)
    plugins = tuple(
        Plugin(
            point.group,
            point.name,
            point.value,
            point.dist.name if point.dist is not None else "unknown",
            results[f"point:{point.group}:{point.name}"]["error"],
        )
        for point in points
    )
    variables = {name: os.environ.get(name) for name in VARIABLES}
    return Examination(
        packages,
        plugins,
        _system(),
        variables,
        tuple(_notes(variables)),
        results.get("module:torch", {}).get("facts", {}),
    )


def _requirements() -> list[tuple[str, str, str]]:
    """(distribution, ``imcc`` or the extra that asks for it, version rule), imcc's own first."""
    found: dict[str, tuple[str, str, str]] = {}
    for line in metadata.requires("imcc") or ():
        text, _, marker = line.partition(";")
        match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*(.*)", text)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        if match is None:
            continue
        name, rule = match.group(1), match.group(2).strip(" ()")
        found.setdefault(name, (name, extra.group(1) if extra else "imcc", rule))
    order = sorted(found.values(), key=lambda item: (item[1] != "imcc", item[1], item[0].lower()))
    return order


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _module(name: str) -> str:
    return name.replace("-", "_")


def _package(name: str, extra: str, rule: str, results: Mapping[str, dict[str, Any]]) -> Package:
    version = _version(name)
    if version is None:
        missing = f"missing; pip install {name}" if extra == "imcc" else None
        return Package(name, extra, None, missing)
    problem = results.get(f"module:{_module(name)}", {}).get("error")
    if problem is not None:
        return Package(name, extra, version, f"does not load: {problem}; install it anew")
    if not _satisfies(version, rule):
        return Package(name, extra, version, f"imcc needs {name}{rule}")
    return Package(name, extra, version)


def _satisfies(version: str, rule: str) -> bool:
    """Whether a version fits rules such as ``>=2.9``; other kinds of rules are not judged."""
    held = _numbers(version)
    return all(
        held >= _numbers(part.strip()[2:])
        for part in rule.split(",")
        if part.strip().startswith(">=")
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _probe(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Load each name in a process; one that ends or hangs the process is left out and named."""
    results: dict[str, dict[str, Any]] = {}
    left = list(names)
    while left:
        command = [sys.executable, "-m", "imcc.cli.probe", *left]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
            output, ending = done.stdout, _ending(done.returncode)
        except subprocess.TimeoutExpired as late:
            output = late.stdout.decode() if isinstance(late.stdout, bytes) else (late.stdout or "")
            ending = f"does not load within {PROBE_SECONDS:g} s"
        at_work = left[0]
        for line in output.splitlines():
            if line.startswith("start "):
                at_work = line.removeprefix("start ")
            elif line.startswith("{"):
                made = json.loads(line)
                results[made["name"]] = made
        left = [name for name in left if name not in results]
        if left:
            results[at_work] = {"name": at_work, "error": ending, "facts": {}}
            left = [name for name in left if name != at_work]
    return results


def _ending(code: int) -> str:
    if code < 0:
        return f"ends the process by signal {-code}"
    return f"ends the process with code {code}"


def _system() -> dict[str, Any]:
    usable = getattr(os, "sched_getaffinity", None)
    cpus = os.cpu_count() or 1
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": f"{len(usable(0))} of {cpus} usable" if usable is not None else str(cpus),
        "cpu_features": _cpu_features(),
        "dot": _dot(),
    }


def _cpu_features() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    line = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    held = set(line.group(1).split()) if line is not None else set()
    return [flag for flag in CPU_FLAGS if flag in held]


def _dot() -> str:
    found = shutil.which("dot")
    if found is None:
        return "absent; pictures of programs stay DOT text (Debian: apt install graphviz)"
    try:
        done = subprocess.run([found, "-V"], capture_output=True, text=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as wrong:
        return f"{found} does not run: {wrong}"
    return (done.stderr or done.stdout).strip() or found


def _notes(variables: Mapping[str, str | None]) -> list[str]:
    made: list[str] = []
    data = variables["IMCC_DATA"]
    if data is None:
        made.append("IMCC_DATA is not set: tests and benchmarks that need data sets are skipped")
    elif not Path(data).is_dir():
        made.append(f"IMCC_DATA names {data}, which is no folder")
    if (variables["OMP_WAIT_POLICY"] or "PASSIVE").upper() != "PASSIVE":
        made.append("OMP_WAIT_POLICY is not PASSIVE: idle threads take cores from busy ones")
    return made
