"""Compressed operands: packed spike words, and fibers of a bitmask with the non-zero values.

The T spikes of one presynaptic neuron are the bits of one *word*, bit t for timestep t. A *fiber*
is a row of words or a column of weights: a bitmask of its positions, cut into *chunks* of 128,
and behind it the values that are not zero, in order of position. A neuron that never spikes is a
zero of the mask and takes no value: removing silent neurons loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 128
"""Positions of one bitmask chunk."""
MAX_TIMESTEPS = 32
"""Bits of a word."""

Words = NDArray[np.uint32]


@dataclass(frozen=True)
class Fibers:
    """``count`` fibers of ``length`` positions.

    ``masks`` is ``[count, 2 * chunks]``, position p of a chunk being bit ``p % 64`` of its word
    ``p // 64``. ``starts`` is ``[count, chunks]``: where the values of a chunk begin in ``values``,
    which holds the non-zero values of all fibers one after another.
    """

    length: int
    masks: NDArray[np.uint64]
    starts: NDArray[np.int64]
    values: NDArray[Any]

    @property
    def count(self) -> int:
        """Number of fibers."""
        return int(self.masks.shape[0])

    @property
    def chunks(self) -> int:
        """Chunks of one fiber: ``ceil(length / 128)``."""
        return int(self.starts.shape[1])

    def nonzeros(self) -> NDArray[np.int64]:
        """Values of each fiber, ``[count]``."""
        made: NDArray[np.int64] = np.bitwise_count(self.masks).sum(1, dtype=np.int64)
        return made

    def bits(self, value_bits: int, pointer_bits: int) -> NDArray[np.int64]:
        """Size of each fiber in bits: its mask, one pointer, its values; ``[count]``.

        The mask is stored in whole chunks.
        """
        return self.chunks * CHUNK + pointer_bits + self.nonzeros() * value_bits

    def decompress(self) -> NDArray[Any]:
        """The dense array ``[count, length]``; ``compress`` of it equals this."""
        dense = np.zeros((self.count, self.length), self.values.dtype)
        dense[_unpack(self.masks)[:, : self.length]] = self.values
        return dense


def _unpack(masks: NDArray[np.uint64]) -> NDArray[np.bool_]:
    octets = masks.astype("<u8").view(np.uint8)
    return np.unpackbits(octets, axis=1, bitorder="little").astype(bool)


def pack_mask(nonzero: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Bitmask words ``[..., 2 * chunks]`` of booleans ``[..., length]``."""
    length = nonzero.shape[-1]
    chunks = max(1, -(-length // CHUNK))
    padded = np.zeros((*nonzero.shape[:-1], chunks * CHUNK), bool)
    padded[..., :length] = nonzero
    octets = np.packbits(padded, axis=-1, bitorder="little")
    return octets.view("<u8").astype(np.uint64)


def compress(dense: NDArray[Any]) -> Fibers:
    """Fibers of the rows of ``dense [count, length]``."""
    nonzero = dense != 0
    masks = pack_mask(nonzero)
    per_chunk = np.bitwise_count(masks).reshape(len(dense), -1, 2).sum(2, dtype=np.int64)
    starts = np.cumsum(per_chunk.ravel()) - per_chunk.ravel()
    return Fibers(dense.shape[1], masks, starts.reshape(per_chunk.shape), dense[nonzero])


def pack_spikes(spikes: NDArray[Any]) -> Words:
    """Words ``[...]`` of spikes ``[T, ...]`` that are 0 or 1, bit t for timestep t; T is 1 to 32.

    Raises ``ValueError`` for other values or more timesteps.
    """
    if not 1 <= len(spikes) <= MAX_TIMESTEPS:
        raise ValueError(f"{len(spikes)} timesteps do not fit a word of {MAX_TIMESTEPS} bits")
    events = spikes != 0
    if not np.array_equal(events, spikes):
        raise ValueError("spikes are 0 or 1")
    words = np.zeros(spikes.shape[1:], np.uint32)
    for step, event in enumerate(events):
        words |= event.astype(np.uint32) << np.uint32(step)
    return words


def unpack_spikes(words: Words, timesteps: int) -> NDArray[np.uint8]:
    """Spikes ``[T, ...]`` of words ``[...]``."""
    steps = np.arange(timesteps, dtype=np.uint32).reshape(-1, *(1,) * words.ndim)
    return ((words[None] >> steps) & np.uint32(1)).astype(np.uint8)


def silence_single_spikes(words: Words, spikes: int = 1) -> Words:
    """Words with at most ``spikes`` ones set to 0: approximate, it changes what the layer sees."""
    return np.where(np.bitwise_count(words) <= spikes, np.uint32(0), words)


def step_masks(words: Words, timesteps: int) -> NDArray[np.uint64]:
    """Bitmasks ``[T, rows, 2 * chunks]`` of the spikes of each timestep, of words ``[rows, K]``."""
    return pack_mask(unpack_spikes(words, timesteps).astype(bool))
