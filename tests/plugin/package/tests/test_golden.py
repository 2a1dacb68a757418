"""Golden files: a command, its input and its whole output in one file."""

from pathlib import Path

import pytest

from imcc.testing.golden import read_golden, run_golden

FILES = sorted((Path(__file__).parents[1] / "golden").glob("*.imc"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_golden(file):
    golden = read_golden(file)
    assert run_golden(golden) == golden.expected
