"""Top-1 of EfficientNet-Lite0 with its published weights: float, 8 bits, on noisy crossbars.

Images: one for each ImageNet class (``imagenet-sample-images`` under ``IMCC_DATA``). A seeded draw
takes 32 of them to calibrate ranges and converters; the others are evaluated. ``float`` is the
captured program, ``int8`` the integer program before it is mapped (8-bit weights and activations).
``oneshot`` is the preset `rram` with 8 input bits applied at once to 7-bit cells in pairs, whose
differences are converted with 8 bits; ``bitserial`` is `rram` as it is, bit by bit on 2-bit cells.
Both have calibrated ranges; a noise level is the deviation of each write and of each read of a
cell, as a fraction of g_max. Each batch is kept in ``--save`` as it is done, so that a run that was
stopped goes on. Draws are keyed by the number of the image: they do not depend on batches.

    python -m benchmarks.efficientnet_noise --json --save out/efficientnet.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.output import Row, main

MAPPINGS = {
    "oneshot": ["dac.bits=8", "array.cell_bits=7", 'adc.converts="pair"'],
    "bitserial": [],
}
LEVELS = (0.002, 0.005, 0.01)
CALIBRATION = 32
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "crossbar-accuracy.md"
ABOUT = """
Written by `python -m benchmarks.efficientnet_noise --docs`: top-1 of the published weights on
`imagenet-sample-images`, one image for each class; 32 of them calibrate and are left out. They seem
to stem from ImageNet's training set, so that accuracies are optimistic; their differences count.
`int8` is the integer program (8-bit weights and activations). `oneshot` maps it on 128 x 128 arrays
of the preset `rram` with 7-bit cells in pairs, 8 input bits at once and 8-bit converters with
calibrated ranges. Noise is the deviation of each write and of each read of a cell, as a fraction of
its range for writes and of g_max for reads; one device.
"""


def folder() -> Path | None:
    """The images, if they are there."""
    root = os.environ.get("IMCC_DATA")
    found = Path(root) / "imagenet-sample-images" / "img256" if root else None
    return found if found is not None and found.is_dir() else None


def image(path: Path) -> Any:
    """The middle 224 x 224 pixels, ``(byte - 127) / 128`` as the weights were trained with."""
    import numpy as np
    import torch
    from PIL import Image

    held = Image.open(path).convert("RGB")
    left, upper = (held.width - 224) // 2, (held.height - 224) // 2
    pixels = np.asarray(held.crop((left, upper, left + 224, upper + 224)), dtype=np.float32)
    return torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)


@cache
def split() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Classes whose images calibrate, and the others in the order in which they are evaluated."""
    order = list(range(1000))
    random.Random(0).shuffle(order)
    return tuple(order[:CALIBRATION]), tuple(order[CALIBRATION:])


def batch_of(classes: tuple[int, ...]) -> Any:
    import torch

    root = folder()
    if root is None:
        raise SystemExit("IMCC_DATA names no folder with imagenet-sample-images")
    paths = sorted(root.iterdir())
    return torch.stack([image(paths[number]) for number in classes])


@cache
def captured() -> Any:
    from benchmarks.capture_models import efficientnet_lite
    from imcc.frontend.capture import capture

    model, inputs = efficientnet_lite()
    return capture(model, inputs)


@cache
def compiled(mapping: str) -> tuple[Any, Any]:
    """The program and its weights: mapped with a mapping, or for ``int8`` not mapped."""
    from imcc.backends.api import find_backend
    from imcc.backends.targets import find_target
    from imcc.passes.infrastructure import (
        PassContext,
        begin,
        parse_pipeline,
        passes_until,
        run_pipeline,
    )

    held = captured()
    if mapping == "float":
        return held.module, held.resources
    target = find_target("rram", MAPPINGS.get(mapping, []))
    backend = find_backend(target.backend)
    module = held.module.clone()
    context = PassContext(
        resources=held.resources.copy(),
        target=target,
        backend=backend,
        calibration=[(batch_of(split()[0]),)],
        legality=backend.legal,
    )
    begin(module, context)
    phase = "optimized" if mapping == "int8" else "mapped"
    run_pipeline(module, passes_until(parse_pipeline(backend.pipeline(target)), phase), context)
    return module, context.weights()


@cache
def executor(mapping: str, level: float) -> Any:
    """What runs a mapping; noise plays no part in how it is calibrated."""
    from imcc.backends.api import find_backend
    from imcc.backends.targets import find_target
    from imcc.runtime.executor import Executor

    module, weights = compiled(mapping)
    if mapping not in MAPPINGS:
        return Executor(module, weights)
    noise = [f"device.{kind}_noise.sigma_fraction={level}" for kind in ("write", "read")]
    target = find_target("rram", [*MAPPINGS[mapping], *noise])
    return Executor(module, weights, target, find_backend(target.backend))


def right(mapping: str, level: float, start: int, stop: int) -> list[bool]:
    """Whether each image from ``start`` to ``stop`` is classified right."""
    classes = split()[1][start:stop]
    held = executor(mapping, level)
    made = held.run([batch_of(classes)], noisy=level > 0, first_sample=start)[0][0]
    return [bool(found == wanted) for found, wanted in zip(made.argmax(-1), classes, strict=True)]


def once(path: Path | None, known: dict[str, Any], key: str, make: Callable[[], Any]) -> Any:
    """What was kept under a key, or what is made and kept now."""
    if key not in known:
        known[key] = make()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps([key, known[key]]) + "\n")
    return known[key]


def page(rows: list[Row]) -> str:
    """The table of the documentation."""
    lines = [
        "# EfficientNet-Lite0 on noisy crossbars",
        "",
        *ABOUT.strip().splitlines(),
        "",
        "| program | noise | images | top-1 | deviation | float on the same images |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        base = row.get("float_on_the_same")
        lines.append(
            f"| {row['what']} | {row['noise']:g} | {row['images']} | {100 * row['top1']:.1f} % | "
            f"{100 * row['deviation']:.1f} | {'-' if base is None else f'{100 * base:.1f} %'} |"
        )
    lines += [
        "",
        "`deviation` is that of a share over so many images. Nothing was trained for the noise:",
        "[train under noise](../how-to/train-under-noise.md) says how that is done. Depthwise",
        "convolutions sum nine products each, so that noise of single cells does not average out.",
        "",
    ]
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> list[Row]:
    path = Path(options.save) if options.save else None
    known: dict[str, Any] = {}
    if path is not None and path.exists():
        known = dict(json.loads(line) for line in path.read_text().splitlines())
    everything = len(split()[1])
    counts = {"float": everything, "int8": everything}
    counts |= {"oneshot": options.oneshot, "bitserial": options.bitserial}
    rows: list[Row] = []
    for mapping, wanted in counts.items():
        levels = (0.0, *options.levels) if mapping in MAPPINGS else (0.0,)
        for level in levels if mapping in options.only.split(",") else ():
            count = min(8 if options.quick else wanted, everything)
            found: list[bool] = []
            began, new = time.process_time(), 0
            for start in range(0, count, options.batch):
                stop = min(start + options.batch, count)
                key = f"{mapping} {level:g}: {start} to {stop}"
                new += 0 if key in known else stop - start
                found += once(
                    path, known, key, lambda m=mapping, v=level, a=start, b=stop: right(m, v, a, b)
                )
            if not found:
                continue
            share = sum(found) / len(found)
            row: Row = {
                "what": mapping,
                "noise": level,
                "top1": share,
                "deviation": math.sqrt(share * (1 - share) / len(found)),
                "images": len(found),
            }
            base = [item for key, made in known.items() if key.startswith("float") for item in made]
            if len(base) >= len(found):
                row["float_on_the_same"] = sum(base[: len(found)]) / len(found)
            if new:
                seconds = time.process_time() - began
                sys.stderr.write(f"{mapping} {level:g}: {seconds:.1f} s, {new} images, {share}\n")
            rows.append(row)
    if options.docs:
        PAGE.write_text(page(rows))
    return rows


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--oneshot", type=int, default=400, help="images, 8 bits at once")
    parser.add_argument("--bitserial", type=int, default=24, help="images, bit by bit")
    parser.add_argument("--levels", type=float, nargs="*", default=LEVELS, help="of noise")
    parser.add_argument("--batch", type=int, default=8, help="images that run together")
    parser.add_argument(
        "--only", default="float,int8,oneshot", help="of these and bitserial, which is slow"
    )
    parser.add_argument("--docs", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--save", help="JSON lines of finished batches; a run goes on from it")


if __name__ == "__main__":
    main("EfficientNet-Lite0 on noisy crossbars", measure, extend)
