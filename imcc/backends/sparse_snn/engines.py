"""Running a product on a target: functional result, cycles, stalls, traffic and events.

Every engine has the same memories around it. The time of a stretch of work is the larger of what
its elements take and what the cache's banks take; a layer is at least as long as its DRAM traffic,
which runs beside the work (operands of the next stretch are fetched early).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imcc.backends.sparse_snn import gustavson as _gustavson
from imcc.backends.sparse_snn import outer_product as _outer
from imcc.backends.sparse_snn import sequential as _sequential
from imcc.backends.sparse_snn import temporal_parallel as _parallel
from imcc.backends.sparse_snn.fibers import CHUNK, compress, step_masks, unpack_spikes
from imcc.backends.sparse_snn.product import Product, Run, needed_bits
from imcc.backends.sparse_snn.target import (
    GustavsonKeys,
    OuterProductKeys,
    SequentialKeys,
    SparseTarget,
    SystolicKeys,
    TemporalParallelKeys,
)
from imcc.backends.sparse_snn.traffic import (
    WeightRows,
    bitmask_bits,
    coordinate_bits,
    coordinate_list_bits,
    lines,
    missed_bytes,
    packed_bits,
)

POSITION_BITS = 7
"""Bits of a position in a chunk."""
_UNBOUNDED = 2**62

_LAGGY = {
    "matched-chunk": _parallel.MATCHED,
    "every-chunk": _parallel.EVERY,
    "row": _parallel.ROW,
}
_OVERLAP = {
    "overlapped": _parallel.OVERLAPPED,
    "serial": _parallel.SERIAL,
    "streamed": _parallel.STREAMED,
}
_OVERFLOW = {"wrap": _parallel.WRAP, "saturate": _parallel.SATURATE}
_READ_BACK = {"ideal": -1, "read-back": 1, "write-and-read": 2}


def run(product: Product, target: SparseTarget) -> Run:
    """Run a product on the target's engine.

    The sums are exact integers (T up to 32, int64 sums), unless the target bounds the width of its
    accumulators; then ``Run.overflows`` says how often that mattered.
    """
    return _RUNS[target.keys.engine](product, target)


def _groups(rows: int, elements: int) -> int:
    return -(-rows // elements)


def _join_traffic(
    product: Product,
    target: SparseTarget,
    row_lines: NDArray[np.int64],
    weight_lines: NDArray[np.int64],
    rules: Any,
    readings: int,
) -> tuple[NDArray[np.float64], dict[str, float], float]:
    """Cache cycles of each group, lines by operand, and lines delivered to elements."""
    elements = target.keys.array.elements
    rows, columns, _ = product.shape
    firsts = np.arange(0, rows, elements)
    held = np.minimum(elements, rows - firsts)
    spikes = np.add.reduceat(row_lines, firsts).astype(float)
    sets = np.ones_like(held)
    if rules.mapping == "rows-columns":
        sets = np.minimum(np.maximum(1, elements // held), columns)
    # Each set of lanes holds the rows of its group.
    spikes = spikes * sets
    fetched = float(weight_lines.sum() * readings)
    shared = rules.broadcast != "none"
    asking = sets if shared else held * sets
    weights = np.full(len(firsts), fetched) if shared else fetched * held
    rate = np.array([target.bank_accesses_per_cycle(int(count)) for count in asking])
    cycles = spikes / target.bank_accesses_per_cycle(elements) + weights / rate
    read = {"spikes": float(spikes.sum()), "weights": float(weights.sum())}
    return cycles, read, float(spikes.sum() + (fetched * held).sum())


def _weight_rereads(groups: int, size: float, target: SparseTarget) -> int:
    """How often weights come from DRAM: once if they stay in the cache, else for each group.

    Groups walk through all columns in the same order, where an LRU cache smaller than the weights
    has always just dropped what comes next.
    """
    return 1 if size / 8 <= target.keys.cache.bytes else max(1, groups)


def _finish(
    target: SparseTarget,
    sums: NDArray[np.int64],
    stretches: NDArray[Any],
    cache_cycles: NDArray[Any],
    counts: Mapping[str, int],
    dram_bits: Mapping[str, float],
    cache_reads: Mapping[str, float],
    cache_writes: Mapping[str, float],
    events: Mapping[str, float],
) -> Run:
    compute = int(stretches.sum())
    busy = int(np.ceil(np.maximum(stretches, cache_cycles)).sum())
    dram_bytes = {name: bits / 8 for name, bits in dram_bits.items()}
    moved = sum(dram_bytes.values())
    cycles = max(busy, int(np.ceil(moved / target.dram_bytes_per_cycle)))
    line_bytes = target.keys.cache.line_bytes
    filled = sum(size for name, size in dram_bytes.items() if name != "result") / line_bytes
    drained = dram_bytes.get("result", 0.0) / line_bytes
    written = {"fill": filled, **cache_writes, "result": drained}
    read = {**cache_reads, "drain": drained}
    words = line_bytes / 8
    made = {
        "dram.bit": 8 * moved,
        "cache_read.word": words * sum(read.values()),
        "cache_write.word": words * sum(written.values()),
        **events,
    }
    cache_lines = {f"read_{name}": count for name, count in read.items()}
    cache_lines |= {f"write_{name}": count for name, count in written.items()}
    return Run(
        sums, cycles, compute, busy - compute, cycles - busy, counts, dram_bytes, cache_lines, made
    )


def _neurons(product: Product, bits: int) -> tuple[float, float]:
    """Adder bits and multiplications of the neurons behind a product.

    For each neuron and timestep the membrane decays (a multiplication), takes in the sum and is
    compared with the threshold (two additions).
    """
    if not product.neurons:
        return 0.0, 0.0
    rows, columns, _ = product.shape
    updates = rows * columns * product.timesteps
    return 2.0 * updates * bits, float(updates)


def _temporal_parallel(product: Product, target: SparseTarget) -> Run:
    keys = target.keys
    if not isinstance(keys, TemporalParallelKeys):
        raise TypeError(f"{target.name} has the engine {keys.engine}")
    rules, elements, form = keys.rules, keys.array.elements, keys.format
    rows, columns, _ = product.shape
    spikes, weights = compress(product.words), compress(product.weights)
    held = keys.accumulators
    needed = needed_bits(product.weights)
    pseudo_bits = held.pseudo_bits or needed
    correction_bits = held.correction_bits or needed
    sums = np.zeros((rows, columns, product.timesteps), np.int64)
    counters = np.zeros(len(_parallel.COUNTERS), np.int64)
    stretches = np.zeros(_groups(rows, elements), np.int64)
    _parallel.temporal_parallel(
        spikes.masks,
        spikes.starts,
        spikes.values,
        weights.masks,
        weights.starts,
        weights.values,
        product.timesteps,
        elements,
        rules.mapping == "rows-columns",
        _parallel.BARRIER if rules.broadcast == "barrier" else _parallel.FREE,
        keys.laggy.adders,
        _LAGGY[rules.laggy_scope],
        rules.laggy_early_stop,
        _OVERLAP[rules.corrections],
        keys.fifo.depth,
        rules.empty_chunk_cycles,
        1 << (held.pseudo_bits - 1) if held.pseudo_bits else _UNBOUNDED,
        1 << (held.correction_bits - 1) if held.correction_bits else _UNBOUNDED,
        _OVERFLOW[held.overflow],
        sums,
        counters,
        stretches,
    )
    counts = dict(zip(_parallel.COUNTERS, counters.tolist(), strict=True))
    line = keys.cache.line_bytes
    row_bits = spikes.bits(product.timesteps, form.pointer_bits)
    fiber_bits = weights.bits(form.weight_bits, form.pointer_bits)
    cycles, read, delivered = _join_traffic(
        product, target, lines(row_bits, line), lines(fiber_bits, line), rules, 1
    )
    offsets = 0.0
    if rules.laggy_scope == "row":
        # A table of offsets, written once for each run of the laggy sum, read for each match.
        offsets = float(POSITION_BITS * (counts["laggy_runs"] * CHUNK + counts["matches"]))
    groups = len(stretches)
    dram = {
        "spikes": packed_bits(product.source, product.timesteps, form.pointer_bits),
        "weights": float(fiber_bits.sum())
        * _weight_rereads(groups, float(fiber_bits.sum()), target),
        "result": packed_bits(product.result, product.timesteps, form.pointer_bits),
    }
    matches, results = counts["matches"], rows * columns * product.timesteps
    neuron_bits, multiplies = _neurons(product, max(pseudo_bits, correction_bits))
    # The output compressor runs a laggy sum over the mask of the results.
    compressor = rows * -(-columns // CHUNK) * CHUNK
    entry = POSITION_BITS + form.weight_bits
    events = {
        "crossbar.bit": 8.0 * line * delivered,
        "buffer.bit": 8.0 * line * delivered
        + counts["chunks"] * 2.0 * CHUNK
        + matches * (form.weight_bits + 2.0 * entry + product.timesteps)
        + offsets,
        "join.chunk": float(counts["chunks"]),
        "fast_prefix_sum.run": float(counts["chunks"] - counts["empty_chunks"]),
        "laggy_adder.step": float(counts["laggy_steps"] * keys.laggy.adders + compressor),
        "adder.bit": float(
            matches * pseudo_bits
            + counts["corrections"] * correction_bits
            + results * max(pseudo_bits, correction_bits)
        )
        + neuron_bits,
        "neuron_multiply.multiply": multiplies,
    }
    return _finish(target, sums, stretches, cycles, counts, dram, read, {}, events)


def _sequential_steps(product: Product, target: SparseTarget) -> Run:
    keys = target.keys
    if not isinstance(keys, SequentialKeys):
        raise TypeError(f"{target.name} has the engine {keys.engine}")
    rules, elements, form = keys.rules, keys.array.elements, keys.format
    rows, columns, _ = product.shape
    weights = compress(product.weights)
    masks = step_masks(product.words, product.timesteps)
    sums = np.zeros((rows, columns, product.timesteps), np.int64)
    counters = np.zeros(len(_sequential.COUNTERS), np.int64)
    stretches = np.zeros(_groups(rows, elements), np.int64)
    _sequential.sequential(
        masks,
        weights.masks,
        weights.starts,
        weights.values,
        elements,
        rules.mapping == "rows-columns",
        _parallel.BARRIER if rules.broadcast == "barrier" else _parallel.FREE,
        rules.cycles_per_match,
        rules.empty_chunk_cycles,
        sums,
        counters,
        stretches,
    )
    counts = dict(zip(_sequential.COUNTERS, counters.tolist(), strict=True))
    line = keys.cache.line_bytes
    row_bits = np.full(rows, product.chunks * CHUNK, np.int64)
    fiber_bits = weights.bits(form.weight_bits, form.pointer_bits)
    readings = product.timesteps if rules.weight_reads == "per-timestep" else 1
    cycles, read, delivered = _join_traffic(
        product,
        target,
        lines(row_bits, line) * product.timesteps,
        lines(fiber_bits, line),
        rules,
        readings,
    )
    size = float(fiber_bits.sum())
    dram = {
        "spikes": bitmask_bits(product.source, product.timesteps),
        "weights": size * _weight_rereads(len(stretches), size, target),
        "result": bitmask_bits(product.result, product.timesteps),
    }
    bits = needed_bits(product.weights)
    neuron_bits, multiplies = _neurons(product, bits)
    matches = counts["matches"]
    events = {
        "crossbar.bit": 8.0 * line * delivered,
        "buffer.bit": 8.0 * line * delivered
        + counts["chunks"] * 2.0 * CHUNK
        + matches * float(form.weight_bits),
        "join.chunk": float(counts["chunks"]),
        "fast_prefix_sum.run": float(counts["chunks"] - counts["empty_chunks"]),
        "adder.bit": float(matches * bits) + neuron_bits,
        "neuron_multiply.multiply": multiplies,
    }
    return _finish(target, sums, stretches, cycles, counts, dram, read, {}, events)


def _outer_product(product: Product, target: SparseTarget) -> Run:
    keys = target.keys
    if not isinstance(keys, OuterProductKeys):
        raise TypeError(f"{target.name} has the engine {keys.engine}")
    rules, elements, form = keys.rules, keys.array.elements, keys.format
    rows, columns, length = product.shape
    held = WeightRows.of(product.weights)
    room = keys.cache.bytes * keys.psums.cache_share
    per_row = columns * product.timesteps * keys.psums.bits / 8
    tile_rows = int(min(max(1, room // per_row), max(1, rows)))
    tiles = -(-rows // tile_rows)
    sums = np.zeros((rows, columns, product.timesteps), np.int64)
    counters = np.zeros(len(_outer.COUNTERS), np.int64)
    stretches, updates = np.zeros(tiles, np.int64), np.zeros(tiles, np.int64)
    fetches = np.zeros((tiles, length), np.int64)
    words = np.ascontiguousarray(product.words.T)
    _outer.outer_product(
        words,
        held.columns,
        held.values,
        held.pointers,
        product.timesteps,
        elements,
        rules.mapping == "rows-columns",
        rules.empty_fiber_cycles,
        tile_rows,
        sums,
        counters,
        stretches,
        updates,
        fetches,
    )
    counts = dict(zip(_outer.COUNTERS, counters.tolist(), strict=True))
    line = keys.cache.line_bytes
    # A row of weights serves all timesteps of its k; a list of spikes is read where there is work.
    weight_lines = ((fetches > 0) * lines(held.row_bits(form.weight_bits), line)).sum(1)
    spike_lines = np.zeros(tiles)
    coordinate = coordinate_bits(rows)
    busy = (np.diff(held.pointers) > 0)[:, None]
    for tile in range(tiles):
        part = words[:, tile * tile_rows : (tile + 1) * tile_rows]
        for step in unpack_spikes(part, product.timesteps):
            found = step.sum(1, keepdims=True, dtype=np.int64) * busy
            spike_lines[tile] += lines(found * coordinate, line).sum()
    rate = target.bank_accesses_per_cycle(elements)
    cycles = (weight_lines + spike_lines + updates * rules.psum_accesses) / rate
    row_bits = held.row_bits(form.weight_bits)
    touched = (fetches.sum(0) > 0).astype(np.int64)
    size = float((row_bits * touched).sum() + length * form.pointer_bits)
    fits = size / 8 <= keys.cache.bytes * (1 - keys.psums.cache_share)
    pointer = form.pointer_bits
    dram = {
        "spikes": coordinate_list_bits(product.source, product.timesteps, pointer, by_channel=True),
        "weights": size * (1 if fits else tiles),
        "result": coordinate_list_bits(product.result, product.timesteps, pointer, by_channel=True),
    }
    # One psum is one access of a bank, a 64-bit word of a line.
    psum = counts["updates"] * 8.0 / line
    neuron_bits, multiplies = _neurons(product, keys.psums.bits)
    delivered = float(weight_lines.sum()) * elements + float(spike_lines.sum())
    events = {
        "crossbar.bit": 8.0 * line * delivered + 2.0 * counts["updates"] * keys.psums.bits,
        "buffer.bit": 8.0 * line * delivered + counts["updates"] * float(form.weight_bits),
        "adder.bit": float(counts["updates"] * keys.psums.bits) + neuron_bits,
        "neuron_multiply.multiply": multiplies,
    }
    read = {
        "spikes": float(spike_lines.sum()),
        "weights": float(weight_lines.sum()),
        "psums": psum,
    }
    return _finish(target, sums, stretches, cycles, counts, dram, read, {"psums": psum}, events)


def _gustavson_rows(product: Product, target: SparseTarget) -> Run:
    keys = target.keys
    if not isinstance(keys, GustavsonKeys):
        raise TypeError(f"{target.name} has the engine {keys.engine}")
    rules, elements, form = keys.rules, keys.array.elements, keys.format
    rows, columns, length = product.shape
    held = WeightRows.of(product.weights)
    slices = 1
    if rules.mapping == "rows-columns":
        slices = min(max(1, elements // max(1, rows)), columns)
    sums = np.zeros((rows, columns, product.timesteps), np.int64)
    counters = np.zeros(len(_gustavson.COUNTERS), np.int64)
    fetched = np.zeros(length, np.int64)
    end = _gustavson.gustavson(
        product.words,
        held.columns,
        held.values,
        held.pointers,
        columns,
        product.timesteps,
        elements,
        slices,
        keys.merger.radix,
        _READ_BACK[rules.partial_fibers],
        rules.empty_fiber_cycles,
        sums,
        counters,
        fetched,
    )
    counts = dict(zip(_gustavson.COUNTERS, counters.tolist(), strict=True))
    line = keys.cache.line_bytes
    row_bits = held.row_bits(form.weight_bits)
    weight_lines = float((fetched * lines(row_bits, line)).sum())
    coordinate = coordinate_bits(length)
    spike_lines = 0.0
    for step in unpack_spikes(product.words, product.timesteps):
        spike_lines += float(lines(step.sum(1, dtype=np.int64) * coordinate, line).sum())
    element = keys.merger.psum_bits + coordinate_bits(columns)
    written = counts["partials_written"] * element / (8.0 * line)
    partials = written + counts["partials_read"] * element / (8.0 * line)
    rate = target.bank_accesses_per_cycle(elements)
    cycles = (weight_lines + spike_lines * slices + partials) / rate
    row_bytes = -(-row_bits // 8)
    size = float(row_bytes.sum())
    if size <= keys.cache.bytes:
        missed = float((row_bytes * (fetched > 0)).sum())
    else:
        missed = float(missed_bytes(product.words, product.timesteps, row_bytes, keys.cache.bytes))
    pointer = form.pointer_bits
    dram = {
        "spikes": coordinate_list_bits(
            product.source, product.timesteps, pointer, by_channel=False
        ),
        "weights": 8 * missed + length * pointer,
        "result": coordinate_list_bits(
            product.result, product.timesteps, pointer, by_channel=False
        ),
    }
    merged = counts["merged"] + counts["partials_read"]
    # A merger of radix R compares a coordinate on each of its log2(R) levels.
    levels = coordinate_bits(keys.merger.radix)
    neuron_bits, multiplies = _neurons(product, keys.merger.psum_bits)
    delivered = weight_lines + spike_lines * slices + partials
    events = {
        "crossbar.bit": 8.0 * line * delivered,
        "buffer.bit": 8.0 * line * delivered + merged * levels * float(element),
        "adder.bit": merged * float(keys.merger.psum_bits + levels * coordinate_bits(columns))
        + neuron_bits,
        "neuron_multiply.multiply": multiplies,
    }
    read = {
        "spikes": spike_lines * slices,
        "weights": weight_lines,
        "partials": partials - written,
    }
    return _finish(
        target,
        sums,
        np.array([end]),
        np.array([cycles]),
        counts,
        dram,
        read,
        {"partials": written},
        events,
    )


def _systolic(product: Product, target: SparseTarget) -> Run:
    """Dense weights in an output-stationary array: output neurons down, timesteps across."""
    keys = target.keys
    if not isinstance(keys, SystolicKeys):
        raise TypeError(f"{target.name} has the engine {keys.engine}")
    rules, form, shape = keys.rules, keys.format, keys.systolic
    rows, columns, length = product.shape
    bits = needed_bits(product.weights)
    # Every partial sum is an integer that the type holds exactly.
    exact = np.float32 if bits <= 25 else np.float64
    spikes = unpack_spikes(product.words, product.timesteps).astype(exact)
    sums = np.moveaxis(spikes @ product.weights.T.astype(exact), 0, -1).astype(np.int64)
    walked = np.full(rows, length, np.int64)
    if rules.skip_silent:
        walked = (product.words != 0).sum(1, dtype=np.int64)
    folds = -(-columns // shape.rows) * -(-product.timesteps // shape.columns)
    fill = shape.rows + shape.columns - 2 if rules.fill == "per-tile" else 0
    steps = int(walked.sum()) * folds
    stretches = np.maximum(walked + fill, 1) * folds
    line = keys.cache.line_bytes
    weight_lines = steps * shape.rows * form.weight_bits / (8.0 * line)
    spike_lines = steps * shape.columns / (8.0 * line)
    cycles = (weight_lines + spike_lines) / target.bank_accesses_per_cycle(2)
    dense = float(columns * length * form.weight_bits)
    source = bitmask_bits(product.source, product.timesteps)
    rereads = 1 if source / 8 <= keys.cache.bytes else -(-columns // shape.rows)
    dram = {
        "spikes": source * rereads,
        "weights": dense,
        "result": bitmask_bits(product.result, product.timesteps),
    }
    adds = float(np.bitwise_count(product.words).sum()) * columns
    neuron_bits, multiplies = _neurons(product, bits)
    counts = {
        "steps": steps,
        "fill_cycles": int(stretches.sum()) - steps,
        "additions": int(adds),
    }
    moved = 8.0 * line * (weight_lines + spike_lines)
    events = {
        "crossbar.bit": moved,
        # Weights and spikes pass from element to element.
        "buffer.bit": steps * float(shape.rows * shape.columns) * (form.weight_bits + 1),
        "adder.bit": adds * bits + neuron_bits,
        "neuron_multiply.multiply": multiplies,
    }
    read = {"spikes": spike_lines, "weights": weight_lines}
    total = np.array([int(stretches.sum())])
    return _finish(target, sums, total, np.array([cycles]), counts, dram, read, {}, events)


_RUNS: dict[str, Callable[[Product, SparseTarget], Run]] = {
    "temporal-parallel": _temporal_parallel,
    "sequential": _sequential_steps,
    "outer-product": _outer_product,
    "gustavson": _gustavson_rows,
    "systolic": _systolic,
}
