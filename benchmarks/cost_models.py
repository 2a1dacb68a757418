"""Costs of crossbar targets beside published ones, and what they are made of for three networks.

VGG-8 on `neurosim` against the report in NeuroSim's manual, a tile of `isaac` against the paper's,
the scaling between nodes against pairs of published figures; and energy and area by component for
VGG-9 (spiking, `spikesim`), ResNet-20 and DeiT-S (`rram` and `trexsim`). Networks have no weights:
costs rest on shapes. Part of `benchmarks.fidelity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.output import Row
from imcc.ir.cost import CostRecord

NEUROSIM = {
    "area_mm2": {"array": 1.54, "adc": 14.61, "interconnect": 6.18, "all": 45.55},
    "energy_uj": {"adc": 18.27, "interconnect": 8.94, "all": 37.75},
}
"""VGG-8, 8 bits, CIFAR-10, 2-bit RRAM cells: manual of NeuroSim 1.4, figure 27; dynamic energy."""
SPARSE_BITS = 0.155
"""Share of rows that the example `digits_cnn` drives, counted; NeuroSim's report gives none."""
ISAAC_TILE_MM2 = 0.372
"""Area of a tile with its share of the router (Shafiee et al., ISCA 2016, table 1)."""
PAIRS = {
    "SRAM read, CACTI": (47.0, 12.9),
    "row driver": (43.1, 10.7),
    "column driver": (1.86, 0.50),
    "shift-add": (536.0, 131.0),
    "8-bit ADC, survey": (5.20, 1.37),
}
"""Energies at 65 and at 32 nm."""
GROUPS = {
    "array": ("cell_read", "row_driver", "column_driver"),
    "adc": ("adc",),
    "accumulation": ("shift_add",),
    "buffers": ("buffer_read", "buffer_write", "membrane"),
    "interconnect": ("htree", "noc"),
    "digital": ("alu_add", "alu_multiply", "lookup"),
    "off chip": ("off_chip",),
}


def vgg8() -> nn.Module:
    """NeuroSim's VGG-8 for images of 32 x 32: six convolutions and two linear layers."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (128, 256, 512):
        for last in (False, True):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.ReLU()]
            channels = width
            if last:
                layers.append(nn.MaxPool2d(2))
    tail = (nn.Flatten(), nn.Linear(8192, 1024, False), nn.ReLU(), nn.Linear(1024, 10, False))
    return nn.Sequential(*layers, *tail)


class Vgg9(nn.Module):
    """SpikeSim's spiking VGG-9 over five time steps, neurons in plain torch's place: snnTorch."""

    def __init__(self, steps: int = 5) -> None:
        import snntorch

        super().__init__()
        self.steps = steps
        inputs = (3, 64, 64, 128, 128, 256, 256)
        outputs = (64, 64, 128, 128, 256, 256, 256)
        self.convs = nn.ModuleList(
            nn.Conv2d(one, two, 3, padding=1, bias=False)
            for one, two in zip(inputs, outputs, strict=True)
        )
        self.neurons = nn.ModuleList(snntorch.Leaky(beta=0.5) for _ in outputs)
        self.pooled = (1, 3, 6)
        self.head = nn.Linear(256 * 16, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the currents over time; the same image in each step (direct coding)."""
        states = [neuron.init_leaky() for neuron in self.neurons]
        total = []
        for _ in range(self.steps):
            held = x
            for place, (conv, neuron) in enumerate(zip(self.convs, self.neurons, strict=True)):
                held, states[place] = neuron(conv(held), states[place])
                if place in self.pooled:
                    held = nn.functional.max_pool2d(held, 2)
            total.append(self.head(held.flatten(1)))
        return torch.stack(total).sum(0)


def cost_of(model: nn.Module, x: Tensor, target: str, *overrides: str) -> CostRecord:
    """Cost of one inference, from shapes alone."""
    from imcc.backends.api import find_backend
    from imcc.backends.targets import find_target
    from imcc.driver.estimation import Estimates
    from imcc.frontend.capture import capture
    from imcc.passes.infrastructure import PassContext

    wanted = find_target(target, overrides)
    captured = capture(model.eval(), (x,))
    context = PassContext(target=wanted, backend=find_backend(wanted.backend))
    context.estimator = Estimates(context)
    return context.estimate(captured.module.function())


def shares(record: CostRecord) -> dict[str, dict[str, float]]:
    """Dynamic energy (uJ) and area (mm2) of groups of components."""
    made: dict[str, dict[str, float]] = {}
    for group, names in GROUPS.items():
        held: list[Mapping[str, Any]] = [
            record.components[name] for name in names if name in record.components
        ]
        made[group] = {
            "energy_uj": sum(item["energy_pj"] or 0.0 for item in held) * 1e-6,
            "area_mm2": sum(item["area_um2"] or 0.0 for item in held) * 1e-6,
        }
    return made


def against_neurosim() -> list[Row]:
    """VGG-8: totals over those of the manual's report, and shares beside its shares."""
    record = cost_of(vgg8(), torch.zeros(1, 3, 32, 32), "neurosim")
    held = shares(record)
    rows: list[Row] = []
    for kind, published in NEUROSIM.items():
        total = sum(item[kind] for name, item in held.items() if name != "off chip")
        for name, value in published.items():
            ours = total if name == "all" else held[name][kind]
            rows.append(
                {
                    "what": f"neurosim, VGG-8: {kind} of {name} over that of NeuroSim's report",
                    "ratio": ours / value,
                    "ours": ours,
                    "published": value,
                    "share": ours / total,
                    "published_share": value / published["all"],
                }
            )
    total, published = _sparse_total(), NEUROSIM["energy_uj"]["all"]
    rows.append(
        {
            "what": "neurosim, VGG-8: energy_uj of all over that of NeuroSim's report, "
            f"{SPARSE_BITS:g} of the input bits ones",
            "ratio": total / published,
            "ours": total,
            "published": published,
        }
    )
    return rows


def _sparse_total() -> float:
    """Dynamic energy (uJ) of VGG-8 on `neurosim` where few input bits are ones."""
    density = f"activity.input_bit_density={SPARSE_BITS}"
    held = shares(cost_of(vgg8(), torch.zeros(1, 3, 32, 32), "neurosim", density))
    return sum(item["energy_uj"] for name, item in held.items() if name != "off chip")


def against_isaac() -> list[Row]:
    """Area of a tile of `isaac` over the paper's."""
    from imcc.backends.crossbar.record import tile_area_um2
    from imcc.backends.targets import find_target

    area = tile_area_um2(find_target("isaac")) * 1e-6  # type: ignore[arg-type]
    row: Row = {
        "what": "isaac: area of a tile in mm2 over the paper's, without registers",
        "ratio": area / ISAAC_TILE_MM2,
    }
    return [row]


def scaling() -> list[Row]:
    """Figures at 65 nm, scaled to 32 nm, over the published ones."""
    from imcc.backends.crossbar.library import area_factor, energy_factor

    rows: list[Row] = [
        {
            "what": f"scaling from 65 to 32 nm, energy: {name}",
            "ratio": old * energy_factor(65, 32) / new,
        }
        for name, (old, new) in PAIRS.items()
    ]
    for name, old, new in (("SRAM, CACTI", 0.436, 0.124), ("8-bit ADC, survey", 17983, 5972)):
        what = f"scaling from 65 to 32 nm, area: {name}"
        rows.append({"what": what, "ratio": old * area_factor(65, 32) / new})
    return rows


def breakdowns(quick: bool) -> list[Row]:
    """Shares of energy and area by group of components for each network and target."""
    from imcc.models.resnet import resnet20
    from imcc.models.vision_transformer import VisionTransformer

    image = torch.zeros(1, 3, 32, 32)
    cases = [
        ("VGG-9, spiking", Vgg9(), image, "spikesim"),
        ("ResNet-20", resnet20(), image, "rram"),
    ]
    if not quick:
        cases.append(("DeiT-S", VisionTransformer(), torch.zeros(1, 3, 224, 224), "trexsim"))
    rows: list[Row] = []
    for name, model, x, target in cases:
        record = cost_of(model, x, target)
        held = shares(record)
        for kind in ("energy_uj", "area_mm2"):
            total = sum(item[kind] for item in held.values())
            row: Row = {"what": f"{name} on {target}: {kind}, shares", "total": total}
            row |= {group: item[kind] / total for group, item in held.items()}
            rows.append(row)
    return rows
