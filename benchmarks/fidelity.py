"""How faithful the crossbar models are: circuits, noise, converters, against outside references.

IR drop against the package badcrossbar (left out where it is not installed), the fast form against
the exact one, moments of every noise model against samples, and the converter of `rram` against
ISAAC's, which is not the source of its figures. ``--docs`` writes the table of the documentation.

    python -m benchmarks.fidelity --json
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import warnings
from pathlib import Path

from benchmarks.cost_models import against_isaac, against_neurosim, breakdowns, scaling
from benchmarks.output import Row, main

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "crossbar-fidelity.md"
ISAAC_ADC = {"energy_pj": 1.67, "area_um2": 1200.0}
"""8 bits, 1.28 GS/s, 32 nm (Shafiee et al., ISCA 2016)."""
READ_AS = """
Against NeuroSim's report of a VGG-8, areas of converters and in all, and energies of converters
and of the interconnect, are within a factor of 2. The energy in all is not, and that is the cells:
616 million multiply-accumulates on 4 cells, 8 input bits, half of them ones, and 12.6 fJ a cell
(the mean of its on and off current for the whole 10 ns) are 124 uJ of it; without them the rest is
1.2 times NeuroSim's total. NeuroSim reads traces of real data, whose bits are mostly zeros: with
`activity.source = "profiled"` the example `digits_cnn` drives 0.155 of its rows, not half. At that
density the VGG-8 takes 82.9 uJ, 38.7 uJ of it in cells: 2.2 times NeuroSim's. The density of
NeuroSim's run is not in its report, nor are weights and traces. The area of arrays differs too:
4 F x 12 F a cell with F = 40 nm.

The one component that is not within a factor of 2 of ISAAC is the converter's area, 5,972 um2 by
the survey regression and 1,200 um2 in ISAAC's table, which is a single design. It decides the area
of `rram`: with `components.adc.library = "sar_adc_isaac"` the 135 mm2 of converters of the
ResNet-20 below would be 27 mm2.

`spikesim` takes SpikeSim's figures as its program has them. One is hard to believe: 1.15e-6 pJ for
the DIFF module that adds up conversions (`Sub = 1.15E-6` in `ela_spikesim.py`, under "All energies
in pJ"), while an 8-bit shift-add at 65 nm takes 0.536 pJ, which `rram` has at 32 nm as 0.131 pJ.
Nothing in the program says that another unit is meant. With
`components.shift_add.energy_pj = 0.536` accumulation is 14.8 % of the 470 uJ of the VGG-9 above; as
it stands it is 3.7e-7 of 400 uJ.

What dominates energy and area:

- VGG-9: converters, for each of the nine arrays of a PE converts 64 columns at each position; in
  area buffers and trees, one for each tile.
- ResNet-20: converters, since narrow layers convert sums of few rows; in area as well, for a tile
  has 1,024 converters, whatever its layer uses.
- DeiT-S: converters, then cells of 10 uS; in area converters, at the survey's 5,972 um2 each.
"""
MODELS = {
    "gaussian_write": {"sigma_fraction": 0.05},
    "gaussian_read": {"sigma_fraction": 0.02},
    "proportional_write": {"sigma_fraction": 0.2},
    "proportional_read": {"sigma_fraction": 0.1},
    "gaussian_variation": {"sigma_fraction": 0.1},
    "clipformer_write": {"gamma": 5.0, "sigma_fraction": 0.1},
    "power_law_drift": {"exponent": 0.05, "exponent_deviation": 0.02, "reference_s": 20.0},
    "pcm_write": {},
    "pcm_drift": {},
    "pcm_read": {},
}


def circuits(quick: bool) -> list[Row]:
    import numpy as np
    import torch

    from imcc.backends.crossbar import ir_drop

    rows: list[Row] = []
    known = importlib.util.find_spec("badcrossbar") is not None
    for size in (64,) if quick else (64, 128):
        for ohm in (0.1, 1.0, 5.0):
            generator = torch.Generator().manual_seed(0)
            states = torch.rand(1, size, size, generator=generator, dtype=torch.float64)
            g = 1e-7 + 9.9e-6 * states
            exact, fast = ir_drop.exact(g, ohm, ohm), ir_drop.fast(g, ohm, ohm)
            row: Row = {
                "what": f"IR drop, {size} x {size}, 100 kohm to 10 Mohm, {ohm:g} ohm a segment",
                "current_lost": float(1 - exact.sum() / g.sum()),
                "fast_relative_error": float((fast - exact).norm() / exact.norm()),
            }
            if known and ohm == 1.0:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    import badcrossbar
                logging.getLogger("badcrossbar").setLevel(logging.ERROR)
                solved = badcrossbar.compute(
                    np.eye(size), (1 / g[0]).numpy(), r_i=ohm, node_voltages=False
                )
                other = torch.tensor(np.asarray(solved.currents.output))
                error = ((exact[0] - other).abs() / other.abs()).max()
                row["badcrossbar_relative_error"] = float(error)
            rows.append(row)
    return rows


def noise(quick: bool) -> list[Row]:
    import torch

    from imcc.backends.crossbar.noise import CellScale, find_noise_model

    count = 100_000 if quick else 1_000_000
    cell = CellScale(g_max_us=25.0, g_min=0.1, read_time_s=1000.0)
    rows: list[Row] = []
    for name, keys in MODELS.items():
        kind = find_noise_model(name)
        model = kind.create(kind.Keys(model=name, **keys), cell)
        g = torch.full((count,), 0.7, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        normal = torch.randn(count, generator=generator, dtype=torch.float64)
        drawn = model.sample(g, normal)
        mean, variance = (float(item[0]) for item in model.moments(g[:1]))
        rows.append(
            {
                "what": f"noise {name} at 0.7 g_max, {count} cells",
                "mean_ratio": float(drawn.mean()) / mean,
                "variance_ratio": float(drawn.var()) / variance,
            }
        )
    return rows


def converters() -> list[Row]:
    from imcc.backends.targets import find_target

    target = find_target("rram")
    figures = target.keys.components.adc  # type: ignore[attr-defined]
    return [
        {
            "what": "8-bit converter of rram (survey regression, 1 GS/s) over ISAAC's",
            "energy_ratio": figures.energy(8) / ISAAC_ADC["energy_pj"],
            "area_ratio": figures.area_um2 / ISAAC_ADC["area_um2"],
        }
    ]


def measure(options: argparse.Namespace) -> list[Row]:
    rows = circuits(options.quick) + noise(options.quick) + converters()
    rows += scaling() + against_isaac() + against_neurosim() + breakdowns(options.quick)
    if options.docs:
        PAGE.write_text(page(rows))
    return rows


def page(rows: list[Row]) -> str:
    lines = [
        "# Fidelity of the crossbar models",
        "",
        "Written by `python -m benchmarks.fidelity --docs`; how the models work is in",
        "[Mapping, noise and cost on crossbars](../explanation/crossbar.md).",
        "",
        "| what | measured |",
        "|---|---|",
    ]
    for row in rows:
        found = ", ".join(
            f"{key.replace('_', ' ')} {value:.3g}" for key, value in row.items() if key != "what"
        )
        lines.append(f"| {row['what']} | {found} |")
    lines += [
        "",
        "Errors of IR drop are of the effective matrix: the largest relative one of an entry",
        "against badcrossbar, and in the Frobenius norm for the fast form. Ratios of noise are",
        "sample over theory. The converter's area follows the survey regression, which is several",
        "times ISAAC's; the energies agree within a factor of 2.",
        "",
        *READ_AS.strip().splitlines(),
        "",
    ]
    return "\n".join(lines)


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--docs", action="store_true", help=f"write {PAGE.name}")


if __name__ == "__main__":
    main("Fidelity of the crossbar models", measure, extend)
