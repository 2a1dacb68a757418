"""Every engine: exact sums on awkward operands, and counts that a plain walk gives too."""

import heapq
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imcc.backends.sparse_snn import engines
from imcc.backends.sparse_snn.fibers import (
    compress,
    pack_spikes,
    silence_single_spikes,
    unpack_spikes,
)
from imcc.backends.sparse_snn.product import Product, StoredSpikes, needed_bits
from imcc.backends.sparse_snn.traffic import missed_bytes
from imcc.backends.sparse_snn.windows import filter_rows, window_rows
from imcc.backends.targets import find_target

TARGETS = ("loas", "sparten-snn", "gospa-snn", "gamma-snn", "ptb")
SEQUENTIAL = TARGETS[1:4]


def draw(seed, m, n, k, timesteps, active, kept):
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 2**timesteps, (m, k), dtype=np.uint64).astype(np.uint32)
    words[rng.random((m, k)) >= active] = 0
    weights = rng.integers(-127, 128, (n, k)).astype(np.int32)
    weights[rng.random((n, k)) >= kept] = 0
    return Product(words, weights, timesteps, StoredSpikes.of(words), StoredSpikes(m, n, 0, 0))


def spikes_of(product):
    steps = np.arange(product.timesteps, dtype=np.uint32)
    return ((product.words[..., None] >> steps) & 1).astype(np.int64)


def dense_sums(product):
    return np.einsum("mkt,nk->mnt", spikes_of(product), product.weights.astype(np.int64))


products = st.builds(
    draw,
    seed=st.integers(0, 2**32 - 1),
    m=st.sampled_from([1, 2, 15, 16, 17, 40]),
    n=st.sampled_from([1, 3, 65]),
    k=st.sampled_from([1, 3, 127, 128, 129, 400]),
    timesteps=st.sampled_from([1, 3, 4, 5, 8, 16, 32]),
    active=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    kept=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(product=products, mapping=st.sampled_from(["rows", "rows-columns"]))
def test_sums_are_exact(product, mapping):
    want = dense_sums(product)
    for name in TARGETS:
        options = () if name == "ptb" else (f"rules.mapping={mapping}",)
        made = engines.run(product, find_target(name, options))
        np.testing.assert_array_equal(made.sums, want, err_msg=name)
        assert made.cycles == (
            made.compute_cycles + made.cache_stall_cycles + made.dram_stall_cycles
        )
        assert all(value >= 0 for value in made.events.values())


@settings(max_examples=40, deadline=None)
@given(product=products)
def test_matches_are_the_same_work_in_every_engine(product):
    spikes, kept = spikes_of(product), product.weights != 0
    packed = int(((product.words != 0).astype(int) @ kept.T.astype(int)).sum())
    single = int(np.einsum("mkt,nk->", spikes, kept.astype(int)))
    runs = {name: engines.run(product, find_target(name)).counts for name in TARGETS}
    assert runs["loas"]["matches"] == packed
    assert runs["sparten-snn"]["matches"] == single
    assert runs["gospa-snn"]["updates"] == single
    assert runs["gamma-snn"]["merged"] == single
    chunks = product.shape[0] * product.shape[1] * product.chunks
    assert runs["loas"]["chunks"] == chunks
    assert runs["sparten-snn"]["chunks"] == chunks * product.timesteps
    # Corrections are what the pseudo-accumulator added too much.
    assert runs["loas"]["corrections"] == packed * product.timesteps - single


def plain_sequential(product, per_match, empty, barrier):
    spikes, weights = spikes_of(product), product.weights
    total = 0
    for first in range(0, len(spikes), 16):
        rows = spikes[first : first + 16]
        times = [0] * len(rows)
        for column in weights:
            for index, row in enumerate(rows):
                for t in range(product.timesteps):
                    cycles = 0
                    for at in range(0, len(column), 128):
                        part = slice(at, at + 128)
                        found = sum((row[part, t] != 0) & (column[part] != 0))
                        cycles += found * per_match if found else empty
                    times[index] += max(cycles, 1)
            if barrier:
                times = [max(times)] * len(times)
        total += max(times)
    return total


@pytest.mark.parametrize("per_match, empty, barrier", [(1, 1, True), (2, 0, False), (1, 0, True)])
def test_sequential_cycles_equal_a_plain_walk(per_match, empty, barrier):
    product = draw(1, 19, 3, 200, 3, 0.1, 0.2)
    options = (
        f"rules.cycles_per_match={per_match}",
        f"rules.empty_chunk_cycles={empty}",
        f"rules.broadcast={'barrier' if barrier else 'queued'}",
    )
    made = engines.run(product, find_target("sparten-snn", options))
    assert made.compute_cycles == plain_sequential(product, per_match, empty, barrier)
    spent = sum(count for name, count in made.counts.items() if name.endswith("_cycles"))
    assert spent == 16 * made.compute_cycles


@pytest.mark.parametrize("empty", [0, 1])
def test_outer_product_cycles_equal_a_plain_walk(empty):
    product = draw(2, 50, 7, 40, 4, 0.2, 0.2)
    spikes = spikes_of(product)
    cycles = 0
    for k in range(40):
        for t in range(4):
            found = int(spikes[:, k, t].sum())
            weights = int((product.weights[:, k] != 0).sum())
            cycles += -(-found // 16) * weights if found and weights else empty
    made = engines.run(product, find_target("gospa-snn", [f"rules.empty_fiber_cycles={empty}"]))
    assert made.compute_cycles == cycles


def test_outer_product_tiles_keep_partial_sums_on_chip():
    product = draw(3, 100, 64, 30, 4, 0.3, 0.3)
    options = ("cache.bytes=16384",)
    made = engines.run(product, find_target("gospa-snn", options))
    # 8192 bytes hold 16 rows of 64 columns, 4 timesteps, 16 bits: 7 tiles.
    whole = engines.run(product, find_target("gospa-snn"))
    assert made.counts["empty_fibers"] > whole.counts["empty_fibers"]
    np.testing.assert_array_equal(made.sums, whole.sums)
    assert made.cache_lines["read_weights"] > whole.cache_lines["read_weights"]


@pytest.mark.parametrize("partials, times", [("ideal", 0), ("read-back", 1), ("write-and-read", 2)])
def test_gustavson_cycles_equal_a_plain_walk(partials, times):
    product = draw(4, 21, 9, 60, 2, 0.5, 0.3)
    spikes = spikes_of(product)
    radix = 4
    free = [0] * 16
    for m in range(21):
        task = 0
        for t in range(2):
            fibers = [set(np.flatnonzero(product.weights[:, k])) for k in range(60)]
            fibers = [fibers[k] for k in np.flatnonzero(spikes[m, :, t])]
            cycles = sum(len(fiber) or 1 for fiber in fibers)
            parts = [fiber for fiber in fibers if fiber]
            level = [set().union(*parts[i : i + radix]) for i in range(0, len(parts), radix)]
            while len(level) > 1:
                cycles += times * sum(map(len, level))
                level = [set().union(*level[i : i + radix]) for i in range(0, len(level), radix)]
            task += max(cycles, 1)
        heapq.heapreplace(free, free[0] + task) if free[0] or m >= 16 else heapq.heapreplace(
            free, task
        )
    options = (f"merger.radix={radix}", f"rules.partial_fibers={partials}")
    made = engines.run(product, find_target("gamma-snn", options))
    assert made.compute_cycles == max(free)


def test_dense_array_cycles():
    product = draw(5, 3, 33, 50, 5, 0.3, 0.3)
    made = engines.run(product, find_target("ptb"))
    # 3 rows, 3 folds of neurons, 2 of timesteps, 50 steps and 18 to fill and drain.
    assert made.compute_cycles == 3 * 3 * 2 * (50 + 18)
    skipping = engines.run(product, find_target("ptb", ["rules.skip_silent=true"]))
    active = int((product.words != 0).sum())
    assert skipping.compute_cycles == 3 * 2 * (active + 3 * 18)


# -- operands --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    timesteps=st.integers(1, 32),
    seed=st.integers(0, 99),
    length=st.integers(1, 300),
    density=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_packing_and_compression_lose_nothing(timesteps, seed, length, density):
    rng = np.random.default_rng(seed)
    spikes = (rng.random((timesteps, 3, length)) < density).astype(np.uint8)
    words = pack_spikes(spikes)
    np.testing.assert_array_equal(unpack_spikes(words, timesteps), spikes)
    fibers = compress(words)
    np.testing.assert_array_equal(fibers.decompress(), words)
    assert fibers.nonzeros().tolist() == (words != 0).sum(1).tolist()
    assert len(fibers.values) == int((words != 0).sum())
    sizes = fibers.bits(timesteps, 32)
    assert sizes.tolist() == [
        128 * -(-length // 128) + 32 + timesteps * count for count in fibers.nonzeros()
    ]


def test_words_refuse_what_is_no_spike():
    with pytest.raises(ValueError, match="0 or 1"):
        pack_spikes(np.full((2, 3), 0.5))
    with pytest.raises(ValueError, match="33 timesteps"):
        pack_spikes(np.zeros((33, 1)))


def test_silencing_drops_neurons_that_spike_once():
    words = np.array([0b0000, 0b0100, 0b0110, 0b1111], np.uint32)
    assert silence_single_spikes(words).tolist() == [0, 0, 0b0110, 0b1111]
    assert silence_single_spikes(words, 2).tolist() == [0, 0, 0, 0b1111]


@pytest.mark.parametrize("stride, padding, dilation", [(1, 1, 1), (2, 0, 1), (1, 2, 2), (3, 1, 2)])
def test_windows_give_a_convolution(stride, padding, dilation):
    rng = np.random.default_rng(0)
    plane = rng.integers(0, 9, (3, 9, 8)).astype(np.uint32)
    weights = rng.integers(-9, 9, (5, 3, 3, 2)).astype(np.int32)
    rows = window_rows(plane, (3, 2), (stride,) * 2, (padding,) * 2, (dilation,) * 2)
    made = rows.astype(np.int64) @ filter_rows(weights).T
    want = torch.nn.functional.conv2d(
        torch.tensor(plane.astype(np.float64))[None],
        torch.tensor(weights.astype(np.float64)),
        stride=stride,
        padding=padding,
        dilation=dilation,
    )[0]
    assert made.T.tolist() == want.reshape(5, -1).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_least_recently_used_misses(seed):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 4, (12, 30), dtype=np.uint32)
    sizes = rng.integers(0, 40, 30)
    held, used, missed = OrderedDict(), 0, 0
    for row in words:
        for t in range(2):
            for k in np.flatnonzero((row >> t) & 1):
                if sizes[k] == 0:
                    continue
                if k in held:
                    held.move_to_end(k)
                    continue
                missed += sizes[k]
                if sizes[k] > 150:
                    continue
                held[k] = sizes[k]
                used += sizes[k]
                while used > 150:
                    used -= held.popitem(last=False)[1]
    assert missed_bytes(words, 2, sizes, 150) == missed
    everything = sum(sizes[np.flatnonzero(words.any(0))])
    assert missed_bytes(words, 2, sizes, 10**6) == everything


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-127, 127), min_size=1, max_size=40))
def test_as_many_bits_as_the_layer_needs(column):
    bits = needed_bits(np.array([column], np.int32))
    top = sum(w for w in column if w > 0)
    bottom = sum(w for w in column if w < 0)
    assert -(2 ** (bits - 1)) <= bottom and top <= 2 ** (bits - 1) - 1
    fewer = bits - 1
    assert (
        bits == 2
        or fewer < 1
        or not (-(2 ** (fewer - 1)) <= bottom and top <= 2 ** (fewer - 1) - 1)
    )
