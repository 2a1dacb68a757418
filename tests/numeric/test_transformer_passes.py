"""Both passes on attention, on transformers that are written differently: found by op alone."""

import pytest
import torch
from torch import nn

from imcc.backends.api import find_backend
from imcc.backends.targets import find_target
from imcc.driver.estimation import Estimates
from imcc.frontend.capture import capture
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline
from imcc.passes.reuse.sites import attention_sites
from imcc.training import NoisyProgram

SIZE, TOKENS = 16, 6


def torch_encoder(norm_first):
    layer = nn.TransformerEncoderLayer(
        SIZE, 2, 2 * SIZE, activation="gelu", batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class GroupedAttention(nn.Module):
    """Two query heads to a key head, and a softmax of its own over what a mask leaves."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_kv = nn.Linear(SIZE, SIZE, bias=False), nn.Linear(SIZE, 2 * 8)
        self.out, self.norm = nn.Linear(SIZE, SIZE), nn.LayerNorm(SIZE)

    def forward(self, x, seen):
        batch, tokens, _ = x.shape
        y = self.norm(x)
        q = self.to_q(y).view(batch, tokens, 4, 4).transpose(1, 2)
        k, v = self.to_kv(y).view(batch, tokens, 2, 2, 4).permute(2, 0, 3, 1, 4)
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        scores = (q @ k.transpose(-1, -2) / 2.0).masked_fill(~seen[:, None, None], float("-inf"))
        return x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, -1))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(GroupedAttention() for _ in range(2))

    def forward(self, x, seen):
        for layer in self.layers:
            x = layer(x, seen)
        return x


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        library = pytest.importorskip("transformers", reason="transformers is not installed")
        self.bert = library.BertModel(
            library.BertConfig(
                vocab_size=20, hidden_size=SIZE, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=32, max_position_embeddings=TOKENS, use_cache=False,
            ),
            add_pooling_layer=False,
        )  # fmt: skip

    def forward(self, ids, seen):
        return self.bert(input_ids=ids, attention_mask=seen).last_hidden_state


def masked(first):
    seen = torch.ones(3, TOKENS, dtype=torch.bool)
    seen[1, 4:] = False
    return first, seen


MODELS = {
    "torch, norms behind": lambda: (torch_encoder(False), (torch.randn(3, TOKENS, SIZE),)),
    "torch, norms in front": lambda: (torch_encoder(True), (torch.randn(3, TOKENS, SIZE),)),
    "grouped heads and a mask": lambda: (Grouped(), masked(torch.randn(3, TOKENS, SIZE))),
    "BERT": lambda: (Bert(), (lambda ids, seen: (ids, seen.long()))(
        *masked(torch.randint(0, 20, (3, TOKENS))))),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_reuse_and_clipping_on_crossbars(name):
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    with torch.no_grad():
        held = capture(model.eval(), inputs)
        wanted = model(*inputs)
    sites = attention_sites(held.module.function())
    assert len(sites.encoders) == 2 and not sites.refused
    assert all(site.projection is not None for site in sites.encoders)
    torch.testing.assert_close(
        evaluate_function(held.module.function(), inputs, resources=held.resources).outputs[0],
        wanted,
        rtol=1e-4,
        atol=1e-5,
    )
    target = find_target("trexsim", ("array.encoding=differential",))
    backend = find_backend(target.backend)
    module, store = held.module.clone(), held.resources.copy()
    context = PassContext(resources=store, target=target, backend=backend, calibration=[inputs])
    estimate = Estimates(context)
    before = estimate(module.function(), target, "assumed")
    text = 'attention-reuse{count=1 init="least_squares"}'
    run_pipeline(module, parse_pipeline(text), context)
    after = estimate(module.function(), target, "assumed")
    assert after.latency_ns < before.latency_ns and after.area_um2 < before.area_um2
    passes = f"kv-clip{{alpha=1.0 beta=0.5}}, {backend.pipeline(target)}"
    program = NoisyProgram.lower(module, store, target, passes=passes, calibration=[inputs])
    names = [op.name for op in program.module.function().ops]
    # One encoder attends: a matrix of keys and one of values, whether heads share them or not.
    assert names.count("xbar.write") == names.count("xbar.matmul") == 2
    with torch.no_grad():
        made = program.run({}, inputs, seed=0, trial=0)[0]
    assert made.shape == wanted.shape and bool(made.isfinite().all())
