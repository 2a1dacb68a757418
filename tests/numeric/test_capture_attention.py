"""Attention, norms and masks, however a model writes them, become the ops of the IR."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from imcc.frontend.capture import capture
from imcc.ir.regions import region
from imcc.ir.semantics.interpreter import evaluate_function

HEADS, WIDTH, VOCABULARY = 4, 16, 23


class Attention(nn.Module):
    """Self-attention in one of several spellings."""

    def __init__(self, spelling, groups=HEADS, causal=False):
        super().__init__()
        size = WIDTH // HEADS
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, groups * size)
        self.v = nn.Linear(WIDTH, groups * size)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.spelling, self.groups, self.causal, self.size = spelling, groups, causal, size

    def forward(self, x):
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, HEADS, self.size).transpose(1, 2)
        k = self.k(x).view(batch, length, self.groups, self.size).transpose(1, 2)
        v = self.v(x).view(batch, length, self.groups, self.size).transpose(1, 2)
        repeats = HEADS // self.groups
        if repeats > 1 and self.spelling != "fused, grouped":
            k, v = (self.repeat(item, repeats) for item in (k, v))
        y = getattr(self, self.spelling.split(",")[0])(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))

    def repeat(self, x, count):
        batch, heads, length, size = x.shape
        x = x[:, :, None].expand(batch, heads, count, length, size)
        return x.reshape(batch, heads * count, length, size)

    def fused(self, q, k, v):
        grouped = k.shape[1] != q.shape[1]
        return functional.scaled_dot_product_attention(
            q, k, v, is_causal=self.causal, enable_gqa=grouped
        )

    def plain(self, q, k, v):
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.size)
        return self.hide(scores).softmax(-1) @ v

    def merged(self, q, k, v):
        q, k, v = (item.reshape(-1, *item.shape[-2:]) for item in (q, k, v))
        scores = torch.bmm(q * self.size**-0.5, k.transpose(1, 2))
        made = torch.bmm(functional.softmax(self.hide(scores), dim=-1), v)
        return made.view(-1, HEADS, *made.shape[1:])

    def einsum(self, q, k, v):
        scores = torch.einsum("bhld,bhsd->bhls", q, k) * self.size**-0.5
        return torch.einsum("bhls,bhsd->bhld", self.hide(scores).softmax(-1), v)

    def hide(self, scores):
        if not self.causal:
            return scores
        length = scores.shape[-1]
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        return scores.masked_fill(~seen, float("-inf"))


def outputs(captured, *inputs):
    return evaluate_function(
        captured.module.function(), inputs, resources=captured.resources
    ).outputs[0]


def ops(captured, name):
    return [op for op in captured.module.walk() if op.name == name]


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("groups", [HEADS, 2])
@pytest.mark.parametrize("spelling", ["fused", "fused, grouped", "plain", "merged", "einsum"])
def test_spellings_of_attention(spelling, groups, causal):
    torch.manual_seed(0)
    model = Attention(spelling, groups, causal).double()
    captured = capture(model, (torch.randn(1, 5, WIDTH, dtype=torch.float64),))
    (op,) = ops(captured, "nn.attention")
    assert (op.causal, op.groups, op.mask) == (causal, HEADS // groups, None)
    assert not ops(captured, "nn.softmax")
    for batch in (1, 3):
        x = torch.randn(batch, 5, WIDTH, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(outputs(captured, x), model(x), rtol=1e-12, atol=1e-12)


class RmsNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.norm2 = RmsNorm(), RmsNorm()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def rotate(self, x, angle):
        left, right = x.chunk(2, -1)
        return x * angle.cos() + torch.cat((-right, left), -1) * angle.sin()

    def forward(self, x, angle, seen):
        batch, length, _ = x.shape
        normed = self.norm(x)
        q, k, v = (
            layer(normed).view(batch, length, HEADS, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        q, k = self.rotate(q, angle), self.rotate(k, angle)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))
        inner = self.up(self.norm2(x))
        inner = (
            0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        )
        return x + self.down(inner)


class Language(nn.Module):
    """A small language model: rotary positions, RMS norm, causal masks, tied embeddings."""

    def __init__(self, window=None):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.register_buffer("step", 100.0 ** -torch.linspace(0, 1, WIDTH // HEADS // 2))
        self.window = window

    def forward(self, input_ids, attention_mask=None):
        places = torch.arange(input_ids.shape[1])
        seen = places[None, :] <= places[:, None]
        if self.window is not None:
            seen = seen & (places[None, :] > places[:, None] - self.window)
        seen = seen[None, None]
        if attention_mask is not None:
            seen = seen & attention_mask.bool()[:, None, None, :]
        angle = places[:, None] * self.step
        angle = torch.cat((angle, angle), -1)
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x, angle, seen)
        return {"logits": functional.linear(x, self.embed.weight), "last": x[:, -1]}


def tokens(batch, length):
    return torch.randint(0, VOCABULARY, (batch, length))


@pytest.fixture(scope="module")
def language():
    torch.manual_seed(0)
    model = Language().double()
    return model, capture(model, {"input_ids": tokens(1, 7)})


def test_one_module_for_every_batch_and_length(language):
    model, captured = language
    assert captured.warnings == ()
    assert str(captured.module.function().inputs[0].type) == "tensor<BxSxi64>"
    assert captured.module.sizes == {"S": 7}
    for batch, length in ((1, 1), (2, 3), (64, 12)):
        ids = tokens(batch, length)
        made = evaluate_function(
            captured.module.function(), (ids,), resources=captured.resources
        ).outputs
        with torch.no_grad():
            wanted = model(ids)
        torch.testing.assert_close(made[0], wanted["logits"], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(made[1], wanted["last"], rtol=1e-12, atol=1e-12)


def test_masks_and_norms_of_an_open_length_are_recognised(language):
    _, captured = language
    attentions = ops(captured, "nn.attention")
    assert [(op.causal, op.mask) for op in attentions] == [(True, None)] * 2
    assert len(ops(captured, "nn.rms_norm")) == 4 and len(ops(captured, "nn.gelu")) == 2
    for absent in ("core.compare", "core.where", "core.power", "nn.tanh", "nn.softmax"):
        assert not ops(captured, absent)
    # The embedding is stored once, for both of its uses.
    assert sum("embed" in name for name in captured.module.resources) == 1


def test_blocks_are_regions(language):
    _, captured = language
    made = region(captured.module.function(), "blocks.1")
    assert sum(op.name == "nn.attention" for op in made.ops) == 1
    assert len(made.outputs) == 1


def test_a_window_beside_the_causal_mask_stays():
    torch.manual_seed(0)
    model = Language(window=3).double()
    captured = capture(model, {"input_ids": tokens(2, 7)})
    assert all(op.causal and op.mask is not None for op in ops(captured, "nn.attention"))
    ids = tokens(2, 11)
    with torch.no_grad():
        wanted = model(ids)["logits"]
    torch.testing.assert_close(outputs(captured, ids), wanted, rtol=1e-12, atol=1e-12)


def test_padding_is_a_mask_beside_the_causal_one():
    torch.manual_seed(0)
    model = Language().double()
    ids, mask = tokens(2, 7), torch.ones(2, 7, dtype=torch.long)
    captured = capture(model, {"attention_mask": mask, "input_ids": ids})
    assert captured.input_names == ("attention_mask", "input_ids")
    assert all(op.causal and op.mask is not None for op in ops(captured, "nn.attention"))
    ids, mask = tokens(3, 5), torch.ones(3, 5, dtype=torch.long)
    mask[1, 3:] = 0
    with torch.no_grad():
        wanted = model(ids, mask)["logits"]
    torch.testing.assert_close(outputs(captured, mask, ids), wanted, rtol=1e-12, atol=1e-12)


def test_a_fixed_length_says_so():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(VOCABULARY, WIDTH)

        def forward(self, ids):
            return self.embed(ids).reshape(-1, 7 * WIDTH)

    captured = capture(Fixed(), (tokens(2, 7),))
    (warning,) = captured.warnings
    assert "fixes its sequence length" in warning.message
    assert str(captured.module.function().inputs[0].type) == "tensor<Bx7xi64>"
