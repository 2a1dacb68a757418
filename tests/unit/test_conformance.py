"""Every backend of imcc passes the conformance kit that outside backends run too."""

import dataclasses

import pytest
import torch

from imcc.backends.api import backend_names, find_backend
from imcc.backends.crossbar import CrossbarBackend
from imcc.backends.targets import write_toml
from imcc.frontend.neurons.ops import lif
from imcc.ir.cost import OpCost
from imcc.runtime.executor import Executor
from imcc.testing import conformance
from imcc.testing.conformance import CHECKS, NotConforming, Subject


class SpikingNetwork(torch.nn.Module):
    """Neurons on three timesteps: a grouped convolution, a residual, pooling, a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(2, 4, 3, padding=1)
        self.grouped = torch.nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.head = torch.nn.Linear(4 * 3 * 3, 5)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.4)

    def forward(self, x):
        fire = {"leak": 0.5, "reset": "hard"}
        x = torch.stack([self.stem(x)] * 3)
        x, _ = lif(x, None, fire, threshold=0.3)
        y = self.grouped(x.flatten(0, 1)).unflatten(0, (3, -1))
        x, _ = lif(y + x, None, fire, threshold=0.3)
        x = torch.nn.functional.max_pool2d(x.flatten(0, 1), 2).unflatten(0, (3, -1))
        return self.head(x.flatten(2)).mean(0)


SUBJECTS = {
    "reference": Subject("reference", tolerance=1e-6),
    "crossbar": Subject("crossbar", target="rram", lossless=("adc.bits=16",), noisy=True),
    "sparse_snn": Subject("sparse_snn", target="loas", model=SpikingNetwork),
}


def test_every_backend_of_imcc_is_a_subject():
    ours = {name for name in backend_names() if type(find_backend(name)).__module__[:5] == "imcc."}
    assert ours == set(SUBJECTS)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SUBJECTS)
def test_backend(name, check):
    check(SUBJECTS[name])


# -- what the kit catches --------------------------------------------------------------------------


class Lenient(CrossbarBackend):
    def load_target(self, name, data, origin):
        known = find_backend("crossbar").load_target("rram", dict(PRESET.data), origin)
        merged = {**known.data, **data}
        return dataclasses.replace(known, data=merged, text=write_toml(merged))


class Wordless(CrossbarBackend):
    def legal(self, op, target):
        return "" if op.name == "nn.softmax" else super().legal(op, target)


class ShortOfThePhase(CrossbarBackend):
    def pipeline(self, target):
        return super().pipeline(target).removesuffix(", schedule")


class NeitherCostNorLowering(CrossbarBackend):
    def legal(self, op, target):
        return None if op.name == "nn.linear" else super().legal(op, target)


class TwoCosts(CrossbarBackend):
    def op_cost(self, op, target, activity="assumed"):
        return OpCost({"adc.convert": 1.0}, free="nothing")


class LayersAreTwice(CrossbarBackend):
    def cost(self, module, function, target, activity="assumed"):
        made = super().cost(module, function, target, activity)
        return dataclasses.replace(made, energy_pj=2 * made.energy_pj)


class NoSource(CrossbarBackend):
    def cost(self, module, function, target, activity="assumed"):
        made = super().cost(module, function, target, activity)
        parts = {
            name: {**item, "figures": {"energy": {"value": 1.0, "unit": "pJ", "source": ""}}}
            for name, item in made.components.items()
        }
        return dataclasses.replace(made, components=parts)


PRESET = SUBJECTS["crossbar"].instance.load_target(
    "rram", dict(conformance.find_target("rram").data), "rram"
)


def fails(check, subject, words):
    with pytest.raises(NotConforming, match=words):
        check(subject)


@pytest.mark.parametrize(
    ("made", "check", "words"),
    [
        (Lenient, conformance.bad_keys_are_refused, "was accepted"),
        (Wordless, conformance.legality_has_reasons, "nn.softmax is refused without a reason"),
        (ShortOfThePhase, conformance.pipeline_reaches_the_last_phase, "ends in 'placed'"),
        (NeitherCostNorLowering, conformance.legal_ops_have_a_cost, "neither a cost rule nor"),
        (TwoCosts, conformance.legal_ops_have_a_cost, "must speak, found"),
        (LayersAreTwice, conformance.cost_records_add_up, "energy of the layers"),
        (NoSource, conformance.cost_records_add_up, "'source': ''"),
    ],
)
def test_the_kit_catches_a_broken_backend(made, check, words):
    subject = Subject("crossbar", target="rram", noisy=True)
    subject.__dict__["instance"] = made()
    subject.__dict__["compiled"] = SUBJECTS["crossbar"].compiled
    fails(check, subject, words)


def test_the_kit_catches_what_is_not_what_it_says():
    coarse = Subject("crossbar", target="rram", lossless=("adc.bits=4",), noisy=False)
    fails(conformance.without_noise_it_computes_the_neutral_meaning, coarse, "integer meaning by")
    fails(conformance.a_seed_reproduces_every_number, coarse, "noisy is False")


def test_the_kit_catches_numbers_that_depend_on_the_batch(monkeypatch):
    run = Executor.run

    def forgets_where_it_is(self, inputs, *, first_sample=0, **options):
        return run(self, inputs, **options)

    monkeypatch.setattr(Executor, "run", forgets_where_it_is)
    subject = SUBJECTS["crossbar"]
    fails(conformance.outputs_do_not_depend_on_how_a_batch_is_split, subject, "in three parts")


def test_the_kit_catches_a_report_that_is_not_of_the_module(monkeypatch):
    report = SUBJECTS["crossbar"].compiled.report()
    report["entry_points"].pop("deploy")
    subject = Subject("crossbar", target="rram", noisy=True)
    subject.__dict__["compiled"] = dataclasses.replace(
        SUBJECTS["crossbar"].compiled, report_data=report
    )
    fails(conformance.the_report_has_its_schema, subject, "entry points")
    report["energy_pj"] += 1
    fails(conformance.the_report_has_its_schema, subject, "energy_pj is not that")
