"""``context.estimate``: a pass asks what a function would cost on the target."""

import torch
from torch import nn

from imcc.backends.api import find_backend
from imcc.backends.targets import find_target
from imcc.driver.estimation import Estimates
from imcc.frontend.capture import capture
from imcc.ir import print_module
from imcc.passes.infrastructure import PassContext, begin, parse_pipeline, run_pipeline


def test_estimate_costs_a_clone_and_leaves_the_module_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    captured = capture(model, (torch.zeros(1, 16),))
    small, large = find_target("rram"), find_target("rram", ["adc.bits=10"])
    context = PassContext(
        resources=captured.resources,
        target=small,
        backend=find_backend("crossbar"),
        calibration=[(torch.rand(32, 16),)],
        legality=find_backend("crossbar").legal,
    )
    context.estimator = Estimates(context)
    before = print_module(captured.module)
    function = captured.module.function()
    first = context.estimate(function)
    assert first.energy_pj > 0 and first.latency_ns > 0 and not first.unknown
    assert context.estimate(function, large).energy_pj > first.energy_pj
    assert context.estimate(function).energy_pj == first.energy_pj
    assert print_module(captured.module) == before
    assert context.legal(next(function.ops)) is None


def test_estimates_by_shapes_are_those_of_the_quantised_program():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(y.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    captured = capture(Attention().eval(), (torch.zeros(2, 5, 16),))
    target = find_target("rram", ['dynamic.matrices="crossbar"'])
    backend = find_backend("crossbar")
    context = PassContext(
        resources=captured.resources.copy(),
        target=target,
        backend=backend,
        calibration=[(torch.randn(8, 5, 16),)],
    )
    guess = Estimates(context)(captured.module.function(), target, "assumed")
    begin(captured.module, context)
    run_pipeline(captured.module, parse_pipeline(backend.pipeline(target)), context)
    cost = backend.cost(captured.module, "inference", target)
    assert any(op.name == "xbar.write" for op in captured.module.walk())
    assert guess.latency_ns == cost.latency_ns and guess.area_um2 == cost.area_um2
    # Inputs with and without a zero point differ by the sums that take it off.
    assert abs(guess.energy_pj - cost.energy_pj) < 0.01 * cost.energy_pj
