"""``decompose-attention`` computes what the fused op does, in every form of it."""

import itertools

import pytest
import torch

from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.text import parse_module
from imcc.ir.verifier import verify
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline

MASKS = {"none": None, "added": "tensor<BxHx5x5xf64>", "seen": "tensor<Bx1x5x5xi1>"}
FORMS = list(itertools.product([1, 2], [False, True], ["softmax", "none"], MASKS))


@pytest.mark.parametrize(("groups", "causal", "normalise", "mask"), FORMS)
def test_every_form(groups, causal, normalise, mask):
    heads = 2 * groups
    wanted = MASKS[mask]
    kind = wanted.replace("H", str(heads)) if wanted else None
    arguments = (
        f"%q: tensor<Bx{heads}x5x4xf64>, %k: tensor<Bx2x5x4xf64>, %v: tensor<Bx2x5x3xf64>"
        + (f", %m: {kind}" if kind else "")
    )
    text = f"""// imc 1
module @m phase("captured") {{
  func @inference({arguments}) -> tensor<Bx{heads}x5x3xf64> {{
    %y = nn.attention %q, %k, %v{", mask=%m" if kind else ""} {{scale = 0.5, causal = {
        str(causal).lower()
    }, normalise = "{normalise}"}} : tensor<Bx{heads}x5x3xf64>
    core.return %y
  }}
}}
"""
    module = parse_module(text)
    verify(module)
    torch.manual_seed(0)
    inputs = [
        torch.randn(3, count, 5, width, dtype=torch.float64)
        for count, width in ((heads, 4), (2, 4), (2, 3))
    ]
    if mask == "added":
        inputs.append(torch.randn(3, heads, 5, 5, dtype=torch.float64))
    if mask == "seen":
        seen = torch.rand(3, 1, 5, 5) > 0.4
        seen[0, 0, 2] = False  # a query that sees no key
        inputs.append(seen)
    store = ResourceStore()
    before = evaluate_function(module.function(), inputs, resources=store).outputs[0]
    run_pipeline(module, parse_pipeline("decompose-attention"), PassContext(resources=store))
    verify(module)
    assert not any(op.name == "nn.attention" for op in module.walk())
    after = evaluate_function(module.function(), inputs, resources=store).outputs[0]
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    if mask == "seen":
        assert not before[0, :, 2].any()
