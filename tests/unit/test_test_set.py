"""Numbers on held-out data: intervals over samples, perplexity over windows of a text."""

import math

import pytest
import torch
from click.testing import CliRunner
from torch.utils import _pytree as pytree

from imcc.cli.main import cli
from imcc.driver.data import calibration_batches
from imcc.driver.signature import Signature
from imcc.driver.test_set import MetricTestSet, TextTestSet, tokenize
from imcc.ir.diagnostics import DiagnosticError

VOCABULARY = 11


class Counting:
    """A stand-in for an executor: logits depend on all tokens before, and on the trial."""

    def run(self, inputs, *, trials, seed, noisy, first_sample=0, progress=None):
        ids = inputs[0].double()
        seen = torch.cumsum(ids, 1)[..., None] / (1 + torch.arange(ids.shape[1]))[:, None]
        logits = torch.sin(seen * torch.arange(1, VOCABULARY + 1))
        return [torch.stack([logits * (1 + trial) for trial in trials])]


def signature():
    one = pytree.tree_flatten((0,))[1]
    return Signature(one, pytree.tree_flatten(0)[1])


def slow_perplexity(tokens, window, stride):
    """Score each token once, in the first window that holds it, token by token."""
    total, count, scored = 0.0, 0, 0
    for start in range(0, len(tokens) - window + 1, stride):
        ids = tokens[start : start + window][None]
        logits = Counting().run([ids], trials=(0,), seed=0, noisy=False)[0][0, 0]
        chances = torch.log_softmax(logits.float(), -1)
        for place in range(1, window):
            if start + place >= scored:
                total -= float(chances[place - 1, ids[0, place]])
                count += 1
        scored = start + window
    return math.exp(total / count)


@pytest.mark.parametrize("window, stride, length", [(8, 8, 64), (8, 3, 50), (16, 1, 40), (2, 2, 9)])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_perplexity_scores_each_token_once(window, stride, length, batch):
    tokens = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(1))
    held = TextTestSet(tokens, window, stride, batch=batch)
    made = held.measure(Counting(), signature())
    wanted = slow_perplexity(tokens, window, stride)
    assert made.statistics.mean == pytest.approx(wanted, rel=1e-6)
    low, high = made.over_samples
    assert low <= made.statistics.mean <= high


def test_trials_are_scored_apart():
    tokens = torch.randint(VOCABULARY, (64,))
    made = TextTestSet(tokens, 8, 8).measure(Counting(), signature(), trials=3, noisy=True)
    assert len(set(made.statistics.per_trial)) == 3 and made.over_samples is None


@pytest.mark.parametrize("window, stride", [(8, 9), (8, 0), (100, 8)])
def test_windows_that_score_nothing_are_refused(window, stride):
    with pytest.raises(DiagnosticError):
        TextTestSet(torch.arange(50), window, stride)


def test_tokenizers_of_all_kinds_and_none():
    class Object:
        def encode(self, text):
            return type("Encoding", (), {"ids": [1, 2, 3]})()

    assert tokenize("a", lambda text: [ord(c) for c in text]).tolist() == [97]
    assert tokenize("a", Object()).tolist() == [1, 2, 3]
    with pytest.raises(DiagnosticError, match="encodes no text"):
        tokenize("a", 3)
    with pytest.raises(DiagnosticError, match="no token ids"):
        tokenize("a", lambda text: ["x"])


def test_the_interval_over_samples_holds_the_binomial_one():
    class Fixed:
        def run(self, inputs, **ignored):
            return [inputs[0][None]]

    right = torch.arange(400) < 300
    metric = lambda outputs, targets: (outputs == targets).double().mean()  # noqa: E731
    held = MetricTestSet((right.double(),), torch.ones(400).double(), metric)
    made = held.measure(Fixed(), signature())
    low, high = made.over_samples
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert made.statistics.mean == 0.75
    assert low == pytest.approx(0.75 - half, abs=0.006)
    assert high == pytest.approx(0.75 + half, abs=0.006)


def test_eval_prints_the_three_numbers(request, tmp_path):
    model = str(request.config.rootpath / "examples/digits_cnn/model.py")
    made = CliRunner().invoke(cli, ["eval", model, "--target", "rram", "--trials", "2"])
    assert made.exit_code == 0, made.output
    for what in ("float", "compiled, no noise", "compiled, write and read noise", "2 trials"):
        assert what in made.output
    text = tmp_path / "text.txt"
    text.write_text("a few words")
    made = CliRunner().invoke(cli, ["eval", model, "--perplexity", str(text)])
    assert made.exit_code == 1 and "def tokenizer()" in str(made.exception)


def test_an_empty_calibration_batch_is_named():
    batches = [(torch.zeros(2, 3),), (torch.zeros(0, 3),)]
    with pytest.raises(DiagnosticError, match=r"batch 1 is empty: a tensor of \[0, 3\]"):
        calibration_batches(batches)
