"""Shared test options: ``--update-golden`` rewrites golden files; ``git diff`` is the review."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write what each golden command gives now into its file",
    )
