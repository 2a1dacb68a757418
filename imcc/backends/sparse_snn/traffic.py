"""Sizes of compressed operands, and which of them the memory behind the cache serves again."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from imcc.backends.sparse_snn.product import StoredSpikes


def coordinate_bits(size: int) -> int:
    """Bits of a coordinate below ``size``: ``ceil(log2(size))``, at least 1."""
    return max(1, (size - 1).bit_length())


def packed_bits(stored: StoredSpikes, timesteps: int, pointer_bits: int) -> float:
    """Bitmask and pointer of each fiber, T bits of each neuron that spikes."""
    return stored.chunk_bits + stored.fibers * pointer_bits + stored.active * timesteps


def bitmask_bits(stored: StoredSpikes, timesteps: int) -> float:
    """A bitmask of the spikes for each timestep: of fixed size, so no pointers."""
    return float(stored.chunk_bits * timesteps)


def coordinate_list_bits(
    stored: StoredSpikes, timesteps: int, pointer_bits: int, *, by_channel: bool
) -> float:
    """A coordinate for each spike and a pointer for each list.

    Lists hold the channels of a fiber, or (``by_channel``) the fibers of a channel.
    """
    lists, size = stored.fibers, stored.length
    if by_channel:
        lists, size = size, lists
    return stored.spikes * coordinate_bits(size) + lists * timesteps * pointer_bits


@dataclass(frozen=True)
class WeightRows:
    """Weights ``[N, K]`` compressed by k: columns and values of row k at ``pointers[k]`` on."""

    columns: NDArray[np.int32]
    values: NDArray[np.int32]
    pointers: NDArray[np.int64]
    size: int

    @classmethod
    def of(cls, weights: NDArray[np.int32]) -> WeightRows:
        """Of weights ``[N, K]``."""
        by_k = np.ascontiguousarray(weights.T)
        k, n = np.nonzero(by_k)
        pointers = np.zeros(weights.shape[1] + 1, np.int64)
        np.cumsum(np.bincount(k, minlength=weights.shape[1]), out=pointers[1:])
        return cls(n.astype(np.int32), by_k[k, n], pointers, weights.shape[0])

    def row_bits(self, weight_bits: int) -> NDArray[np.int64]:
        """Bits of each row without its pointer, ``[K]``."""
        made: NDArray[np.int64] = np.diff(self.pointers) * (
            coordinate_bits(self.size) + weight_bits
        )
        return made


def lines(bits: NDArray[np.int64], line_bytes: int) -> NDArray[np.int64]:
    """Cache lines of pieces of so many bits, each starting on a line."""
    made: NDArray[np.int64] = -(-bits // (8 * line_bytes))
    return made


@numba.njit(cache=True)
def missed_bytes(
    words: NDArray[np.uint32], timesteps: int, row_bytes: NDArray[np.int64], capacity: int
) -> int:
    """Bytes that a least-recently-used cache of ``capacity`` bytes fetches.

    The accesses are rows k of the weights, for each row of ``words [M, K]``, each timestep, each
    spiking k. A row that is larger than the cache is fetched every time.
    """
    length = words.shape[1]
    # A doubly linked list from the least to the most recent; ``length`` is its anchor.
    older = np.full(length + 1, length, np.int64)
    newer = np.full(length + 1, length, np.int64)
    held = np.zeros(length, np.bool_)
    used, missed = 0, 0
    for m in range(words.shape[0]):
        for t in range(timesteps):
            for k in range(length):
                if not (words[m, k] >> np.uint32(t)) & np.uint32(1) or row_bytes[k] == 0:
                    continue
                if held[k]:
                    newer[older[k]] = newer[k]
                    older[newer[k]] = older[k]
                else:
                    missed += row_bytes[k]
                    if row_bytes[k] > capacity:
                        continue
                    used += row_bytes[k]
                    held[k] = True
                    while used > capacity:
                        oldest = newer[length]
                        newer[length] = newer[oldest]
                        older[newer[oldest]] = length
                        held[oldest] = False
                        used -= row_bytes[oldest]
                older[k] = older[length]
                newer[k] = length
                newer[older[length]] = k
                older[length] = k
    return missed
