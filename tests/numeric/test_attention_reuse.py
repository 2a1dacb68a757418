"""Pass ``attention-reuse``: what it finds, what it puts in place, what it refuses."""

import itertools
from functools import lru_cache

import pytest
import torch
from torch import nn
from torch.nn import functional

import imcc
from imcc.backends.api import find_backend
from imcc.backends.targets import find_target
from imcc.driver.estimation import Estimates
from imcc.frontend.capture import capture
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.text import print_module
from imcc.ir.verifier import verify
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline
from imcc.passes.reuse.placement import FAMILIES, SIDES, candidates, placement
from imcc.passes.reuse.sites import attention_sites

SIZE, TOKENS = 16, 6


class Encoder(nn.Module):
    """Pre- or post-norm; ``groups`` key heads are shared by ``heads`` query heads."""

    def __init__(self, heads=4, groups=4, post=False, fused=True):
        super().__init__()
        self.heads, self.groups, self.post, self.width = heads, groups, post, SIZE // heads
        kept = groups * self.width
        self.qkv = nn.Linear(SIZE, SIZE + 2 * kept)
        self.out = nn.Linear(SIZE, SIZE)
        self.norm1, self.norm2 = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)
        self.up, self.down = nn.Linear(SIZE, 2 * SIZE), nn.Linear(2 * SIZE, SIZE)

    def attend(self, x, mask):
        kept = self.groups * self.width
        q, k, v = self.qkv(x).split((SIZE, kept, kept), dim=-1)
        q = q.unflatten(-1, (self.heads, self.width)).transpose(1, 2)
        k, v = (t.unflatten(-1, (self.groups, self.width)).transpose(1, 2) for t in (k, v))
        y = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=self.heads != self.groups
        )
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x, mask=None):
        if self.post:
            x = self.norm1(x + self.attend(x, mask))
            return self.norm2(x + self.down(functional.gelu(self.up(x))))
        x = x + self.attend(self.norm1(x), mask)
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Stack(nn.Module):
    def __init__(self, count=4, masked=False, **options):
        super().__init__()
        self.layers = nn.ModuleList(Encoder(**options) for _ in range(count))
        self.head = nn.Linear(SIZE, 3)
        self.masked = masked

    def forward(self, x, seen=None):
        mask = seen[:, None, None, :] if self.masked else None
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x.mean(1))


def captured(model, *inputs, seed=0):
    torch.manual_seed(seed)
    held = model() if callable(model) and not isinstance(model, nn.Module) else model
    return held, capture(held.eval(), inputs or (torch.zeros(2, TOKENS, SIZE),))


@lru_cache(maxsize=8)
def stack(**options):
    """A small network and its capture, made once: passes work on copies."""
    return captured(lambda: Stack(**options))


def transformed(held, text, **given):
    module, store = held.module.clone(), held.resources.copy()
    context = PassContext(resources=store, **given)
    context.estimator = Estimates(context)
    run_pipeline(module, parse_pipeline(text), context)
    verify(module)
    return module, store, context


def outputs(module, store, *inputs):
    return evaluate_function(module.function(), inputs, resources=store).outputs[0]


def by_hand(model, x, encoders, store, *, mask=None, own_projection=True, source="previous"):
    """The transformed network written in torch, with the new weights of the pass."""
    held: dict[int, torch.Tensor] = {}
    true: dict[int, torch.Tensor] = {}
    for number, layer in enumerate(model.layers):

        def attend(inner, held_mask, layer=layer, number=number):
            if number not in encoders:
                grabbed = []
                hook = layer.out.register_forward_pre_hook(lambda _, args: grabbed.append(args[0]))
                y = Encoder.attend(layer, inner, held_mask)
                hook.remove()
                held[number] = true[number] = grabbed[0]
                return y
            given = held[number - 1] if source == "previous" else true[max(true)]
            base = f"layers.{number}.reuse"
            n = functional.layer_norm(
                given, (SIZE,), store.get(f"{base}.norm.weight"), store.get(f"{base}.norm.bias")
            )
            made = functional.gelu(
                functional.linear(n, store.get(f"{base}.fc.weight"), store.get(f"{base}.fc.bias"))
            )
            held[number] = made
            return layer.out(made) if own_projection else made

        layer.attend = attend
        x = layer(x, mask)
        del layer.attend
    return model.head(x.mean(1))


@pytest.mark.parametrize(
    ("post", "own_projection", "source"),
    [*itertools.product([False, True], [True, False], ["previous", "attention"])],
)
def test_equals_the_block_written_by_hand(post, own_projection, source):
    model, held = stack(post=post)
    text = (
        f"attention-reuse{{encoders=[1, 2] own_projection={str(own_projection).lower()} "
        f'source="{source}" init="random"}}'
    )
    module, store, context = transformed(held, text, seed=3)
    x = torch.randn(3, TOKENS, SIZE)
    with torch.no_grad():
        wanted = by_hand(model, x, {1, 2}, store, own_projection=own_projection, source=source)
        torch.testing.assert_close(outputs(module, store, x), wanted, rtol=1e-5, atol=1e-6)
    names = [op.name for op in module.walk()]
    assert names.count("nn.attention") == 2
    assert not any("1.qkv" in name or "2.qkv" in name for name in module.resources)
    assert any("1.out" in name for name in module.resources) == own_projection
    rows = context.measurements["attention-reuse"]
    assert [row["encoder"] for row in rows] == [1, 2] and all(r["removed_ops"] for r in rows)


def test_new_weights_do_not_depend_on_what_else_is_drawn():
    _, held = stack()
    one = transformed(held, 'attention-reuse{encoders=[2] init="random"}', seed=3)[1]
    two = transformed(held, 'attention-reuse{encoders=[1, 2] init="random"}', seed=3)[1]
    other = transformed(held, 'attention-reuse{encoders=[2] init="random"}', seed=4)[1]
    name = "layers.2.reuse.fc.weight"
    assert torch.equal(one.get(name), two.get(name))
    assert not torch.equal(one.get(name), other.get(name))
    assert one.get(name).abs().max() <= SIZE**-0.5


def test_mask_and_grouped_heads():
    model, held = captured(
        lambda: Stack(heads=4, groups=2, masked=True),
        torch.zeros(2, TOKENS, SIZE),
        torch.ones(2, TOKENS, dtype=torch.bool),
    )
    module, store, _ = transformed(held, "attention-reuse{count=2}")
    assert [op.groups for op in module.walk() if op.name == "nn.attention"] == [2, 2]
    x, seen = torch.randn(2, TOKENS, SIZE), torch.rand(2, TOKENS) > 0.3
    seen[:, 0] = True
    with torch.no_grad():
        wanted = by_hand(model, x, {1, 3}, store, mask=seen[:, None, None, :])
    torch.testing.assert_close(outputs(module, store, x, seen), wanted, rtol=1e-5, atol=1e-6)


def test_least_squares_starts_closer_than_identity():
    torch.manual_seed(0)
    _, held = stack()
    data = [(torch.randn(32, TOKENS, SIZE),) for _ in range(2)]
    x = torch.randn(64, TOKENS, SIZE)
    before = outputs(held.module, held.resources, x)
    wrong = {}
    for init in ("identity", "random", "least_squares"):
        text = f'attention-reuse{{encoders=[1, 3] init="{init}"}}'
        module, store, context = transformed(held, text, calibration=data)
        wrong[init] = float((outputs(module, store, x) - before).square().mean())
    assert wrong["least_squares"] < 0.5 * min(wrong["identity"], wrong["random"])
    rows = context.measurements["attention-reuse"]
    assert all(0 < row["relative_error"] < 1 for row in rows)


def test_least_squares_leaves_shared_projections_of_others_alone():
    torch.manual_seed(0)
    model = Stack()
    model.layers[3].out = model.layers[2].out
    _, held = captured(model)
    data = [(torch.randn(32, TOKENS, SIZE),)]
    text = 'attention-reuse{encoders=[3] init="least_squares"}'
    module, store, _ = transformed(held, text, calibration=data)
    x = torch.randn(2, TOKENS, SIZE)
    values = {}

    def observe(op, results):
        if op.scope == "layers.2" and op.name == "core.add":
            values.setdefault(id(op.parent), []).append(results[0])

    for function, resources in (
        (held.module.function(), held.resources),
        (module.function(), store),
    ):
        evaluate_function(function, (x,), resources=resources, observer=observe)
    one, two = values.values()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_without_weights_new_weights_are_absent():
    with torch.device("meta"):
        model = Stack()
        held = capture(model.eval(), (torch.zeros(1, TOKENS, SIZE),))
    module, store, _ = transformed(held, "attention-reuse{count=3}")
    assert module.resources["layers.1.reuse.fc.weight"].sha256 is None
    assert "layers.1.reuse.fc.weight" not in store


# -- which encoders --------------------------------------------------------------------------------


def test_placements():
    assert placement("strided", "late", 6, 12) == (1, 3, 5, 7, 9, 11)
    assert placement("strided", "late", 4, 12) == (2, 5, 8, 11)
    assert placement("strided", "early", 4, 12) == (1, 4, 7, 10)
    assert placement("continuous", "late", 3, 12) == (9, 10, 11)
    assert placement("continuous", "early", 3, 12) == (1, 2, 3)
    assert placement("pyramid", "late", 6, 12) == (4, 6, 7, 9, 10, 11)
    assert placement("pyramid", "early", 6, 12) == (1, 2, 3, 5, 6, 8)
    assert placement("pyramid", "late", 10, 12) == (1, 2, 3, 4, 6, 7, 8, 9, 10, 11)
    for family, side, encoders in itertools.product(FAMILIES, SIDES, range(1, 17)):
        for count in range(encoders):
            made = placement(family, side, count, encoders)
            assert len(set(made)) == count and all(0 < number < encoders for number in made)
        with pytest.raises(ValueError, match="of"):
            placement(family, side, encoders, encoders)
    assert list(candidates(0, 12)) == [()]
    assert len(candidates(6, 12)) == 5 and len(candidates(11, 12)) == 1


def test_cross_attention_is_no_site():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.other = Encoder(), nn.MultiheadAttention(SIZE, 4, batch_first=True)

        def forward(self, x, memory):
            x = self.first(x)
            return x + self.other(x, memory, memory, need_weights=False)[0]

    _, held = captured(Cross, torch.zeros(2, TOKENS, SIZE), torch.zeros(2, TOKENS, SIZE))
    sites = attention_sites(held.module.function())
    assert [site.op.scope for site in sites.encoders] == ["first"]
    assert len(sites.refused) == 1 and "self-attention" in sites.refused[0][1]


def refusal(held, text, **given):
    with pytest.raises(DiagnosticError) as caught:
        transformed(held, text, **given)
    return caught.value.diagnostics[0]


def test_refusals():
    _, held = stack()
    assert (
        "there is no encoder 4: the model has 4"
        in refusal(held, "attention-reuse{encoders=[4]}").message
    )
    assert "4 of 4 encoders" in refusal(held, "attention-reuse{count=4}").message
    assert "one of encoders" in refusal(held, "attention-reuse").message
    assert (
        "one of encoders"
        in refusal(
            held, "attention-reuse{count=1 delay_us=2.0}", target=find_target("rram")
        ).message
    )
    assert "must be at least 1" in refusal(held, "attention-reuse{encoders=[0]}").message
    late = refusal(held, "decompose-attention, attention-reuse{count=1}")
    assert late.code.id == "IMC404" and "before decompose-attention" in late.help


# -- delay -----------------------------------------------------------------------------------------


def delay(held, microseconds, extra=""):
    target = find_target("rram")
    return transformed(
        held,
        f"attention-reuse{{delay_us={microseconds!r}{extra}}}",
        target=target,
        backend=find_backend(target.backend),
    )


def test_delay_is_met_or_nothing_changes_or_it_is_refused():
    _, held = stack()
    _, _, context = delay(held, 1e9)
    assert [row["count"] for row in context.measurements["attention-reuse"]] == [0]
    full = context.measurements["attention-reuse"][0]["latency_us"]
    module, _, _ = delay(held, full)
    assert print_module(module) == print_module(held.module), "met already: nothing changes"

    lowest = refusal(
        held, "attention-reuse{delay_us=0.001}", target=find_target("rram"),
        backend=find_backend("crossbar"),
    )  # fmt: skip
    assert lowest.code.id == "IMC506" and "3 of 4 encoders" in lowest.message
    best = float(lowest.message.split("the best is ")[1].split(" us")[0])
    assert best < full
    module, store, context = delay(held, (full + best) / 2)
    rows = context.measurements["attention-reuse"]
    tried = [row for row in rows if row["kind"] == "delay"]
    made = [row for row in rows if row["kind"] == "block"]
    assert [row["met"] for row in tried] == [False] * (len(tried) - 1) + [True]
    assert len(made) == tried[-1]["count"] > 0
    # What was predicted is what the transformed program is estimated at.
    target = find_target("rram")
    again = PassContext(resources=store, target=target, backend=find_backend("crossbar"))
    cost = Estimates(again)(module.function(), target, "assumed")
    assert cost.latency_ns * 1e-3 == tried[-1]["latency_us"] <= (full + best) / 2


def test_one_encoder():
    _, held = stack(count=1)
    item = refusal(held, "attention-reuse{count=1}")
    assert "1 of 1 encoders" in item.message and "none before it" in item.reason
    module, _, _ = delay(held, 1e9)
    assert print_module(module) == print_module(held.module)
    item = refusal(held, "attention-reuse{delay_us=0.001}", target=find_target("rram"))
    assert "0 of 1 encoders" in item.message


def test_compile_with_a_delay():
    """The pass asks for estimates in the middle of a compilation as well."""
    model, held = stack()
    target = find_target("rram")
    text = find_backend("crossbar").pipeline(target)
    _, _, context = delay(held, 1e9)
    full = context.measurements["attention-reuse"][0]["latency_us"]
    made = imcc.compile(
        model,
        (torch.zeros(2, TOKENS, SIZE),),
        target="rram",
        passes=f"attention-reuse{{delay_us={full - 1e-3!r}}}, {text}",
        calibration=[(torch.randn(8, TOKENS, SIZE),)],
    )
    assert made.report()["latency_ns"] * 1e-3 <= full - 1e-3
    assert made(torch.randn(2, TOKENS, SIZE)).shape == (2, 3)
