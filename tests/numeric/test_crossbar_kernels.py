"""The CPU kernel against the torch form, and the generator's moments and tails."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from imcc.backends.crossbar import simulate
from imcc.backends.crossbar.kernels import normals
from imcc.backends.targets import find_target
from imcc.ir import parse_module
from imcc.ir.semantics.draws import Draws
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.resources import ResourceStore

TEXT = """// imc 1
module @m phase("mapped") {{
  resource @w : tensor<{n}x{k}xq<s8, axis=0>>
  state @cells : {matrix}
  func @deploy() -> {matrix} state(@cells) {{
    %w = core.constant {{value = @w}} : tensor<{n}x{k}xq<s8, axis=0>>
    %m = xbar.program %w {{cell_bits = 2, array_rows = 128, array_columns = 128, stream = "w"}} \
: {matrix}
    core.return %m
  }}
  func @inference(%x: tensor<Bx{k}xq<u8>>, %m: {matrix} state(@cells)) -> tensor<Bx{n}xf32> {{
    %y = xbar.mvm %x, %m {{input_bits = 8, adc_bits = {adc}, adc_step = {step}, stream = "r"}} \
: tensor<Bx{n}xf32>
    core.return %y
  }}
}}
"""


def product(overrides, samples, *, k=200, n=3, adc=8, step=1.25, trials=(0,), kernel=True, x=None):
    matrix = (
        f"!xbar.matrix<rows={k}, columns={n}, groups=1, weight_bits=8, signed=true, "
        'cell_bits=2, slices=4, encoding="differential", array_rows=128, array_columns=128>'
    )
    module = parse_module(TEXT.format(n=n, k=k, adc=adc, step=step, matrix=matrix))
    generator = np.random.default_rng(1)
    weights = torch.tensor(generator.integers(-127, 128, (n, k)), dtype=torch.int8)
    if x is None:
        x = torch.tensor(generator.integers(0, 256, (1, k)), dtype=torch.float32)
        x = x.repeat(len(samples), 1)
    store = ResourceStore({"w": weights})
    target = find_target("rram", overrides)
    draws = Draws(7, tuple(trials), tuple(samples))
    common = {"resources": store, "backend": "crossbar", "target": target, "trials": len(trials)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "USE_KERNEL", kernel)
        states = evaluate_function(
            module.function("deploy"), (), draws=Draws(7, tuple(trials), (0,)), **common
        ).states
        made = evaluate_function(
            module.function(),
            (x.repeat(len(trials), 1),),
            states=states,
            draws=draws,
            **common,
        )
    return made.outputs[0].reshape(len(trials), len(samples), n)


def test_kernel_equals_torch_form_without_read_noise():
    overrides = ["device.read_noise.sigma_fraction=0", "device.write_noise.sigma_fraction=0.05"]
    x = torch.tensor(np.random.default_rng(2).integers(0, 256, (16, 200)), dtype=torch.float32)
    arguments = (overrides, range(16))
    left = product(*arguments, x=x, trials=(0, 1, 2), kernel=True)
    right = product(*arguments, x=x, trials=(0, 1, 2), kernel=False)
    assert torch.equal(left, right)
    assert not torch.equal(left[0], left[1])


def test_kernel_and_torch_form_have_one_distribution():
    count = 20_000
    overrides = ["device.write_noise.sigma_fraction=0", "device.read_noise.sigma_fraction=0.05"]
    left = product(overrides, range(count), kernel=True)[0].double()
    right = product(overrides, range(count), kernel=False)[0].double()
    spread = right.std(0)
    assert (spread > 0).all()
    assert ((left.mean(0) - right.mean(0)).abs() < 5 * spread * math.sqrt(2 / count)).all()
    assert torch.allclose(left.var(0), right.var(0), rtol=5 * math.sqrt(4 / count))
    levels = torch.linspace(0.01, 0.99, 25, dtype=torch.float64)
    for column in range(left.shape[1]):
        a, b = left[:, column].sort().values, right[:, column].sort().values
        # Kolmogorov-Smirnov over quantiles; 1.95 * sqrt(2 / n) is the bound at 0.1 %.
        share = torch.searchsorted(a, b.quantile(levels), right=True).double() / count
        own = torch.searchsorted(b, b.quantile(levels), right=True).double() / count
        assert (share - own).abs().max() < 1.95 * math.sqrt(2 / count)


def test_numbers_do_not_depend_on_batching_or_trials_run_together():
    overrides = []
    whole = product(overrides, range(12), trials=(0, 1, 2))
    x = None
    for trial in range(3):
        for part in (range(5), range(5, 12)):
            again = product(overrides, part, trials=(trial,), x=x)
            assert torch.equal(whole[trial, part.start : part.stop], again[0])


THREADS = """
import sys
import torch
import numba
from test_crossbar_kernels import product
numba.set_num_threads(int(sys.argv[1]))
# Columns that lie beside one another, and cells of differing noise, whose positions do.
rows = product([], range(150), n=20)
positions = product(['device.read_noise.model="proportional_read"'], range(40), n=5)
torch.save((rows, positions), sys.argv[2])
"""


def test_numbers_do_not_depend_on_threads(tmp_path):
    files = [tmp_path / f"{count}.pt" for count in (1, 3)]
    for count, file in zip((1, 3), files, strict=True):
        subprocess.run(
            [sys.executable, "-c", THREADS, str(count), str(file)],
            check=True,
            cwd=Path(__file__).parent,
            env={**os.environ, "NUMBA_NUM_THREADS": "3"},
        )
    one, three = (torch.load(file) for file in files)
    assert all(torch.equal(left, right) for left, right in zip(one, three, strict=True))
    assert all(len(part.unique()) > 20 for part in one)


def test_generator_moments_and_tails():
    count = 4_000_000
    drawn = np.empty(count, dtype=np.float32)
    normals(np.uint64(12345), drawn)
    drawn = drawn.astype(np.float64)
    assert abs(drawn.mean()) < 5 / math.sqrt(count)
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((drawn**3).mean()) < 5 * math.sqrt(15 / count)
    assert abs((drawn**4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert abs((drawn**6).mean() - 15) < 5 * math.sqrt(10395 / count)
    for edge in (1.0, 2.0, 3.0, 4.0, 4.5):
        for sign in (1, -1):
            expected = 0.5 * math.erfc(edge / math.sqrt(2))
            found = (sign * drawn > edge).mean()
            assert abs(found - expected) < 5 * math.sqrt(expected / count)
    # Both halves of a pair, neighbours, and the squares of pairs are uncorrelated.
    left, right = np.split(drawn, 2)
    for a, b in ((drawn[1:], drawn[:-1]), (left, right)):
        assert abs((a * b).mean()) < 5 / math.sqrt(b.size)
        assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 5 * 2 / math.sqrt(b.size)
    levels = np.sort(drawn)[:: count // 1000]
    theory = np.array([0.5 * math.erfc(-level / math.sqrt(2)) for level in levels])
    share = np.arange(levels.size) * (count // 1000) / count
    assert np.abs(theory - share).max() < 1.95 / math.sqrt(count)


def test_streams_of_neighbouring_keys_are_independent():
    draws = Draws(0, (0, 1), tuple(range(500)))
    keys = draws.keys("a")
    assert len(set(keys.tolist())) == 1000
    rows = np.empty((1000, 400), dtype=np.float32)
    for row, key in zip(rows, keys, strict=True):
        normals(key, row)
    correlation = (rows @ rows.T) / 400
    off = correlation[~np.eye(1000, dtype=bool)]
    assert abs(off.mean()) < 5e-4 and abs(off.std() - 1 / math.sqrt(400)) < 2e-3
    assert len(np.unique(rows)) > 0.99 * rows.size
