"""SpikeSim's closed-form cost model, as its program computes it: a compatibility model.

Source: SpikeSim (Moitra et al., TCAD 2023, arXiv 2210.12899), its published program's estimates of
energy, latency and area at 65 nm. With crossbars of ``X`` rows, kernels of ``k x k``, ``T`` time
steps, ``C`` channels in, ``N`` out, and maps of ``H`` in and ``O`` out (behind pooling)::

    PEs      = sum over layers of ceil(C / X) ceil(N / X);  tiles = ceil(PEs / PEs per tile)
    E(cycle) = H-tree + fetch + neuron + X/8 (k^2 crossbar + X/8 (ADC + MUX))
               + X/8 * 16 Sub + X/8 temp buffer + tile buffer
    energy   = sum of ceil(C / X) ceil(N / X) O^2 T E(cycle)
    area     = tiles (X/8 Sub + temp buffer + tile buffer + PEs per tile (k^2 crossbar
               + X/8 (ADC + MUX)) + H-tree) + m sum C H^2 + m sum over 5 layers of N O^2
    latency  = (sum of floor(.75 O^2 N) T over all layers but the last + O^2 N T of the last) 104 ns

The event model beside it counts what the program and placement do; what differs is in
:data:`ODDITIES`. Convolutions only: fully connected layers are not in the original.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from imcc.backends.crossbar.cost import stated
from imcc.backends.crossbar.dialect import Mvm
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.ir.dialects import nn, snn
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Module
from imcc.ir.ops import Op

CROSSBAR_PJ = {"rram": 1.76423, "sram": 671.089}
CROSSBAR_UM2 = {"rram": 26.2144, "sram": 671.089}
ADC_PJ, ADC_UM2 = 2.03084, 693.633
MUX_PJ, MUX_UM2 = 0.094245, 45.9
SUB_PJ, SUB_UM2 = 1.15e-6, 13411.41498
TEMP_BUFFER_PJ, TEMP_BUFFER_UM2 = 0.2, 484.643999
TILE_BUFFER_PJ, TILE_BUFFER_UM2 = 397.0, 0.7391 * 64 * 128
HTREE_PJ, HTREE_UM2 = 19.64 * 8, 216830.0 * 2
FETCH_PJ = 4.64
NEURON_PJ = 1.274 * 4.0
MEMORY_UM2 = 0.7391 * 22
"""Area of the memory of one input or membrane: 22 bits."""
CYCLE_NS = 26 * 1000 / 250
"""A PE takes 26 clocks of 250 MHz for one position."""
START_AT = 0.75
"""Share of a layer after which the next one starts."""
MEMBRANE_LAYERS = 5

ODDITIES = (
    "latency multiplies by the output channels, although columns work at the same time",
    "the area of membranes counts the first five layers only",
    "energy does not depend on how many neurons spike",
    "a PE converts the columns of one crossbar a position, not those of all its k x k crossbars",
    "positions that pooling drops cost neither energy nor time: maps have the size behind it",
    "the area of the input memory and of membranes takes 22 bits an element for one time step",
    "layers share tiles in the count of tiles, although the paper says that they do not",
    "the first convolution, which the original runs in software, counts as a crossbar layer",
    "fully connected layers count for nothing",
    "a DIFF module takes 1.15e-6 pJ, five orders less than an adder at 65 nm",
)
"""What is reproduced as it is, and why the event model gives other numbers."""


@dataclass(frozen=True)
class Layer:
    """A convolution: channels and heights of its maps."""

    name: str
    channels: int
    outputs: int
    height: int
    output_height: int
    kernel: int = 3


def layers_of(module: Module, function: str = "inference") -> tuple[list[Layer], int]:
    """The convolutions of an entry point in program order, and its time steps."""
    made: list[Layer] = []
    steps = 1
    for op in module.function(function).ops:
        if isinstance(op, (snn.LeakyIntegrateAndFire, snn.LeakyIntegrator)) and op.time_axis:
            steps = max(steps, stated(tensor(op.x).shape[0], op.x))
        if isinstance(op, Mvm) and len(op.kernel) == 2:
            x, y = tensor(op.x).shape, tensor(op.y).shape
            channels, height, width = (stated(size, op.x) for size in x[-3:])
            outputs, out_height, out_width = (stated(size, op.y) for size in y[-3:])
            square = height == width and out_height == out_width
            if not square or op.kernel[0] != op.kernel[1] or op.held.groups > 1:
                raise op.fail(
                    "SpikeSim's closed form knows square maps and kernels without groups only"
                )
            out_height = _pooled(op, out_height)
            name = op.scope or op.matrix.name
            made.append(Layer(name, channels, outputs, height, out_height, op.kernel[0]))
    return made, steps


def _pooled(op: Mvm, height: int) -> int:
    """Height of a layer's maps behind the pooling that follows it, if any."""
    waiting = list(op.y.users)
    seen: set[Op] = set()
    while waiting:
        user = waiting.pop()
        if user in seen or user.terminator or isinstance(user, Mvm):
            continue
        seen.add(user)
        if isinstance(user, (nn.MaxPool, nn.AvgPool)):
            height = min(height, stated(tensor(user.result).shape[-2], user.result))
        else:
            waiting += [other for value in user.results for other in value.users]
    return height


def pe_counts(layers: Sequence[Layer], rows: int) -> list[int]:
    """PEs of each layer."""
    return [-(-item.channels // rows) * -(-item.outputs // rows) for item in layers]


def closed_form(
    layers: Sequence[Layer],
    steps: int,
    rows: int = 64,
    pes_per_tile: int = 8,
    device: Literal["rram", "sram"] = "rram",
    order: Literal["any", "refuse"] = "any",
) -> dict[str, Any]:
    """PEs, tiles, area, energy and latency of convolutions as SpikeSim's program prints them.

    ``order = "refuse"`` refuses layers whose PE counts decrease, as the original does. Raises
    :class:`DiagnosticError` for that and where there is no convolution.
    """
    if not layers:
        raise error(
            codes.BAD_TARGET,
            "key compatibility.model: SpikeSim's closed form needs a convolution",
            help='set compatibility.model = "none" for this network',
        )
    counts = pe_counts(layers, rows)
    if order == "refuse" and counts != sorted(counts):
        raise error(
            codes.BAD_TARGET,
            f"key compatibility.order: PE counts must not decrease from layer to layer, these are "
            f"{', '.join(map(str, counts))}",
            help='set compatibility.order = "any" to get the figures all the same',
        )
    pes = sum(counts)
    tiles = -(-pes // pes_per_tile)
    eighth = rows / 8
    kernel = max(item.kernel for item in layers)
    energies = {}
    for item, count in zip(layers, counts, strict=True):
        cycles = count * item.output_height**2 * steps
        energies[item.name] = cycles * cycle_energy_pj(rows, item.kernel, device)
    pe_um2 = kernel**2 * CROSSBAR_UM2[device] + eighth * (ADC_UM2 + MUX_UM2)
    tile_um2 = eighth * SUB_UM2 + TEMP_BUFFER_UM2 + TILE_BUFFER_UM2 + pes_per_tile * pe_um2
    inputs = sum(item.channels * item.height**2 for item in layers) * MEMORY_UM2
    first = layers[:MEMBRANE_LAYERS]
    membranes = sum(item.outputs * item.output_height**2 for item in first) * MEMORY_UM2
    lengths = [item.output_height**2 * item.outputs for item in layers]
    waits = sum(int(START_AT * length) for length in lengths[:-1])
    return {
        "model": "spikesim",
        "source": "SpikeSim, arXiv 2210.12899, its program, 65 nm",
        "device": device,
        "time_steps": steps,
        "pes": pes,
        "tiles": tiles,
        "area_um2": tiles * (tile_um2 + HTREE_UM2) + inputs + membranes,
        "membrane_area_um2": membranes,
        "energy_pj": sum(energies.values()),
        "latency_ns": (waits + lengths[-1]) * steps * CYCLE_NS,
        "energy_by_layer_pj": energies,
        "pes_by_layer": dict(zip((item.name for item in layers), counts, strict=True)),
        "oddities": list(ODDITIES),
    }


def cycle_energy_pj(rows: int, kernel: int, device: Literal["rram", "sram"] = "rram") -> float:
    """Energy of one PE for one output position and time step."""
    eighth = rows / 8
    pe = kernel**2 * CROSSBAR_PJ[device] + eighth * (ADC_PJ + MUX_PJ)
    return math.fsum(
        (
            HTREE_PJ,
            FETCH_PJ,
            NEURON_PJ,
            eighth * pe,
            eighth * 16 * SUB_PJ,
            eighth * TEMP_BUFFER_PJ,
            TILE_BUFFER_PJ,
        )
    )
