"""``kv-clip``: what it writes into the program, what it refuses, and that its search works."""

import json

import pytest
import torch

import imcc
from imcc.backends.api import find_backend
from imcc.backends.crossbar import run_time
from imcc.backends.crossbar.dialect import Write
from imcc.backends.targets import find_target
from imcc.driver.simulation import Simulations
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.text import parse_module
from imcc.ir.verifier import verify
from imcc.passes.clipping.attention_products import attention_products, probe
from imcc.passes.clipping.search import GAINS, Found, search, search_each
from imcc.passes.clipping.transform import Clip
from imcc.passes.infrastructure import (
    PassContext,
    begin,
    parse_pipeline,
    passes_until,
    run_pipeline,
)
from imcc.passes.kv_clip import _divergence
from imcc.runtime.executor import Executor

FLOOR = 0.01


def program(heads=2, groups=2, depth=1, masked=False, tokens=5, width=8):
    """Attention of queries to keys and values, ``depth`` times one after another, and inputs."""
    kinds = {
        "q": f"Bx{heads}x{tokens}x{width}",
        "k": f"Bx{groups}x{tokens}x{width}",
        "v": f"Bx{groups}x{tokens}x{width}",
    }
    arguments = ", ".join(f"%{name}: tensor<{kind}xf32>" for name, kind in kinds.items())
    arguments += f", %m: tensor<{tokens}x{tokens}xi1>" if masked else ""
    lines, last = [], "%q"
    for number in range(depth):
        mask = ", mask=%m" if masked else ""
        scope = f'scope = "encoders.{number}.attention"'
        lines.append(
            f"%y{number} = nn.attention {last}, %k, %v{mask} {{scale = 0.5, {scope}}} "
            f": tensor<{kinds['q']}xf32>"
        )
        last = f"%y{number}"
    text = "\n    ".join([*lines, f"core.return {last}"])
    module = parse_module(
        f"""// imc 1
module @m phase("captured") {{
  func @inference({arguments}) -> tensor<{kinds["q"]}xf32> {{
    {text}
  }}
}}
"""
    )
    verify(module)
    draw = torch.Generator().manual_seed(heads + 10 * groups + 100 * depth)
    inputs = [
        torch.randn(8, count, tokens, width, generator=draw) for count in (heads, groups, groups)
    ]
    if masked:
        inputs.append(torch.ones(tokens, tokens).tril().bool())
    return module, tuple(inputs)


def run(module, inputs, store=None):
    with torch.no_grad():
        made = evaluate_function(module.function(), inputs, resources=store or ResourceStore())
    return made.outputs[0]


def clip(module, options, batches, **given):
    module, store = module.clone(), ResourceStore()
    context = PassContext(resources=store, calibration=batches, **given)
    pipeline = parse_pipeline(f"canonicalize, decompose-attention, dead-code, kv-clip{options}")
    run_pipeline(module, pipeline, context)
    verify(module)
    return module, store, context


def reference_clip(x, largest, alpha, beta):
    """The source's words: the conductance image less alpha g_min, floored, clipped at the top."""
    g = FLOOR + (1 - FLOOR) * x.abs() / largest
    g = (g - alpha * FLOOR).clamp_min(FLOOR).clamp_max(beta)
    return x.sign() * (g - FLOOR) / (1 - FLOOR) * largest


@pytest.mark.parametrize("scale", ["keep", "refit", "stretch", "stretch-refit"])
def test_values_written_are_those_of_the_source(scale):
    module, x = program()
    options = f'{{scale="{scale}" alpha=2.0 beta=0.5 g_min={FLOOR} bits=16}}'
    made, held, context = clip(module, options, [x])
    row = context.measurements["kv-clip"][0]
    seen = dict(zip(made.function().inputs, x, strict=True))

    def observer(op, results):
        seen.update(zip(op.results, results, strict=True))

    with torch.no_grad():
        evaluate_function(made.function(), x, resources=held, observer=observer)
    (attention,) = attention_products(made.function())
    for what, product in attention.products:
        written = seen[product.b]
        coded = product.b.owner
        raw = coded.x.owner.x.owner.x.owner.a  # quantize, clamp, subtract
        wanted = reference_clip(seen[raw], row[what]["largest"], 2.0, 0.5)
        gain = row[what]["gain"]
        torch.testing.assert_close(written / gain, wanted, rtol=0, atol=row[what]["step"])
        if scale in ("keep", "stretch"):
            assert gain == 1.0
        else:
            x_, y_ = seen[raw].abs().double(), wanted.abs().double()
            assert gain == pytest.approx(float((x_ * y_).sum() / (y_**2).sum()), rel=1e-3)
            assert gain > 1.0
        top = row[what]["limit"] if scale.startswith("stretch") else row[what]["largest"]
        assert row[what]["step"] == pytest.approx(top / (2**15 - 1))
        assert 0 < row[what]["changed"] < 0.5


def test_pair_that_clips_almost_nothing_changes_almost_nothing():
    module, x = program()
    exact = run(module, x)
    made, held, _ = clip(module, "{alpha=1.0 beta=1.0 g_min=1e-6 bits=16}", [x])
    torch.testing.assert_close(run(made, x, held), exact, rtol=0, atol=2e-4)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_scale_per_token_is_exact_up_to_codes(groups, masked):
    module, inputs = program(4, groups, 2, masked)
    q, k, v, *rest = inputs
    sizes = torch.logspace(-2, 1, 5)[:, None]
    k, v = k * sizes.flip(0), v * sizes
    k[0, :, 2] = v[0, :, 2] = 0.0
    inputs = (q, k, v, *rest)
    made, held, context = clip(module, '{scale="token" bits=16}', [inputs])
    exact = run(module, inputs)
    torch.testing.assert_close(run(made, inputs, held), exact, rtol=0, atol=1e-2)
    assert [row["scale_granularity"] for row in context.measurements["kv-clip"]] == ["token"] * 2
    coarse, held, _ = clip(module, '{scale="token" bits=4}', [inputs])
    assert (run(coarse, inputs, held) - exact).abs().max() > 1e-2


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_mask_and_grouped_heads(groups):
    module, inputs = program(4, groups, 2, masked=True)
    made, held, context = clip(module, f"{{alpha=1.0 beta=0.4 g_min={FLOOR}}}", [inputs])
    scopes = [row["attention"] for row in context.measurements["kv-clip"]]
    assert scopes == ["encoders.0.attention", "encoders.1.attention"]
    error = (run(made, inputs, held) - run(module, inputs)).norm()
    assert 0 < error < 0.5 * run(module, inputs).norm()


def test_attention_not_taken_apart_yet_is_taken_apart():
    module, x = program()
    made, held = module.clone(), ResourceStore()
    assert any(op.name == "nn.attention" for op in made.walk())
    context = PassContext(resources=held, calibration=[x])
    run_pipeline(made, parse_pipeline("kv-clip{alpha=1.0 beta=0.5 g_min=0.01}"), context)
    assert not any(op.name == "nn.attention" for op in made.walk())
    assert sum(op.name == "quant.quantize" for op in made.walk()) == 2


def test_calibrate_activations_leaves_clipped_matrices_alone():
    module, x = program()
    made, _, context = clip(module, f"{{alpha=1.0 beta=0.5 g_min={FLOOR}}}", [x])
    before = [attention.scores.b for attention in attention_products(made.function())]
    run_pipeline(made, parse_pipeline("calibrate-activations"), context)
    assert [attention.scores.b for attention in attention_products(made.function())] == before


REFUSED = [
    ("{alpha=0.5 beta=0.5 g_min=0.01}", codes.BAD_OPTION, "alpha"),
    ("{alpha=1.0 beta=1.5 g_min=0.01}", codes.BAD_OPTION, "beta"),
    ("{alpha=1.0 beta=0.0 g_min=0.01}", codes.BAD_OPTION, "beta"),
    ("{alpha=1.0 beta=0.01 g_min=0.01}", codes.BAD_OPTION, "beta"),
    ("{alpha=200.0 beta=0.5 g_min=0.01}", codes.BAD_OPTION, "alpha"),
    ('{scale="token" beta=0.5}', codes.BAD_OPTION, "token"),
    ('{scale="token" gain=0.5}', codes.BAD_OPTION, "token"),
    ("{alpha=1.0 beta=0.5 gain=0.0 g_min=0.01}", codes.BAD_OPTION, "gain"),
    ("{alpha=1.0 beta=0.5}", codes.PASS_REQUIRES, "g_min"),
    ("{beta=0.5 g_min=0.01}", codes.PASS_REQUIRES, "target"),
]


@pytest.mark.parametrize(("options", "code", "word"), REFUSED)
def test_refused_options(options, code, word):
    module, x = program()
    with pytest.raises(DiagnosticError) as caught:
        clip(module, options, [x])
    assert caught.value.diagnostics[0].code == code
    assert word in str(caught.value)
    assert caught.value.diagnostics[0].help


def test_no_calibration_data():
    module, _ = program()
    with pytest.raises(DiagnosticError, match="calibration"):
        clip(module, f"{{alpha=1.0 beta=0.5 g_min={FLOOR}}}", None)


def test_no_attention():
    module = parse_module(
        """// imc 1
module @m phase("captured") {
  func @inference(%x: tensor<Bx4xf32>) -> tensor<Bx4xf32> {
    %y = nn.relu %x : tensor<Bx4xf32>
    core.return %y
  }
}
"""
    )
    with pytest.raises(DiagnosticError, match="no attention") as caught:
        clip(module, f"{{alpha=1.0 beta=0.5 g_min={FLOOR}}}", [(torch.randn(2, 4),)])
    assert caught.value.diagnostics[0].code == codes.PASS_REQUIRES


def test_codes_already():
    module, x = program()
    made, _, context = clip(module, f"{{alpha=1.0 beta=0.5 g_min={FLOOR}}}", [x])
    with pytest.raises(DiagnosticError, match="before calibrate-activations"):
        run_pipeline(made, parse_pipeline("kv-clip{alpha=1.0 beta=0.5 g_min=0.01}"), context)


def test_probe_computes_the_attention():
    module, inputs = program(4, 2, 2, masked=True)
    store = ResourceStore()
    run_pipeline(module, parse_pipeline("decompose-attention"), PassContext(resources=store))
    found = attention_products(module.function())
    cut = probe(module, found)
    verify(cut.module)
    seen = dict(zip(module.function().inputs, inputs, strict=True))

    def observer(op, results):
        seen.update(zip(op.results, results, strict=True))

    evaluate_function(module.function(), inputs, resources=store, observer=observer)
    entering = [seen[value] for value in cut.inputs]
    made = evaluate_function(cut.module.function(), entering, resources=store).outputs
    assert len(cut.outputs) == 2
    for value, output in zip(cut.outputs, made, strict=True):
        torch.testing.assert_close(output, seen[value])


def test_products_without_attention_between_them_are_none():
    text = """// imc 1
module @m phase("captured") {
  func @inference(%a: tensor<Bx4x4xf32>, %b: tensor<Bx4x4xf32>) -> tensor<Bx4x4xf32> {
    %y = nn.matmul %a, %b : tensor<Bx4x4xf32>
    %z = nn.relu %y : tensor<Bx4x4xf32>
    %w = nn.matmul %z, %b : tensor<Bx4x4xf32>
    core.return %w
  }
}
"""
    assert attention_products(parse_module(text).function()) == []


# -- the search -----------------------------------------------------------------------------------


def valley(best_alpha, best_beta, unclipped):
    def error(candidate):
        if candidate is None:
            return unclipped
        far = abs(torch.tensor(candidate.beta / best_beta).log().item())
        return 0.1 + far + 0.1 * abs(candidate.alpha - best_alpha)

    return error


def test_search_finds_a_valley_of_each_unit_within_its_budget():
    valleys = [valley(1.0, 0.4, 1.0), valley(4.0, 0.2, 1.0), valley(1.0, 0.3, 0.05)]
    calls = []

    def score(asked):
        calls.append(list(asked))
        return [error(item) for error, item in zip(valleys, asked, strict=True)]

    found = search(3, score, budget=40, g_min=FLOOR)
    assert len(calls) <= 40
    assert found[0].clip.beta == pytest.approx(0.4, rel=0.05) and found[0].clip.alpha == 1.0
    assert found[1].clip.beta == pytest.approx(0.2, rel=0.1) and found[1].clip.alpha == 4.0
    assert found[2].clip is None
    few = search(1, lambda asked: [valleys[0](asked[0])], budget=4, g_min=FLOOR)
    assert few[0].tried == 4 and few[0].unclipped == 1.0


@pytest.mark.parametrize("beta", [None, 0.5])
def test_search_of_gains_widens_the_limit_again(beta):
    def error(clip):
        if clip is None:
            return 1.0
        return 0.1 + abs(clip.beta * clip.gain - 0.25) + 0.3 * abs(clip.gain - 0.5)

    gains = (1.0, *GAINS)
    found = search(
        1, lambda asked: [error(asked[0])], budget=60, g_min=FLOOR, beta=beta, gains=gains
    )
    assert found[0].clip.gain == pytest.approx(0.5, abs=0.1)
    assert found[0].clip.beta == pytest.approx(0.5, rel=0.15)
    plain = search(1, lambda asked: [error(asked[0])], budget=60, g_min=FLOOR, beta=beta)
    assert plain[0].clip.gain == 1.0 and plain[0].error > found[0].error


def test_search_of_each_unit_moves_them_apart_within_its_budget():
    wanted = [(0.5, 1.0), (0.25, 0.7), (0.12, 1.4)]
    calls = []

    def score(asked):
        calls.append(list(asked))
        pairs = zip(asked, wanted, strict=True)
        return [sum(abs(c.beta / b - 1) + abs(c.gain / g - 1) for c, (b, g) in pairs)]

    start = Found(Clip(1.0, 0.25), 10.0, 20.0, 7)
    found = search_each(start, 3, score, budget=60, gains=True)
    assert len(calls) == found[0].tried - 7 <= 60
    for item, (beta, gain) in zip(found, wanted, strict=True):
        assert item.clip.beta == pytest.approx(beta, rel=0.2)
        assert item.clip.gain == pytest.approx(gain, rel=0.2)
    assert found[0].error < 1.0
    assert [f.clip for f in search_each(start, 3, score, budget=0, gains=True)] == [start.clip] * 3
    nothing = Found(None, 1.0, 1.0, 7)
    assert [f.clip for f in search_each(nothing, 2, score, budget=60, gains=True)] == [None, None]


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, None), (None, 0.5)])
def test_search_keeps_what_is_given(alpha, beta):
    asked_all = []

    def score(asked):
        asked_all.extend(item for item in asked if item is not None)
        return [valley(4.0, 0.3, 9.0)(asked[0])]

    (found,) = search(1, score, budget=30, g_min=FLOOR, alpha=alpha, beta=beta)
    for item in asked_all:
        assert alpha is None or item.alpha == alpha
        assert beta is None or item.beta == beta
    assert isinstance(found.clip, Clip)


class NoisyCells:
    """A stand-in for a target: adds noise to what attention gives, less the narrower codes are."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module, resources, batches, trials):
        self.calls += 1
        made = []
        for batch in batches:
            outputs = evaluate_function(module.function(), batch, resources=resources).outputs
            steps = [
                float(resources.get(op.x.owner.scale.owner.value))
                for op in module.walk()
                if op.name == "quant.dequantize"
            ]
            noise = 40 * max(steps, default=0.03)
            draw = torch.Generator().manual_seed(0)
            made.append(
                [
                    output + noise * torch.randn(trials, *output.shape, generator=draw)
                    for output in outputs
                ]
            )
        return made


@pytest.mark.parametrize("objective", ["attention", "outputs"])
def test_search_through_the_context_and_its_cache(tmp_path, objective):
    module, x = program(depth=2)
    target = find_target("rram")
    given = {"target": target, "backend": find_backend("crossbar")}
    simulator = NoisyCells()
    options = f'{{objective="{objective}" budget=8 samples=4 g_min=0.01 cache="{tmp_path}"}}'
    made, _, context = clip(module, options, [x], simulator=simulator, **given)
    assert 1 < simulator.calls <= 8
    rows = context.measurements["kv-clip"]
    assert len(rows) == 2
    for row in rows:
        assert row["beta"] < 1.0 and row["alpha"] >= 1.0
        assert row["error"] < row["error_unclipped"]
        assert row["noise"]["mapping"] == "differential"
    if objective == "outputs":
        assert rows[0]["beta"] == rows[1]["beta"]
    calls = simulator.calls
    again, _, _ = clip(module, options, [x], simulator=simulator, **given)
    assert simulator.calls == calls
    assert repr(again) == repr(made)
    (first, *_) = sorted(tmp_path.glob("*.json"))
    assert json.loads(first.read_text())["errors"]
    first.write_text("{")
    with pytest.raises(DiagnosticError, match="cannot be read"):
        for file in tmp_path.glob("*.json"):
            file.write_text("{")
        clip(module, options, [x], simulator=simulator, **given)
    clip(module, options, [tuple(item + 1 for item in x)], simulator=simulator, **given)
    assert simulator.calls > calls


def test_gain_is_part_of_what_codes_stand_for():
    module, x = program()
    options = f"alpha=1.0 beta=0.5 g_min={FLOOR} bits=16"
    _, _, plain = clip(module, f"{{{options}}}", [x])
    made, held, context = clip(module, f"{{{options} gain=0.5}}", [x])
    for what in ("key", "value"):
        (one,), (half,) = (c.measurements["kv-clip"] for c in (plain, context))
        assert half[what]["gain"] == 0.5 * one[what]["gain"]
        assert half[what]["step"] == one[what]["step"]
    assert run(made, x, held).norm() < 0.6 * run(module, x).norm()


@pytest.mark.parametrize("each", [False, True])
def test_search_by_classes_finds_a_gain(each):
    """Noise in proportion to what codes stand for: a factor below 1 is closer to the classes."""

    class Shrinking(NoisyCells):
        def __call__(self, module, resources, batches, trials):
            made = []
            for batch in batches:
                output = evaluate_function(module.function(), batch, resources=resources).outputs[0]
                draw = torch.Generator().manual_seed(0)
                noise = torch.randn(trials, *output.shape, generator=draw)
                size = output.abs().mean() if self.calls else 1.0
                made.append([output + 3 * size * noise])
                self.calls += 1
            return made

    module, x = program(depth=2)
    given = {"target": find_target("rram"), "backend": find_backend("crossbar")}
    flag = "true" if each else "false"
    options = f'objective="kl" search_gain=true each={flag} budget=40 samples=4 g_min=0.01'
    _, _, context = clip(module, f"{{{options}}}", [x], simulator=Shrinking(), **given)
    rows = context.measurements["kv-clip"]
    assert min(row["gain"] for row in rows) < 1.0
    assert all(row["error"] < row["error_unclipped"] for row in rows)
    assert each or rows[0]["gain"] == rows[1]["gain"]


def test_divergence_of_classes_is_that_of_torch():
    draw = torch.Generator().manual_seed(3)
    exact, noisy = torch.randn(4, 5, generator=draw), torch.randn(2, 4, 5, generator=draw)
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=exact.expand(2, 4, 5)),
        torch.distributions.Categorical(logits=noisy),
    ).mean()
    assert _divergence([[noisy]], [[exact]]) == pytest.approx(float(wanted), rel=1e-5)
    assert _divergence([[exact[None]]], [[exact]]) == pytest.approx(0.0, abs=1e-12)


def test_outputs_that_are_no_classes():
    module, x = program(width=1)
    given = {"target": find_target("rram"), "backend": find_backend("crossbar")}
    with pytest.raises(DiagnosticError, match="no logits") as caught:
        clip(module, '{objective="kl" g_min=0.01}', [x], simulator=NoisyCells(), **given)
    assert caught.value.diagnostics[0].code == codes.BAD_OPTION


def test_search_that_finds_nothing_better_leaves_the_program():
    module, x = program()

    def exact(program, resources, batches, trials):
        made = []
        for batch in batches:
            outputs = evaluate_function(program.function(), batch, resources=resources).outputs
            made.append([output.expand(trials, *output.shape) for output in outputs])
        return made

    given = {"target": find_target("rram"), "backend": find_backend("crossbar")}
    options = '{g_min=0.01 budget=5 objective="attention"}'
    made, _, context = clip(module, options, [x], simulator=exact, **given)
    assert not any(op.name.startswith("quant.") for op in made.walk())
    assert context.measurements["kv-clip"][0]["beta"] is None


def test_resources_are_declared():
    module, x = program()
    made, held, _ = clip(module, f"{{alpha=1.0 beta=0.5 g_min={FLOOR}}}", [x])
    assert isinstance(held, ResourceStore)
    assert held.mismatches(made.resources.values()) == []


# -- on crossbars ---------------------------------------------------------------------------------


def noisy_target(*changes, mapping="differential", strength=0.5):
    return find_target(
        "vit-x",
        [
            f'array.encoding="{mapping}"',
            f"dynamic.device.write_noise.gamma={strength}",
            "dynamic.device.write_noise.sigma_fraction=1.0",
            *changes,
        ],
    )


IDEAL = ("adc.bits=16", 'adc.range="fixed"', "adc.full_scale=400.0")


def mapped(module, batches, target, extra="", at="decompose-attention"):
    module, store, backend = module.clone(), ResourceStore(), find_backend("crossbar")
    context = PassContext(resources=store, calibration=batches, target=target, backend=backend)
    context.simulator = Simulations(context)
    passes = list(passes_until(parse_pipeline(backend.pipeline(target)), "mapped"))
    place = next(i for i, item in enumerate(passes) if item.name == at) + 1
    passes[place:place] = parse_pipeline(extra) if extra else []
    begin(module, context)
    run_pipeline(module, passes, context)
    return module, context


def outputs(module, context, inputs, trials=3, noisy=True):
    executor = Executor(module, context.weights(), context.target, context.backend)
    return executor.run(inputs, trials=range(trials), seed=1, noisy=noisy)[0]


def relative(made, exact):
    return float((made - exact).norm() / (exact.norm() * made.shape[0] ** 0.5))


@pytest.mark.parametrize("mapping", ["differential", "offset", "sign_arrays"])
def test_reads_of_fine_converters_at_once_are_those_digit_by_digit(mapping, monkeypatch):
    module, inputs = program(heads=2, groups=1)
    target = noisy_target(*IDEAL, mapping=mapping)
    made, context = mapped(module, [inputs], target)
    at_once = outputs(made, context, inputs)
    monkeypatch.setattr(run_time, "FINEST", 0.0)
    digit_by_digit = outputs(made, context, inputs)
    assert relative(at_once, digit_by_digit) < 0.03
    exact = run(module, inputs)
    assert relative(digit_by_digit, exact) > 10 * relative(at_once, digit_by_digit)


@pytest.mark.parametrize("scale", ["stretch-refit", "token"])
def test_clipped_matrices_are_written_and_right_without_noise(scale):
    module, inputs = program(heads=4, groups=2, masked=True)
    given = "" if scale == "token" else " alpha=1.0 beta=1.0"
    made, context = mapped(
        module, [inputs], noisy_target(*IDEAL), f'kv-clip{{scale="{scale}"{given}}}'
    )
    assert sum(isinstance(op, Write) for op in made.walk()) == 2
    assert relative(outputs(made, context, inputs, noisy=False), run(module, inputs)[None]) < 0.05


def test_search_on_the_noise_of_a_target():
    module, inputs = program(tokens=9, width=8)
    target = noisy_target(*IDEAL, strength=1.5)
    plain, without = mapped(module, [inputs], target)
    made, context = mapped(module, [inputs], target, "kv-clip{budget=8 samples=8}")
    (row,) = context.measurements["kv-clip"]
    assert row["noise"]["mapping"] == "differential" and row["noise"]["bounds"] == "[0, inf)"
    assert row["error"] < row["error_unclipped"]
    exact = run(module, inputs)
    clipped, standard = outputs(made, context, inputs), outputs(plain, without, inputs)
    assert relative(clipped, exact) < 0.9 * relative(standard, exact)


def test_conductances_are_clipped_cell_by_cell():
    module, inputs = program()
    target = noisy_target(*IDEAL)
    text = "kv-clip-conductance{alpha=2.0 beta=0.5}"
    made, context = mapped(module, [inputs], target, text, "map-crossbars")
    writes = [op for op in made.walk() if isinstance(op, Write)]
    assert [(op.alpha, op.beta) for op in writes] == [(2.0, 0.5)] * 2
    row = context.measurements["kv-clip-conductance"][0]
    assert row["beta"] == 0.5 and row["noise"]["model"] == "clipformer_write"
    at_once = outputs(made, context, inputs, noisy=False)
    kind = writes[0].matrix.type
    codes = torch.tensor([[[57.0, -3.0], [127.0, 0.0]]])
    held = run_time.WrittenMatrices(kind, codes, target.dynamic, "w", alpha=2.0, beta=0.5)
    layout = kind.layout(1, 2, 2)
    levels = run_time._read_back(held, codes[None], layout, target.dynamic)[0, 0]
    g_min = 0.01

    def cell(digit):
        conductance = g_min + digit / 3 * (1 - g_min)
        conductance = min(max(conductance - 2 * g_min, g_min), 0.5)
        return (conductance - g_min) / (1 - g_min) * 3

    def code(value):
        digits = [int(abs(value)) >> (2 * i) & 3 for i in range(4)]
        size = sum(4**i * (cell(d) - cell(0)) for i, d in enumerate(digits))
        return size if value > 0 else -size

    wanted = torch.tensor([[code(57), code(-3)], [code(127), 0.0]], dtype=torch.float64)
    torch.testing.assert_close(levels, wanted, rtol=1e-5, atol=1e-4)
    assert relative(at_once, run(module, inputs)[None]) > 0.05


def test_conductance_search_and_what_it_refuses():
    module, inputs = program()
    target = noisy_target(*IDEAL, strength=1.0)
    _, context = mapped(module, [inputs], target, "kv-clip-conductance{budget=4}", "map-crossbars")
    row = context.measurements["kv-clip-conductance"][0]
    assert row["error"] <= row["error_unclipped"]
    for options in (
        "{alpha=0.5 beta=0.5}",
        "{alpha=1.0 beta=0.01}",
        "{alpha=1.0 beta=2.0}",
        "{alpha=1000000.0 beta=0.5}",
    ):
        with pytest.raises(DiagnosticError) as caught:
            mapped(module, [inputs], target, f"kv-clip-conductance{options}", "map-crossbars")
        assert caught.value.diagnostics[0].code == codes.BAD_OPTION
    digital = find_target("vit-x", ['dynamic.matrices="digital"'])
    with pytest.raises(DiagnosticError, match="writes no matrices"):
        text = "kv-clip-conductance{alpha=1.0 beta=0.5}"
        mapped(module, [inputs], digital, text, "map-crossbars")


def test_spikes_are_left_alone():
    text = """// imc 1
module @m phase("captured") {
  func @inference(%q: tensor<Bx1x4x4xf32>, %k: spikes<Bx1x4x4>) -> tensor<Bx1x4x4xf32> {
    %y = nn.matmul %q, %k : tensor<Bx1x4x4xf32>
    %w = nn.matmul %y, %k : tensor<Bx1x4x4xf32>
    core.return %w
  }
}
"""
    module = parse_module(text)
    inputs = (torch.randn(2, 1, 4, 4), torch.ones(2, 1, 4, 4))
    context = PassContext(resources=ResourceStore(), calibration=[inputs])
    with pytest.raises(DiagnosticError, match="no attention"):
        run_pipeline(module, parse_pipeline("kv-clip{alpha=1.0 beta=0.5 g_min=0.01}"), context)


class OneEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.joined, self.head = torch.nn.Linear(8, 24), torch.nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = self.joined(x).chunk(3, dim=-1)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head((x + mixed).mean(-2))


def test_report_of_a_compilation_has_what_was_chosen():
    torch.manual_seed(0)
    images = torch.randn(8, 5, 8)
    compiled = imcc.compile(
        OneEncoder().eval(),
        (images[:1],),
        "vit-x",
        overrides=["dynamic.device.write_noise.sigma_fraction=0.3"],
        passes="canonicalize, decompose-attention, dead-code, "
        'kv-clip{objective="kl" search_gain=true budget=4 samples=4 trials=1}, '
        'calibrate-activations{matmul="symmetric"}, quantize-weights, integer-arithmetic, '
        "dead-code, map-crossbars, place, schedule",
        calibration=images,
    )
    (row,) = compiled.report()["measurements"]["kv-clip"]
    assert row["objective"] == "kl" and 1 <= row["simulations"] <= 4
    assert row["noise"]["mapping"] == "offset" and row["error"] <= row["error_unclipped"]
    assert (row["alpha"] is None) == (row["gain"] is None) == (row["beta"] is None)
