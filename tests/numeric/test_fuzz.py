"""A slice of the fuzzing: no mutant leads to a traceback, a hang or half-written output."""

import pytest

from benchmarks.fuzz import Corpus, Outcome, summary, try_one


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("corpus")).make()


def test_mutants_end_in_success_or_a_diagnostic(corpus):
    outcomes = [try_one(corpus, 1, number) for number in range(300)]
    findings = [(number, item) for number, item in enumerate(outcomes) if item.detail]
    assert not findings
    (row, *_) = summary(outcomes)
    assert row["parsed"] >= 100, "a third must get past the reader"
    assert row["ok"] >= 20 and len(row["diagnostics"]) >= 8
    assert {item.kind for item in outcomes} == {"ir", "target", "folder", "zip"}


def test_findings_are_found(corpus, monkeypatch):
    def fails(*_):
        raise ZeroDivisionError("seen")

    monkeypatch.setattr("benchmarks.fuzz.exercise_program", fails)
    found = [try_one(corpus, 1, number) for number in range(12)]
    assert any(item.result == "traceback" and "seen" in item.detail for item in found)

    def sleeps(*_):
        while True:
            pass

    monkeypatch.setattr("benchmarks.fuzz.exercise_program", sleeps)
    monkeypatch.setattr("benchmarks.fuzz.HANG_S", 1)
    number = next(index for index, item in enumerate(found) if item.kind == "ir")
    assert try_one(corpus, 1, number) == Outcome("ir", "hang", True, "more than 1 s")
