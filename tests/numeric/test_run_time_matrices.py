"""Matrices written at run time: integer meaning, write noise against theory, keys of the draws."""

import math
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import imcc
from imcc.backends.api import find_backend
from imcc.backends.crossbar.written_rows import RowsReader
from imcc.backends.targets import find_target, load_target
from imcc.ir import parse_module
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.registry import load_semantics
from imcc.ir.rewriting import Rewriter
from imcc.ir.rules import EVAL
from imcc.ir.semantics.draws import Draws
from imcc.ir.semantics.interpreter import EvalContext, evaluate_function
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline

GOLDENS = Path(__file__).parents[1] / "golden"
ON = ("dynamic.matrices=crossbar", "adc.bits=12")
QUIET = (*ON, "device.write_noise.sigma_fraction=0.0", "device.read_noise.sigma_fraction=0.0")


def shape_text(shape):
    return "x".join(map(str, shape))


def mapped(a, b, y, target, *, a_code="s8", b_code="s8", zeros=()):
    """A product of two activations, lowered; ``zeros`` are the operands with a zero point."""
    kinds = {"a": a_code, "b": b_code}
    types = {
        name: f"tensor<{shape_text(shape)}xq<{kinds[name]}"
        + (", asymmetric>>" if name in zeros else ">>")
        for name, shape in (("a", a), ("b", b))
    }
    text = f"""// imc 1
module @m phase("optimized") sizes(S=5) {{
  {"".join(f"resource @{n} : tensor<i32>" + chr(10) for n in zeros)}
  func @inference(%a: {types["a"]}, %b: {types["b"]}) -> tensor<{shape_text(y)}xi32> {{
    {"".join(f"%z{n} = core.constant {{value = @{n}}} : tensor<i32>" + chr(10) for n in zeros)}
    %y = quant.matmul %a, %b{"".join(f", {n}_zero_point=%z{n}" for n in zeros)} {{scope = "attn"}}
      : tensor<{shape_text(y)}xi32>
    core.return %y
  }}
}}
"""
    return parse_module(text), target


def lower(module, target):
    # The result of a read is a float: the product alone, without what would rescale it.
    backend = find_backend("crossbar")
    backend.load_rules()
    neutral = module.clone()
    op = next(op for op in module.walk() if op.name == "quant.matmul")
    from imcc.backends.crossbar.lowering import Mapping
    from imcc.ir.module import Function, FunctionResult
    from imcc.ir.rules import LOWER

    assert backend.legal(op, target) is None
    rewriter = Rewriter(module)
    deploy = rewriter.add_function(Function("deploy"))
    LOWER.find("quant.matmul", "crossbar")(op, rewriter, Mapping(target, deploy))
    inference = module.function()
    last = inference.terminator
    rewriter.set_results(inference, [FunctionResult(v.type, None) for v in last.operands])
    return neutral, module


CASES = {
    "heads": (("B", 2, 5, 7), ("B", 2, 7, 9), ("B", 2, 5, 9)),
    "grouped heads": (("B", 2, 3, 5, 7), ("B", 2, 1, 7, 9), ("B", 2, 3, 5, 9)),
    "batch times heads": (("2*B", 5, 7), ("2*B", 7, 9), ("2*B", 5, 9)),
    "time first": ((3, "B", 2, 5, 7), (3, "B", 2, 7, 9), (3, "B", 2, 5, 9)),
    "sequence": (("B", 2, "S", 7), ("B", 2, 7, "S"), ("B", 2, "S", "S")),
    "deep": (("B", 1, 2, 300), ("B", 1, 300, 40), ("B", 1, 2, 40)),
    "shared by all heads": (("B", 3, 5, 7), ("B", 1, 7, 9), ("B", 3, 5, 9)),
}


def sample(shape, code, batch, generator):
    sizes = [{"B": batch, "2*B": 2 * batch, "S": 5}.get(size, size) for size in shape]
    bits = int(code[1:])
    top = 2 ** (bits - 1) if code[0] == "s" else 2**bits
    low = 1 - top if code[0] == "s" else 0
    return torch.randint(low, top, sizes, generator=generator).float()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("array.encoding=offset",),
        ("array.encoding=bias_column", "array.cell_bits=1"),
        ("array.encoding=sign_arrays",),
        ("adc.converts=pair",),
        ("dac.bits=2", "adc.bits=14"),
        ("dynamic.array.rows=16", "dynamic.array.columns=20", "dynamic.array.encoding=offset"),
    ],
)
def test_reads_are_the_integer_product(case, settings):
    target = find_target("rram", (*QUIET, *settings))
    neutral, module = lower(*mapped(*CASES[case], target))
    generator = torch.Generator().manual_seed(1)
    a, b = (sample(shape, "s8", 3, generator) for shape in CASES[case][:2])
    wanted = a.double() @ b.double()
    held = evaluate_function(neutral.function(), (a, b), resources=ResourceStore()).outputs[0]
    assert torch.equal(held.double(), wanted)
    read = next(op for op in module.walk() if op.name == "xbar.matmul")
    # A step of half a level loses nothing, but takes the simulated read instead of the product.
    for step in (1.0, 0.5):
        Rewriter(module).set_attributes(read, adc_step=step, adc_bits=16)
        for draws in (None, Draws(0, (0,), (0, 1, 2))):
            made = evaluate_function(
                module.function(),
                (a, b),
                resources=ResourceStore(),
                backend="crossbar",
                target=target,
                draws=draws,
            ).outputs[0]
            assert made.shape == wanted.shape
            assert torch.equal(made.double(), wanted)


@pytest.mark.parametrize("zeros", [("a",), ("b",), ("a", "b")])
@pytest.mark.parametrize("encoding", ["differential", "offset"])
@pytest.mark.parametrize("dac", [1, 2])
def test_zero_points_are_taken_off(zeros, encoding, dac):
    settings = (f"array.encoding={encoding}", f"dac.bits={dac}", "adc.bits=14")
    target = find_target("rram", (*QUIET, *settings))
    codes = {name: "u8" if name in zeros else "s8" for name in "ab"}
    _, module = lower(
        *mapped(*CASES["heads"], target, a_code=codes["a"], b_code=codes["b"], zeros=zeros)
    )
    generator = torch.Generator().manual_seed(2)
    a = sample(CASES["heads"][0], codes["a"], 2, generator)
    b = sample(CASES["heads"][1], codes["b"], 2, generator)
    store = ResourceStore()
    shifts = {"a": 0, "b": 0} | {name: 100 + index for index, name in enumerate(zeros)}
    for name in zeros:
        store.put(name, torch.tensor(shifts[name], dtype=torch.int32))
    wanted = (a.double() - shifts["a"]) @ (b.double() - shifts["b"])
    read = next(op for op in module.walk() if op.name == "xbar.matmul")
    for step in (1.0, 0.5):
        Rewriter(module).set_attributes(read, adc_step=step, adc_bits=16)
        made = evaluate_function(
            module.function(), (a, b), resources=store, backend="crossbar", target=target
        ).outputs[0]
        assert torch.equal(made.double(), wanted)


def written(target, codes, draws):
    """What ``xbar.write`` gives, and the layout of one row's matrices."""
    _, module = lower(*mapped(*CASES["heads"], target))
    op = next(op for op in module.walk() if op.name == "xbar.write")
    load_semantics("xbar")
    rule = EVAL.find("xbar.write", "crossbar")
    context = EvalContext({}, ResourceStore(), "crossbar", target, draws)
    held = rule(op, context, codes=codes)
    return held, held.kind.layout(2, 7, 9)


CLIPFORMER = (
    'dynamic.device.write_noise={model="clipformer_write", gamma=3.0, sigma_fraction=0.05}',
)


@pytest.mark.parametrize("bounded", ["", ", bounded=true"])
def test_cells_have_the_moments_of_the_write_noise(bounded):
    setting = CLIPFORMER[0].replace("}", bounded + "}")
    target = find_target("rram", (*QUIET, setting, "dynamic.device.on_off_ratio=100.0"))
    rows = 800
    codes = sample(CASES["heads"][1], "s8", 1, torch.Generator().manual_seed(3))
    held, layout = written(target, codes.expand(rows, 2, 7, 9), Draws(5, (0,), tuple(range(rows))))
    cells = torch.stack(
        [held.of_row(row, codes[0], layout).cells.levels[0] for row in range(rows)]
    ).double()
    ideal = held.of_row(0, codes[0], layout).ideal.double()
    low = 0.01
    step = (1 - low) / 3
    mean, variance = target.dynamic.write_noise.moments(low + ideal * step)
    # Levels are counted from the conductance meant; rows that hold nothing are level 0 as well.
    expected = ideal + (mean - (low + ideal * step)) / step
    for level in range(4):
        here = ideal == level
        count = rows * int(here.sum())
        spread = float(variance[here][0]) / step**2
        found = cells[:, here]
        assert abs(float((found - expected[here]).mean())) < 5 * math.sqrt(spread / count) + 1e-3
        assert float(found.var(0).mean()) == pytest.approx(spread, rel=0.06, abs=1e-5)


def test_products_have_the_variance_of_their_cells():
    """``var y[m, n] = sum_k sum_s 16^s sum_signs var(cell) (sum over digits of 4^d x_d)``."""
    target = find_target("rram", (*QUIET, *CLIPFORMER, "array.encoding=offset"))
    _, module = lower(*mapped(*CASES["heads"], target))
    read = next(op for op in module.walk() if op.name == "xbar.matmul")
    # Fine enough that rounding is small against the noise.
    Rewriter(module).set_attributes(read, adc_step=1 / 256, adc_bits=24)
    rows = 800
    generator = torch.Generator().manual_seed(4)
    a, b = (sample(shape, "s8", 1, generator) for shape in CASES["heads"][:2])
    made = evaluate_function(
        module.function(),
        (a.expand(rows, *a.shape[1:]), b.expand(rows, *b.shape[1:])),
        resources=ResourceStore(),
        backend="crossbar",
        target=target,
        draws=Draws(6, (0,), tuple(range(rows))),
    ).outputs[0]
    error = made.double() - a.double() @ b.double()
    digits = torch.stack([(b[0].long() + 128 >> (2 * s)) & 3 for s in range(4)]).double()
    low = 1 / target.keys.device.on_off_ratio
    step = (1 - low) / 3
    g = low + digits * step
    mean, variance = target.dynamic.write_noise.moments(g)
    weight = torch.tensor([4.0**s for s in range(4)]).double()[:, None, None, None]
    # The digits of an input count with their weights: what a cell is multiplied by is the input.
    per_cell = (weight**2 * variance / step**2).sum(0)
    bias = a[0].double() @ (weight * (mean - g) / step).sum(0)
    wanted = (a[0].double() ** 2) @ per_cell
    assert torch.allclose(error.var(0), wanted, rtol=0.3)
    assert float((error.var(0) / wanted).mean()) == pytest.approx(1, abs=0.03)
    assert torch.all((error.mean(0) - bias).abs() < 5 * (wanted / rows).sqrt() + 0.5)


def test_draws_do_not_depend_on_batches_chunks_and_trials():
    target = find_target("rram", (*ON, *CLIPFORMER))
    _, module = lower(*mapped(*CASES["heads"], target))
    generator = torch.Generator().manual_seed(7)
    a, b = (sample(shape, "s8", 4, generator) for shape in CASES["heads"][:2])

    def run(rows, trials, seed=1):
        return evaluate_function(
            module.function(),
            [torch.cat([x[list(rows)]] * len(trials)) for x in (a, b)],
            resources=ResourceStore(),
            backend="crossbar",
            target=target,
            draws=Draws(seed, trials, rows),
            trials=len(trials),
        ).outputs[0]

    whole = run((0, 1, 2, 3), (0, 1, 2))
    for trial in range(3):
        for row in range(4):
            assert torch.equal(run((row,), (trial,))[0], whole[trial * 4 + row])
    assert not torch.equal(whole[:4], whole[4:8])
    assert not torch.equal(run((0,), (0,), seed=2)[0], whole[0])


NOISY = (
    "dynamic.matrices=crossbar",
    'dynamic.device.write_noise={model="proportional_write", sigma_fraction=0.2}',
    'dynamic.device.read_noise={model="proportional_read", sigma_fraction=0.1}',
)


@pytest.mark.parametrize("case", ["heads", "grouped heads", "batch times heads", "deep"])
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("adc.converts=pair",),
        ("array.encoding=offset", "dac.bits=2"),
        ("dynamic.array.rows=4", "dynamic.array.columns=20", "dynamic.array.encoding=offset"),
        (
            'dynamic.device.read_noise={model="gaussian_read", sigma_fraction=0.05}',
            "array.encoding=offset",
            "array.dummy_column=true",
        ),
    ],
)
def test_rows_read_together_are_those_read_one_by_one(case, settings, monkeypatch):
    target = find_target("rram", (*NOISY, *settings))
    _, module = lower(*mapped(*CASES[case], target))
    generator = torch.Generator().manual_seed(1)
    a, b = (sample(shape, "s8", 6, generator) for shape in CASES[case][:2])

    def run():
        return evaluate_function(
            module.function(),
            (a, b),
            resources=ResourceStore(),
            backend="crossbar",
            target=target,
            draws=Draws(0, (0, 4), (2, 0, 5)),
            trials=2,
        ).outputs[0]

    together = run()
    monkeypatch.setattr(RowsReader, "serves", False)
    assert torch.equal(run(), together)
    assert not torch.equal(together[0], together[3])


@pytest.mark.parametrize("settings", [("array.encoding=offset",), ("adc.converts=pair",)])
def test_linear_reads_have_the_moments_of_converted_ones(settings):
    """Converters finer than the noise that clip nothing add nothing; draws of reads differ."""
    target = find_target("rram", (*NOISY, *settings))
    _, module = lower(*mapped(*CASES["heads"], target))
    read = next(op for op in module.walk() if op.name == "xbar.matmul")
    Rewriter(module).set_attributes(read, adc_step=1 / 256, adc_bits=24)
    rows = 600
    generator = torch.Generator().manual_seed(4)
    a, b = (sample(shape, "s8", 1, generator) for shape in CASES["heads"][:2])
    linear, converted = (
        evaluate_function(
            module.function(),
            (a.expand(rows, *a.shape[1:]), b.expand(rows, *b.shape[1:])),
            resources=ResourceStore(),
            backend="crossbar",
            target=target,
            draws=Draws(6, (0,), tuple(range(rows))),
            linear_reads=linear,
        )
        .outputs[0]
        .double()
        for linear in (True, False)
    )
    spread = converted.std(0)
    assert torch.all((linear.mean(0) - converted.mean(0)).abs() < 6 * spread / rows**0.5)
    assert float((linear.std(0) / spread).mean()) == pytest.approx(1, abs=0.02)
    # Both have the same written cells.
    same = torch.corrcoef(torch.stack([(x - x.mean(0)).flatten() for x in (linear, converted)]))
    assert 0.3 < float(same[0, 1]) < 0.999


def test_a_device_keeps_its_deviation_from_write_to_write():
    variation = 'device.variation={model="gaussian_variation", sigma_fraction=0.2}'
    target = find_target("rram", (*QUIET, variation))
    codes = sample(CASES["heads"][1], "s8", 1, torch.Generator().manual_seed(8))
    held, layout = written(target, codes.expand(4, 2, 7, 9), Draws(1, (0, 1), (0, 1)))
    cells = [held.of_row(row, codes[0], layout).cells.levels for row in range(4)]
    assert torch.equal(cells[0], cells[1])
    assert torch.equal(cells[2], cells[3])
    assert not torch.equal(cells[0], cells[2])


def test_a_second_device_holds_run_time_matrices():
    sram = (
        "dynamic.array.cell_bits=1",
        "dynamic.array.encoding=offset",
        "dynamic.device.levels=2",
        'dynamic.device.write_noise={model="none"}',
        'dynamic.device.read_noise={model="none"}',
    )
    noisy = find_target("rram", ON)
    hybrid = find_target("rram", (*ON, *sram))
    assert not hybrid.write_noise.silent and hybrid.dynamic.write_noise.silent
    assert hybrid.keys.array.cell_bits == 2 and hybrid.dynamic.keys.array.cell_bits == 1
    again = load_target("again", tomllib.loads(hybrid.text), "again.toml")
    assert again.dynamic.text == hybrid.dynamic.text
    generator = torch.Generator().manual_seed(9)
    a, b = (sample(shape, "s8", 2, generator) for shape in CASES["heads"][:2])
    wanted = a.double() @ b.double()
    for target, exact in ((noisy, False), (hybrid, True)):
        _, module = lower(*mapped(*CASES["heads"], target))
        made = evaluate_function(
            module.function(),
            (a, b),
            resources=ResourceStore(),
            backend="crossbar",
            target=target,
            draws=Draws(0, (0,), (0, 1)),
        ).outputs[0]
        assert torch.equal(made.double(), wanted) == exact
    write = next(op for op in module.walk() if op.name == "xbar.write")
    assert write.cell_bits == 1 and write.encoding == "offset"


def test_what_is_written_now_has_not_drifted_since_the_weights_were():
    drift = 'device.drift={model="power_law_drift", exponent=0.05, reference_s=1.0}'
    target = find_target("rram", (*ON, drift, "device.read_time_s=1e6"))
    assert target.dynamic.keys.device.read_time_s == 0.0 and target.dynamic.drift.silent
    kept = find_target(
        "rram", (*ON, drift, "device.read_time_s=1e6", "dynamic.device.read_time_s=10.0")
    )
    assert kept.dynamic.keys.device.read_time_s == 10.0


def test_gradients_pass_straight_through():
    target = find_target("rram", (*ON, *CLIPFORMER))
    _, module = lower(*mapped(*CASES["grouped heads"], target))
    generator = torch.Generator().manual_seed(10)
    a, b = (
        sample(shape, "s8", 2, generator).requires_grad_() for shape in CASES["grouped heads"][:2]
    )
    made = evaluate_function(
        module.function(),
        (a, b),
        resources=ResourceStore(),
        backend="crossbar",
        target=target,
        draws=Draws(0, (0,), (0, 1)),
    ).outputs[0]
    product = a.double() @ b.double()
    assert not torch.equal(made.double(), product)
    upstream = torch.rand(made.shape, generator=generator)
    found = torch.autograd.grad(made, (a, b), upstream)
    wanted = torch.autograd.grad(product, (a, b), upstream.double())
    for left, right in zip(found, wanted, strict=True):
        assert torch.allclose(left, right, atol=1e-3)


@pytest.mark.parametrize(
    "a, b, y, reason",
    [
        (("B", 2, 5, 7), (1, 2, 7, 9), ("B", 2, 5, 9), "no batch axis of its own"),
        (("B", 5, 7), (7, 9), ("B", 5, 9), "no batch axis of its own"),
    ],
)
def test_a_matrix_without_samples_is_refused(a, b, y, reason):
    target = find_target("rram", QUIET)
    module, _ = mapped(a, b, y, target)
    find_backend("crossbar").load_rules()
    op = next(op for op in module.walk() if op.name == "quant.matmul")
    assert reason in find_backend("crossbar").legal(op, target)
    # By the vector unit the product is what it always is.
    assert find_backend("crossbar").legal(op, find_target("rram")) is None


def test_a_size_that_nobody_states_is_asked_for():
    text = (GOLDENS / "lowering" / "run-time-matrices.imc").read_text()
    text = text.partition("// WEIGHTS: random 1\n")[2].partition("// ==== output")[0]
    module = parse_module(text.replace(" sizes(S=128)", ""))
    target = find_target("rram", ON)
    context = PassContext(target=target, backend=find_backend("crossbar"))
    with pytest.raises(DiagnosticError, match="depends on S"):
        run_pipeline(module, parse_pipeline("map-crossbars, place"), context)


@pytest.mark.parametrize(
    "setting, key, words",
    [
        ("dynamic.device.levelz=4", "dynamic.device.levelz", "unknown key"),
        ("dynamic.array.rows=0", "dynamic.array.rows", "at least 1 and at most 4096"),
        ("dynamic.device.levels=2", "dynamic", "needs 4 levels"),
        ("dynamic.pulses_per_row=1.0", "dynamic", "below pulses_per_cell"),
        ("dynamic.matrices=sram", "dynamic.matrices", "'digital' or 'crossbar'"),
        ('dynamic.device.write_noise={model="gausian"}', "dynamic.device.write_noise", "gaussian"),
    ],
)
def test_faults_of_the_second_device_name_their_key(setting, key, words):
    with pytest.raises(DiagnosticError) as caught:
        find_target("rram", (setting,))
    shown = str(caught.value)
    assert key in shown and words in shown


class Attention(nn.Module):
    """Two layers of causal attention whose query heads share key heads, and a padding mask."""

    def __init__(self, heads=4, groups=2, width=8):
        super().__init__()
        self.heads, self.groups, self.width = heads, groups, width
        self.query = nn.Linear(12, heads * width)
        self.pair = nn.Linear(12, 2 * groups * width)
        self.out = nn.Linear(heads * width, 12)

    def forward(self, x, seen):
        batch, length, _ = x.shape
        for _ in range(2):
            query = self.query(x).reshape(batch, length, self.heads, -1).transpose(1, 2)
            pair = self.pair(x).reshape(batch, length, 2, self.groups, -1).permute(2, 0, 3, 1, 4)
            causal = torch.ones(length, length, dtype=torch.bool).tril()
            y = nn.functional.scaled_dot_product_attention(
                query, pair[0], pair[1], attn_mask=causal & seen[:, None, None], enable_gqa=True
            )
            x = x + self.out(y.transpose(1, 2).reshape(batch, length, -1))
        return x


def test_masked_attention_with_grouped_heads_runs_on_crossbars():
    torch.manual_seed(0)
    model = Attention().eval()
    x = torch.randn(6, 10, 12)
    seen = torch.ones(6, 10, dtype=torch.bool)
    seen[3:, 7:] = False
    inputs = (x, seen)
    wide = (
        "dynamic.matrices=crossbar",
        "adc.bits=12",
        "adc.range=full",
        "array.cell_bits=1",
        "dynamic.device.write_noise.sigma_fraction=0.3",
    )
    compiled = imcc.compile(
        model, (x[:2], seen[:2]), target="rram", overrides=wide, calibration=[inputs]
    )
    ops = [op.name for op in compiled.module.function().ops]
    assert ops.count("xbar.write") == ops.count("xbar.matmul") == 4
    assert "nn.matmul" not in ops and "quant.matmul" not in ops
    write = next(op for op in compiled.module.walk() if op.name == "xbar.write")
    assert write.matrix.type.shape[1:3] == (2, 1)  # a matrix for each key head, not each query's
    quantised = imcc.compile(
        model,
        (x[:2], seen[:2]),
        target="rram",
        overrides=wide,
        calibration=[inputs],
        to="optimized",
    )
    exact = compiled.executor.run(inputs, noisy=False)[0][0]
    wanted = quantised.executor.run(inputs, noisy=False)[0][0]
    assert torch.equal(exact, wanted)
    assert rms(exact - model(*inputs)) < 0.03 * rms(model(*inputs))
    noisy = compiled.executor.run(inputs, trials=(0, 1))[0]
    assert 0 < rms(noisy[0] - exact) < rms(exact)
    assert torch.equal(
        noisy[1][2:4], compiled.executor.run((x[2:4], seen[2:4]), trials=(1,), first_sample=2)[0][0]
    )


def rms(x):
    return float(x.detach().pow(2).mean().sqrt())


def test_reports_say_what_writing_takes():
    text = (GOLDENS / "lowering" / "run-time-matrices.imc").read_text()
    text = text.partition("// WEIGHTS: random 1\n")[2].partition("// ==== output")[0]
    backend = find_backend("crossbar")

    def cost(*settings):
        target = find_target("rram", (*ON, *settings))
        module = parse_module(text)
        context = PassContext(target=target, backend=backend)
        run_pipeline(module, parse_pipeline("map-crossbars, place, schedule"), context)
        return backend.cost(module, "inference", target)

    # K^T of 4 key heads: 64 rows, 128 columns, 8 cells each (4 slices in pairs).
    made = cost("dynamic.device.endurance_writes=1e6").writing
    assert made["matrices"] == 4 and made["cells"] == 4 * 64 * 128 * 8
    # Row by row, two pulses of 10 ns.
    assert made["busy_ns"] == 64 * 2 * 10.0
    arrays = (
        made["cells"] * 2 * 0.61  # cell_write
        + 4 * 64 * 8 * 2 * 0.0107  # row drivers: 8 arrays side by side
        + 4 * 64 * 128 * 8 / 64 * 12.9  # codes from the buffer
    )
    # The rest is the way to the arrays.
    assert arrays <= made["energy_pj"] < 1.1 * arrays
    (scope,) = made["scopes"]
    assert scope["scope"] == "attn" and scope["write_ns"] == made["busy_ns"]
    assert scope["write_share"] == pytest.approx(made["busy_ns"] / scope["busy_ns"])
    assert scope["busy_ns"] > scope["write_ns"] + scope["read_ns"] > 0
    assert made["inferences_until_worn"] == 1e6
    # 8 column groups of 16, 32 arrays in pairs, 3 rows at a time, 5 pulses.
    slow = cost(
        "dynamic.columns_at_once=16",
        "dynamic.arrays_at_once=2",
        "dynamic.rows_at_once=3",
        "dynamic.pulses_per_row=5.0",
    ).writing
    assert slow["busy_ns"] == 8 * 16 * 22 * 5 * 10.0
    assert slow["inferences_until_worn"] is None
    # Writing and reading follow S.
    text = text.replace("sizes(S=128)", "sizes(S=256)")
    assert cost().writing["cells"] == 2 * made["cells"]
    # A second device has figures of its own.
    own = cost(
        'dynamic.components.cell_write={energy_pj=2.0, per="pulse", node_nm=32, source="a test"}'
    )
    assert own.components["dynamic_cell_write"]["energy_pj"] == own.writing["cells"] * 2 * 2.0
    assert own.components["dynamic_cell_read"]["energy_pj"] > 0
    assert any("second device" in item for item in own.provenance["not_modelled"])
    digital = cost("dynamic.matrices=digital")
    assert digital.writing is None
