"""One sparse product as an engine sees it, and what came of running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imcc.backends.sparse_snn.fibers import CHUNK, Words


@dataclass(frozen=True)
class StoredSpikes:
    """Spikes as they lie in memory: ``fibers`` runs of ``length`` neurons (channels of a pixel).

    ``active`` counts neurons that spike at all, ``spikes`` their spikes over all timesteps.
    """

    fibers: int
    length: int
    active: float
    spikes: float

    @classmethod
    def of(cls, words: Words) -> StoredSpikes:
        """Of words ``[fibers, length]``."""
        counts = np.bitwise_count(words)
        return cls(words.shape[0], words.shape[1], int((counts > 0).sum()), int(counts.sum()))

    @property
    def chunk_bits(self) -> int:
        """Bits of the bitmasks, in whole bytes for each fiber."""
        return self.fibers * 8 * -(-self.length // 8)


@dataclass(frozen=True)
class Product:
    """``O[m, n, t] = sum_k A[m, k, t] * B[k, n]`` with the operands as they are stored.

    ``words`` is ``[M, K]``, bit t of a word the spike of timestep t; ``weights`` is ``[N, K]``,
    integers. ``source`` is the map that the rows are windows of (the words themselves for a linear
    layer), ``result`` what the neurons behind the product put out. ``neurons``: events of these
    neurons' updates are counted with the product.
    """

    words: Words
    weights: NDArray[np.int32]
    timesteps: int
    source: StoredSpikes
    result: StoredSpikes
    neurons: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """M, N, K."""
        rows, length = self.words.shape
        return rows, len(self.weights), length

    @property
    def chunks(self) -> int:
        """Chunks of a fiber."""
        return max(1, -(-self.shape[2] // CHUNK))


@dataclass(frozen=True)
class Run:
    """What running a product came to.

    ``sums`` is ``[M, N, T]``. ``cycles`` is the time of the layer, the largest of ``compute``,
    ``cache`` and ``dram`` in each stretch that one of them bounds; ``counts`` are the engine's
    counters, ``dram_bytes`` and ``cache_lines`` traffic by operand, ``events`` what the component
    figures multiply.
    """

    sums: NDArray[np.int64] = field(repr=False)
    cycles: int
    compute_cycles: int
    cache_stall_cycles: int
    dram_stall_cycles: int
    counts: Mapping[str, int]
    dram_bytes: Mapping[str, float]
    cache_lines: Mapping[str, float]
    events: Mapping[str, float]

    @property
    def overflows(self) -> int:
        """Additions beyond the width of an accumulator."""
        return sum(count for name, count in self.counts.items() if name.endswith("overflows"))

    def to_json(self) -> dict[str, Any]:
        """All numbers but the sums, as plain data."""
        return {
            "cycles": self.cycles,
            "compute_cycles": self.compute_cycles,
            "cache_stall_cycles": self.cache_stall_cycles,
            "dram_stall_cycles": self.dram_stall_cycles,
            "counts": dict(self.counts),
            "dram_bytes": dict(self.dram_bytes),
            "cache_lines": dict(self.cache_lines),
            "events": dict(self.events),
        }


def needed_bits(weights: NDArray[np.int32]) -> int:
    """Bits, sign included, that hold every partial sum of every column of ``weights [N, K]``."""
    if not weights.size:
        return 2
    wide = weights.astype(np.int64)
    top = int(np.maximum(wide, 0).sum(1).max(initial=0))
    bottom = int((-np.minimum(wide, 0).sum(1)).max(initial=0))
    return max(top.bit_length(), (bottom - 1).bit_length() if bottom else 0) + 1
