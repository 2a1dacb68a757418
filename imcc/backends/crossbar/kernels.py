"""CPU kernels of the simulator: rows of a convolution, column sums, read noise, conversion, adding.

A column sum is touched once: noise is drawn, added and converted in registers, and the code is
added to the total of its logical column. Three loops serve all reads:

- :func:`add_positions` takes the products of a matrix library, ``[columns, positions]``;
- :func:`add_products` multiplies inputs with the levels of 32 columns at a time;
- :func:`add_lookups` makes the sums itself where inputs are applied bit by bit: four rows choose
  one of 16 sums that were added up before, for 32 columns at once, and 32 lookups add up 128 rows.

Two columns share one draw of two normals. Every (sample, position) has a key of its own, made from
the sample's, and every (run of rows, digit, pair of columns) a counter, so that numbers do not
depend on batching, blocks or threads. The vector code itself is in ``vector_code``; numba keeps
compiled kernels until this file changes, so change both.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from imcc.backends.crossbar.columns import GROUP, LANES, UNROLL
from imcc.backends.crossbar.vector_code import (
    ABREAST,
    ENTRIES,
    convert_columns,
    convert_columns_noisy,
    convert_lookups,
    convert_lookups_noisy,
    convert_positions,
    convert_positions_noisy,
    draw_normals,
    multiply_one,
    multiply_some,
    sum_rows,
)

_U = np.uint32

BLOCK = 16 * ABREAST
"""Positions whose sums of one pair of chunks are held at a time, in the nearest cache."""

LOOKUPS = 128
"""Positions that share a table of sums; the totals of more would leave the cache."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_BYTES = np.uint64(0x0101010101010101)
_LOW = np.uint64(0xFFFFFFFF)


def _spread_bits() -> NDArray[np.uint64]:
    numbers = np.arange(256, dtype=np.uint64)
    made = np.zeros(256, dtype=np.uint64)
    for bit in range(8):
        made |= ((numbers >> np.uint64(bit)) & np.uint64(1)) << np.uint64(8 * bit)
    return made


_SPREAD_BITS = _spread_bits()
"""Bit d of a byte moved to byte d of a word."""

_COUNTED = 255 // GROUP


@numba.njit(inline="always")
def _mix(state: np.uint64) -> np.uint64:
    """One step of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = state
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True)
def normals(key: np.uint64, out: NDArray[np.float32]) -> None:
    """Fill ``out`` with standard normals of one key; for tests of the generator."""
    half = (out.size + 1) // 2
    padded = -(-half // LANES) * LANES
    held = np.empty(2 * padded, np.float32)
    mixed = _mix(key + _GOLDEN)
    low, high = _U(mixed & _LOW), _U(mixed >> np.uint64(32))
    for at in range(0, padded, LANES):
        draw_normals(held, at, padded + at, low, high, _U(at))
    out[:half] = held[:half]
    out[half:] = held[padded : padded + out.size - half]


@numba.njit(cache=True, nogil=True)
def position_keys(
    keys: NDArray[np.uint64],
    first: int,
    per_sample: int,
    low: NDArray[np.uint32],
    high: NDArray[np.uint32],
) -> None:
    """Keys of positions ``first ...`` counted through the samples, in two halves."""
    for index in range(low.size):
        sample = min((first + index) // per_sample, keys.size - 1)
        position = (first + index) % per_sample
        mixed = _mix(keys[sample] + np.uint64(position + 1) * _GOLDEN)
        low[index] = _U(mixed & _LOW)
        high[index] = _U(mixed >> np.uint64(32))


@numba.njit(cache=True, parallel=True, nogil=True)
def bits_of_rows(
    x: NDArray[np.float32],
    bounds: NDArray[np.int64],
    digits: int,
    index: NDArray[np.uint64],
    driven: NDArray[np.float32],
) -> None:
    """Bits of ``GROUP`` rows at a time, and how many rows each bit drives.

    ``x`` ``[positions, K]`` are codes; run t has the rows ``bounds[t]`` to ``bounds[t + 1]``.
    Writes ``index [positions, T, words, groups]``, byte d of word w for digit ``8 w + d``, and
    ``driven [positions, T, digits]``.
    """
    tiles, words = index.shape[1], index.shape[2]
    for p in numba.prange(x.shape[0]):
        for t in range(tiles):
            start, stop = bounds[t], bounds[t + 1]
            whole, groups = (stop - start) // GROUP, -(-(stop - start) // GROUP)
            for w in range(words):
                move, last = np.int32(8 * w), min(8 * w + 8, digits)
                driven[p, t, 8 * w : last] = np.float32(0)
                ones = np.uint64(0)
                for g in range(groups, -(-groups // UNROLL) * UNROLL):
                    index[p, t, w, g] = np.uint64(0)
                for g in range(groups):
                    row = start + g * GROUP
                    word = np.uint64(0)
                    for i in range(GROUP if g < whole else stop - row):
                        code = (np.int32(x[p, row + i]) >> move) & np.int32(255)
                        word |= _SPREAD_BITS[code] << np.uint64(i)
                    index[p, t, w, g] = word
                    for i in range(GROUP):
                        ones += (word >> np.uint64(i)) & _BYTES
                    # A byte counts up to 255 rows.
                    if g % _COUNTED == _COUNTED - 1 or row + GROUP >= stop:
                        for d in range(8 * w, last):
                            driven[p, t, d] += np.float32(ones & np.uint64(255))
                            ones >>= np.uint64(8)
                        ones = np.uint64(0)


@numba.njit(cache=True, parallel=True, nogil=True)
def add_positions(
    sums: NDArray[np.float32],
    spread: NDArray[np.float32],
    spread_row: NDArray[np.int64],
    shift: NDArray[np.float32],
    low: NDArray[np.uint32],
    high: NDArray[np.uint32],
    counter: int,
    adc: tuple[np.float32, np.float32, np.float32],
    weight: NDArray[np.float32],
    out_row: NDArray[np.int64],
    noisy: bool,
    threads: int,
    total: NDArray[np.floating],
) -> None:
    """Convert ``sums [M, columns, positions]`` of one run and digit and add them to ``total``.

    Column c counts ``weight[c]`` in the row ``out_row[c]`` of ``total [M, rows, positions]``;
    ``shift [columns]`` is added before conversion, the noise has the deviation
    ``spread[m, spread_row[c]]`` and the keys ``low [M, positions]`` and ``high``. ``adc`` are the
    inverse of the step and the range of codes.
    """
    images, columns, positions = sums.shape
    half = (columns + 1) // 2
    chunks, rest = divmod(positions, LANES)
    parts = threads if images < threads else 1
    inverse, bottom, top = adc
    for item in numba.prange(images * parts):
        m, part = item // parts, item % parts
        start, stop = chunks * part // parts * LANES, chunks * (part + 1) // parts * LANES
        flat, held = sums[m].reshape(-1), total[m].reshape(-1)
        deviations, lows, highs = spread[m].reshape(-1), low[m], high[m]
        # The last positions, fewer than LANES, are worked on in arrays of their own.
        last_sums, last_spread = np.zeros(2 * LANES, np.float32), np.zeros(2 * LANES, np.float32)
        last_low, last_high = np.zeros(LANES, np.uint32), np.zeros(LANES, np.uint32)
        last_total = np.zeros(2 * LANES, np.float64)
        end = chunks * LANES
        last_low[:rest], last_high[:rest] = lows[end:], highs[end:]
        for a in range(half):
            b = min(a + half, columns - 1)
            other = weight[b] if a + half < columns else np.float32(0)
            left, right = a * positions, b * positions
            out_a, out_b = out_row[a] * positions, out_row[b] * positions
            near, far = spread_row[a] * positions, spread_row[b] * positions
            for at in range(start, stop, LANES):
                if noisy:
                    convert_positions_noisy(
                        flat, left + at, right + at, shift[a], shift[b],
                        deviations, near + at, far + at, at, lows, highs, _U(counter + a),
                        inverse, bottom, top,
                        held, out_a + at, out_b + at, weight[a], other,
                    )  # fmt: skip
                else:
                    convert_positions(
                        flat, left + at, right + at, shift[a], shift[b],
                        deviations, near + at, far + at, at, lows, highs, _U(counter + a),
                        inverse, bottom, top,
                        held, out_a + at, out_b + at, weight[a], other,
                    )  # fmt: skip
            if rest and part == parts - 1:
                last_sums[:rest] = flat[left + end : left + positions]
                last_sums[LANES : LANES + rest] = flat[right + end : right + positions]
                last_total[:] = 0
                if noisy:
                    last_spread[:rest] = deviations[near + end : near + positions]
                    last_spread[LANES : LANES + rest] = deviations[far + end : far + positions]
                    convert_positions_noisy(
                        last_sums, 0, LANES, shift[a], shift[b],
                        last_spread, 0, LANES, 0, last_low, last_high, _U(counter + a),
                        inverse, bottom, top, last_total, 0, LANES, weight[a], other,
                    )  # fmt: skip
                else:
                    convert_positions(
                        last_sums, 0, LANES, shift[a], shift[b],
                        last_spread, 0, LANES, 0, last_low, last_high, _U(counter + a),
                        inverse, bottom, top, last_total, 0, LANES, weight[a], other,
                    )  # fmt: skip
                held[out_a + end : out_a + positions] += last_total[:rest]
                held[out_b + end : out_b + positions] += last_total[LANES : LANES + rest]


@numba.njit(cache=True, parallel=True, nogil=True)
def add_products(
    x: NDArray[np.float32],
    bounds: NDArray[np.int64],
    levels: NDArray[np.float32],
    spread: NDArray[np.float32],
    shift: NDArray[np.float32],
    low: NDArray[np.uint32],
    high: NDArray[np.uint32],
    counter: NDArray[np.int64],
    adc: tuple[np.float32, np.float32, np.float32],
    weight: NDArray[np.float32],
    out: NDArray[np.int64],
    noisy: bool,
    threads: int,
    total: NDArray[np.floating],
) -> None:
    """Multiply inputs with levels, convert the sums of each run of rows and add to ``total``.

    ``x [positions, K]``; run t has the rows ``bounds[t]`` to ``bounds[t + 1]`` and counters from
    ``counter[t]`` on. ``levels [T, pairs, rows, 2 LANES]`` and ``shift [T, pairs, 2 LANES]`` hold
    chunks c and ``c + pairs`` of ``LANES`` columns side by side. Columns of chunk c count
    ``weight[c]`` in ``total[p, out[t, c] ...]``; ``spread [T, positions]``.
    """
    tiles, pairs, rows = levels.shape[0], levels.shape[1], levels.shape[2]
    positions, stride = x.shape
    inputs, packed, held = x.reshape(-1), levels.reshape(-1), total.reshape(-1)
    lifts = shift.reshape(-1)
    wide = total.shape[1]
    inverse, bottom, top = adc
    parts = min(threads, positions)
    for part in numba.prange(parts):
        start, stop = positions * part // parts, positions * (part + 1) // parts
        sums = np.empty(BLOCK * 2 * LANES, np.float32)
        # A pair of chunks takes all runs in turn, so that its totals stay in the nearest cache.
        for begin in range(start, stop, BLOCK):
            end = min(begin + BLOCK, stop)
            whole = end - (end - begin) % ABREAST
            for c in range(pairs):
                for t in range(tiles):
                    first, depth = bounds[t], bounds[t + 1] - bounds[t]
                    at = (t * pairs + c) * 2 * LANES
                    for p in range(begin, whole, ABREAST):
                        multiply_some(
                            inputs, p * stride + first, stride, depth, packed, at * rows,
                            sums, (p - begin) * 2 * LANES,
                        )  # fmt: skip
                    for p in range(whole, end):
                        multiply_one(
                            inputs, p * stride + first, stride, depth, packed, at * rows,
                            sums, (p - begin) * 2 * LANES,
                        )  # fmt: skip
                    deviations, places = spread[t], out[t]
                    number = _U(counter[t] + c * LANES)
                    for p in range(begin, end):
                        row = (p - begin) * 2 * LANES
                        if noisy:
                            convert_columns_noisy(
                                sums, row, row + LANES, lifts, at, at + LANES, deviations[p],
                                low[p], high[p], number, inverse, bottom, top,
                                held, p * wide + places[c], p * wide + places[c + pairs],
                                weight[c], weight[c + pairs],
                            )  # fmt: skip
                        else:
                            convert_columns(
                                sums, row, row + LANES, lifts, at, at + LANES, deviations[p],
                                low[p], high[p], number, inverse, bottom, top,
                                held, p * wide + places[c], p * wide + places[c + pairs],
                                weight[c], weight[c + pairs],
                            )  # fmt: skip


@numba.njit(cache=True, parallel=True, nogil=True)
def add_lookups(
    levels: NDArray[np.integer],
    scale: np.float32,
    index: NDArray[np.uint64],
    used: NDArray[np.int64],
    spread: NDArray[np.float32],
    shift: NDArray[np.float32],
    low: NDArray[np.uint32],
    high: NDArray[np.uint32],
    digit: NDArray[np.float32],
    adc: tuple[np.float32, np.float32, np.float32],
    weight: NDArray[np.float32],
    out: NDArray[np.int64],
    noisy: bool,
    tables: NDArray[np.integer],
    total: NDArray[np.floating],
) -> None:
    """Add up levels by the bits of the inputs, convert the sums and add them to ``total``.

    ``levels [T, GROUP groups, columns]`` times ``scale``; ``index [positions, T, words, groups]``
    as :func:`bits_of_rows` writes it, of which run t has ``used[t]`` groups; ``spread [positions,
    T, digits]``, ``digit`` what a digit counts, ``tables`` as :func:`room_for_tables` gives,
    ``weight`` and ``out`` as in :func:`add_products`.
    """
    positions, tiles, words, groups = index.shape
    columns, digits = levels.shape[2], len(digit)
    half = columns // LANES // 2
    flat, held = index.reshape(-1).view(np.uint8), total.reshape(-1)
    lifts, deviations = shift.reshape(-1), spread.reshape(-1)
    wide = total.shape[1]
    inverse, bottom, top = adc
    parts = min(len(tables), positions)
    for part in numba.prange(parts):
        start, stop = positions * part // parts, positions * (part + 1) // parts
        table = tables[part]
        for begin in range(start, stop, LOOKUPS):
            end = min(begin + LOOKUPS, stop)
            for t in range(tiles):
                lift = t * columns
                for chunk in range(half):
                    a, b = chunk * LANES, (chunk + half) * LANES
                    _fill_table(levels[t], used[t], a, b, table)
                    first = t * digits * half * LANES + a
                    for p in range(begin, end):
                        at = p * tiles + t
                        out_a, out_b = p * wide + out[t, chunk], p * wide + out[t, chunk + half]
                        if noisy:
                            convert_lookups_noisy(
                                table, flat, at * words * groups * 8, groups, used[t],
                                digits, digit, scale, lifts, lift + a, lift + b,
                                deviations, at * digits, _U(half * LANES),
                                low[p], high[p], _U(first), inverse, bottom, top,
                                held, out_a, out_b, weight[chunk], weight[chunk + half],
                            )  # fmt: skip
                        else:
                            convert_lookups(
                                table, flat, at * words * groups * 8, groups, used[t],
                                digits, digit, scale, lifts, lift + a, lift + b,
                                deviations, at * digits, _U(half * LANES),
                                low[p], high[p], _U(first), inverse, bottom, top,
                                held, out_a, out_b, weight[chunk], weight[chunk + half],
                            )  # fmt: skip


def room_for_tables(levels: NDArray[np.integer]) -> NDArray[np.integer]:
    """Room for a table of sums for each thread, at the start of a line of the cache."""
    size = levels.shape[1] // GROUP * ENTRIES * 2 * LANES
    room = np.empty(numba.get_num_threads() * size + 64, levels.dtype)
    start = -room.ctypes.data % 64 // room.itemsize
    return room[start : start + numba.get_num_threads() * size].reshape(-1, size)


@numba.njit(nogil=True)
def _fill_table(
    levels: NDArray[np.integer], groups: int, a: int, b: int, table: NDArray[np.integer]
) -> None:
    """All sums of the rows of a group, for two chunks of columns side by side."""
    wide = 2 * LANES
    for group in range(groups):
        base = group * ENTRIES * wide
        for lane in range(wide):
            table[base + lane] = 0
        for bit in range(GROUP):
            row = base + (1 << bit) * wide
            for lane in range(LANES):
                table[row + lane] = levels[group * GROUP + bit, a + lane]
                table[row + LANES + lane] = levels[group * GROUP + bit, b + lane]
            for entry in range(1, 1 << bit):
                sum_rows(table, row + entry * wide, row, base + entry * wide)


@numba.njit(cache=True, nogil=True)
def finish(
    total: NDArray[np.floating],
    bias_row: NDArray[np.int64],
    bias: float,
    step: float,
    correction: NDArray[np.float64],
    factor: NDArray[np.float64],
    inputs: NDArray[np.float64],
    input_row: NDArray[np.int64],
    out: NDArray[np.floating],
) -> None:
    """Apply the converter's step and the digital terms to totals ``[M, rows, positions]``.

    ``out[m, n, p] = step * (total[m, n, p] - bias * total[m, bias_row[n], p]) + correction[n]
    + factor[n] * inputs[m, input_row[n], p]``; ``bias_row`` and ``factor`` may be empty.
    """
    biased, summed = bias_row.size > 0, factor.size > 0
    images, columns, positions = out.shape
    across = total.strides[2] > total.strides[1]
    for m in range(images):
        for outer in range(positions if across else columns):
            for inner in range(columns if across else positions):
                n, p = (inner, outer) if across else (outer, inner)
                value = np.float64(total[m, n, p])
                if biased:
                    value -= bias * np.float64(total[m, bias_row[n], p])
                value = value * step + correction[n]
                if summed:
                    value += factor[n] * inputs[m, input_row[n], p]
                out[m, n, p] = value
