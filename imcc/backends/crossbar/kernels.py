"""CPU kernels of the simulator: read noise, conversion, shift and add in one pass.

The torch form in ``simulate`` is the reference; the kernel gives the same distribution (and the
same numbers without noise), which a test shows. Fusing matters: a column sum is touched once
instead of five times, and noise is drawn where it is used.

Normals come from Box and Muller's transform (Ann. Math. Stat. 29, 1958) of a hash of a counter:
two rounds of xor-shift and multiplication over 32 bits with 64 bits of key (the constants are those
of C. Wellons' search for low-bias hashes). There is no state and no branch, so the compiler makes
vector instructions of the loops; the ziggurat method took eight times as long. Logarithm, sine and
cosine are the single-precision polynomials of Cephes. Uniforms have 31 bits: the largest draw is
6.6 standard deviations. Every (sample, position) has a key of its own, made from the sample's, so
that numbers do not depend on batching or threads.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

_U = np.uint32
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_STEP = np.uint32(0x9E3779B1)
_HASH1 = np.uint32(0x21F0AAAD)
_HASH2 = np.uint32(0xD35A2D97)
_HALF_UNIT = np.float32(2.0**-31)
_EIGHTH_TURN = np.float32(math.pi / 4 * 2.0**-31)
_LN2 = np.float32(math.log(2.0))
_ROOT_HALF = np.int32(0x3F3504F3)
"""Bits of the float sqrt(1/2)."""


@numba.njit(inline="always")
def _mix(state: np.uint64) -> np.uint64:
    """One step of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = state
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


@numba.njit(inline="always")
def _hash(counter: np.uint32, low: np.uint32, high: np.uint32) -> np.uint32:
    # Every step is cast back to 32 bits, or numba widens it and vectors have half the lanes.
    x = _U(_U(counter * _STEP) + low)
    x = _U(x ^ _U(x >> _U(16)))
    x = _U(x * _HASH1)
    x = _U(x ^ high)
    x = _U(x ^ _U(x >> _U(15)))
    x = _U(x * _HASH2)
    return _U(x ^ _U(x >> _U(15)))


@numba.njit(fastmath={"nsz", "contract", "arcp"}, nogil=True)
def _fill(
    key: np.uint64,
    first: int,
    radius: NDArray[np.float32],
    bits: NDArray[np.int32],
    out: NDArray[np.float32],
) -> None:
    """Standard normals of counters ``first ...``; ``radius`` and ``bits`` are half as long."""
    half = radius.size
    low, high = _U(key & np.uint64(0xFFFFFFFF)), _U(key >> np.uint64(32))
    floats = bits.view(np.float32)
    for j in range(half):
        x = _hash(_U(first + 2 * j), low, high)
        floats[j] = (np.float32(np.int32(_U(x >> _U(1)))) + np.float32(0.5)) * _HALF_UNIT
    for j in range(half):
        # Exponent and mantissa of the uniform, the mantissa in [sqrt(1/2), sqrt(2)).
        held = bits[j]
        exponent = (held - _ROOT_HALF) >> np.int32(23)
        bits[j] = held - (exponent << np.int32(23))
        radius[j] = np.float32(exponent)
    for j in range(half):
        m = floats[j] - np.float32(1)
        square = m * m
        y = np.float32(7.0376836292e-2)
        y = y * m + np.float32(-1.1514610310e-1)
        y = y * m + np.float32(1.1676998740e-1)
        y = y * m + np.float32(-1.2420140846e-1)
        y = y * m + np.float32(1.4249322787e-1)
        y = y * m + np.float32(-1.6668057665e-1)
        y = y * m + np.float32(2.0000714765e-1)
        y = y * m + np.float32(-2.4999993993e-1)
        y = y * m + np.float32(3.3333331174e-1)
        logarithm = y * m * square - np.float32(0.5) * square + m + radius[j] * _LN2
        radius[j] = math.sqrt(max(np.float32(-2) * logarithm, np.float32(0)))
    for j in range(half):
        # Two bits choose the quadrant, thirty the angle within 45 degrees of its axis.
        x = _hash(_U(first + 2 * j + 1), low, high)
        angle = (np.float32(np.int32(_U(x << _U(2)))) + np.float32(0.5)) * _EIGHTH_TURN
        quadrant = _U(x >> _U(30))
        square = angle * angle
        sine = np.float32(-1.9515295891e-4) * square + np.float32(8.3321608736e-3)
        sine = (sine * square + np.float32(-1.6666654611e-1)) * square * angle + angle
        cosine = np.float32(2.443315711809948e-5) * square + np.float32(-1.388731625493765e-3)
        cosine = (cosine * square + np.float32(4.166664568298827e-2)) * square * square
        cosine = cosine - np.float32(0.5) * square + np.float32(1)
        swap = (quadrant & _U(1)) != 0
        sign = np.float32(-1) if (quadrant & _U(2)) != 0 else np.float32(1)
        r = sign * radius[j]
        out[j] = r * (sine if swap else cosine)
        out[j + half] = r * (cosine if swap else sine)


@numba.njit(cache=True)
def normals(key: np.uint64, out: NDArray[np.float32]) -> None:
    """Fill ``out``, of even size, with standard normals of one key; for tests of the generator."""
    half = out.size // 2
    _fill(_mix(key + _GOLDEN), 0, np.empty(half, np.float32), np.empty(half, np.int32), out)


@numba.njit(cache=True, parallel=True, nogil=True)
def convert_and_add(
    sums: NDArray[np.float32],
    spread: NDArray[np.float32],
    shift: NDArray[np.float32],
    keys: NDArray[np.uint64],
    first_position: int,
    step: np.float32,
    bottom: np.float32,
    top: np.float32,
    digit: NDArray[np.float64],
    cell: NDArray[np.float64],
    noisy: bool,
    out: NDArray[np.float64],
) -> None:
    """Convert column sums and add them up, with read noise of deviation ``spread``.

    ``sums`` is ``[G, T, B, P, D, C]`` with C physical columns; ``spread`` the same, or with a
    single column for all (read only if ``noisy``); ``shift`` ``[G, T, C]`` is added to every sum;
    ``keys`` ``[B]``. Writes ``out[b, p, g, n]``, the sum over T, digits (weights ``digit``) and the
    cells of a logical column (weights ``cell``) of ``clamp(round(v / step), bottom, top)``; the
    converter's step is not applied.
    """
    groups, tiles, batch, positions, digits, columns = sums.shape
    cells = cell.shape[0]
    logical = columns // cells
    half = (columns + 1) // 2
    per_column = spread.shape[5] > 1
    shifted = False
    for item in shift.flat:
        shifted = shifted or item != np.float32(0)
    for index in numba.prange(batch * positions):
        b = index // positions
        p = index % positions
        held = np.empty(2 * half, dtype=np.float32)
        total = np.empty(columns, dtype=np.float64)
        radius = np.empty(half, dtype=np.float32)
        bits = np.empty(half, dtype=np.int32)
        key = _mix(keys[b] + np.uint64(first_position + p + 1) * _GOLDEN)
        for g in range(groups):
            total[:] = 0.0
            for t in range(tiles):
                offset = shift[g, t]
                for d in range(digits):
                    row = sums[g, t, b, p, d]
                    weight = digit[d]
                    if noisy:
                        deviations = spread[g, t, b, p, d]
                        deviation = deviations[0]
                        if not shifted and not per_column and deviation == np.float32(0):
                            # No row is driven: every column converts to 0.
                            continue
                        _fill(key, ((g * tiles + t) * digits + d) * 2 * half, radius, bits, held)
                        if per_column:
                            for c in range(columns):
                                held[c] = row[c] + offset[c] + deviations[c] * held[c]
                        else:
                            for c in range(columns):
                                held[c] = row[c] + offset[c] + deviation * held[c]
                    else:
                        for c in range(columns):
                            held[c] = row[c] + offset[c]
                    for c in range(columns):
                        code = min(max(np.rint(held[c] / step), bottom), top)
                        total[c] += weight * np.float64(code)
            for n in range(logical):
                value = 0.0
                for s in range(cells):
                    value += total[n * cells + s] * cell[s]
                out[b, p, g, n] = value
