"""The backend keeps the promises that all backends make."""

import pytest

from imcc.testing.conformance import CHECKS, Subject

SUBJECT = Subject("nearmem")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check):
    check(SUBJECT)
