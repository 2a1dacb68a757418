"""Start-up time of the command line and speed of the text form.

Start-up is the wall time of whole processes, the smallest of several runs, beside the bare
interpreter and beside ``import torch`` measured in the same run. Parsing reports ops a second for
a chain of typed ops with scopes and places, with verification and printing beside it.

    python -m benchmarks.startup_and_parse --json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from benchmarks.output import Row, main

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "imcc --help": ["-m", "imcc", "--help"],
    "imcc ops": ["-m", "imcc", "ops"],
    "import imcc.ir": ["-c", "import imcc.ir"],
    "import torch": ["-c", "import torch"],
}
HEAVY = ("torch", "numpy", "networkx")


def module_text(ops: int) -> str:
    """A chain of matrix ops and additions, each with scope, attribute and place."""
    lines = [
        "// imc 1",
        'module @chain phase("captured") {',
        "  resource @w : tensor<64x64xf32>",
        "  func @inference(%x: tensor<Bx16x64xf32>) -> tensor<Bx16x64xf32> {",
        "    %w = core.constant {value = @w} : tensor<64x64xf32>",
    ]
    previous = "x"
    for index in range(ops):
        tail = f'scope = "blocks.{index // 4}.mlp"}} : tensor<Bx16x64xf32> loc("model.py":{index})'
        if index % 3 == 2:
            lines.append(f"    %v{index} = core.add %{previous}, %x {{{tail}")
        elif index % 3 == 1:
            lines.append(
                f"    %v{index} = nn.clamp %{previous} {{minimum = -1.0, maximum = 6.5, {tail}"
            )
        else:
            lines.append(f"    %v{index} = nn.linear %{previous}, %w {{{tail}")
        previous = f"v{index}"
    lines += [f"    core.return %{previous}", "  }", "}", ""]
    return "\n".join(lines)


def startup(repeats: int) -> list[Row]:
    rows: list[Row] = []
    for name, arguments in COMMANDS.items():
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        rows.append({"what": name, "seconds": min(times), "median_s": sorted(times)[repeats // 2]})
    probe = (
        "import sys, imcc.ir, imcc.cli.main\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True)
    rows.append({"what": "heavy modules after import", "loaded": found.stdout.decode().strip()})
    return rows


def parsing(sizes: tuple[int, ...]) -> list[Row]:
    from imcc.ir import parse_module, print_module, verify

    rows: list[Row] = []
    parse_module(module_text(10))  # the grammar is built once per process, outside of the timing
    for ops in sizes:
        text = module_text(ops)
        start = time.perf_counter()
        module = parse_module(text)
        parsed = time.perf_counter()
        verify(module)
        verified = time.perf_counter()
        printed = print_module(module)
        done = time.perf_counter()
        if printed != text:
            raise RuntimeError("printing did not reproduce the text")
        rows.append(
            {
                "what": f"parse {ops} ops",
                "ops": ops,
                "seconds": parsed - start,
                "parse_ops_per_s": ops / (parsed - start),
                "verify_ops_per_s": ops / (verified - parsed),
                "print_ops_per_s": ops / (done - verified),
            }
        )
    return rows


def measure(options: argparse.Namespace) -> list[Row]:
    repeats = 3 if options.quick else 10
    return startup(repeats) + parsing((5_000,) if options.quick else (5_000, 50_000))


if __name__ == "__main__":
    main("Start-up and parsing", measure)
