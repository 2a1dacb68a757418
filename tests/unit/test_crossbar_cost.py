"""Traffic, schedules, copies and figures of merit of crossbar programs, counted by hand."""

import pytest
import torch
from torch import nn

import imcc
from imcc.backends.crossbar import BACKEND
from imcc.backends.crossbar.dialect import Mvm, Program
from imcc.backends.crossbar.library import area_factor, energy_factor, library
from imcc.backends.crossbar.traffic import added_hops, mesh_hops
from imcc.backends.targets import find_target
from imcc.ir.cost import Merit
from imcc.ir.diagnostics import DiagnosticError

SMALL = ("array.rows=32", "array.columns=32", "hierarchy.crossbars_per_pe=2")
SMALL += ("hierarchy.pes_per_tile=2",)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.c = nn.Linear(8 * 64, 10, bias=False)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu().flatten(1))


def compiled(*settings, target="rram"):
    torch.manual_seed(0)
    data = torch.rand(2, 3, 8, 8)
    return imcc.compile(
        Net(), (data[:1],), calibration=[(data,)], target=target, overrides=settings
    )


def point(*settings, **kwargs):
    return compiled(*settings, **kwargs).report()["entry_points"]["inference"]


@pytest.fixture(scope="module")
def plain():
    return compiled(*SMALL)


def reads(made):
    return [op for op in made.module.function().ops if isinstance(op, Mvm)]


def test_traffic_by_hand(plain):
    a, b, c = reads(plain)
    tiles = [op.annotations["xbar.tiles"] for op in (a, b, c)]
    # 27 x 64, 72 x 64 and 512 x 80 cells in 32 x 32 arrays, 4 arrays a tile.
    assert tiles == [1, 2, 12]
    hops = [op.annotations["xbar.hops"] for op in (a, b, c)]
    assert hops == [mesh_hops(0, 1, 15), mesh_hops(1, 2, 15), mesh_hops(3, 12, 15)]
    cost = BACKEND.op_cost(a, plain.target)
    # 3 x 64 codes in; 8 x 64 sums of 8 + 7 + 6 bits out, all in one tile.
    flits = -(-3 * 64 * 8 // 256) + 8 * 64 * 21 // 256
    assert cost.events["noc.flit"] == pytest.approx(flits * hops[0])
    assert cost.events["htree.bit"] == 64 * 27 * 8 + 64 * 8 * 21
    cost = BACKEND.op_cost(b, plain.target)
    # Three runs of rows over two tiles: two bits more, and the sums of one tile take one hop.
    flits = 8 * 64 * 8 // 256 + -(-8 * 64 * 23 // 256)
    added = 8 * 64 * 21 // 256
    assert cost.events["noc.flit"] == pytest.approx(flits * hops[1] + added)


def test_arguments_results_and_weights_cross_the_pins(plain):
    report = plain.report()["entry_points"]
    events = report["inference"]["components"]["off_chip"]["events"]
    assert events == {"off_chip.bit": (3 * 64 + 10) * 32}
    weights = 3 * 8 * 9 + 8 * 8 * 9 + 512 * 10
    assert report["deploy"]["components"]["off_chip"]["events"] == {"off_chip.bit": weights * 8}
    figure = report["inference"]["components"]["off_chip"]["figures"]["energy"]
    assert "HBM2" in figure["source"]


def test_sums_of_tiles_meet_in_pairs_or_in_a_line():
    assert [added_hops(tiles, "chain") for tiles in (1, 2, 3, 8)] == [0, 1, 2, 7]
    # 8 tiles: 4 x 1 + 2 x 2 + 1 x 4 hops.
    assert [added_hops(tiles, "tree") for tiles in (1, 2, 3, 8)] == [0, 1, 3, 12]


def test_hops_from_the_middle_of_the_mesh():
    assert mesh_hops(0, 1, 1) == 1.0
    assert mesh_hops(0, 4, 4) == 2.0
    # 3 x 3: the middle one, its four neighbours, four corners.
    assert mesh_hops(4, 1, 9) == 1.0 and mesh_hops(0, 9, 9) == pytest.approx((1 + 8 + 12) / 9)


def test_pipelined_layers_overlap_and_inputs_follow_at_the_pace_of_the_slowest(plain):
    whole = point(*SMALL, "scheduling.mode=pipelined", "scheduling.handover=whole")
    rows = point(*SMALL, "scheduling.mode=pipelined", "digital.per=tile")
    sequential = plain.report()["entry_points"]["inference"]
    assert sequential["merit"]["interval_ns"] == sequential["latency_ns"]
    assert whole["latency_ns"] == pytest.approx(sequential["latency_ns"])
    assert rows["latency_ns"] < 0.8 * whole["latency_ns"]
    slowest = max(BACKEND.op_cost(op, plain.target).busy_ns for op in reads(plain))
    assert rows["merit"]["interval_ns"] == slowest == whole["merit"]["interval_ns"]
    assert "crossbar" in rows["provenance"]["bottleneck"]
    for made in (whole, rows, sequential):
        ends = {layer["name"]: layer["end_ns"] for layer in made["layers"]}
        assert max(ends.values()) == made["latency_ns"]
        assert made["critical_path"][0] == "a" and made["critical_path"][-1] == "c"


def test_pipelines_take_inputs_with_a_zero_point():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 2, 2))
    data = torch.rand(2, 1, 8, 8) - 0.3
    made = imcc.compile(
        network, (data[:1],), calibration=[(data,)], overrides=["scheduling.mode=pipelined"]
    )
    assert any(op.x_zero_point is not None for op in reads(made))
    assert made.report()["latency_ns"] > 0


def test_copies_share_positions_and_cost_area_and_writes(plain):
    settings = (*SMALL, "scheduling.mode=pipelined", "hierarchy.max_copies=4")
    made = compiled(*settings)
    a, b, c = reads(made)
    assert [op.annotations.get("xbar.copies", 1) for op in (a, b, c)] == [4, 4, 1]
    before = [BACKEND.op_cost(op, plain.target) for op in reads(plain)]
    after = [BACKEND.op_cost(op, made.target) for op in (a, b, c)]
    assert after[0].busy_ns == before[0].busy_ns / 4
    assert after[0].events["adc.convert"] == before[0].events["adc.convert"]
    programs = [op for op in made.module.function("deploy").ops if isinstance(op, Program)]
    pulses = BACKEND.op_cost(programs[0], made.target).events["cell_write.pulse"]
    assert pulses == 4 * 27 * 64
    report, single = (item.report()["entry_points"]["inference"] for item in (made, plain))
    assert report["resources"]["crossbars"] == single["resources"]["crossbars"] + 3 * (2 + 6)
    limited = compiled(*settings, "hierarchy.tiles_per_chip=17")
    tiles = limited.report()["resources"]["tiles"]
    copies = [op.annotations.get("xbar.copies", 1) for op in reads(limited)]
    assert tiles <= 17 and copies[0] == copies[1] < 4


def test_figures_of_merit_agree_with_each_other(plain):
    made = plain.report()["entry_points"]["inference"]
    merit = made["merit"]
    macs = 64 * 27 * 8 + 64 * 72 * 8 + 512 * 10
    assert merit["operations"] == 2 * macs
    assert merit["tops_per_w"] == pytest.approx(2 * macs / made["energy_pj"])
    assert merit["tops"] == pytest.approx(2 * macs / made["latency_ns"] / 1e3)
    mm2 = made["area_um2"] * 1e-6
    assert merit["tops_per_mm2"] == pytest.approx(merit["tops"] / mm2)
    edap = made["energy_pj"] * made["latency_ns"] * made["area_um2"]
    assert merit["edap_pj_ns_um2"] == pytest.approx(edap)
    assert merit["edap_agrees_with_tops"]
    held = Merit.of(2 * macs, made["energy_pj"], made["latency_ns"], made["area_um2"])
    assert held.implied_edap_pj_ns_um2(made["latency_ns"]) == pytest.approx(edap)


def test_leakage_runs_from_one_input_to_the_next(plain):
    made = plain.report()["entry_points"]["inference"]
    held = made["components"]["buffer_read"]
    uw = held["figures"]["leakage"]["value"]
    assert held["leakage_pj"] == pytest.approx(15 * uw * made["latency_ns"] * 1e-3)


def test_figures_scale_between_nodes_as_published_pairs_do():
    # SRAM of CACTI, row driver and shift-add at 65 and at 32 nm.
    for at_65, at_32 in ((47.0, 12.9), (43.1, 10.7), (536.0, 131.0), (3.23, 0.85)):
        assert at_65 * energy_factor(65, 32) == pytest.approx(at_32, rel=0.35)
    assert 0.436 * area_factor(65, 32) == pytest.approx(0.124, rel=0.15)
    assert energy_factor(45, 45) == area_factor(32, 32) == 1.0
    target = find_target("rram", ["technology.node_nm=65"])
    adc = target.figures("adc")["energy"]
    assert adc["node_nm"] == 65 and "scaled from 32 nm" in adc["note"]
    assert target.energy_pj("off_chip") == find_target("rram").energy_pj("off_chip")


def test_every_component_of_the_library_has_a_source():
    for name, held in library().items():
        assert held["source"] and held["node_nm"] and held["per"], name


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ('components.noc={ library = "noc_ruoter" }', ["components.noc.library", "noc_router"]),
        (
            'components.adc={ library = "sar_adc_isaac", source = "x" }',
            ["components.adc", "source of its own"],
        ),
        ("technology.node_nm=5", ["technology.node_nm", "at least 7"]),
        ("components.adc.node_nm=180", ["components.adc.node_nm", "180 nm cannot be scaled"]),
        ("hierarchy.max_copies=0", ["hierarchy.max_copies"]),
        ("scheduling.mode=parallel", ["scheduling.mode", "'pipelined'"]),
    ],
)
def test_impossible_settings_are_refused(setting, words):
    with pytest.raises(DiagnosticError) as caught:
        find_target("rram", [setting])
    text = "\n".join(item.render() for item in caught.value.diagnostics)
    for word in words:
        assert word in text
