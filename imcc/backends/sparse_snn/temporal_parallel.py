"""Kernel of the fully temporal-parallel inner product: all T timesteps of a product at once.

One processing element (TPPE) joins the fiber of a row of spike words with the fiber of a column of
weights, chunk by chunk. What happens in which cycle:

- *Join*: a chunk's masks are ANDed and its matches leave in order of position, one per cycle. A
  match looks up the weight by the fast prefix sum, adds it to the pseudo-accumulator and goes into
  the FIFOs, if they have room (an entry that is popped in a cycle leaves its room for the next
  one). A chunk without a match takes ``empty_cycles``.
- *Laggy prefix sum*: one unit, started for a chunk when the join loads it and the unit is free,
  ``ceil(positions / adders)`` cycles. Its output register is overwritten when it finishes, so it
  finishes only after the last match of the chunk before has been popped. With the scope ``row``
  it runs for every chunk of the first pair of a row, which lasts until it is through, and its
  offsets are kept for all further columns.
- *Correction*: entries pop in order, one per cycle, from the cycle in which the laggy sum of their
  chunk is there, at the earliest one cycle after they were pushed. A popped entry reads its packed
  word; where bit t is 0, the weight is added to correction accumulator t.
- The result is ``pseudo - correction[t]``. A pair takes at least one cycle, that of its result.

``serial`` corrections share the adder with the join: no match is pushed in a cycle that pops.
``streamed`` corrections have a second set of accumulators: the next pair starts when the join is
free. Otherwise it starts when the last correction is done.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from imcc.backends.sparse_snn.bits import popcount

# Which chunks start the laggy prefix sum.
MATCHED, EVERY, ROW = 0, 1, 2
_ROW_FIRST = 3
# How corrections overlap with the join.
OVERLAPPED, SERIAL, STREAMED = 0, 1, 2
# When a fiber of weights moves on.
BARRIER, FREE = 0, 1
# What an accumulator does beyond its width.
WRAP, SATURATE = 0, 1

COUNTERS = (
    "chunks",
    "empty_chunks",
    "matches",
    "corrected_matches",
    "corrections",
    "laggy_runs",
    "laggy_steps",
    "join_cycles",
    "fifo_stall_cycles",
    "correction_stall_cycles",
    "broadcast_stall_cycles",
    "idle_cycles",
    "pseudo_overflows",
    "correction_overflows",
)
(
    _CHUNKS,
    _EMPTY,
    _MATCHES,
    _CORRECTED,
    _CORRECTIONS,
    _LAGGY_RUNS,
    _LAGGY_STEPS,
    _JOIN,
    _FIFO,
    _CORRECTION_STALL,
    _BROADCAST,
    _IDLE,
    _PSEUDO_OVERFLOWS,
    _CORRECTION_OVERFLOWS,
) = range(len(COUNTERS))

# State of one TPPE, behind it the pop times of the newest FIFO entries.
_LAGGY_FREE, _HELD, _LAST_POP, _PUSHED, _RING = range(5)


@numba.njit(cache=True, inline="always")
def _fit(value: int, limit: int, rule: int) -> int:
    """``value`` as an accumulator of the range ``-limit .. limit - 1`` keeps it."""
    if -limit <= value < limit:
        return value
    if rule == SATURATE:
        return limit - 1 if value > 0 else -limit
    return (value + limit) % (2 * limit) - limit


@numba.njit(cache=True)
def _pair(
    start: int,
    a_mask: NDArray[np.uint64],
    a_starts: NDArray[np.int64],
    a_values: NDArray[np.uint32],
    b_mask: NDArray[np.uint64],
    b_starts: NDArray[np.int64],
    b_values: NDArray[np.int32],
    timesteps: int,
    adders: int,
    laggy_scope: int,
    early_stop: bool,
    overlap: int,
    depth: int,
    empty_cycles: int,
    pseudo_limit: int,
    correction_limit: int,
    overflow: int,
    state: NDArray[np.int64],
    correction: NDArray[np.int64],
    sums: NDArray[np.int64],
    counters: NDArray[np.int64],
) -> tuple[int, int]:
    """Join one pair of fibers; when the next may start, and when the last correction is done."""
    one, full = np.uint64(1), np.uint32((np.uint64(1) << np.uint64(timesteps)) - np.uint64(1))
    whole = -(-128 // adders)
    time, pseudo, corrected_until = start, 0, start
    for t in range(timesteps):
        correction[t] = 0
    for chunk in range(len(a_starts)):
        low = a_mask[2 * chunk] & b_mask[2 * chunk]
        high = a_mask[2 * chunk + 1] & b_mask[2 * chunk + 1]
        counters[_CHUNKS] += 1
        if low == 0 and high == 0:
            counters[_EMPTY] += 1
            if laggy_scope in (EVERY, _ROW_FIRST):
                begin = max(time, state[_LAGGY_FREE])
                state[_LAGGY_FREE] = max(begin + whole, state[_HELD] + 1)
                counters[_LAGGY_RUNS] += 1
                counters[_LAGGY_STEPS] += whole
            time += empty_cycles
            counters[_JOIN] += empty_cycles
            continue
        ready = time
        if laggy_scope != ROW:
            steps = whole
            if early_stop and laggy_scope != _ROW_FIRST:
                last = 127 if high else 63
                word = high if high else low
                while not (word >> np.uint64(last & 63)) & one:
                    last -= 1
                steps = last // adders + 1
            begin = max(time, state[_LAGGY_FREE])
            ready = max(begin + steps, state[_HELD] + 1)
            state[_LAGGY_FREE] = ready
            counters[_LAGGY_RUNS] += 1
            counters[_LAGGY_STEPS] += steps
        for half in range(2):
            matched = high if half else low
            a_word, b_word = a_mask[2 * chunk + half], b_mask[2 * chunk + half]
            a_at, b_at = a_starts[chunk], b_starts[chunk]
            if half:
                a_at += popcount(a_mask[2 * chunk])
                b_at += popcount(b_mask[2 * chunk])
            while matched:
                bit = matched & (~matched + one)
                matched ^= bit
                below = bit - one
                weight = int(b_values[b_at + popcount(b_word & below)])
                spikes = a_values[a_at + popcount(a_word & below)]
                counters[_MATCHES] += 1
                counters[_JOIN] += 1

                # When the match is pushed and popped.
                pushed = state[_PUSHED]
                push = time
                if pushed >= depth:
                    push = max(push, state[_RING + pushed % depth] + 1)
                if overlap == SERIAL:
                    for entry in range(max(0, pushed - depth), pushed):
                        if state[_RING + entry % depth] == push:
                            push += 1
                pop = max(push + 1, ready, state[_LAST_POP] + 1)
                state[_RING + pushed % depth] = pop
                state[_LAST_POP] = pop
                state[_PUSHED] = pushed + 1
                counters[_FIFO] += push - time
                time = push + 1

                # What it adds.
                total = pseudo + weight
                pseudo = _fit(total, pseudo_limit, overflow)
                counters[_PSEUDO_OVERFLOWS] += pseudo != total
                if spikes != full:
                    counters[_CORRECTED] += 1
                    for t in range(timesteps):
                        if not (spikes >> np.uint32(t)) & np.uint32(1):
                            total = correction[t] + weight
                            correction[t] = _fit(total, correction_limit, overflow)
                            counters[_CORRECTION_OVERFLOWS] += correction[t] != total
                            counters[_CORRECTIONS] += 1
        state[_HELD] = state[_LAST_POP]
        corrected_until = state[_LAST_POP] + 1
    for t in range(timesteps):
        sums[t] = pseudo - correction[t]
    done = max(time, corrected_until, start + 1)
    if laggy_scope == _ROW_FIRST:
        done = max(done, state[_LAGGY_FREE])
    following = max(time, start + 1) if overlap == STREAMED else done
    if laggy_scope == _ROW_FIRST:
        following = max(following, state[_LAGGY_FREE])
    counters[_CORRECTION_STALL] += following - time
    return following, done


@numba.njit(cache=True)
def temporal_parallel(
    a_masks: NDArray[np.uint64],
    a_starts: NDArray[np.int64],
    a_values: NDArray[np.uint32],
    b_masks: NDArray[np.uint64],
    b_starts: NDArray[np.int64],
    b_values: NDArray[np.int32],
    timesteps: int,
    elements: int,
    split_columns: bool,
    broadcast: int,
    adders: int,
    laggy_scope: int,
    early_stop: bool,
    overlap: int,
    depth: int,
    empty_cycles: int,
    pseudo_limit: int,
    correction_limit: int,
    overflow: int,
    sums: NDArray[np.int64],
    counters: NDArray[np.int64],
    group_cycles: NDArray[np.int64],
) -> None:
    """All pairs: groups of rows, one row to a TPPE; in a group, every column after the other.

    With ``split_columns`` the TPPEs that a short last group leaves over take other columns.
    ``sums`` is ``[M, N, T]``, ``group_cycles`` is ``[groups]``. Every cycle of every TPPE is in
    exactly one of the counters that end in ``_cycles``.
    """
    rows, columns = len(a_masks), len(b_masks)
    correction = np.zeros(timesteps, np.int64)
    for group in range(len(group_cycles)):
        first = group * elements
        held = min(elements, rows - first)
        sets = min(max(1, elements // held), columns) if split_columns else 1
        state = np.zeros((held * sets, _RING + depth), np.int64)
        # Before anything was popped: the cycle before the first.
        state[:, _HELD] = -1
        state[:, _LAST_POP] = -1
        free = np.zeros(held * sets, np.int64)
        end = 0
        for column in range(0, columns, sets):
            first_pair = column == 0 and laggy_scope == ROW
            scope = _ROW_FIRST if first_pair else laggy_scope
            for lane in range(held * sets):
                row, n = first + lane % held, column + lane // held
                if n >= columns:
                    continue
                following, done = _pair(
                    free[lane],
                    a_masks[row],
                    a_starts[row],
                    a_values,
                    b_masks[n],
                    b_starts[n],
                    b_values,
                    timesteps,
                    adders,
                    scope,
                    early_stop,
                    overlap,
                    depth,
                    empty_cycles,
                    pseudo_limit,
                    correction_limit,
                    overflow,
                    state[lane],
                    correction,
                    sums[row, n],
                    counters,
                )
                free[lane] = following
                end = max(end, done)
            if broadcast == BARRIER:
                latest = free.max()
                for lane in range(held * sets):
                    counters[_BROADCAST] += latest - free[lane]
                    free[lane] = latest
        end = max(end, free.max())
        for lane in range(held * sets):
            counters[_BROADCAST] += end - free[lane]
        counters[_IDLE] += (elements - held * sets) * end
        group_cycles[group] = end
