"""Spiking programs on sparse-SNN targets: passes, exactness, what is counted and refused."""

import numpy as np
import pytest
import torch
from torch import nn

from imcc.backends.sparse_snn import BACKEND, engines
from imcc.backends.sparse_snn.dialect import (
    COUNTS,
    CYCLES,
    EVENT_NAMES,
    EVENTS,
    LOOPS,
    SPATIAL,
    PackSpikes,
    Product,
)
from imcc.backends.sparse_snn.simulate import Packed, Weights, products
from imcc.backends.targets import find_target
from imcc.driver import compile as compile_model
from imcc.frontend.capture import capture
from imcc.frontend.neurons.ops import lif
from imcc.ir.diagnostics import DiagnosticError
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline
from imcc.runtime.executor import Executor

FIRE = {"leak": 0.5, "reset": "hard"}


class Spiking(nn.Module):
    """Pixels drive neurons, two convolutions with neurons between, a linear layer."""

    def __init__(self, steps=4, channels=8):
        super().__init__()
        self.steps = steps
        self.conv1 = nn.Conv2d(2, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, 5, 3, padding=2, dilation=2, stride=2)
        self.head = nn.Linear(5 * 3 * 3, 7)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.4)

    def neurons(self, x):
        spikes, _ = lif(x, None, FIRE, threshold=0.4)
        return spikes

    def forward(self, x):
        x = self.neurons(torch.stack([x] * self.steps))
        x = self.neurons(self.conv1(x.flatten(0, 1)).unflatten(0, (self.steps, -1)))
        x = self.neurons(self.conv2(x.flatten(0, 1)).unflatten(0, (self.steps, -1)))
        return self.head(x.flatten(2)).mean(0)


def images(count, seed=0):
    return torch.rand(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def lowered(model, target="loas", overrides=(), pipeline=None):
    """The program before compression and at the end, with resources and target."""
    held = find_target(target, overrides)
    captured = capture(model.eval(), (images(1),))
    module, resources = captured.module.clone(), captured.resources.copy()
    context = PassContext(
        resources=resources,
        target=held,
        backend=BACKEND,
        calibration=[(images(4, 7),)],
        legality=BACKEND.legal,
    )
    neutral = None
    for item in parse_pipeline(pipeline or BACKEND.pipeline(held)):
        if item.name == "compress-spikes":
            neutral = module.clone()
        run_pipeline(module, [item], context)
    return neutral, module, resources, held


def outputs(module, resources, target=None):
    backend = BACKEND if target is not None else None
    return Executor(module, resources, target, backend).run([images(5, 3)], noisy=False)[0]


@pytest.mark.parametrize("target", ["loas", "sparten-snn", "gospa-snn", "gamma-snn", "ptb"])
def test_every_engine_computes_the_neutral_meaning(target):
    neutral, module, resources, held = lowered(Spiking(), target)
    assert torch.equal(outputs(neutral, resources), outputs(module, resources, held))
    found = [op for op in module.walk() if isinstance(op, Product)]
    assert len(found) == 3
    assert all(op.fibers.kind == "spikes" and op.fibers.word_bits == 4 for op in found)
    parallel = target == "loas"
    assert all((op.annotations[SPATIAL] == ("t",)) == parallel for op in found)
    assert all(set(op.annotations[LOOPS]) == {"m", "n", "k", "t"} for op in found)


@pytest.mark.parametrize("steps", [1, 3, 5, 8, 16, 32])
def test_any_number_of_timesteps(steps):
    neutral, module, resources, held = lowered(Spiking(steps, channels=3), "loas")
    assert torch.equal(outputs(neutral, resources), outputs(module, resources, held))
    words = [op.fibers.word_bits for op in module.walk() if isinstance(op, Product)]
    assert words == [steps] * 3


def test_wide_accumulators_run_the_engine_and_equal_the_dense_product():
    wide = ("accumulators.pseudo_bits=30", "accumulators.correction_bits=30")
    neutral, module, resources, held = lowered(Spiking(), "loas", overrides=wide)
    assert torch.equal(outputs(neutral, resources), outputs(module, resources, held))
    narrow = ("accumulators.pseudo_bits=8", "accumulators.correction_bits=8")
    neutral, module, resources, held = lowered(Spiking(), "loas", overrides=narrow)
    assert not torch.equal(outputs(neutral, resources), outputs(module, resources, held))
    counts = " ".join(op.annotations[COUNTS] for op in module.walk() if isinstance(op, Product))
    assert "pseudo_overflows=0" not in counts.split()


class FirstLayer(nn.Module):
    def __init__(self, low):
        super().__init__()
        self.low = low
        self.conv = nn.Conv2d(2, 6, 3, padding=1)

    def forward(self, x):
        spikes, _ = lif(torch.stack([self.conv(x - self.low)] * 2), None, FIRE, threshold=0.2)
        return spikes.mean(0)


@pytest.mark.parametrize("low", [0.0, 0.4])
@pytest.mark.parametrize("bounded", [(), ("accumulators.pseudo_bits=40",)])
def test_images_are_words_of_their_codes(low, bounded):
    # With negative pixels the codes have a zero point, which is also what padding applies.
    neutral, module, resources, held = lowered(FirstLayer(low), "loas", overrides=bounded)
    (op,) = [op for op in module.walk() if isinstance(op, Product)]
    assert op.fibers.kind == "codes" and op.fibers.word_bits == 8
    assert (op.x_zero_point is not None) == (low > 0)
    assert torch.equal(outputs(neutral, resources), outputs(module, resources, held))


def test_events_are_what_the_engine_counts():
    _, module, resources, held = lowered(Spiking(), "loas")
    from imcc.backends.sparse_snn import BACKEND

    seen = {}
    evaluate_function(
        module.function("inference"),
        (images(4, 7)[:1],),
        resources=resources,
        backend=BACKEND.name,
        target=held,
        observer=lambda op, made: seen.update(zip(op.results, made, strict=True)),
    )
    op = next(op for op in module.walk() if isinstance(op, Product))
    a, b = seen[op.a], seen[op.b]
    assert isinstance(a, Packed) and isinstance(b, Weights)
    spikes = a.codes.numpy()
    assert set(np.unique(spikes)) <= {0.0, 1.0}
    (product,) = products(op, a, b)
    run = engines.run(product, held)
    # The sums of the engine are the program's.
    want = seen[op.y][:, 0].reshape(4, 8, -1).numpy()
    assert np.array_equal(run.sums.transpose(2, 1, 0), want)
    record = BACKEND.cost(module, "inference", held)
    layer = next(item for item in record.layers if item.name == "conv1")
    counted = dict(zip(EVENT_NAMES, op.annotations[EVENTS], strict=True))
    assert layer.events["join.chunk"] == counted["join.chunk"]
    assert layer.busy_ns == pytest.approx(op.annotations[CYCLES] * held.cycle_ns)
    assert record.activity == "profiled" and record.provenance["samples"] == 4


def test_silencing_drops_neurons_that_spike_once():
    pipeline = find_pipeline("compress-spikes{silence=1}")
    neutral, module, resources, held = lowered(Spiking(), pipeline=pipeline)
    packs = [op for op in module.walk() if isinstance(op, PackSpikes)]
    assert [op.silence for op in packs] == [1, 1, 1]
    assert not torch.equal(outputs(neutral, resources), outputs(module, resources, held))
    (silencing,) = parse_pipeline("compress-spikes{silence=1}")
    (exact,) = parse_pipeline("compress-spikes")
    assert "approximate" in str(silencing.promise()) and str(exact.promise()) == "exact"


def find_pipeline(compress):
    return BACKEND.pipeline(find_target("loas")).replace("compress-spikes", compress)


def test_pruning_makes_products_sparse_and_faster():
    default = BACKEND.pipeline(find_target("loas"))
    dense = compile_model(Spiking(), images(1), "loas", calibration=[(images(4),)])
    pruned = compile_model(
        Spiking(),
        images(1),
        "loas",
        passes=f"prune-weights{{sparsity=0.9}}, {default}",
        calibration=[(images(4),)],
    )
    assert pruned.report()["latency_ns"] < dense.report()["latency_ns"]
    assert pruned.report()["energy_pj"] < dense.report()["energy_pj"]
    codes = [pruned.resources.get(name) for name in pruned.module.resources if "codes" in name]
    assert len(codes) == 3
    assert all(float((held == 0).double().mean()) >= 0.88 for held in codes)


def test_what_the_accelerator_cannot_run_is_refused_with_the_reason():
    class Attention(Spiking):
        def forward(self, x):
            return torch.softmax(super().forward(x), dim=-1)

    with pytest.raises(DiagnosticError, match=r"nn\.softmax.*cannot run") as refused:
        compile_model(Attention(), images(1), "loas", calibration=[(images(4),)])
    assert "no division, root or exponential" in str(refused.value)


def test_too_many_timesteps_are_refused():
    with pytest.raises(DiagnosticError, match="33 timesteps do not fit"):
        compile_model(Spiking(33), images(1), "loas", calibration=[(images(4),)])


def test_loop_order_needs_the_engine_that_has_it():
    for target, order in (("loas", "timestep-sequential"), ("ptb", "timestep-parallel")):
        pipeline = find_pipeline("compress-spikes")
        with pytest.raises(DiagnosticError, match="engine"):
            compile_model(
                Spiking(),
                images(1),
                target,
                passes=pipeline.replace("timestep-parallel", order),
                calibration=[(images(4),)],
            )


# -- neutral passes --------------------------------------------------------------------------------


def neutral_run(model, pipeline):
    captured = capture(model.eval(), (images(1),))
    module, resources = captured.module.clone(), captured.resources.copy()
    want = Executor(module, resources).run([images(5, 3)], noisy=False)[0]
    run_pipeline(module, parse_pipeline(pipeline), PassContext(resources=resources))
    return module, resources, want


def test_quantize_spikes_changes_nothing():
    module, resources, want = neutral_run(Spiking(), "quantize-spikes")
    assert torch.equal(outputs(module, resources), want)
    assert sum(op.name == "quant.quantize" for op in module.walk()) == 3
    relu = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3))
    module, _, _ = neutral_run(relu, "quantize-spikes")
    assert not any(op.name == "quant.quantize" for op in module.walk())


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_pruning_keeps_the_largest_weights(scope):
    module, resources, _ = neutral_run(
        Spiking(), f'prune-weights{{sparsity=0.6 scope="{scope}" skip=["head"]}}'
    )
    plain = Spiking()
    before = {"conv1": plain.conv1.weight, "conv2": plain.conv2.weight}
    gone = kept = 0
    largest_gone = smallest_kept = None
    for name, weight in before.items():
        pruned = resources.get(f"{name}.weight.pruned")
        zero = pruned == 0
        assert torch.equal(pruned[~zero], weight[~zero])
        gone, kept = gone + int(zero.sum()), kept + int((~zero).sum())
        low, high = weight[zero].abs().max(), weight[~zero].abs().min()
        if scope == "layer":
            assert int(zero.sum()) == int(0.6 * weight.numel()) and low <= high
        largest_gone = low if largest_gone is None else max(low, largest_gone)
        smallest_kept = high if smallest_kept is None else min(high, smallest_kept)
    assert gone == pytest.approx(0.6 * (gone + kept), abs=2)
    if scope == "global":
        assert largest_gone <= smallest_kept
    assert "head.weight.pruned" not in module.resources
