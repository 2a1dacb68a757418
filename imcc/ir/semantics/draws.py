"""Random draws keyed by (seed, stream, trial, sample), so that numbers never depend on batching.

Each key owns a counter range of a Philox generator (Salmon et al., SC'11, "Parallel random numbers:
as easy as 1, 2, 3"; numpy's ``Philox``). Trials are folded into the leading axis, trial-major:
row ``r * B + b`` belongs to trial ``trials[r]`` and sample ``samples[b]``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_PER_TRIAL = 2**63
"""Counter word of draws that belong to a trial, not to one of its samples."""


@dataclass(frozen=True)
class Draws:
    """Draws for R = ``len(trials)`` trials of B = ``len(samples)`` samples."""

    seed: int
    trials: tuple[int, ...] = (0,)
    samples: tuple[int, ...] = (0,)

    def per_trial(self, stream: str, shape: Sequence[int]) -> Tensor:
        """Standard normals ``[R, *shape]`` (float32): one draw for each trial."""
        out = np.empty((len(self.trials), math.prod(shape)), dtype=np.float32)
        for row, trial in enumerate(self.trials):
            _generator(self.seed, stream, trial, _PER_TRIAL).standard_normal(
                dtype=np.float32, out=out[row]
            )
        return torch.from_numpy(out).reshape(len(self.trials), *shape)

    def keys(self, stream: str) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """A 64-bit key for each row ``[R * B]``, for kernels with a generator of their own."""
        made = np.empty((len(self.trials), len(self.samples)), dtype=np.uint64)
        numbers = np.array(self.samples, dtype=np.uint64)
        for row, trial in enumerate(self.trials):
            digest = hashlib.blake2b(f"{self.seed}/{stream}/{trial}".encode(), digest_size=8)
            # Odd multiples of a sample's number are distinct modulo 2^64; kernels mix the bits.
            base = np.frombuffer(digest.digest(), dtype=np.uint64)[0]
            with np.errstate(over="ignore"):
                made[row] = base + numbers * np.uint64(0xD1342543DE82EF95)
        return made.reshape(-1)

    def per_read(self, stream: str, shape: Sequence[int]) -> Tensor:
        """Standard normals ``[R * B, *shape]`` (float32): one draw for each trial and sample."""
        out = np.empty((len(self.trials) * len(self.samples), math.prod(shape)), dtype=np.float32)
        keys = [(trial, sample) for trial in self.trials for sample in self.samples]

        def fill(row: int) -> None:
            trial, sample = keys[row]
            _generator(self.seed, stream, trial, sample).standard_normal(
                dtype=np.float32, out=out[row]
            )

        _each_row(fill, len(keys), out.shape[1])
        return torch.from_numpy(out).reshape(len(keys), *shape)


def _generator(seed: int, stream: str, trial: int, word: int) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}/{stream}/{trial}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    counter = np.array([0, 0, word, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _each_row(fill: Callable[[int], None], rows: int, width: int) -> None:
    # The generator releases the interpreter lock; threads pay only for rows of some length.
    threads = torch.get_num_threads()
    if threads < 2 or rows < 2 or width < 4096:
        for row in range(rows):
            fill(row)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(rows)))
