"""A model on the meta device is captured, mapped and costed without its weights."""

import pytest
import torch
from torch import nn

import imcc
from imcc.ir.diagnostics import DiagnosticError

PASSES = (
    "canonicalize, fold-batch-norm, decompose-attention, dead-code, assume-codes, dead-code, "
    "map-crossbars, place, schedule"
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(64)
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).flatten(2))


def model():
    return nn.Sequential(nn.Embedding(50, 64), Block(), Block(), nn.Linear(64, 50))


def costed(device):
    with torch.device(device):
        network = model().eval()
        ids = torch.zeros(1, 12, dtype=torch.long)
    return imcc.compile(network, (ids,), target="rram", passes=PASSES)


def test_cost_without_weights():
    made, held = costed("meta"), costed("cpu")
    without = [item for item in made.module.resources.values() if item.sha256 is None]
    assert any(item.name == "1.qkv.weight.codes" for item in without)
    assert made.report()["resources"] == held.report()["resources"]
    assert made.report()["energy_pj"] == held.report()["energy_pj"] > 0
    assert made.module.sizes == {"S": 12}
    with pytest.raises(DiagnosticError, match="has no data"):
        made(torch.zeros(1, 12, dtype=torch.long))


class Step(nn.Module):
    """One token behind a cache; its position is a constant that has no data on the meta device."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, token, keys, values):
        import transformers

        cache = transformers.DynamicCache()
        cache.update(keys, values, 0)
        place = torch.full((1, 1), keys.shape[2], device=token.device)
        return self.model(
            token[:, None], past_key_values=cache, position_ids=place, use_cache=False
        ).logits


def test_a_step_of_decoding_without_weights():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with torch.device("meta"):
        network = Step(transformers.LlamaForCausalLM(config)).eval()
        cache, token = torch.zeros(1, 2, 15, 8), torch.zeros(1, dtype=torch.long)
    made = imcc.compile(network, (token, cache, cache), target="rram", passes=PASSES)
    assert made.report()["energy_pj"] > 0
    assert "2x15x8" in made.report()["entry_points"]["inference"]["provenance"]["inference"]
