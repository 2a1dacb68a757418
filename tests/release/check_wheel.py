"""Release check: a wheel in an environment of its own compiles the digits example from elsewhere.

    python tests/release/check_wheel.py dist/imcc-*.whl             # downloads what the wheel needs
    python tests/release/check_wheel.py --borrow dist/imcc-*.whl    # takes it from this environment

Either way nothing of the source tree is on the path: imcc comes from the wheel.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(command, cwd):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    made = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if made.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{made.stdout}{made.stderr}")
    return made.stdout


def check(wheel, borrow):
    """Returns the report of the digits example, compiled in a new environment."""
    with tempfile.TemporaryDirectory(prefix="imcc-release-") as made:
        folder = Path(made)
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / "bin" / "python"
        if borrow:
            (site,) = (folder / "env" / "lib").glob("python*/site-packages")
            # Packages alone: an editable install of imcc lies in files of that folder too, and
            # the wheel stands before it on the path.
            lines = [sysconfig.get_path("purelib"), *borrowed_from(Path(sys.prefix))]
            (site / "zz_borrowed.pth").write_text("\n".join(lines) + "\n")
            run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], folder)
        else:
            pins = ["-c", ROOT / "constraints.txt"]
            run([python, "-m", "pip", "install", "-q", *pins, f"{wheel}[demo]"], folder)
        where = run([python, "-c", "import imcc; print(imcc.__file__)"], folder).strip()
        if not where.startswith(str(folder)):
            sys.exit(f"imcc was imported from {where}, not from the wheel")
        work = folder / "elsewhere"
        shutil.copytree(ROOT / "examples" / "digits_cnn", work)
        imcc = folder / "env" / "bin" / "imcc"
        for command in (["ops"], ["passes"], ["targets", "rram"], ["explain"], ["--version"]):
            run([imcc, *command], work)
        run([imcc, "compile", "model.py", "--target", "rram", "-o", "out", "--trials", "2"], work)
        report = json.loads(run([imcc, "report", "out", "--json"], work))
        run([imcc, "opt", "out"], work)
        return report


def borrowed_from(prefix):
    """Folders that the .pth files of an environment add to its path."""
    for file in prefix.glob("lib/python*/site-packages/*.pth"):
        for line in file.read_text().splitlines():
            if Path(line).is_dir() and not (Path(line) / "imcc").is_dir():
                yield line


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--borrow", action="store_true", help="use this environment's packages")
    parser.add_argument("wheel", type=Path)
    options = parser.parse_args()
    report = check(options.wheel.resolve(), options.borrow)
    accuracy = report["accuracy"]
    if not accuracy["noise_free"] > 0.95:
        sys.exit(f"the example's accuracy is {accuracy['noise_free']}")
    print(f"{options.wheel.name}: digits_cnn compiles, accuracy {accuracy['noise_free']:.4f}, "
          f"{report['energy_pj'] / 1e6:.3f} uJ")  # fmt: skip


if __name__ == "__main__":
    main()
