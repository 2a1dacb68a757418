"""Top-1 of EfficientNet-Lite0 with its published weights: float, 8 bits, on noisy crossbars.

Images: one for each ImageNet class (``imagenet-sample-images`` under ``IMCC_DATA``). A seeded draw
takes 32 of them to calibrate ranges and converters; the others are evaluated. ``float`` is the
captured program, ``int8`` the integer program before it is mapped (8-bit weights and activations),
``crossbar`` the preset `rram`, whose inputs come bit by bit and whose 8-bit converters have
calibrated ranges: without noise and with write noise of 1, 2 and 5 % of the range of conductances
beside the preset's read noise. ``oneshot`` is the same with 8 input bits applied at once to 7-bit
cells in pairs. Each batch is kept in ``--save`` as it is done, so that a run that was stopped goes
on. Draws are keyed by the number of the image, so that they do not depend on the batches.

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

ONESHOT = ["dac.bits=8", "array.cell_bits=7", 'adc.converts="pair"']
LEVELS = (0.01, 0.02, 0.05)
CALIBRATION = 32
CASES: dict[str, tuple[str, list[str] | None, bool]] = {
    "float": ("all", None, False),
    "int8": ("all", [], False),
    "rram, no noise": ("some", [], False),
    **{
        f"rram, write noise {level:g}": (
            "some",
            [f"device.write_noise.sigma_fraction={level}"],
            True,
        )
        for level in LEVELS
    },
    "oneshot, no noise": ("more", ONESHOT, False),
    **{
        f"oneshot, write noise {level:g}": (
            "more",
            [*ONESHOT, f"device.write_noise.sigma_fraction={level}"],
            True,
        )
        for level in LEVELS
    },
}
"""How many images, what differs from `rram` (None: not quantised), whether noise is drawn."""


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
def compiled(case: str) -> Any:
    """What runs a case: outputs of a batch whose first image has a number."""
    from imcc.backends.api import find_backend
    from imcc.backends.targets import find_target
    from imcc.passes.infrastructure import (
        PassContext,
        begin,
        parse_pipeline,
        passes_until,
        run_pipeline,
    )
    from imcc.runtime.executor import Executor

    _, changes, noisy = CASES[case]
    held = captured()
    if changes is None:
        plain = Executor(held.module, held.resources)
        return lambda x, first: plain.run([x], noisy=False)[0][0]
    target = find_target("rram", changes)
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
    phase = "optimized" if case == "int8" else "mapped"
    run_pipeline(module, passes_until(parse_pipeline(backend.pipeline(target)), phase), context)
    if case == "int8":
        made = Executor(module, context.weights())
    else:
        made = Executor(module, context.weights(), target, backend)
    return lambda x, first: made.run([x], noisy=noisy, first_sample=first)[0][0]


def right(case: str, start: int, stop: int) -> list[bool]:
    """Whether each image from ``start`` to ``stop`` is classified right."""
    classes = split()[1][start:stop]
    made = compiled(case)(batch_of(classes), start)
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


def measure(options: argparse.Namespace) -> list[Row]:
    path = Path(options.save) if options.save else None
    known: dict[str, Any] = {}
    if path is not None and path.exists():
        known = dict(json.loads(line) for line in path.read_text().splitlines())
    counts = {"all": options.images, "some": options.noisy, "more": options.oneshot}
    if options.quick:
        counts = dict.fromkeys(counts, 8)
    rows: list[Row] = []
    for case, (many, _, _) in CASES.items():
        if not any(case.startswith(item) for item in options.only.split(",")):
            continue
        found: list[bool] = []
        began, new = time.process_time(), 0
        for start in range(0, min(counts[many], len(split()[1])), options.batch):
            stop = min(start + options.batch, counts[many], len(split()[1]))
            key = f"{case}: {start} to {stop}"
            new += 0 if key in known else stop - start
            found += once(path, known, key, lambda c=case, a=start, b=stop: right(c, a, b))
        if not found:
            continue
        share = sum(found) / len(found)
        row: Row = {
            "what": case,
            "top1": share,
            "deviation": math.sqrt(share * (1 - share) / len(found)),
            "images": len(found),
        }
        if "float: 0 to" in " ".join(known):
            base = [
                item for key, made in known.items() if key.startswith("float:") for item in made
            ]
            row["float_on_the_same"] = sum(base[: len(found)]) / len(found)
        if new:
            seconds = time.process_time() - began
            sys.stderr.write(f"{case}: {seconds:.1f} s for {new} images, {share:.4f}\n")
        rows.append(row)
    return rows


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=968, help="in float and 8 bits")
    parser.add_argument("--noisy", type=int, default=200, help="bit by bit on crossbars")
    parser.add_argument("--oneshot", type=int, default=400, help="8 bits at once on crossbars")
    parser.add_argument("--batch", type=int, default=8, help="images that run together")
    parser.add_argument("--only", default="float,int8,rram,oneshot", help="cases, by their start")
    parser.add_argument("--save", help="JSON lines of finished batches; a run goes on from it")


if __name__ == "__main__":
    main("EfficientNet-Lite0 on noisy crossbars", measure, extend)
