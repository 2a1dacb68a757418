"""Kernel of the inner product with timesteps one after another, as SparTen would run a spiking net.

For each pair of fibers and each timestep, the bitmask of that timestep's spikes is ANDed with the
mask of the weights; matches leave one per ``cycles_per_match``, a chunk without a match takes
``empty_cycles``, a timestep at least one cycle. A spike is 1, so only the offset into the weights
is needed and no prefix sum over the spikes.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from imcc.backends.sparse_snn.bits import popcount
from imcc.backends.sparse_snn.temporal_parallel import BARRIER

COUNTERS = (
    "chunks",
    "empty_chunks",
    "matches",
    "join_cycles",
    "result_stall_cycles",
    "broadcast_stall_cycles",
    "idle_cycles",
)
_CHUNKS, _EMPTY, _MATCHES, _JOIN, _RESULT, _BROADCAST, _IDLE = range(len(COUNTERS))


@numba.njit(cache=True)
def _step(
    a_mask: NDArray[np.uint64],
    b_mask: NDArray[np.uint64],
    b_starts: NDArray[np.int64],
    b_values: NDArray[np.int32],
    cycles_per_match: int,
    empty_cycles: int,
    counters: NDArray[np.int64],
) -> tuple[int, int]:
    """One pair in one timestep: its cycles and its sum."""
    one = np.uint64(1)
    cycles, total = 0, 0
    for chunk in range(len(b_starts)):
        counters[_CHUNKS] += 1
        found = 0
        offset = b_starts[chunk]
        for half in range(2):
            b_word = b_mask[2 * chunk + half]
            matched = a_mask[2 * chunk + half] & b_word
            while matched:
                bit = matched & (~matched + one)
                matched ^= bit
                total += int(b_values[offset + popcount(b_word & (bit - one))])
                found += 1
            offset += popcount(b_word)
        counters[_MATCHES] += found
        counters[_EMPTY] += found == 0
        cycles += found * cycles_per_match if found else empty_cycles
    counters[_JOIN] += cycles
    counters[_RESULT] += max(cycles, 1) - cycles
    return max(cycles, 1), total


@numba.njit(cache=True)
def sequential(
    a_masks: NDArray[np.uint64],
    b_masks: NDArray[np.uint64],
    b_starts: NDArray[np.int64],
    b_values: NDArray[np.int32],
    elements: int,
    split_columns: bool,
    broadcast: int,
    cycles_per_match: int,
    empty_cycles: int,
    sums: NDArray[np.int64],
    counters: NDArray[np.int64],
    group_cycles: NDArray[np.int64],
) -> None:
    """All pairs and timesteps; ``a_masks`` is ``[T, M, 2 * chunks]``, ``sums`` ``[M, N, T]``.

    Rows go to elements as in :func:`temporal_parallel`; an element does all timesteps of a pair
    before the next column comes.
    """
    timesteps, rows, columns = a_masks.shape[0], a_masks.shape[1], len(b_masks)
    for group in range(len(group_cycles)):
        first = group * elements
        held = min(elements, rows - first)
        sets = min(max(1, elements // held), columns) if split_columns else 1
        free = np.zeros(held * sets, np.int64)
        for column in range(0, columns, sets):
            for lane in range(held * sets):
                row, n = first + lane % held, column + lane // held
                if n >= columns:
                    continue
                for t in range(timesteps):
                    cycles, total = _step(
                        a_masks[t, row],
                        b_masks[n],
                        b_starts[n],
                        b_values,
                        cycles_per_match,
                        empty_cycles,
                        counters,
                    )
                    free[lane] += cycles
                    sums[row, n, t] = total
            if broadcast == BARRIER:
                latest = free.max()
                for lane in range(held * sets):
                    counters[_BROADCAST] += latest - free[lane]
                    free[lane] = latest
        end = free.max()
        for lane in range(held * sets):
            counters[_BROADCAST] += end - free[lane]
        counters[_IDLE] += (elements - held * sets) * end
        group_cycles[group] = end
