"""Kernel of the outer product, as GoSPA would run a spiking net, timesteps one after another.

For each k and each timestep, every spike of column k of the spikes meets every weight of row k of
the weights, and each meeting updates a partial sum. A row of weights is broadcast; each element
holds one spike of the column, so ``ceil(spikes / elements) * weights`` cycles pass. A (k, t)
without work takes ``empty_cycles``, the look at its pointers. Rows are cut into tiles whose
partial sums fit on chip.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

COUNTERS = ("empty_fibers", "updates", "update_rounds", "idle_cycles", "weight_fetches")
_EMPTY, _UPDATES, _ROUNDS, _IDLE, _FETCHES = range(len(COUNTERS))


@numba.njit(cache=True)
def outer_product(
    words: NDArray[np.uint32],
    b_columns: NDArray[np.int32],
    b_values: NDArray[np.int32],
    b_pointers: NDArray[np.int64],
    timesteps: int,
    elements: int,
    split_columns: bool,
    empty_cycles: int,
    tile_rows: int,
    sums: NDArray[np.int64],
    counters: NDArray[np.int64],
    tile_cycles: NDArray[np.int64],
    tile_updates: NDArray[np.int64],
    tile_fetches: NDArray[np.int64],
) -> None:
    """All k and timesteps; ``words`` is ``[K, M]``, the weights are compressed rows over N.

    ``sums`` is ``[M, N, T]`` and must come as zeros. ``tile_fetches`` is ``[tiles, K]``: how often
    a row of weights is fetched.
    """
    length, rows = words.shape
    spiking = np.zeros(tile_rows, np.int64)
    for tile in range(len(tile_cycles)):
        first = tile * tile_rows
        last = min(rows, first + tile_rows)
        cycles = 0
        for k in range(length):
            begin, end = b_pointers[k], b_pointers[k + 1]
            for t in range(timesteps):
                found = 0
                for m in range(first, last):
                    if (words[k, m] >> np.uint32(t)) & np.uint32(1):
                        spiking[found] = m
                        found += 1
                work = found * (end - begin)
                if work == 0:
                    counters[_EMPTY] += 1
                    counters[_IDLE] += empty_cycles * elements
                    cycles += empty_cycles
                    continue
                for index in range(found):
                    m = spiking[index]
                    for at in range(begin, end):
                        sums[m, b_columns[at], t] += b_values[at]
                if split_columns:
                    taken = -(-work // elements)
                else:
                    taken = -(-found // elements) * (end - begin)
                counters[_FETCHES] += 1
                counters[_UPDATES] += work
                counters[_ROUNDS] += taken
                counters[_IDLE] += taken * elements - work
                cycles += taken
                tile_updates[tile] += work
                tile_fetches[tile, k] += 1
        tile_cycles[tile] = cycles
