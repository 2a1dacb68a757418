"""Modules that the strategies make are valid, print, read back, and run; passes keep their word."""

import torch
from hypothesis import HealthCheck, given, settings

from imcc.ir import parse_module, print_module, structural_difference, verify
from imcc.ir.semantics.resources import ResourceStore
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline
from imcc.runtime.executor import Executor
from imcc.testing.strategies import modules

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def run(module, resources):
    # Values depend on the names alone, so that both runs see the same data.
    (argument,) = module.function().inputs
    x = torch.linspace(-2, 2, 3 * argument.type.shape[1]).reshape(3, -1)
    return Executor(module, resources).run([x], noisy=False)


@SETTINGS
@given(modules())
def test_made_modules_are_valid_and_passes_are_exact(module):
    verify(module)
    again = parse_module(print_module(module))
    assert structural_difference(module, again) is None
    tensors = {
        name: torch.linspace(0.25, 1.0, max(1, item.type.elements)).reshape(item.type.shape)
        for name, item in module.resources.items()
    }
    resources = ResourceStore(tensors)
    before = run(module, resources)
    context = PassContext(resources=resources)
    run_pipeline(again, parse_pipeline("canonicalize, dead-code"), context)
    for left, right in zip(before, run(again, context.resources), strict=True):
        assert torch.allclose(left, right, rtol=0, atol=0, equal_nan=True)
