"""What moves on the chip and over its pins: events of the tiles' trees, the network, the memory.

Added to what an op does (``cost.py``) from the program and the placement, so that each number
stands with the op that causes it:

- *Tree of a tile* (``htree.bit``): the digits of the inputs go down from the tile's buffer for each
  position, one sum for each run of rows and logical column comes back up.
- *Network* (``noc.flit``, counted once for each hop): operands travel from the middle of the mesh,
  where the vector unit and the pins are, to the op's tiles, one copy for each of the tiles that
  hold columns of the same rows; results travel back; sums of tiles that hold other rows of the
  same columns are added on the way, in pairs (``tree``) or from tile to tile (``chain``). Vector
  units on tiles save none of this: the sums of a layer meet in one place before they are used.
- *Off chip* (``off_chip.bit``): arguments are read once, by the first op that needs them; results
  are written; ``@deploy`` reads the weights. What is state stays on the chip.

A transfer and the work of the op overlap: an op is busy for the longer of the two, plus the hops of
the first flit.
"""

from __future__ import annotations

import dataclasses
import math

from imcc.backends.crossbar.dialect import (
    HOPS,
    TILES,
    MatrixType,
    Mvm,
    Program,
    ReadMatrix,
    Write,
)
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.cost import OpCost
from imcc.ir.dialects.core import Constant
from imcc.ir.dialects.quant import Quantize
from imcc.ir.ops import Op, Value
from imcc.ir.types import TensorType


def with_traffic(op: Op, cost: OpCost, target: CrossbarTarget) -> OpCost:
    """The cost of an op with what it moves; unknown costs stay unknown."""
    if cost.unknown or op.terminator:
        return cost
    events: dict[str, float] = {}
    times: list[tuple[float, str]] = []
    if HOPS in op.annotations:
        _on_chip(op, target, events, times)
    bits = off_chip_bits(op, target)
    if bits:
        events["off_chip.bit"] = bits
        times.append((bits / target.keys.off_chip.bits_per_ns, f"{bits} bits over the pins"))
    if not events:
        return cost
    made = dict(cost.events)
    for name, count in events.items():
        made[name] = made.get(name, 0.0) + count
    longest, said = max(times, default=(0.0, ""))
    note = cost.note or (f"{cost.free}; operands move" if cost.free else "")
    if longest > cost.busy_ns:
        note = f"{note}; bound by {said}".removeprefix("; ")
    busy = max(cost.busy_ns, longest)
    return dataclasses.replace(cost, events=made, busy_ns=busy, free="", note=note)


def off_chip_bits(op: Op, target: CrossbarTarget) -> int:
    """Bits that an op moves over the pins: arguments that it is first to read, results.

    A cache that the cells keep is there already.
    Raises nothing; 0 for ops outside a function.
    """
    from imcc.backends.crossbar.cache import kept_in_cells
    from imcc.backends.crossbar.cost import element_bits, elements

    function = op.parent
    if function is None:
        return 0
    bits = 0
    states = function.value_states()
    for value in dict.fromkeys(op.operands):
        given = value.owner is None and value not in states and not kept_in_cells(value, target)
        if isinstance(value.type, TensorType) and given and _first(value) is op:
            bits += elements(value) * element_bits(value)
        if isinstance(op, Program) and isinstance(value.owner, (Constant, Quantize)):
            bits += elements(value) * element_bits(value)
    for value in op.results:
        returned = value not in states and any(user.terminator for user in value.users)
        if isinstance(value.type, TensorType) and returned:
            bits += elements(value) * element_bits(value)
    return bits


def _first(value: Value) -> Op | None:
    """The user of a value that comes first in the program."""
    users = [user for user in value.users if not user.terminator]
    if len(users) < 2:
        return users[0] if users else None
    for op in users[0].parent.ops if users[0].parent is not None else ():
        if value in op.operands:
            return op
    return None


def _on_chip(
    op: Op, target: CrossbarTarget, events: dict[str, float], times: list[tuple[float, str]]
) -> None:
    from imcc.backends.crossbar.cache import written_growth
    from imcc.backends.crossbar.cost import element_bits, elements

    network = target.keys.network
    hops, tiles = float(op.annotations[HOPS]), int(op.annotations[TILES])
    held = layout_of(op)
    copies = 1 if held is None else -(-held.column_tiles // target.crossbars_per_tile)
    flit = network.flit_bits
    inside = sum(elements(v) * element_bits(v) for v in op.operands if _moves(v)) * copies
    found = written_growth(op, target) if isinstance(op, Write) else None
    inside = math.ceil(inside * (1.0 if found is None else found.share))
    if isinstance(op, (Mvm, ReadMatrix)) and held is not None:
        outside = elements(op.y) * (partial_sum_bits(op, held) + (held.row_tiles - 1).bit_length())
    else:
        outside = sum(elements(v) * element_bits(v) for v in op.results if _moves(v))
    flits_in, flits_out = math.ceil(inside / flit), math.ceil(outside / flit)
    flit_hops = (flits_in + flits_out) * hops
    if isinstance(op, (Mvm, ReadMatrix)) and held is not None:
        positions = elements(op.y) // held.columns
        depth = _tiles_in_depth(held, tiles, target)
        sum_bits = partial_sum_bits(op, held)
        sums = math.ceil(elements(op.y) * sum_bits / flit)
        flit_hops += sums * added_hops(depth, target.keys.hierarchy.partial_sums)
        down = positions * held.rows * op.input_bits
        up = positions * held.columns * held.row_tiles * sum_bits
        events["htree.bit"] = down + up
    events["noc.flit"] = flit_hops
    # Each tile of the op has a link of its own.
    cycles = max(flits_in / max(1, tiles // copies), flits_out / tiles)
    times.append((cycles * network.hop_ns + hops * network.hop_ns, "the network between tiles"))


def _moves(value: Value) -> bool:
    return isinstance(value.type, TensorType) and not isinstance(value.owner, Constant)


def layout_of(op: Op) -> MatrixType | None:
    """How the matrix that an op reads or makes lies in crossbars; None for other ops."""
    from imcc.backends.crossbar.run_time_rules import layout

    write = op.matrix.owner if isinstance(op, ReadMatrix) else op
    if isinstance(write, Write):
        return layout(write)
    found = (value.type for value in (*op.operands, *op.results))
    return next((kind for kind in found if isinstance(kind, MatrixType)), None)


def partial_sum_bits(op: Mvm | ReadMatrix, held: MatrixType) -> int:
    """Bits of the sum of one run of rows over all input digits and slices."""
    digits = (op.digits - 1) * op.dac_bits
    return op.adc_bits + digits + (held.slices - 1) * held.cell_bits


def _tiles_in_depth(held: MatrixType, tiles: int, target: CrossbarTarget) -> int:
    """Tiles that hold different rows of the same columns."""
    abreast = max(1, -(-held.column_tiles // target.crossbars_per_tile))
    return max(1, min(held.row_tiles, tiles // abreast))


def added_hops(tiles: int, how: str) -> int:
    """Hops that one sum of each of ``tiles`` neighbouring tiles makes until all are added.

    ``chain``: from tile to tile, ``tiles - 1`` hops. ``tree``: pairs of tiles, then pairs of pairs;
    in step ``s`` a sum travels ``2^s`` hops.
    """
    if how == "chain":
        return tiles - 1
    hops, distance = 0, 1
    while distance < tiles:
        hops += len(range(distance, tiles, 2 * distance)) * distance
        distance *= 2
    return hops


def mesh_hops(first_tile: int, tiles: int, all_tiles: int) -> float:
    """Mean hops from the middle of a square mesh to tiles with successive numbers.

    Tile ``i`` lies in row ``i // side`` and runs left to right in even rows and right to left in
    odd ones, so that successive tiles are neighbours; the first router counts as a hop.
    """
    side = max(1, math.isqrt(max(1, all_tiles) - 1) + 1)
    middle = (side - 1) / 2
    total = 0.0
    for tile in range(first_tile, first_tile + tiles):
        row, column = divmod(tile, side)
        column = side - 1 - column if row % 2 else column
        total += abs(row - middle) + abs(column - middle) + 1
    return total / max(1, tiles)
