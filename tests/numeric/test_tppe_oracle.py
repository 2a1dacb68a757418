"""The kernel of LoAS equals, cycle for cycle, a slow and obvious model of its elements.

The model steps through one cycle after another. It works on dense rows of spike words and dense
columns of weights, knows no bit tricks and no formula for times, and keeps what a circuit keeps: a
loaded chunk, FIFOs, a laggy prefix sum that counts its steps, accumulators.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imcc.backends.sparse_snn import engines, temporal_parallel
from imcc.backends.sparse_snn.product import Product, StoredSpikes
from imcc.backends.sparse_snn.target import SparseTarget
from imcc.backends.targets import find_target

CHUNK = 128


@dataclass(frozen=True)
class Rules:
    timesteps: int
    adders: int = 16
    depth: int = 8
    laggy_scope: str = "row"
    early_stop: bool = False
    corrections: str = "overlapped"
    empty_cycles: int = 1
    pseudo_bits: int | None = None
    correction_bits: int | None = None
    overflow: str = "wrap"


@dataclass
class Entry:
    """What the FIFOs hold of a match."""

    key: tuple[int, int]
    pushed: int
    weight: int
    word: int


@dataclass
class Accumulator:
    bits: int | None
    overflow: str
    value: int = 0
    overflows: int = 0

    def add(self, weight: int) -> None:
        self.value += weight
        if self.bits is None:
            return
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        if low <= self.value <= high:
            return
        self.overflows += 1
        if self.overflow == "saturate":
            self.value = high if self.value > high else low
            return
        while self.value > high:
            self.value -= 2**self.bits
        while self.value < low:
            self.value += 2**self.bits


@dataclass
class Tppe:
    """One element with its row of words; ``start`` gives it a column, ``tick`` is one cycle."""

    row: list[int]
    rules: Rules
    counts: Counter = field(default_factory=Counter)
    pair: int = -1
    chunk: int = 0
    column: list[int] | None = None
    matches: deque[int] | None = None
    empty_left: int = 0
    fifo: deque[Entry] = field(default_factory=deque)
    laggy_tasks: deque[tuple[tuple[int, int], int]] = field(default_factory=deque)
    laggy_key: tuple[int, int] | None = None
    laggy_left: int = 0
    offsets_for: tuple[int, int] | None = None
    begun: int = 0
    accumulators: dict[int, tuple[Accumulator, list[Accumulator]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chunks = max(1, -(-len(self.row) // CHUNK))

    # -- what the control around it sees --------------------------------------------------------

    def wants_pair(self, cycle: int) -> bool:
        """Whether the next column may start in this cycle."""
        if self.column is None:
            return True
        if cycle <= self.begun or self.chunk < self.chunks or self.matches or self.empty_left:
            return False
        first_of_row = self.rules.laggy_scope == "row" and self.pair == 0
        if first_of_row and (self.laggy_key is not None or self.laggy_tasks):
            return False
        return self.rules.corrections == "streamed" or not self.fifo

    def drained(self, cycle: int) -> bool:
        return self.wants_pair(cycle) and not self.fifo

    def begin_pair(self, column: list[int], cycle: int) -> None:
        self.pair += 1
        self.chunk, self.column, self.begun = 0, column, cycle
        rules = self.rules
        self.accumulators[self.pair] = (
            Accumulator(rules.pseudo_bits, rules.overflow),
            [Accumulator(rules.correction_bits, rules.overflow) for _ in range(rules.timesteps)],
        )

    # -- one cycle, in the order of its parts ---------------------------------------------------

    def finish_laggy(self) -> None:
        """At the start of a cycle: the laggy sum that made its last step hands its offsets over."""
        if self.laggy_key is None or self.laggy_left:
            return
        if any(entry.key < self.laggy_key for entry in self.fifo):
            return
        self.offsets_for = self.laggy_key
        self.laggy_key = None

    def load_chunks(self) -> None:
        """The join loads a chunk if it has none; chunks that take no cycle go by."""
        while not self.matches and not self.empty_left and self.column is not None:
            if self.chunk == self.chunks:
                return
            at = self.chunk * CHUNK
            positions = range(at, min(at + CHUNK, len(self.row)))
            found = deque(p for p in positions if self.row[p] and self.column[p])
            key = (self.pair, self.chunk)
            self.chunk += 1
            self.counts["chunks"] += 1
            scope = self.rules.laggy_scope
            first_of_row = scope == "row" and self.pair == 0
            if first_of_row or scope == "every-chunk" or (scope == "matched-chunk" and found):
                steps = -(-CHUNK // self.rules.adders)
                if self.rules.early_stop and found and not first_of_row:
                    steps = (found[-1] - at) // self.rules.adders + 1
                self.laggy_tasks.append((key, steps))
                self.counts["laggy_runs"] += 1
                self.counts["laggy_steps"] += steps
            if found:
                self.matches = found
            else:
                self.counts["empty_chunks"] += 1
                self.empty_left = self.rules.empty_cycles

    def run(self, cycle: int) -> None:
        """The rest of the cycle: laggy step, pop, push."""
        if self.laggy_key is None and self.laggy_tasks:
            self.laggy_key, self.laggy_left = self.laggy_tasks.popleft()
        if self.laggy_left:
            self.laggy_left -= 1

        had = len(self.fifo)
        popped = False
        if self.fifo and self.fifo[0].pushed < cycle and self._offset_known(self.fifo[0].key):
            self._correct(self.fifo.popleft())
            popped = True

        if self.empty_left:
            self.empty_left -= 1
            self.counts["join_cycles"] += 1
        elif self.matches:
            blocked = self.rules.corrections == "serial" and popped
            if had < self.rules.depth and not blocked:
                self._push(cycle)
                self.counts["join_cycles"] += 1
            else:
                self.counts["fifo_stall_cycles"] += 1

    def _offset_known(self, key: tuple[int, int]) -> bool:
        if self.rules.laggy_scope == "row" and key[0] > 0:
            return True
        return self.offsets_for == key

    def _push(self, cycle: int) -> None:
        position = self.matches.popleft()
        weight, word = self.column[position], self.row[position]
        self.accumulators[self.pair][0].add(weight)
        self.fifo.append(Entry((self.pair, position // CHUNK), cycle, weight, word))
        self.counts["matches"] += 1

    def _correct(self, entry: Entry) -> None:
        bits = [(entry.word >> t) & 1 for t in range(self.rules.timesteps)]
        self.counts["corrected_matches"] += not all(bits)
        for bit, accumulator in zip(bits, self.accumulators[entry.key[0]][1], strict=True):
            if not bit:
                accumulator.add(entry.weight)
                self.counts["corrections"] += 1

    def sums(self, pair: int) -> list[int]:
        pseudo, corrections = self.accumulators[pair]
        return [pseudo.value - item.value for item in corrections]


def run_group(
    rows: list[list[int]], columns: list[list[int]], rules: Rules, barrier: bool
) -> tuple[int, list[list[list[int]]], Counter]:
    """Rows on as many elements, all columns: cycles, sums [row][column][t], counts.

    ``barrier``: a column starts when every element is through with the one before.
    """
    elements = [Tppe(row, rules) for row in rows]
    counts: Counter = Counter()
    started = [0] * len(rows)
    cycle = 0
    while True:
        for item in elements:
            item.finish_laggy()
            item.load_chunks()
        waiting = [item.wants_pair(cycle) for item in elements]
        held_back = barrier and not all(waiting)
        for index, item in enumerate(elements):
            if waiting[index] and not held_back and started[index] < len(columns):
                item.begin_pair(columns[started[index]], cycle)
                started[index] += 1
                waiting[index] = False
        through = all(count == len(columns) for count in started)
        if through and all(item.drained(cycle) for item in elements):
            break
        for index, item in enumerate(elements):
            item.load_chunks()
            # What an element waits for when it neither joins nor corrects is told apart below.
            before = item.counts["join_cycles"] + item.counts["fifo_stall_cycles"]
            item.run(cycle)
            after = item.counts["join_cycles"] + item.counts["fifo_stall_cycles"]
            if after == before:
                where = "broadcast_stall_cycles" if waiting[index] else "correction_stall_cycles"
                item.counts[where] += 1
        cycle += 1
    for item in elements:
        counts.update(item.counts)
        for pseudo, corrections in item.accumulators.values():
            counts["pseudo_overflows"] += pseudo.overflows
            counts["correction_overflows"] += sum(part.overflows for part in corrections)
    made = [[item.sums(pair) for pair in range(len(columns))] for item in elements]
    return cycle, made, counts


# -- the kernel against the model -----------------------------------------------------------------


def target_of(rules: Rules, elements: int = 16, **more: str) -> SparseTarget:
    held = rules.corrections, rules.laggy_scope
    overrides = [
        f"array.elements={elements}",
        f"laggy.adders={rules.adders}",
        f"fifo.depth={rules.depth}",
        f"rules.corrections={held[0]}",
        f"rules.laggy_scope={held[1]}",
        f"rules.laggy_early_stop={str(rules.early_stop).lower()}",
        f"rules.empty_chunk_cycles={rules.empty_cycles}",
        f"accumulators.overflow={rules.overflow}",
        *(f"rules.{key}={value}" for key, value in more.items()),
    ]
    if rules.pseudo_bits:
        overrides.append(f"accumulators.pseudo_bits={rules.pseudo_bits}")
    if rules.correction_bits:
        overrides.append(f"accumulators.correction_bits={rules.correction_bits}")
    made = find_target("loas", overrides)
    assert isinstance(made, SparseTarget)
    return made


def product_of(words: np.ndarray, weights: np.ndarray, timesteps: int) -> Product:
    stored = StoredSpikes.of(words)
    result = StoredSpikes(len(words), len(weights), 0, 0)
    return Product(words, weights, timesteps, stored, result)


def draw(seed: int, m: int, n: int, k: int, timesteps: int, active: float, kept: float) -> Product:
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 2**timesteps, (m, k), dtype=np.uint64).astype(np.uint32)
    # Half of the active neurons spike in every timestep.
    words[rng.random((m, k)) < 0.5] = 2**timesteps - 1
    words[rng.random((m, k)) >= active] = 0
    weights = rng.integers(-127, 128, (n, k)).astype(np.int32)
    weights[rng.random((n, k)) >= kept] = 0
    return product_of(words, weights, timesteps)


def dense_sums(product: Product) -> np.ndarray:
    steps = np.arange(product.timesteps, dtype=np.uint32)
    spikes = (product.words[..., None] >> steps) & 1
    return np.einsum("mkt,nk->mnt", spikes.astype(np.int64), product.weights.astype(np.int64))


rules_drawn = st.builds(
    Rules,
    timesteps=st.sampled_from([1, 3, 4, 5, 8, 16, 32]),
    adders=st.sampled_from([1, 7, 16, 64, 128]),
    depth=st.sampled_from([1, 2, 8, 40]),
    laggy_scope=st.sampled_from(["matched-chunk", "every-chunk", "row"]),
    early_stop=st.booleans(),
    corrections=st.sampled_from(["overlapped", "serial", "streamed"]),
    empty_cycles=st.sampled_from([0, 1]),
    pseudo_bits=st.sampled_from([None, 8, 12]),
    correction_bits=st.sampled_from([None, 8, 10]),
    overflow=st.sampled_from(["wrap", "saturate"]),
)


@settings(max_examples=120, deadline=None)
@given(
    rules=rules_drawn,
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(1, 5),
    n=st.integers(1, 4),
    k=st.sampled_from([1, 5, 64, 127, 128, 129, 300]),
    active=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    kept=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    barrier=st.booleans(),
)
def test_kernel_equals_the_step_by_step_model(rules, seed, m, n, k, active, kept, barrier):
    product = draw(seed, m, n, k, rules.timesteps, active, kept)
    target = target_of(rules, m, broadcast="barrier" if barrier else "queued")
    made = engines.run(product, target)
    rows, columns = product.words.tolist(), product.weights.tolist()
    cycles, sums, counts = run_group(rows, columns, rules, barrier)
    assert made.compute_cycles == cycles
    assert made.sums.tolist() == sums
    for name in temporal_parallel.COUNTERS:
        assert made.counts[name] == counts[name], name


@settings(max_examples=60, deadline=None)
@given(
    rules=rules_drawn,
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(1, 40),
    n=st.integers(1, 9),
    k=st.sampled_from([1, 100, 129, 500]),
    active=st.sampled_from([0.0, 0.1, 1.0]),
    kept=st.sampled_from([0.0, 0.1, 1.0]),
    mapping=st.sampled_from(["rows", "rows-columns"]),
    broadcast=st.sampled_from(["barrier", "queued", "none"]),
)
def test_every_cycle_of_every_element_is_counted_once(
    rules, seed, m, n, k, active, kept, mapping, broadcast
):
    product = draw(seed, m, n, k, rules.timesteps, active, kept)
    target = target_of(rules, mapping=mapping, broadcast=broadcast)
    made = engines.run(product, target)
    spent = sum(count for name, count in made.counts.items() if name.endswith("_cycles"))
    assert spent == 16 * made.compute_cycles
    if made.overflows == 0:
        np.testing.assert_array_equal(made.sums, dense_sums(product))


def test_a_fiber_pair_by_hand():
    # Positions 0 and 20 match. Offsets of the row's first pair are there in cycle 8, so the pops
    # are in cycles 8 and 9 and the pair takes 10; kept offsets make the second pair 3 cycles.
    words = np.zeros((1, 128), np.uint32)
    words[0, [0, 20]] = [0b1111, 0b0101]
    weights = np.zeros((2, 128), np.int32)
    weights[:, [0, 20]] = [[3, 5], [-7, 2]]
    made = engines.run(product_of(words, weights, 4), find_target("loas"))
    assert made.compute_cycles == 10 + 3
    assert made.sums.tolist() == [[[8, 3, 8, 3], [-5, -7, -5, -7]]]
    assert made.counts["corrections"] == 4
    assert made.counts["corrected_matches"] == 2
    assert made.counts["laggy_steps"] == 8
    assert made.counts["correction_stall_cycles"] == 8 + 1


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_published_widths_overflow_and_say_so(overflow):
    words = np.full((1, 200), 0b0001, np.uint32)
    weights = np.full((1, 200), 127, np.int32)
    rules = Rules(4, pseudo_bits=12, correction_bits=10, overflow=overflow)
    made = engines.run(product_of(words, weights, 4), target_of(rules))
    exact = engines.run(product_of(words, weights, 4), find_target("loas"))
    assert exact.overflows == 0
    assert exact.sums.tolist() == [[[25400, 0, 0, 0]]]
    assert made.overflows > 0
    if overflow == "saturate":
        assert made.sums.tolist() == [[[2047, 1536, 1536, 1536]]]
