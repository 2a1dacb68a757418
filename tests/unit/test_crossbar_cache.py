"""Decoding with a cache of keys and values: what a step costs by its length, counted by hand."""

import pytest
import torch
from torch import nn

from imcc.backends.api import find_backend
from imcc.backends.targets import find_target
from imcc.driver.estimation import Estimates
from imcc.frontend.capture import capture
from imcc.passes.infrastructure import PassContext

HEADS, WIDTH = 2, 8


class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)

    def forward(self, x, keys, values):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, 1, WIDTH)).unbind(1)
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        return nn.functional.scaled_dot_product_attention(q, keys, values).flatten(1)


def cost(past, *settings):
    target = find_target("rram", ["dynamic.matrices=crossbar", *settings])
    cache = torch.zeros(1, HEADS, past, WIDTH)
    made = capture(Step().eval(), (torch.zeros(1, HEADS * WIDTH), cache, cache))
    context = PassContext(
        resources=made.resources, target=target, backend=find_backend(target.backend)
    )
    context.estimator = Estimates(context)
    return context.estimate(made.module.function())


def count(record, event):
    return sum(layer.events.get(event, 0.0) for layer in record.layers)


def test_a_cache_that_stays_in_the_cells_is_only_added_to():
    past = 19
    whole, kept = cost(past), cost(past, "dynamic.cache=keep")
    pulses, tall = 2.0, 2 * WIDTH * HEADS
    cells = tall * (past + 1) * 8
    assert count(whole, "cell_write.pulse") == pulses * cells
    assert count(kept, "cell_write.pulse") == pytest.approx(pulses * cells / (past + 1))
    # K^T: a column in its 8 rows; V: a row. Each head has arrays of its own, written at once.
    assert whole.writing["busy_ns"] == pulses * 10.0 * (WIDTH + past + 1)
    assert kept.writing["busy_ns"] == pulses * 10.0 * (WIDTH + 1)
    assert kept.writing["writes_per_cell"] == pytest.approx(1 / (past + 1))
    # The arguments are in the cells already.
    saved = 2 * HEADS * past * WIDTH * 32
    assert count(whole, "off_chip.bit") - count(kept, "off_chip.bit") == saved
    # Reads are those of the whole cache either way.
    assert count(whole, "adc.convert") == count(kept, "adc.convert")
    assert f"2x{past}x8" in kept.provenance["inference"]


def test_a_step_reads_more_the_longer_the_cache_but_adds_as_much():
    short, long = cost(15, "dynamic.cache=keep"), cost(31, "dynamic.cache=keep")
    assert count(short, "cell_write.pulse") == count(long, "cell_write.pulse")
    # 8 columns for each key more, 8 bits, 2 heads; the values keep their columns.
    assert count(long, "adc.convert") - count(short, "adc.convert") == 16 * 8 * 8 * HEADS
    assert long.energy_pj > short.energy_pj
