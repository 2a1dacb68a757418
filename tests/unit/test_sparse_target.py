"""Targets of sparse-SNN accelerators: one budget, one component library, every option named."""

import itertools
import typing

import pytest

from imcc.backends.sparse_snn.target import ENGINES, SparseTarget
from imcc.backends.targets import find_target
from imcc.ir.diagnostics import DiagnosticError

TARGETS = ("loas", "sparten-snn", "gospa-snn", "gamma-snn", "ptb")


def test_all_targets_share_budget_and_components():
    loas = find_target("loas").data
    assert loas["array"]["elements"] == 16
    for name in TARGETS[1:]:
        data = find_target(name).data
        for key in ("components", "cache", "dram", "clock", "format", "published"):
            assert data[key] == loas[key], (name, key)
        assert name == "ptb" or data["array"] == loas["array"]


def test_every_component_has_a_source_and_a_figure():
    target = find_target("loas")
    for name, component in target.components().items():
        assert component.source and component.per, name
        assert target.energy_pj(name) is not None, name
        assert target.figures(name)["energy"]["unit"].startswith("pJ per ")


@pytest.mark.parametrize("name", TARGETS)
def test_every_option_is_accepted_and_changes_the_target(name):
    held = find_target(name)
    assert isinstance(held, SparseTarget)
    model = type(held.keys.rules)
    for key, field in model.model_fields.items():
        default = getattr(held.keys.rules, key)
        choices = (
            typing.get_args(field.annotation)
            or {bool: (False, True), int: (0, 1, 2)}[field.annotation]
        )
        changed = 0
        for choice in choices:
            text = str(choice).lower() if isinstance(choice, bool) else choice
            try:
                made = find_target(name, [f"rules.{key}={text}"])
            except DiagnosticError:
                assert isinstance(choice, int)
                continue
            changed += made.sha256 != held.sha256
            assert getattr(made.keys.rules, key) == choice
        assert changed >= 1, (key, default)


@pytest.mark.parametrize(
    "override, message",
    [
        ("rules.laggy_scope=colum", "key rules.laggy_scope"),
        ("rules.laggy_scop=row", "unknown key rules.laggy_scop"),
        ("fifo.depth=0", "key fifo.depth"),
        ("engine=temporal", "key engine"),
        ("components.dram.energy_pj=-1", "key components.dram.energy_pj"),
        ("merger.radix=64", "unknown key merger"),
    ],
)
def test_bad_keys_are_named(override, message):
    with pytest.raises(DiagnosticError, match=message):
        find_target("loas", [override])


def test_every_engine_has_a_preset():
    presets = {find_target(name).data["engine"] for name in TARGETS}
    assert presets == set(ENGINES)


def test_banks_serve_less_when_requests_collide():
    target, ideal = find_target("loas"), find_target("loas", ["rules.bank_conflicts=ideal"])
    assert ideal.bank_accesses_per_cycle(16) == 16
    assert target.bank_accesses_per_cycle(1) == pytest.approx(1)
    # All ways in which 3 requests fall on 16 banks.
    busy = [len(set(way)) for way in itertools.product(range(16), repeat=3)]
    assert target.bank_accesses_per_cycle(3) == pytest.approx(sum(busy) / len(busy))
    assert target.dram_bytes_per_cycle == pytest.approx(160)
