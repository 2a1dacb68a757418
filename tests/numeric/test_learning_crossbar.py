"""Adapting on crossbars: integers against the neutral meaning, cells under updates, noise."""

import pytest
import torch

from imcc.backends.api import find_backend
from imcc.backends.crossbar.adaptation import saturated
from imcc.backends.crossbar.dialect import MatrixType, Mvm, Program
from imcc.backends.crossbar.learning_ops import ReadCodes, TransposedMvm, Update
from imcc.backends.crossbar.simulate import Matrix
from imcc.backends.targets import find_target
from imcc.ir import parse_module, print_module, structural_difference, verify
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.ops import Op
from imcc.ir.rules import EVAL
from imcc.ir.semantics.draws import Draws
from imcc.ir.semantics.interpreter import EvalContext, evaluate_function
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.types import QuantType, TensorType
from imcc.passes.infrastructure import PassContext, begin, parse_pipeline, run_pipeline

QUIET = (
    "adc.bits=12",
    "device.write_noise.sigma_fraction=0.0",
    "device.read_noise.sigma_fraction=0.0",
)
CROSSBAR = find_backend("crossbar")
CROSSBAR.load_rules()


def network():
    """Two 1-d convolutions and a linear layer with a bias, spiking, T = 6."""
    lif = '{leak = 0.75, threshold = 0.5, surrogate = "triangle"}'
    text = f"""// imc 1
module @spiking phase("captured") {{
  resource @one.weight : tensor<8x3x3xf32>
  resource @mid.weight : tensor<6x8x3xf32>
  resource @two.weight : tensor<3x24xf32>
  resource @two.bias : tensor<3xf32>
  func @inference(%x: tensor<6xBx3x8xf32>) -> tensor<Bx3xf32> {{
    %w = core.constant {{value = @one.weight}} : tensor<8x3x3xf32>
    %u = nn.conv %x, %w {{stride = [1], padding = [1], dilation = [1], scope = "one"}}
      : tensor<6xBx8x8xf32>
    %s, %v = snn.lif %u {lif} : spikes<6xBx8x8>, tensor<6xBx8x8xf32>
    %m = core.constant {{value = @mid.weight}} : tensor<6x8x3xf32>
    %c = nn.conv %s, %m {{stride = [2], padding = [1], dilation = [1], scope = "mid"}}
      : tensor<6xBx6x4xf32>
    %d, %e = snn.lif %c {lif} : spikes<6xBx6x4>, tensor<6xBx6x4xf32>
    %f = core.reshape %d {{shape = [6, B, 24]}} : spikes<6xBx24>
    %q = core.constant {{value = @two.weight}} : tensor<3x24xf32>
    %b = core.constant {{value = @two.bias}} : tensor<3xf32>
    %z = nn.linear %f, %q, bias=%b {{scope = "two"}} : tensor<6xBx3xf32>
    %t, %p = snn.lif %z {lif} : spikes<6xBx3>, tensor<6xBx3xf32>
    %y = nn.mean %t {{axes = [-3]}} : tensor<Bx3xf32>
    core.return %y
  }}
}}
"""
    module, store = parse_module(text), ResourceStore()
    generator = torch.Generator().manual_seed(0)
    for item in module.resources.values():
        held = torch.randn(tuple(item.type.shape), generator=generator)
        store.put(item.name, held * (2 / held[0].numel()) ** 0.5 if held.dim() > 1 else held * 0.1)
    return module, store


X = torch.randn(6, 4, 3, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 1])


def compiled(options, overrides=(), upto=None):
    module, store = network()
    target = find_target("rram", overrides)
    context = PassContext(
        resources=store,
        target=target,
        backend=CROSSBAR,
        calibration=[(X,)],
        legality=CROSSBAR.legal,
    )
    begin(module, context)
    passes = parse_pipeline(
        f'insert-feedback{{learning_rate=0.5 loss="squared" {options}}}, '
        + CROSSBAR.pipeline(target)
    )
    names = [item.name for item in passes]
    run_pipeline(module, passes[: None if upto is None else names.index(upto)], context)
    verify(module)
    return module, store, target


def run(module, store, target, name, inputs, states=None, draws=None):
    return evaluate_function(
        module.function(name),
        inputs,
        resources=store,
        states=states,
        backend="crossbar",
        target=target,
        draws=draws,
    )


@pytest.mark.parametrize("options", ['rule="dfa"', 'rule="dfa-shared"', 'rule="bp"'])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("learning.transposed=copy", "dac.bits=2"),
        ("array.encoding=offset", "array.kernel_mapping=per_position"),
        ("array.encoding=bias_column", "array.rows=16", "array.columns=32"),
        ("array.encoding=sign_arrays", "adc.converts=pair", "array.columns=20"),
    ],
)
def test_ideal_hardware_adapts_as_the_neutral_program(options, overrides):
    """Three steps: same outputs and same weights as the quantised program gives."""
    before, store, target = compiled(options, overrides, upto="map-crossbars")
    mapped, held, _ = compiled(options, (*QUIET, *overrides))
    target = find_target("rram", (*QUIET, *overrides))
    wanted = {}
    states = run(mapped, held, target, "deploy", ()).states
    for _ in range(3):
        neutral = evaluate_function(
            before.function("adapt"), (X, LABELS), resources=store, states=wanted
        )
        made = run(mapped, held, target, "adapt", (X, LABELS), states)
        wanted, states = neutral.states, made.states
        assert torch.equal(made.outputs[0], neutral.outputs[0])
    for name in ("one.weight", "mid.weight", "two.weight", "two.bias"):
        assert torch.allclose(states[name], wanted[name], atol=1e-6), name
        assert not torch.equal(states[name], store.get(name))


def test_the_mapped_program_round_trips_and_both_entry_points_are_costed():
    module, _, target = compiled('rule="dfa"')
    assert structural_difference(module, parse_module(print_module(module))) is None
    adapt = CROSSBAR.cost(module, "adapt", target)
    inference = CROSSBAR.cost(module, "inference", target)
    assert adapt.unknown == inference.unknown == ()
    assert adapt.energy_pj > inference.energy_pj and adapt.latency_ns > inference.latency_ns
    assert adapt.components["cell_write"]["events"]["cell_write.pulse"] > 0


def test_feedback_is_read_once_where_it_is_shared():
    module, _, _ = compiled('rule="dfa-shared"')
    programs = [op for op in module.function("deploy").ops if isinstance(op, Program)]
    assert len(programs) == 4
    module, _, _ = compiled('rule="bp"', ("learning.transposed=copy",))
    programs = [op for op in module.function("deploy").ops if isinstance(op, Program)]
    assert len(programs) == 5
    assert not any(isinstance(op, TransposedMvm) for op in module.walk())
    assert sum(isinstance(op, Update) for op in module.walk()) == 5


def test_adapting_under_noise_gives_new_states_and_repeats():
    module, store, target = compiled('rule="dfa"')

    def twice(seed):
        states = run(module, store, target, "deploy", (), draws=Draws(seed)).states
        for number in range(2):
            samples = tuple(range(4 * number, 4 * number + 4))
            draws = Draws(seed, (0,), samples)
            states = run(module, store, target, "adapt", (X, LABELS), states, draws).states
        return states

    first, again, other = twice(0), twice(0), twice(1)
    for name in ("one.weight.cells", "two.weight.cells"):
        assert torch.equal(first[name].cells.levels, again[name].cells.levels)
        assert not torch.equal(first[name].cells.levels, other[name].cells.levels)
    start = run(module, store, target, "deploy", (), draws=Draws(0)).states
    moved = first["mid.weight.cells"].cells.levels != start["mid.weight.cells"].cells.levels
    assert 0 < float(moved.float().mean()) < 0.5, "cells whose level stays are not written"
    fixed = "two.feedback.cells"
    assert torch.equal(first[fixed].cells.levels, start[fixed].cells.levels)
    draws = Draws(0, (0,), (100, 101, 102, 103))
    before = run(module, store, target, "inference", (X,), start, draws).outputs[0]
    after = run(module, store, target, "inference", (X,), first, draws).outputs[0]
    assert not torch.equal(before, after)


def test_trials_do_not_adapt_together():
    module, store, target = compiled('rule="dfa"')
    draws = Draws(0, (0, 1), (0, 1))
    states = run(module, store, target, "deploy", (), draws=draws).states
    with pytest.raises(DiagnosticError, match="one trial at a time"):
        evaluate_function(
            module.function("adapt"),
            (X, LABELS),
            resources=store,
            states=states,
            backend="crossbar",
            target=target,
            draws=draws,
            trials=2,
        )


def test_frozen_layers_keep_their_place_and_pass_errors_back():
    module, store, target = compiled(
        'rule="bp" layers=["one.*", "two.*"]', (*QUIET, "learning.transposed=array")
    )
    assert "mid.weight" not in module.states
    states = run(module, store, target, "deploy", ()).states
    made = run(module, store, target, "adapt", (X, LABELS), states).states
    assert torch.equal(made["mid.weight.cells"].codes, states["mid.weight.cells"].codes)
    assert not torch.equal(made["one.weight"], store.get("one.weight"))
    module, _, _ = compiled('rule="dfa" layers=["two.*"]')
    assert not any("feedback" in name for name in module.states)


# -- cells ---------------------------------------------------------------------------------------


def matrix(codes, draws=None, overrides=(), bits=8, **fields):
    """A programmed matrix, and a function that runs one of the ops on it."""
    target = find_target("rram", overrides)
    array = target.keys.array
    module = parse_module('// imc 1\nmodule @m phase("mapped") {\n}\n')
    from imcc.ir.dialects.core import Return
    from imcc.ir.module import Function, FunctionResult, State

    function = module.add_function(Function("inference"))
    kind = TensorType(tuple(codes.shape), QuantType(bits, True, 0))
    value = function.add_argument(kind, "c")
    program = Program(
        codes=value,
        cell_bits=array.cell_bits,
        encoding=array.encoding,
        array_rows=array.rows,
        array_columns=array.columns,
        stream="w",
    )
    function.append(program)
    new = function.add_argument(kind, "n")
    update = Update(held=program.matrix, codes=new, stream="w.update", **fields)
    function.append(update)
    function.append(Return(values=(update.matrix,)))
    module.add_state(State("w", program.matrix.type))
    function.results = [FunctionResult(program.matrix.type, "w")]
    context = EvalContext({}, ResourceStore(), "crossbar", target, draws)
    # The state ties the update to the program, as @deploy and @adapt do.
    made = EVAL.find("xbar.program", "crossbar")(program, context, codes=codes)
    if draws is not None and made.cells is not None and made.cells.conductances is None:
        from imcc.backends.crossbar.cells import program as write

        made.cells = write(made.kind, made.ideal, target, draws, "w", keep=True)
    return made, update, context


def updated(op, context, held, codes):
    return EVAL.find("xbar.update", "crossbar")(op, context, held=held, codes=codes)


CODES = torch.tensor([[5.0, -7.0, 100.0], [0.0, 1.0, -127.0]])


def test_only_cells_that_change_are_written_and_wear():
    held, op, context = matrix(CODES, Draws(0))
    new = CODES.clone()
    new[0, 0] = 6.0
    made = updated(op, context, held, new)
    differs = made.cells.levels != held.cells.levels
    assert int(differs.sum()) == 1 and int(made.wear.sum()) == 1
    same = updated(op, context, made, new)
    assert torch.equal(same.cells.levels, made.cells.levels) and int(same.wear.sum()) == 1


def test_each_write_draws_its_own_noise():
    held, op, context = matrix(CODES, Draws(0))
    new = CODES.clone()
    new[0, 0] = 6.0
    first = updated(op, context, held, new)
    back = updated(op, context, first, CODES)
    again = updated(op, context, back, new)
    assert not torch.equal(first.cells.levels, again.cells.levels)
    assert torch.equal(again.codes, first.codes)


def test_the_error_of_a_write_is_that_of_programming():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (64, 64), generator=generator).float()
    new = torch.randint(-127, 128, (64, 64), generator=generator).float()
    held, op, context = matrix(codes, Draws(0), ("device.read_noise.model=none",))
    made = updated(op, context, held, new)
    written = made.ideal != held.ideal
    error = (made.cells.levels[0] - made.ideal)[written]
    wanted = 0.02 * 3
    assert float(error.mean().abs()) < 3 * wanted / written.sum().sqrt()
    assert float(error.std()) == pytest.approx(wanted, rel=0.03)


def test_pulses_add_their_errors_up_and_stay_in_range():
    codes = torch.zeros(64, 64)
    held, op, context = matrix(codes, Draws(0), write="pulses")
    made = updated(op, context, held, torch.full((64, 64), 3.0))
    moved = made.ideal != 0
    error = (made.cells.levels[0] - made.ideal)[moved]
    assert float(made.cells.conductances.min()) >= 0.0
    assert float(made.cells.conductances[0][moved].max()) <= 1.0
    assert int(made.wear[moved].unique()) == 3
    single = updated(op, context, held, torch.full((64, 64), 1.0))
    once = (single.cells.levels[0] - single.ideal)[single.ideal != 0]
    # From 0, one pulse to level 1 adds its error to that of programming; three add more.
    assert float(once.std()) == pytest.approx(0.06 * 2**0.5, rel=0.1)
    assert float(error.mean()) < 0, "the top of the range clips"


def test_a_worn_cell_stays_as_it_is():
    held, op, context = matrix(CODES, None, ("device.endurance_cycles=2",))
    other = CODES.clone()
    other[0, 0] = 6.0
    for codes in (other, CODES, other):
        held = updated(op, context, held, codes)
    assert int(held.wear.max()) == 2
    # The third write failed: the cell still holds what the second wrote.
    found = EVAL.find("xbar.read_codes", "crossbar")(
        ReadCodes(held=op.matrix, shape=(2, 3), axis=0), context, held=held
    )
    assert torch.equal(found, CODES)
    wear = CROSSBAR.wear(held, context.target)
    assert wear.worn > 0 and wear.most == 2 and wear.cells == 48 and held.updates == 3


@pytest.mark.parametrize("encoding", ["differential", "offset", "bias_column", "sign_arrays"])
def test_codes_are_read_back(encoding):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (9, 150), generator=generator).float()
    overrides = (f"array.encoding={encoding}",)
    for draws in (None, Draws(0)):
        held, op, context = matrix(codes, draws, overrides)
        read = ReadCodes(held=op.matrix, shape=(9, 150), axis=0)
        found = EVAL.find("xbar.read_codes", "crossbar")(read, context, held=held)
        assert torch.equal(found, codes), "a deviation of 2 % reads as the level that was meant"


def test_a_matrix_is_kept_and_comes_back():
    held, op, context = matrix(CODES, Draws(0))
    other = updated(op, context, held, CODES.flip(0))
    parts = CROSSBAR.state_tensors(other)
    assert all(isinstance(item, torch.Tensor) for item in parts.values())
    back = CROSSBAR.restore_state(other.kind, parts, context.target)
    with pytest.raises(ValueError, match="range"):
        CROSSBAR.restore_state(other.kind, {**parts, "codes": parts["codes"] * 9}, context.target)
    assert isinstance(back, Matrix) and isinstance(back.kind, MatrixType)
    after = [updated(op, context, item, CODES) for item in (other, back)]
    assert torch.equal(after[0].cells.levels, after[1].cells.levels)
    assert torch.equal(after[0].wear, after[1].wear) and after[1].updates == 2


def test_saturated_codes_stay_at_the_end_of_their_range():
    module, store, target = compiled('rule="bp" layers=["two.weight"]', QUIET)
    states = run(module, store, target, "deploy", ()).states
    states["two.weight"] = store.get("two.weight") * 100
    made = run(module, store, target, "adapt", (X, LABELS), states).states["two.weight.cells"]
    assert float(made.codes.abs().max()) == 255
    assert saturated(made) > 0.5


def test_weights_in_cells_alone_round_at_random_without_a_bias():
    module, store, target = compiled('rule="bp" layers=["two.weight"]', ("learning.weights=cells",))
    assert "two.weight" not in module.states
    totals = []
    for seed in range(8):
        states = run(module, store, target, "deploy", (), draws=Draws(seed)).states
        draws = Draws(seed, (0,), (0, 1, 2, 3))
        made = run(module, store, target, "adapt", (X, LABELS), states, draws).states
        totals.append(made["two.weight.cells"].codes - states["two.weight.cells"].codes)
    assert len({float(item.sum()) for item in totals}) > 1
    digital, other, quiet = compiled('rule="bp" layers=["two.weight"]', QUIET)
    states = run(digital, other, quiet, "deploy", ()).states
    exact = run(digital, other, quiet, "adapt", (X, LABELS), states).states["two.weight"]
    scale = other.get("two.weight.scale")[:, None]
    wanted = (exact - other.get("two.weight")) / scale
    mean = torch.stack(totals).mean(0)[0]
    assert float((mean * wanted).sum()) > 0.5 * float((wanted**2).sum())


# -- schedule and hardware -----------------------------------------------------------------------


def times(module, *kinds):
    return [
        (op, *CROSSBAR.op_times(op))
        for op in module.function("adapt").ops
        if isinstance(op, kinds) and not op.terminator
    ]


def test_layers_work_side_by_side_by_direct_feedback_and_in_turn_by_back_propagation():
    direct, _, _ = compiled('rule="dfa"')
    reads = [item for item in times(direct, Mvm) if ".feedback." in item[0].matrix.name]
    assert len(reads) == 2 and reads[0][1] == reads[1][1], "both start from the output error"
    back, _, _ = compiled('rule="bp"')
    (_, _, first), (_, second, _) = times(back, TransposedMvm)
    assert second >= first
    in_turn, _, _ = compiled('rule="dfa"', ("learning.schedule=sequential",))
    assert max(item[2] for item in times(direct, Op)) < max(item[2] for item in times(in_turn, Op))


@pytest.mark.parametrize("options", ['rule="dfa"', 'rule="bp"'])
def test_a_write_waits_for_the_reads_and_operands_for_their_makers(options):
    module, _, target = compiled(options)
    for op in module.function("adapt").ops:
        if op.terminator:
            continue
        start, end = CROSSBAR.op_times(op)
        assert end - start == pytest.approx(CROSSBAR.op_cost(op, target).busy_ns)
        for value in op.operands:
            if value.owner is not None:
                assert start >= CROSSBAR.op_times(value.owner)[1] - 1e-6
        if isinstance(op, Update):
            for user in op.held.users:
                assert user is op or start >= CROSSBAR.op_times(user)[1] - 1e-6


def test_hardware_of_learning_is_counted_where_it_is_needed():
    costs = {}
    for name, options, overrides in (
        ("dfa", 'rule="dfa"', ()),
        ("array", 'rule="bp"', ()),
        ("shared", 'rule="bp"', ("learning.shared_converters=true",)),
        ("copy", 'rule="bp"', ("learning.transposed=copy",)),
        ("chip", 'rule="dfa"', ("learning.units=chip",)),
    ):
        module, _, target = compiled(options, overrides)
        costs[name] = CROSSBAR.cost(module, "adapt", target)
    added = {name: item.provenance["learning"]["added_instances"] for name, item in costs.items()}
    # Two matrices of one crossbar each are read from their columns: 16 converters for 128 rows.
    assert added["array"]["adc"] == 2 * 16 and "adc" not in added["shared"]
    assert "adc" not in added["dfa"] and "adc" not in added["copy"]
    assert added["dfa"]["alu_add"] == 3 * 64 and added["chip"] == {}
    # The weights that copies hold, and feedback matrices, take crossbars of their own.
    assert costs["copy"].resources["crossbars"] > costs["array"].resources["crossbars"]
    assert costs["array"].resources["crossbars"] == 3
    update = costs["dfa"].provenance["learning"]["update"]
    assert 0 < update["energy_pj"] < costs["dfa"].energy_pj and update["latency_ns"] > 0
    assert costs["dfa"].provenance["learning"]["peak_buffer_bytes"] > 0


def test_writes_follow_the_assumed_share_of_cells():
    pulses = []
    for density in (1.0, 0.25):
        module, _, target = compiled('rule="dfa"', (f"learning.update_density={density}",))
        record = CROSSBAR.cost(module, "adapt", target)
        pulses.append(record.components["cell_write"]["events"]["cell_write.pulse"])
    assert pulses[1] == pytest.approx(pulses[0] / 4)
