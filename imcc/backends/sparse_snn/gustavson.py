"""Kernel of Gustavson's product, as Gamma would run a spiking net, timesteps one after another.

An element takes one row of spikes. In each timestep it merges the rows of weights whose position
spikes, ``radix`` at a time, and its merger takes in one weight per cycle; weights of one column are
added as they meet. A row of weights that is empty takes ``empty_cycles``. With more fibers than
``radix`` the merger leaves partial fibers, which are read again (``read_back`` times each) until
one is left. Rows go to the first free element.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from imcc.backends.sparse_snn.bits import popcount

COUNTERS = (
    "fibers",
    "empty_fibers",
    "merged",
    "partials_written",
    "partials_read",
    "merge_cycles",
    "result_stall_cycles",
    "idle_cycles",
)
_FIBERS, _EMPTY, _MERGED, _WRITTEN, _READ, _CYCLES, _RESULT, _IDLE = range(len(COUNTERS))


@numba.njit(cache=True)
def _ones(mask: NDArray[np.uint64]) -> int:
    total = 0
    for word in mask:
        total += popcount(word)
    return total


@numba.njit(cache=True)
def gustavson(
    words: NDArray[np.uint32],
    b_columns: NDArray[np.int32],
    b_values: NDArray[np.int32],
    b_pointers: NDArray[np.int64],
    columns: int,
    timesteps: int,
    elements: int,
    slices: int,
    radix: int,
    read_back: int,
    empty_cycles: int,
    sums: NDArray[np.int64],
    counters: NDArray[np.int64],
    fetched: NDArray[np.int64],
) -> int:
    """All rows; ``words`` is ``[M, K]``, ``sums`` ``[M, N, T]`` and must come as zeros.

    With ``slices`` above 1 a row is shared by as many elements, each with columns
    ``n % slices == slice``. ``fetched`` is ``[K]``: how often a row of weights is fetched. Returns
    the cycle in which the last element is done.
    """
    rows, length = words.shape
    width = max(1, -(-columns // 64))
    parts = np.zeros((max(1, -(-length // radix)), width), np.uint64)
    free = np.zeros(elements, np.int64)
    for m in range(rows):
        for part_of in range(slices):
            task = 0
            for t in range(timesteps):
                cycles, filled, made = 0, 0, 0
                for k in range(length):
                    if not (words[m, k] >> np.uint32(t)) & np.uint32(1):
                        continue
                    counters[_FIBERS] += 1
                    fetched[k] += 1
                    if filled == 0:
                        parts[made] = 0
                    taken = 0
                    for at in range(b_pointers[k], b_pointers[k + 1]):
                        n = b_columns[at]
                        if n % slices != part_of:
                            continue
                        taken += 1
                        sums[m, n, t] += b_values[at]
                        parts[made, n >> 6] |= np.uint64(1) << np.uint64(n & 63)
                    if taken == 0:
                        counters[_EMPTY] += 1
                        cycles += empty_cycles
                        continue
                    counters[_MERGED] += taken
                    cycles += taken
                    filled += 1
                    if filled == radix:
                        filled, made = 0, made + 1
                if filled:
                    made += 1
                while made > 1 and read_back >= 0:
                    fewer = 0
                    for group in range(0, made, radix):
                        for part in range(group, min(made, group + radix)):
                            size = _ones(parts[part])
                            counters[_WRITTEN] += size
                            counters[_READ] += size
                            cycles += read_back * size
                            if part == group:
                                parts[fewer] = parts[part]
                            else:
                                for word in range(width):
                                    parts[fewer, word] |= parts[part, word]
                        fewer += 1
                    made = fewer
                counters[_CYCLES] += cycles
                counters[_RESULT] += max(cycles, 1) - cycles
                task += max(cycles, 1)
            free[np.argmin(free)] += task
    end = free.max() if rows else 0
    for element in range(elements):
        counters[_IDLE] += end - free[element]
    return end
