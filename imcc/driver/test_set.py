"""What a program is measured on: a metric over held-out data, or the perplexity of a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from imcc.driver.data import CallInputs
from imcc.driver.signature import Signature
from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.passes.infrastructure import Progress, no_progress
from imcc.runtime.executor import Executor
from imcc.runtime.trials import TrialStatistics, metric_value, run_trials

RESAMPLES = 1000
"""Bootstrap resamples behind an interval over samples."""
MAX_RESAMPLED = 1 << 28
"""Output values that the resamples of a metric may copy; above it there is no interval."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Measured:
    """A number for each trial, and a 95 % interval of the first one over samples, if there is one.

    The two intervals answer different questions: over trials, how sure the mean over devices is on
    this test set; over samples (percentile bootstrap), how the number would vary with other data.
    """

    statistics: TrialStatistics
    over_samples: Interval | None


class TestSet(Protocol):
    """Something that a program can be measured on."""

    __test__: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Name of the number."""

    @property
    def samples(self) -> int:
        """How many samples it is taken over."""

    def measure(
        self,
        executor: Executor,
        signature: Signature,
        *,
        trials: int = 1,
        seed: int = 0,
        noisy: bool = False,
        progress: Progress = no_progress,
    ) -> Measured:
        """Run a program on the test set."""


@dataclass(frozen=True)
class MetricTestSet:
    """``metric(outputs, targets)`` over the outputs of a whole test set.

    The interval over samples needs outputs and targets that are tensors with one row a sample.
    """

    inputs: CallInputs
    targets: Any
    metric: Callable[[Any, Any], Any]
    __test__: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The metric's name."""
        return getattr(self.metric, "__name__", type(self.metric).__name__)

    @property
    def samples(self) -> int:
        """Rows of the first input."""
        values = self.inputs.values() if isinstance(self.inputs, Mapping) else self.inputs
        return int(next(iter(values)).shape[0])

    def measure(
        self,
        executor: Executor,
        signature: Signature,
        *,
        trials: int = 1,
        seed: int = 0,
        noisy: bool = False,
        progress: Progress = no_progress,
    ) -> Measured:
        """The metric of each trial."""
        kept: list[Any] = []

        def remember(outputs: Any, targets: Any) -> Any:
            if not kept:
                kept.append(outputs)
            return self.metric(outputs, targets)

        statistics = run_trials(
            executor,
            signature.tensors(self.inputs),
            self.targets,
            remember,
            trials=trials,
            seed=seed,
            noisy=noisy,
            rebuild=signature.rebuild,
            progress=progress,
        )
        return Measured(statistics, None if noisy else self._over_samples(kept[0]))

    def _over_samples(self, outputs: Any) -> Interval | None:
        targets, count = self.targets, self.samples
        if not isinstance(outputs, Tensor) or not hasattr(targets, "shape") or count < 2:
            return None
        if outputs.shape[:1] != (count,) or tuple(targets.shape[:1]) != (count,):
            return None
        if outputs.numel() * RESAMPLES > MAX_RESAMPLED:
            return None
        generator = torch.Generator().manual_seed(0)
        values = []
        for _ in range(RESAMPLES):
            rows = torch.randint(count, (count,), generator=generator)
            picked = targets[rows] if isinstance(targets, Tensor) else targets[rows.numpy()]
            values.append(metric_value(self.metric, outputs[rows], picked))
        return _percentiles(torch.tensor(values, dtype=torch.float64))


@dataclass(frozen=True)
class TextTestSet:
    """Perplexity of a text: ``exp(sum of -log p(token | tokens before it in its window) / count)``.

    ``tokens`` is cut into windows of ``window`` tokens that start every ``stride`` tokens. A token
    is scored once, in the first window that holds it; the first token of a text has nothing before
    it and is not scored. With ``stride = window`` the first token of each window goes unscored too.
    """

    tokens: Tensor
    window: int = 512
    stride: int = 512
    limit: int | None = None
    batch: int = 4
    __test__: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse settings that leave nothing to score."""
        if not 0 < self.stride <= self.window or self.window < 2:
            raise error(
                codes.BAD_DATA,
                f"stride {self.stride} and window {self.window} score no or not every token",
                help="choose 1 <= stride <= window and a window of 2 tokens or more",
            )
        if len(self.starts) == 0:
            raise error(
                codes.BAD_DATA,
                f"the text has {len(self.tokens)} tokens, a window takes {self.window}",
                help="give a longer text or a smaller --window",
            )

    @property
    def name(self) -> str:
        """``perplexity``."""
        return "perplexity"

    @property
    def starts(self) -> range:
        """First tokens of the windows; a rest that fills no window is left out."""
        every = range(0, len(self.tokens) - self.window + 1, self.stride)
        return every[: self.limit] if self.limit is not None else every

    @property
    def samples(self) -> int:
        """Number of windows."""
        return len(self.starts)

    def measure(
        self,
        executor: Executor,
        signature: Signature,
        *,
        trials: int = 1,
        seed: int = 0,
        noisy: bool = False,
        progress: Progress = no_progress,
    ) -> Measured:
        """The perplexity of each trial; windows are run and scored ``batch`` at a time."""
        starts = self.starts
        losses: list[Tensor] = []
        for first in range(0, len(starts), self.batch):
            progress(first, len(starts), "perplexity")
            ids = torch.stack(
                [self.tokens[at : at + self.window] for at in starts[first : first + self.batch]]
            )
            outputs = executor.run(
                _language_inputs(signature, ids),
                trials=range(trials),
                seed=seed,
                noisy=noisy,
                first_sample=first,
            )
            losses.append(
                torch.stack(
                    [
                        self._scored(
                            _logits(signature, [item[trial] for item in outputs]), ids, first
                        )
                        for trial in range(outputs[0].shape[0])
                    ]
                )
            )
        progress(len(starts), len(starts), "perplexity")
        total = torch.cat(losses, dim=1)
        counts = self._counts()
        values = torch.exp(total.sum(1) / counts.sum())
        statistics = TrialStatistics(tuple(values.tolist()))
        return Measured(statistics, None if noisy else self._over_samples(total[0], counts))

    def _counts(self) -> Tensor:
        counts = torch.full((self.samples,), self.stride, dtype=torch.float64)
        counts[0] = self.window - 1
        if self.stride == self.window:
            counts[:] = self.window - 1
        return counts

    def _scored(self, logits: Tensor, ids: Tensor, first: int) -> Tensor:
        if logits.dim() != 3 or logits.shape[:2] != ids.shape:
            raise error(
                codes.BAD_DATA,
                f"perplexity needs logits [batch, tokens, vocabulary], found {list(logits.shape)}",
                help="return the logits of a causal language model",
            )
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        )
        rows = loss.reshape(len(ids), -1).double()
        new = min(self.stride, self.window - 1)
        made = rows[:, -new:].sum(1)
        if first == 0:
            made[0] = rows[0].sum()
        return made

    def _over_samples(self, total: Tensor, counts: Tensor) -> Interval | None:
        if len(total) < 2:
            return None
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(len(total), (RESAMPLES, len(total)), generator=generator)
        return _percentiles(torch.exp(total[rows].sum(1) / counts[rows].sum(1)))


def tokenize(text: str, tokenizer: Any) -> Tensor:
    """Token ids of a text by a callable, or by an object with ``encode``, as i64 ``[N]``."""
    encode = getattr(tokenizer, "encode", tokenizer)
    if not callable(encode):
        raise error(
            codes.BAD_DATA,
            f"tokenizer() returned {type(tokenizer).__name__}, which encodes no text",
            help="return a function from text to token ids, or an object with encode(text)",
        )
    made = encode(text)
    ids = getattr(made, "ids", made)
    try:
        tokens = torch.as_tensor(ids, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError) as wrong:
        raise error(codes.BAD_DATA, f"the tokenizer gave no token ids: {wrong}") from None
    return tokens.flatten()


def read_tokenizer(path: Path) -> Any:
    """A ``tokenizer.json`` of the package tokenizers; raises a diagnostic if it does not load."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise error(
            codes.BAD_DATA,
            "reading a tokenizer file needs the package tokenizers",
            help="pip install tokenizers, or define tokenizer() in the model file",
        ) from None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as wrong:
        raise error(codes.BAD_DATA, f"{path} is no tokenizer file: {wrong}") from None


def _language_inputs(signature: Signature, ids: Tensor) -> Sequence[Tensor]:
    leaves = signature.inputs.num_leaves
    if leaves == 1:
        return [ids]
    names = signature.names
    made = []
    for name in names if len(names) == leaves else ():
        if name == "input_ids":
            made.append(ids)
        elif name == "attention_mask":
            made.append(torch.ones_like(ids))
    if len(made) != leaves:
        raise error(
            codes.BAD_DATA,
            f"perplexity feeds input_ids and attention_mask; the model takes {leaves} inputs "
            f"({', '.join(names) or 'without names'})",
            help="wrap the model so that forward takes token ids alone",
        )
    return made


def _logits(signature: Signature, outputs: list[Tensor]) -> Tensor:
    made = signature.rebuild(outputs)
    for name in ("logits",):
        found = made.get(name) if isinstance(made, dict) else getattr(made, name, None)
        if isinstance(found, Tensor):
            return found
    return made if isinstance(made, Tensor) else outputs[0]


def _percentiles(values: Tensor) -> Interval | None:
    if not bool(values.isfinite().all()):
        return None
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return (low, high) if math.isfinite(low) else None
