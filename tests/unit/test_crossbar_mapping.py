"""Mapping, placement, schedule and cost of crossbars."""

import pytest
import torch

from imcc.backends.api import find_backend
from imcc.backends.crossbar.dialect import Mvm, Program
from imcc.backends.targets import find_target
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.module import structural_difference
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.text.parser import parse_module
from imcc.ir.text.printer import print_module
from imcc.ir.types import QuantType
from imcc.ir.verifier import verify
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline

BACKEND = find_backend("crossbar")

TEXT = """// imc 1
module @net phase("optimized") {
  resource @c.codes : tensor<16x3x3x3xq<s8, axis=0>>
  resource @d.codes : tensor<16x1x3x3xq<s8, axis=0>>
  resource @f.codes : tensor<10x256xq<s8, axis=0>>
  resource @s : tensor<f32>
  resource @z : tensor<i32>
  func @inference(%x: tensor<Bx3x8x8xf32>) -> tensor<Bx10xf32> {
    %s = core.constant {value = @s} : tensor<f32>
    %z = core.constant {value = @z} : tensor<i32>
    %w = core.constant {value = @c.codes} : tensor<16x3x3x3xq<s8, axis=0>>
    %q = quant.quantize %x, %s, zero_point=%z {bits = 8, signed = false, scope = "conv"} : \
tensor<Bx3x8x8xq<u8, asymmetric>>
    %a = quant.conv %q, %w, x_zero_point=%z {stride = [1, 1], padding = [0, 0], \
dilation = [1, 1], groups = 1, scope = "conv"} : tensor<Bx16x6x6xi32>
    %r = quant.rescale %a, %s {axis = -3, scope = "conv"} : tensor<Bx16x6x6xf32>
    %t = nn.relu %r {scope = "act"} : tensor<Bx16x6x6xf32>
    %d = core.constant {value = @d.codes} : tensor<16x1x3x3xq<s8, axis=0>>
    %e = quant.quantize %t, %s {bits = 8, signed = false, scope = "depth"} : \
tensor<Bx16x6x6xq<u8>>
    %g = quant.conv %e, %d {stride = [1, 1], padding = [0, 0], dilation = [1, 1], groups = 16, \
scope = "depth"} : tensor<Bx16x4x4xi32>
    %h = quant.rescale %g, %s {axis = -3, scope = "depth"} : tensor<Bx16x4x4xf32>
    %v = core.reshape %h {shape = [B, 256]} : tensor<Bx256xf32>
    %p = quant.quantize %v, %s {bits = 8, signed = false, scope = "fc"} : tensor<Bx256xq<u8>>
    %f = core.constant {value = @f.codes} : tensor<10x256xq<s8, axis=0>>
    %b = quant.linear %p, %f {scope = "fc"} : tensor<Bx10xi32>
    %y = quant.rescale %b, %s {axis = -1, scope = "fc"} : tensor<Bx10xf32>
    core.return %y
  }
}
"""


def compiled(*overrides, text=TEXT, passes="map-crossbars, place, schedule"):
    module, target = parse_module(text), find_target("rram", overrides)
    verify(module)
    run_pipeline(module, parse_pipeline(passes), PassContext(target=target, backend=BACKEND))
    return module, target


def ops(module, kind, function="inference"):
    return [op for op in module.function(function).ops if isinstance(op, kind)]


def test_products_become_reads_of_states_that_deploy_programs():
    module, _ = compiled()
    assert list(module.states) == ["c.cells", "d.cells", "f.cells"]
    assert len(ops(module, Mvm)) == len(ops(module, Program, "deploy")) == 3
    assert not [op for op in module.walk() if op.name in ("quant.conv", "quant.linear")]
    function = module.function()
    assert function.argument_states == [None, "c.cells", "d.cells", "f.cells"]
    assert [item.state for item in module.function("deploy").results] == list(module.states)
    streams = [op.stream for op in module.walk() if isinstance(op, (Mvm, Program))]
    assert len(set(streams)) == len(streams) == 6
    assert structural_difference(module, parse_module(print_module(module))) is None


def test_matrices_count_their_crossbars():
    module, _ = compiled()
    conv, depth, fc = (state.type for state in module.states.values())
    # 16 columns of 4 slices in pairs are 128 physical columns; 27 rows fit one array.
    assert (conv.rows, conv.physical_columns, conv.crossbars) == (27, 128, 1)
    # A depthwise convolution: an array for each of 16 channels, 9 rows each.
    assert (depth.group_rows, depth.group_columns, depth.crossbars) == (9, 1, 16)
    # 256 rows are two arrays, 80 columns fit one.
    assert (fc.row_tiles, fc.column_tiles, fc.crossbars) == (2, 1, 2)


def test_ops_that_read_one_weight_share_its_crossbars():
    text = """// imc 1
module @twice phase("optimized") {
  resource @w.codes : tensor<4x4xq<s8, axis=0>>
  func @inference(%x: tensor<Bx4xq<u8>>) -> (tensor<Bx4xf32>, tensor<Bx4xf32>) {
    %w = core.constant {value = @w.codes} : tensor<4x4xq<s8, axis=0>>
    %s = core.constant {value = @s} : tensor<f32>
    %a = quant.linear %x, %w : tensor<Bx4xi32>
    %b = quant.linear %x, %w : tensor<Bx4xi32>
    %y = quant.rescale %a, %s {axis = -1} : tensor<Bx4xf32>
    %z = quant.rescale %b, %s {axis = -1} : tensor<Bx4xf32>
    core.return %y, %z
  }
  resource @s : tensor<f32>
}
"""
    module, target = compiled(text=text)
    assert list(module.states) == ["w.cells"]
    first, second = ops(module, Mvm)
    assert first.matrix is second.matrix
    assert first.stream != second.stream
    record = BACKEND.cost(module, "inference", target)
    assert record.resources["crossbars"] == 1
    # Reads of one matrix come one after the other.
    assert second.annotations["xbar.start_ns"] >= first.annotations["xbar.end_ns"]


def test_float_products_are_refused_with_help():
    text = """// imc 1
module @float phase("captured") {
  resource @w : tensor<4x4xf32>
  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx4xf32> {
    %w = core.constant {value = @w} : tensor<4x4xf32>
    %y = nn.linear %x, %w : tensor<Bx4xf32>
    core.return %y
  }
}
"""
    with pytest.raises(DiagnosticError) as caught:
        compiled(text=text)
    (item,) = caught.value.diagnostics
    assert item.code.id == "IMC503"
    assert "integer codes" in item.reason
    assert "quantize-weights" in item.help


@pytest.mark.parametrize(
    ("overrides", "kind", "reason"),
    [
        ((), "tensor<1x4xq<u8>>, %batched: tensor<Bx4xf32>", "batch B as its first axis"),
        (
            ("array.columns=4", "adc.columns_per_adc=2"),
            "tensor<Bx4xq<u8>>",
            "takes 8 columns, an array has 4",
        ),
    ],
)
def test_products_that_do_not_map_are_refused(overrides, kind, reason):
    lead = "1" if "1x4" in kind else "B"
    text = f"""// imc 1
module @bad phase("optimized") {{
  resource @w.codes : tensor<4x4xq<s8, axis=0>>
  func @inference(%x: {kind}) -> tensor<{lead}x4xi32> {{
    %w = core.constant {{value = @w.codes}} : tensor<4x4xq<s8, axis=0>>
    %y = quant.linear %x, %w : tensor<{lead}x4xi32>
    core.return %y
  }}
}}
"""
    with pytest.raises(DiagnosticError) as caught:
        compiled(*overrides, text=text)
    assert reason in caught.value.diagnostics[0].reason


def test_each_matrix_has_tiles_of_its_own_unless_shared():
    sizes = ("hierarchy.crossbars_per_pe=2", "hierarchy.pes_per_tile=2")
    module, target = compiled(*sizes)
    places = [op.annotations for op in ops(module, Mvm)]
    assert [item["xbar.first_tile"] for item in places] == [0, 1, 5]
    assert [item["xbar.tiles"] for item in places] == [1, 4, 1]
    assert [item["xbar.first_crossbar"] for item in places] == [0, 4, 20]
    record = BACKEND.cost(module, "inference", target)
    assert record.resources == {"crossbars": 19, "pes": 10, "tiles": 6, "adcs": 19 * 16}
    module, target = compiled(*sizes, "hierarchy.share_tiles=true")
    places = [op.annotations for op in ops(module, Mvm)]
    assert [item["xbar.first_crossbar"] for item in places] == [0, 1, 17]
    record = BACKEND.cost(module, "inference", target)
    assert record.resources["tiles"] == 5
    assert record.resources["pes"] == 10
    programs = [op.annotations["xbar.first_crossbar"] for op in ops(module, Program, "deploy")]
    assert programs == [0, 1, 17]


def test_chip_that_is_too_small_says_what_is_missing():
    with pytest.raises(DiagnosticError) as caught:
        compiled("hierarchy.tiles_per_chip=2")
    (item,) = caught.value.diagnostics
    assert item.code.id == "IMC504"
    assert "needs 3 tiles, the chip has 2: 1 are missing" in item.message
    assert "share_tiles = true, which takes 1," in item.help
    module, target = compiled("hierarchy.tiles_per_chip=1", "hierarchy.share_tiles=true")
    assert BACKEND.cost(module, "inference", target).resources["tiles"] == 1
    small = ["hierarchy.crossbars_per_pe=1", "hierarchy.pes_per_tile=1"]
    with pytest.raises(DiagnosticError) as caught:
        compiled("hierarchy.tiles_per_chip=2", "hierarchy.share_tiles=true", *small)
    assert "share_tiles" not in caught.value.diagnostics[0].help


def test_ops_run_one_after_another():
    module, target = compiled()
    now = 0.0
    for op in module.function().ops:
        if not op.terminator:
            assert op.annotations["xbar.start_ns"] == now
            now = op.annotations["xbar.end_ns"]
    record = BACKEND.cost(module, "inference", target)
    assert record.latency_ns == now
    assert sum(layer.busy_ns for layer in record.layers) == pytest.approx(now)
    conv = ops(module, Mvm)[0].annotations
    # 36 positions, 8 input bits, 8 columns at each converter, 10 ns read and 1 ns conversion.
    assert conv["xbar.end_ns"] - conv["xbar.start_ns"] == 36 * 8 * 8 * 11


def test_events_of_a_product_are_counted_by_hand():
    module, target = compiled()
    record = BACKEND.cost(module, "inference", target)
    events = {layer.name: layer.events for layer in record.layers}["fc"]
    assert events["adc.convert"] == 8 * 2 * 80
    assert events["cell_read.read"] == 8 * 256 * 80 * 0.5
    assert events["row_driver.drive"] == 8 * 256 * 0.5
    # 256 codes; the quantiser reads 256 floats and a scale, the rescale 10 floats and a scale.
    assert events["buffer_read.word"] == 256 * 8 // 64 + (256 * 32 // 64 + 1) + (10 * 32 // 64 + 1)
    deploy = BACKEND.cost(module, "deploy", target)
    cells = 27 * 128 + 16 * 9 * 8 + 256 * 80
    assert deploy.components["cell_write"]["events"] == {"cell_write.pulse": cells}
    assert deploy.components["cell_write"]["energy_pj"] == pytest.approx(cells * 0.61)


def test_energy_adds_up_over_components_and_layers():
    module, target = compiled()
    record = BACKEND.cost(module, "inference", target)
    total = record.energy_pj - record.leakage_pj
    by_component = sum(item["energy_pj"] for item in record.components.values())
    assert by_component == pytest.approx(total)
    assert sum(layer.energy_pj for layer in record.layers) == pytest.approx(total)
    for layer in record.layers:
        assert sum(layer.energy_by_component_pj.values()) == pytest.approx(layer.energy_pj)
    areas = [item["area_um2"] for item in record.components.values()]
    assert sum(area for area in areas if area is not None) == pytest.approx(record.area_um2)
    for name, item in record.components.items():
        assert item["figures"]["energy"]["source"], name


def test_changed_figures_move_the_totals_by_their_share():
    module, target = compiled()
    plain = BACKEND.cost(module, "inference", target)
    table = "{ 8 = 2.74 }"
    doubled = find_target("rram", [f"components.adc.energy_pj_by_bits={table}"])
    changed = BACKEND.cost(module, "inference", doubled)
    share = plain.components["adc"]["energy_pj"]
    assert changed.energy_pj - plain.energy_pj == pytest.approx(share)
    leaky = find_target("rram", ["components.adc.leakage_uw=2.0"])
    changed = BACKEND.cost(module, "inference", leaky)
    adcs = 3 * 64 * 16
    more = changed.leakage_pj - plain.leakage_pj
    assert more == pytest.approx(adcs * 2.0 * plain.latency_ns * 1e-3)
    assert changed.energy_pj - plain.energy_pj == pytest.approx(more)


def test_unknown_figures_are_named_and_not_counted():
    module, target = compiled("adc.bits=12")
    record = BACKEND.cost(module, "inference", target)
    assert record.unknown == ("energy of component adc",)
    assert record.components["adc"]["energy_pj"] is None
    assert "shift_add" in record.provenance["area_unknown"]
    assert "adc" in record.provenance["leakage_unknown"]


def test_every_legal_op_has_a_cost_rule():
    from imcc.ir.rules import COST, LEGAL

    BACKEND.load_rules()
    mapped = {"quant.linear", "quant.conv", "nn.linear", "nn.conv", "nn.attention"}
    mapped |= {f"learn.{name}_input_gradient" for name in ("linear", "conv")}
    mapped |= {"learn.transposed_product"}
    for name in LEGAL.ops("crossbar"):
        assert name in mapped or COST.find(name, "crossbar") is not None, name


def test_cost_needs_a_scheduled_module():
    module, target = compiled(passes="map-crossbars")
    with pytest.raises(DiagnosticError) as caught:
        BACKEND.cost(module, "inference", target)
    assert "scheduled" in caught.value.diagnostics[0].message


def test_placed_phase_asks_for_places():
    module, _ = compiled(passes="map-crossbars")
    module.phase = "placed"
    with pytest.raises(DiagnosticError) as caught:
        verify(module)
    assert "lacks xbar.first_crossbar" in str(caught.value)


def test_calibration_sets_every_step():
    generator = torch.Generator().manual_seed(0)
    store = ResourceStore()
    for name, shape in (("c", (16, 3, 3, 3)), ("d", (16, 1, 3, 3)), ("f", (10, 256))):
        weight = torch.randint(-127, 128, shape, generator=generator)
        store.put(f"{name}.codes", weight, QuantType(8, True, 0))
    store.put("s", torch.tensor(0.02))
    store.put("z", torch.tensor(100, dtype=torch.int32))
    module, target = parse_module(TEXT), find_target("rram", ["adc.bits=4"])
    data = [(torch.randn(2, 3, 8, 8, generator=generator),)]
    context = PassContext(store, target, BACKEND, data)
    run_pipeline(module, parse_pipeline("map-crossbars"), context)
    before = [op.adc_step for op in ops(module, Mvm)]
    run_pipeline(module, parse_pipeline("calibrate-adc"), context)
    after = [op.adc_step for op in ops(module, Mvm)]
    assert all(1.0 <= late <= early for late, early in zip(after, before, strict=True))
    assert after != before


def test_reference_backend_has_no_cost():
    target = find_target("reference")
    record = find_backend("reference").cost(parse_module(TEXT), "inference", target)
    assert record.layers and all(layer.energy_pj is None for layer in record.layers)
    assert len(record.unknown) == 16
