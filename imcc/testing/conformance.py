"""What every backend must do: checks that a backend's tests run, imcc's own and outside ones.

    SUBJECT = Subject("mychip", lossless=("adc.bits=16",), noisy=True)

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_conformance(check):
        check(SUBJECT)

A check raises :class:`NotConforming`, an ``AssertionError`` that says what is wrong and where.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from imcc.backends.api import Activity, Backend, Target, find_backend
from imcc.backends.targets import find_target, load_target
from imcc.driver import CompiledModel
from imcc.driver import compile as compile_model
from imcc.driver import load as load_model
from imcc.frontend.capture import capture
from imcc.ir import codes
from imcc.ir.cost import SCHEMA_VERSION, OpCost
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.module import Module, structural_difference
from imcc.ir.ops import OPS, Op
from imcc.ir.phases import is_neutral
from imcc.ir.registry import load_all_dialects
from imcc.ir.rules import COST, LOWER
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.text import parse_module, print_module
from imcc.ir.verifier import verify
from imcc.passes.infrastructure import (
    PassContext,
    begin,
    parse_pipeline,
    passes_after,
    passes_until,
    print_pipeline,
    run_pipeline,
)
from imcc.runtime.executor import Executor
from imcc.runtime.report_schema import check_report
from imcc.testing.examples import example_module

Check = Callable[["Subject"], None]


class NotConforming(AssertionError):  # noqa: N818 -- reads as what it says in a test's output
    """A backend breaks a promise that all backends make."""


def _demand(holds: bool, broken: str) -> None:
    if not holds:
        raise NotConforming(broken)


class SmallNetwork(nn.Module):
    """Convolutions (one grouped), batch norm, a residual, pooling and a linear layer, seeded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(4 * 3 * 3, 5)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 2, 6, 6] -> [B, 5]``."""
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.grouped(x) + x)
        made: Tensor = self.head(nn.functional.max_pool2d(x, 2).flatten(1))
        return made


def small_inputs(batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of :class:`SmallNetwork`."""
    return (torch.rand(batch, 2, 6, 6, generator=torch.Generator().manual_seed(seed)),)


@dataclass(frozen=True, eq=False)
class Subject:
    """A backend under test.

    ``target`` is the preset that is used; empty for the first. ``model`` makes a network that the
    backend can run, ``inputs(batch, seed)`` makes inputs for it. ``lossless`` are overrides
    (``"adc.bits=16"``) with which the hardware without noise computes integers exactly. ``noisy``
    says that the target as it stands draws noise. ``tolerance`` is what outputs may differ by,
    relative to the largest, when a batch is split: 0 unless the backend computes in floating
    point what it has no integer meaning for.
    """

    backend: str
    target: str = ""
    model: Callable[[], nn.Module] = SmallNetwork
    inputs: Callable[[int, int], tuple[Tensor, ...]] = small_inputs
    lossless: tuple[str, ...] = ()
    noisy: bool = False
    tolerance: float = 0.0

    @cached_property
    def instance(self) -> Backend:
        """The backend."""
        return find_backend(self.backend)

    @cached_property
    def preset(self) -> str:
        """The target's name."""
        names = self.instance.targets()
        _demand(bool(names), f"no installed target names the backend {self.backend!r}")
        return self.target or names[0]

    @cached_property
    def compiled(self) -> CompiledModel:
        """The model compiled for the target as it stands."""
        return compile_model(
            self.model().eval(), self.inputs(1, 0), self.preset, calibration=[self.inputs(32, 1)]
        )

    def lower(self, target: Target) -> tuple[Module, Module, ResourceStore]:
        """Modules before mapping and at the end of the default pipeline, and their resources."""
        captured = capture(self.model().eval(), self.inputs(1, 0))
        module, resources = captured.module.clone(), captured.resources.copy()
        context = PassContext(
            resources=resources,
            target=target,
            backend=self.instance,
            calibration=[self.inputs(32, 1)],
            legality=self.instance.legal,
        )
        passes = parse_pipeline(self.instance.pipeline(target))
        begin(module, context)
        run_pipeline(module, passes_until(passes, "optimized"), context)
        neutral = module.clone()
        run_pipeline(module, passes_after(passes, "optimized"), context)
        return neutral, module, resources


# -- targets ---------------------------------------------------------------------------------------


def targets_are_valid(subject: Subject) -> None:
    """Presets load; their canonical text holds all keys and reads back as the same target."""
    for name in subject.instance.targets():
        target = find_target(name)
        _demand(bool(target.data.get("summary")), f"target {name} has no summary")
        held = tomllib.loads(target.text)
        _demand(held == dict(target.data), f"the text of target {name} is not its data")
        again = load_target(name, held, "canonical text")
        _demand(again.sha256 == target.sha256, f"target {name} does not read back the same")


def bad_keys_are_refused(subject: Subject) -> None:
    """Unknown keys, wrong kinds and NaN are refused with the key's path; so are missing keys."""
    data = dict(find_target(subject.preset).data)
    for path, value in _leaves(data):
        wrong: Any = 12345 if isinstance(value, str) else "zz"
        _refused(subject, data, path, wrong, must=True)
        if isinstance(value, float):
            _refused(subject, data, path, math.nan, must=True)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            _refused(subject, data, path, -1 if isinstance(value, int) else -1.0, must=False)
        _refused(subject, data, path, None, must=False)
    for path in _tables(data):
        _refused(subject, data, (*path, "zz_unknown"), 1, must=True)
        if path:
            _refused(subject, data, path, 3, must=True)


def _leaves(data: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _tables(data: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _tables(value, (*path, key))


def _refused(
    subject: Subject, data: Mapping[str, Any], path: tuple[str, ...], value: Any, *, must: bool
) -> None:
    """Set one key (None: remove it) and demand that a refusal names it."""
    changed = copy.deepcopy(dict(data))
    held = changed
    for part in path[:-1]:
        held = held[part]
    if value is None:
        del held[path[-1]]
    else:
        held[path[-1]] = value
    shown = ".".join(path)
    did = f"without {shown}" if value is None else f"with {shown} = {value!r}"
    try:
        subject.instance.load_target("made", changed, "made.toml")
    except DiagnosticError as refusal:
        for item in refusal.diagnostics:
            _demand(item.code is codes.BAD_TARGET, f"{did}: refused as {item.code.id}")
        # Keys that only make sense together may be refused at the table that holds them.
        near = [".".join(path[:size]) for size in range(max(1, len(path) - 1), len(path) + 1)]
        text = "\n".join(item.message for item in refusal.diagnostics)
        _demand(any(name in text for name in near), f"{did}: the refusal does not name it: {text}")
        return
    _demand(not must, f"{did}: the target was accepted")


# -- passes and legality ---------------------------------------------------------------------------


def pipeline_reaches_the_last_phase(subject: Subject) -> None:
    """The default pipeline parses, prints back, and ends in the phase that the backend names."""
    target = find_target(subject.preset)
    text = subject.instance.pipeline(target)
    _demand(print_pipeline(parse_pipeline(text)) == text, f"does not print back: {text}")
    _, module, _ = subject.lower(target)
    last = subject.instance.last_phase
    _demand(module.phase == last, f"the pipeline ends in {module.phase!r}, not {last!r}")
    verify(module)
    parsed = parse_module(print_module(module))
    difference = structural_difference(module, parsed)
    _demand(difference is None, f"the compiled text reads back as another module: {difference}")
    verify(parsed)


def _examples() -> Iterator[Op]:
    load_all_dialects()
    for name in sorted(OPS):
        for op in example_module(OPS[name]).walk():
            if op.name == name:
                yield op
                break


def legality_has_reasons(subject: Subject) -> None:
    """Every op is accepted, or refused in words; ops of other backends' dialects are refused."""
    backend, target = subject.instance, find_target(subject.preset)
    accepted = 0
    for op in _examples():
        reason = backend.legal(op, target)
        _demand(reason is None or bool(reason.strip()), f"{op.name} is refused without a reason")
        accepted += reason is None
        if reason is None and not is_neutral(op.name.split(".")[0]):
            _demand(
                COST.find(op.name, backend.name) is not None,
                f"{op.name}, of hardware, is accepted and has no cost rule of {backend.name}",
            )
    _demand(accepted > 0, "no op is accepted")


def legal_ops_have_a_cost(subject: Subject) -> None:
    """An accepted op has a cost, is free for a stated reason, or is lowered to ops that do."""
    backend, target = subject.instance, find_target(subject.preset)
    for op in _examples():
        if op.terminator or backend.legal(op, target) is not None:
            continue
        if LOWER.find(op.name, backend.name) is None:
            _one_speaks(backend, op, backend.op_cost(op, target))
    for op in subject.compiled.module.walk():
        if not op.terminator:
            _one_speaks(backend, op, backend.op_cost(op, subject.compiled.target))


def _one_speaks(backend: Backend, op: Op, cost: OpCost) -> None:
    said = [name for name in ("events", "free", "unknown") if getattr(cost, name)]
    _demand(len(said) == 1, f"{op.name}: one of events, free and unknown must speak, found {said}")
    silent = type(backend).op_cost is Backend.op_cost and COST.find(op.name, backend.name) is None
    _demand(not silent, f"{op.name} is accepted and has neither a cost rule nor a lowering")
    numbers = [*cost.events.values(), cost.busy_ns]
    _demand(all(_sound(value) for value in numbers), f"{op.name}: bad numbers in {cost}")


def _sound(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0


# -- meaning ---------------------------------------------------------------------------------------


def without_noise_it_computes_the_neutral_meaning(subject: Subject) -> None:
    """Without noise and with lossless converters, outputs equal the program before mapping."""
    target = find_target(subject.preset, subject.lossless)
    neutral, module, resources = subject.lower(target)
    inputs = subject.inputs(9, 2)
    want = Executor(neutral, resources).run(inputs, noisy=False)
    got = Executor(module, resources, target, subject.instance).run(inputs, noisy=False)
    for left, right in zip(want, got, strict=True):
        worst = float((left.double() - right.double()).abs().max())
        _demand(torch.equal(left, right), f"outputs differ from the integer meaning by {worst:g}")


def _executor(subject: Subject) -> Executor:
    held = subject.compiled
    return Executor(held.module, held.resources, held.target, subject.instance)


def _same(subject: Subject, left: Sequence[Tensor], right: Sequence[Tensor], what: str) -> None:
    for one, other in zip(left, right, strict=True):
        allowed = subject.tolerance * float(one.abs().max())
        apart = float((one.double() - other.double()).abs().max())
        _demand(one.shape == other.shape and apart <= allowed, f"{what}: apart by {apart:g}")


def a_seed_reproduces_every_number(subject: Subject) -> None:
    """Equal seeds give equal outputs, whatever ran before; noisy targets change with the seed."""
    inputs, executor = subject.inputs(6, 3), _executor(subject)
    first = executor.run(inputs, trials=range(3), seed=5)
    other = executor.run(inputs, trials=range(3), seed=6)
    again = executor.run(inputs, trials=range(3), seed=5)
    fresh = _executor(subject).run(inputs, trials=range(3), seed=5)
    _demand(all(map(torch.equal, first, again)), "the same seed gives other outputs")
    _demand(all(map(torch.equal, first, fresh)), "another executor gives other outputs")
    differ = not all(map(torch.equal, first, other))
    _demand(differ == subject.noisy, f"noisy is {subject.noisy}, seeds make a difference: {differ}")


def outputs_do_not_depend_on_how_a_batch_is_split(subject: Subject) -> None:
    """Batches cut in parts, and trials run apart, give the numbers of one run."""
    inputs, executor = subject.inputs(7, 4), _executor(subject)
    whole = executor.run(inputs, trials=(0, 1, 2), seed=9)
    parts: list[list[Tensor]] = []
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        part = [value[start:stop] if value.shape[0] == 7 else value for value in inputs]
        parts.append(executor.run(part, trials=(0, 1, 2), seed=9, first_sample=start))
    joined = [torch.cat(items, dim=1) for items in zip(*parts, strict=True)]
    _same(subject, whole, joined, "a batch in three parts")
    alone = [executor.run(inputs, trials=(trial,), seed=9) for trial in (2, 0, 1)]
    trials = [torch.cat([alone[1][i], alone[2][i], alone[0][i]]) for i in range(len(whole))]
    _same(subject, whole, trials, "trials one by one")


# -- artifact, cost, report ------------------------------------------------------------------------


def an_artifact_runs_as_what_was_saved(subject: Subject) -> None:
    """Saved as folder and as zip and loaded: same text, report, target and outputs."""
    held, inputs = subject.compiled, subject.inputs(4, 5)
    held.reset()
    want = held(*inputs)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("made", "made.zip"):
            held.save(Path(folder) / name)
            loaded = load_model(Path(folder) / name)
            _demand(repr(loaded.module) == repr(held.module), f"{name}: another program")
            _demand(loaded.report() == held.report(), f"{name}: another report")
            _demand(loaded.target.text == held.target.text, f"{name}: another target")
            _demand(_all_equal(want, loaded(*inputs)), f"{name}: other outputs")


def _all_equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, Mapping):
        return list(left) == list(right) and all(_all_equal(left[k], right[k]) for k in left)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(_all_equal, left, right))
    return bool(left == right)


def cost_records_add_up(subject: Subject) -> None:
    """Numbers are finite, layers and components add up, every figure has unit and source."""
    held = subject.compiled
    for name in held.module.functions:
        record = subject.instance.cost(held.module, name, held.target)
        data = record.to_json()
        for key in ("energy_pj", "latency_ns", "area_um2", "leakage_pj"):
            _demand(_sound(data[key]), f"@{name}: {key} is {data[key]!r}")
        dynamic = record.energy_pj - record.leakage_pj
        layers = [item.energy_pj for item in record.layers if item.energy_pj is not None]
        _close(sum(layers), dynamic, f"@{name}: energy of the layers")
        parts = [item["energy_pj"] for item in record.components.values()]
        _close(sum(part for part in parts if part is not None), dynamic, f"@{name}: components")
        for layer in record.layers:
            times = (layer.busy_ns, layer.start_ns, layer.end_ns, layer.area_um2)
            _demand(all(map(_sound, times)), f"@{name}, layer {layer.name}: {times}")
            _demand(layer.start_ns <= layer.end_ns <= record.latency_ns * (1 + 1e-9), layer.name)
        for component, item in record.components.items():
            for figure in item.get("figures", {}).values():
                _demand(_sound(figure["value"]), f"{component}: {figure}")
                _demand(bool(figure["unit"] and figure["source"]), f"{component}: {figure}")
        said = record.provenance
        _demand(said.get("target_sha256") == held.target.sha256, f"@{name}: provenance of target")
        _demand(bool(said.get("cost_model")), f"@{name}: provenance names no cost model")
        known = record.activity in get_args(Activity)
        _demand(known, f"@{name}: activity is {record.activity!r}")
        ops = [op for op in held.module.function(name).ops if not op.terminator]
        unknown = [op for op in ops if subject.instance.op_cost(op, held.target).unknown]
        _demand(len(record.unknown) >= len(unknown), f"@{name}: unknown costs are not listed")
        json.dumps(data, allow_nan=False)


def _close(left: float, right: float, what: str) -> None:
    _demand(math.isclose(left, right, rel_tol=1e-6, abs_tol=1e-9), f"{what}: {left} and {right}")


def cost_of_what_is_not_ready_is_refused_in_words(subject: Subject) -> None:
    """Costing a captured module gives a record or a diagnostic, nothing else."""
    captured = capture(subject.model().eval(), subject.inputs(1, 0)).module
    backend, target = subject.instance, find_target(subject.preset)
    try:
        backend.cost(captured, "inference", target).to_json()
    except DiagnosticError as refusal:
        _demand(all(item.message for item in refusal.diagnostics), "refused without a message")


def the_report_has_its_schema(subject: Subject) -> None:
    """The report is plain JSON of the documented form and repeats the cost of ``inference``."""
    report = subject.compiled.report()
    json.dumps(report, allow_nan=False)
    check_report(report, Path("report.json"))
    _demand(report["schema_version"] == SCHEMA_VERSION, "schema_version")
    main = report["entry_points"]["inference"]
    for key in ("energy_pj", "latency_ns", "area_um2", "resources"):
        _demand(report[key] == main[key], f"{key} is not that of inference")
    _demand(report["targets"][0]["backend"] == subject.backend, "targets[0].backend")
    _demand(set(report["entry_points"]) == set(subject.compiled.module.functions), "entry points")


CHECKS: tuple[Check, ...] = (
    targets_are_valid,
    bad_keys_are_refused,
    pipeline_reaches_the_last_phase,
    legality_has_reasons,
    legal_ops_have_a_cost,
    without_noise_it_computes_the_neutral_meaning,
    a_seed_reproduces_every_number,
    outputs_do_not_depend_on_how_a_batch_is_split,
    an_artifact_runs_as_what_was_saved,
    cost_records_add_up,
    cost_of_what_is_not_ready_is_refused_in_words,
    the_report_has_its_schema,
)
"""What a backend's tests run, each on a :class:`Subject`."""
