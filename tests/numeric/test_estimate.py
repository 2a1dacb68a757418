"""``context.estimate``: a pass asks what a function would cost on the target."""

import torch
from torch import nn

from imcc.backends.api import find_backend
from imcc.backends.targets import find_target
from imcc.driver.estimation import Estimates
from imcc.frontend.capture import capture
from imcc.ir import print_module
from imcc.passes.infrastructure import PassContext


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
