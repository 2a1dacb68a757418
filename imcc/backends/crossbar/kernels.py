"""CPU kernels of the simulator: read noise, conversion, shift and add in one pass.

The torch form in ``simulate`` is the reference; the kernel gives the same distribution (and the
same numbers without noise), which a test shows. Fusing matters: a column sum is touched once
instead of five times, and noise is drawn where it is used.

Normals come from the ziggurat of Marsaglia and Tsang ("The ziggurat method for generating random
variables", J. Stat. Softw. 5(8), 2000) with 256 layers over SplitMix64 (Steele, Lea and Flood,
OOPSLA 2014). Every (sample, position) has a state of its own, made from the sample's key, so that
numbers do not depend on batching or threads.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_LAYERS = 256
_EDGE = 3.6541528853610088
"""Where the tail begins, for 256 layers."""
_AREA = 0.00492867323399
"""Area of each layer."""


def _tables() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    edges = np.zeros(_LAYERS + 1)
    edges[0] = _AREA / math.exp(-0.5 * _EDGE * _EDGE)
    edges[1] = _EDGE
    for layer in range(2, _LAYERS):
        below = edges[layer - 1]
        edges[layer] = math.sqrt(-2.0 * math.log(_AREA / below + math.exp(-0.5 * below * below)))
    return edges, np.exp(-0.5 * edges * edges)


_EDGES, _HEIGHTS = _tables()


@numba.njit(inline="always")
def _mix(state: np.uint64) -> np.uint64:
    z = state
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


@numba.njit(inline="always")
def _uniform(bits: np.uint64) -> float:
    """A uniform in (0, 1)."""
    return (float(bits >> np.uint64(11)) + 0.5) * (1.0 / 9007199254740992.0)


@numba.njit
def _slow_normal(layer: int, z: float, state: np.uint64) -> tuple[bool, float, np.uint64]:
    """The rare part: the tail, or the wedge of a layer; tells whether the draw is accepted."""
    if layer == 0:
        while True:
            state = state + _GOLDEN
            x = -math.log(_uniform(_mix(state))) / _EDGE
            state = state + _GOLDEN
            y = -math.log(_uniform(_mix(state)))
            if y + y > x * x:
                return True, _EDGE + x, state
    state = state + _GOLDEN
    low, high = _HEIGHTS[layer], _HEIGHTS[layer + 1]
    inside = low + _uniform(_mix(state)) * (high - low) < math.exp(-0.5 * z * z)
    return inside, z, state


@numba.njit(inline="always")
def _normal(state: np.uint64) -> tuple[float, np.uint64]:
    """A standard normal and the state after it."""
    while True:
        state = state + _GOLDEN
        bits = _mix(state)
        layer = np.int64(bits & np.uint64(255))
        z = _uniform(bits) * _EDGES[layer]
        accepted = z < _EDGES[layer + 1]
        if not accepted:
            # numba's own annotations lack calls of compiled functions with several arguments.
            accepted, z, state = _slow_normal(layer, z, state)  # type: ignore[type-var,call-arg,misc]
        if accepted:
            return (-z if bits & np.uint64(256) else z), state


@numba.njit(cache=True)
def normals(key: np.uint64, out: NDArray[np.float64]) -> None:
    """Fill ``out`` with standard normals of one key; for tests of the generator."""
    state = _mix(key + _GOLDEN)
    for index in range(out.size):
        out[index], state = _normal(state)


@numba.njit(cache=True, parallel=True, nogil=True)
def convert_and_add(
    sums: NDArray[np.float32],
    spread: NDArray[np.float32],
    keys: NDArray[np.uint64],
    first_position: int,
    step: np.float32,
    offset: np.float32,
    top: np.float32,
    digit: NDArray[np.float64],
    cell: NDArray[np.float64],
    tiles: int,
    noisy: bool,
    out: NDArray[np.float64],
) -> None:
    """Convert column sums and add them up, with read noise of deviation ``spread``.

    ``sums`` is ``[G * tiles, B, P, D, C]`` with C physical columns, ``spread`` ``[G * tiles, B, P,
    D]`` (read only if ``noisy``), ``keys`` ``[B]``. Writes ``out[b, p, g, n]``, the sum over tiles,
    digits (weights ``digit``) and the cells of a logical column (weights ``cell``) of
    ``clamp(round((v - offset) / step), 0, top)``; the converter's step is not applied.
    """
    stacked, batch, positions, digits, columns = sums.shape
    cells = cell.shape[0]
    logical = columns // cells
    groups = stacked // tiles
    zero = np.float32(0.0)
    for index in numba.prange(batch * positions):
        b = index // positions
        p = index % positions
        held = np.empty(columns, dtype=np.float32)
        state = _mix(keys[b] + np.uint64(first_position + p + 1) * _GOLDEN)
        for g in range(groups):
            for n in range(logical):
                out[b, p, g, n] = 0.0
            for t in range(tiles):
                k = g * tiles + t
                for d in range(digits):
                    deviation = spread[k, b, p, d]
                    weight = digit[d]
                    if noisy and deviation == zero:
                        # No row is driven: all columns convert alike, and pairs cancel.
                        continue
                    if noisy:
                        for c in range(columns):
                            z, state = _normal(state)
                            held[c] = sums[k, b, p, d, c] + deviation * np.float32(z)
                    else:
                        for c in range(columns):
                            held[c] = sums[k, b, p, d, c]
                    for c in range(columns):
                        held[c] = min(max(np.rint((held[c] - offset) / step), zero), top)
                    for n in range(logical):
                        total = 0.0
                        for s in range(cells):
                            total += held[n * cells + s] * cell[s]
                        out[b, p, g, n] += weight * total
