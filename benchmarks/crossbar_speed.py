"""Speed of the crossbar simulator beside plain torch and aihwkit-lightning, in one process.

128 x 128 arrays, 8-bit inputs, 8-bit converters, 2 % programming error, fresh Gaussian read noise
of 1 % of g_max on every read (a counter-based generator, one draw for each conversion).
``oneshot`` applies 8 bits at once to 7-bit differential cells and converts each pair and row tile;
``bitserial`` applies bit by bit to 2-bit slices in pairs and converts each bit, slice and tile;
``bitserial_ideal`` does so without programming error, with read noise.
Rates are samples a second of the process' CPU time, which other load on the machine disturbs less
than wall time; the runs of the tools alternate and the best of each counts. With one thread the
two times are the same on a quiet machine. ``--docs`` writes the table of the documentation.

Roofline: a read's column sums are ``products`` times the multiply-accumulates of the float layer
(one for each pair and all bits at once; one for each bit, slice and sign). ``product_bound`` is the
rate at which these alone would run as fast as torch's float layers do; ``imcc_without_read_noise``
leaves out draws, so that its distance from ``imcc`` is what the generator costs.

    python -m benchmarks.crossbar_speed --json
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.output import Row, main

STYLES = {
    "oneshot": ["dac.bits=8", "array.cell_bits=7", "adc.converts=pair"],
    "bitserial": [],
    "bitserial_ideal": ["device.write_noise.sigma_fraction=0"],
}
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "crossbar-speed.md"
NOISE = "one normal for each conversion: hash of a counter, Box and Muller, in the kernel"
DEIT_S = [(384, 1152), (384, 384), (384, 1536), (1536, 384)]
TOKENS = 197


def resnet20() -> list[tuple[int, int, int, int]]:
    """Convolutions as (input channels, output channels, stride, input size), 3 x 3 each."""
    layers = [(3, 16, 1, 32)]
    for inputs, outputs, size in ((16, 16, 32), (16, 32, 32), (32, 64, 16)):
        stride = 1 if inputs == outputs else 2
        layers.append((inputs, outputs, stride, size))
        layers += [(outputs, outputs, 1, size // stride)] * 5
    return layers


def layer_text(weight: str, x: str, y: str, matrix: str, attributes: str) -> str:
    return f"""// imc 1
module @m phase("mapped") {{
  resource @w : {weight}
  state @cells : {matrix}
  func @deploy() -> {matrix} state(@cells) {{
    %w = core.constant {{value = @w}} : {weight}
    %m = xbar.program %w {{{attributes.split("|")[0]}, stream = "w"}} : {matrix}
    core.return %m
  }}
  func @inference(%x: {x}, %m: {matrix} state(@cells)) -> {y} {{
    %y = xbar.mvm %x, %m {{{attributes.split("|")[1]}, stream = "r"}} : {y}
    core.return %y
  }}
}}
"""


def reader(
    shape: tuple[int, ...], x: Any, stride: int | None, style: str
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """One layer on crossbars, programmed with error: calls that read it with noise and without."""
    import torch

    from imcc.backends.crossbar.dialect import MatrixType, slices_of
    from imcc.backends.targets import find_target
    from imcc.ir import parse_module
    from imcc.ir.semantics.draws import Draws
    from imcc.ir.semantics.interpreter import evaluate_function
    from imcc.ir.semantics.resources import ResourceStore

    target = find_target("rram", STYLES[style])
    cell, dac = target.keys.array.cell_bits, target.keys.dac.bits  # type: ignore[attr-defined]
    rows, columns = math.prod(shape[1:]), shape[0]
    slices = slices_of(8, True, cell, "differential")
    kind = MatrixType(rows, columns, 1, 8, True, cell, slices, "differential", 128, 128)
    converts = "pair" if style == "oneshot" else "column"
    # The range plays no part in the speed; it is set so that codes vary.
    top = min(rows, 128) * (2**cell - 1) * (2**dac - 1)
    step = max(1.0, top / (127 if converts == "pair" else 255) / (10 if style == "oneshot" else 1))
    program = f"cell_bits = {cell}, array_rows = 128, array_columns = 128"
    read = f"input_bits = 8, dac_bits = {dac}, adc_bits = 8, adc_step = {step}"
    read += f', converts = "{converts}"'
    sizes = "x".join(map(str, x.shape[1:]))
    if stride is None:
        y = f"{TOKENS}x{columns}"
    else:
        read += f", kernel = [3, 3], stride = [{stride}, {stride}], padding = [1, 1], "
        read += "dilation = [1, 1]"
        side = x.shape[-1] // stride
        y = f"{columns}x{side}x{side}"
    float_ = "f32" if 255 * 128 * rows < 2**24 else "f64"
    weight = "x".join(map(str, shape))
    module = parse_module(
        layer_text(
            f"tensor<{weight}xq<s8, axis=0>>",
            f"tensor<Bx{sizes}xq<u8>>",
            f"tensor<Bx{y}x{float_}>",
            str(kind),
            f"{program}|{read}",
        )
    )
    codes = torch.randint(-127, 128, shape, dtype=torch.int8)
    common: dict[str, Any] = {
        "resources": ResourceStore({"w": codes}),
        "backend": "crossbar",
        "target": target,
        "draws": Draws(0, (0,), tuple(range(len(x)))),
    }
    states = evaluate_function(module.function("deploy"), (), **common).states
    quiet = {**common, "draws": None}
    return (
        lambda: evaluate_function(module.function(), (x,), states=states, **common),
        lambda: evaluate_function(module.function(), (x,), states=states, **quiet),
    )


def peer(layer: Any) -> Any:
    """The layer in aihwkit-lightning: row tiles of 128, noise and converters as above."""
    from aihwkit_lightning.nn.conversion import convert_to_analog
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig

    config = TorchInferenceRPUConfig()
    config.mapping.max_input_size = 128
    config.forward.inp_res = 2**8 - 2
    config.forward.out_res = 2**8 - 2
    config.forward.out_bound = 10.0
    config.forward.out_noise = 0.01
    config.pre_post.input_range.enable = True
    return convert_to_analog(layer, config).eval()


def conversions(network: str, style: str, batch: int) -> int:
    """Conversions of one batch."""
    if network == "deit_s_linears":
        layers = [(inputs, outputs, TOKENS) for inputs, outputs in DEIT_S]
    else:
        layers = [(9 * i, o, (size // stride) ** 2) for i, o, stride, size in resnet20()]
    # A pair and eight bits at once, or columns of four slices in pairs bit by bit.
    each = 1 if style == "oneshot" else 8 * 8
    return batch * each * sum(-(-k // 128) * n * positions for k, n, positions in layers)


def case(network: str, style: str, repeats: int) -> Row:
    import torch

    torch.manual_seed(0)
    batch = 4 if network == "deit_s_linears" else 32
    calls: dict[str, list[Callable[[], Any]]] = {"float": [], "imcc": []}
    pairs: list[tuple[Callable[[], Any], Callable[[], Any]]] = []
    plain: list[tuple[Any, Any]] = []
    if network == "deit_s_linears":
        for inputs, outputs in DEIT_S:
            x = torch.randint(0, 256, (batch, TOKENS, inputs)).float()
            plain.append((torch.nn.Linear(inputs, outputs), x))
            pairs.append(reader((outputs, inputs), x, None, style))
    else:
        for inputs, outputs, stride, size in resnet20():
            x = torch.randint(0, 256, (batch, inputs, size, size)).float()
            plain.append((torch.nn.Conv2d(inputs, outputs, 3, stride, 1), x))
            pairs.append(reader((outputs, inputs, 3, 3), x, stride, style))
    calls["imcc"] = [noisy for noisy, _ in pairs]
    if style != "bitserial_ideal":
        # Ideal cells without noise would be read as one integer product.
        calls["imcc_without_read_noise"] = [quiet for _, quiet in pairs]
    calls["float"] = [lambda layer=layer, x=x: layer(x) for layer, x in plain]
    row: Row = {
        "what": f"{network}_{style}",
        "threads": torch.get_num_threads(),
        "read_noise": NOISE,
        "conversions": conversions(network, style, batch),
    }
    if style == "oneshot" and importlib.util.find_spec("aihwkit_lightning") is not None:
        analog = [(peer(layer), x / 255) for layer, x in plain]
        calls["aihwkit_lightning"] = [lambda layer=layer, x=x: layer(x) for layer, x in analog]
    best = dict.fromkeys(calls, math.inf)
    with torch.no_grad():
        for round_ in range(repeats + 1):
            for name, layers in calls.items():
                start = time.process_time()
                for call in layers:
                    call()
                if round_:
                    best[name] = min(best[name], time.process_time() - start)
    for name, seconds in best.items():
        row[name] = batch / seconds
    row["imcc_ns_per_conversion"] = 1e9 * best["imcc"] / row["conversions"]
    row["imcc_over_float"] = row["imcc"] / row["float"]
    if "aihwkit_lightning" in row:
        row["imcc_over_aihwkit_lightning"] = row["imcc"] / row["aihwkit_lightning"]
    products = row["conversions"] // conversions(network, "oneshot", batch)
    row["products"] = products
    row["product_bound"] = row["float"] / products
    row["imcc_over_product_bound"] = row["imcc"] / row["product_bound"]
    if "imcc_without_read_noise" in row:
        row["share_of_time_for_noise"] = 1 - row["imcc"] / row["imcc_without_read_noise"]
    return row


def page(rows: list[Row]) -> str:
    """The table of the documentation."""
    lines = [
        "# Speed of the crossbar simulator",
        "",
        "Written by `python -m benchmarks.crossbar_speed --docs`: samples a second of CPU time on",
        f"{rows[0]['threads']} thread, 128 x 128 arrays, 8-bit inputs and converters, 2 %",
        "programming error, fresh read noise of 1 % of g_max on every read (one normal for each",
        "conversion). Rates move with the machine and what else runs on it; ratios carry.",
        "",
        "| case | float | imcc | share of float | aihwkit-lightning | over it | no read noise |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        peer, over = row.get("aihwkit_lightning"), row.get("imcc_over_aihwkit_lightning")
        quiet = row.get("imcc_without_read_noise")
        cells = [
            f"{row['float']:.4g}",
            f"{row['imcc']:.4g}",
            f"{row['imcc_over_float']:.3f} (1/{1 / row['imcc_over_float']:.0f})",
            "-" if peer is None else f"{peer:.4g}",
            "-" if over is None else f"{over:.2f}",
            "-" if quiet is None else f"{quiet:.4g}",
        ]
        lines.append(f"| `{row['what']}` | {' | '.join(cells)} |")
    lines += [
        "",
        "What bounds it: column sums are `products` times the multiply-accumulates of the float",
        "layer. The bound is the rate of these alone at torch's float speed; a figure above 1 says",
        "that sums come from lookups that no product would match.",
        "",
        "| case | products | bound | imcc over bound | ns a conversion | time that draws take |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        share = row.get("share_of_time_for_noise")
        cells = [
            str(row["products"]),
            f"{row['product_bound']:.4g}",
            f"{row['imcc_over_product_bound']:.2f}",
            f"{row['imcc_ns_per_conversion']:.2f}",
            "-" if share is None else f"{100 * share:.0f} %",
        ]
        lines.append(f"| `{row['what']}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def measure(options: argparse.Namespace) -> list[Row]:
    import torch

    torch.set_num_threads(options.threads)
    import numba

    numba.set_num_threads(options.threads)
    repeats = 1 if options.quick else 3
    rows = [
        case(network, style, repeats)
        for style in STYLES
        for network in ("resnet20", "deit_s_linears")
    ]
    if options.docs:
        PAGE.write_text(page(rows))
    return rows


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="of torch and numba alike")
    parser.add_argument("--docs", action="store_true", help=f"write {PAGE.name}")


if __name__ == "__main__":
    main("Speed of the crossbar simulator", measure, extend)
