"""Choosing alpha and beta for a target's write noise, on calibration data.

Candidates are tried one after another for each *unit*, the attention or the whole network that gets
one pair: first no clipping, then smaller and smaller limits, larger subtractions at the best limit,
limits beside it at the best of these, then settings between the best and its neighbours. A unit's
next candidate depends on its own scores only, so one simulation scores a candidate of every unit.
Where gains are searched too, smaller ones are tried with smaller subtractions and larger limits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imcc.ir import codes
from imcc.ir.diagnostics import error
from imcc.passes.clipping.transform import Clip

BETAS = (0.7, 0.5, 0.35, 0.25, 0.18, 0.12)
ALPHAS = (2.0, 4.0, 8.0, 16.0)
GAINS = (0.7, 0.5, 0.35)
FACTOR = 2**0.5
"""Step of limits and gains of a unit that is varied while the others keep theirs."""
FINEST = 1.03
"""Limits closer than this factor are not told apart."""

Candidate = Clip | None
"""A pair, or None: no clipping."""
Score = Callable[[Sequence[Candidate]], Sequence[float]]
"""Errors of one candidate for each unit; smaller is better."""


@dataclass(frozen=True)
class Found:
    """The best candidate of a unit, its error, and that without clipping."""

    clip: Candidate
    error: float
    unclipped: float
    tried: int


def search(
    units: int,
    score: Score,
    *,
    budget: int,
    g_min: float,
    alpha: float | None = None,
    beta: float | None = None,
    gains: Sequence[float] = (1.0,),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Found]:
    """The best candidate of each unit within ``budget`` simulations.

    ``alpha`` or ``beta`` may be given, then only the other one is sought. ``gains`` are tried in
    their order, until one is not better than those before.
    """
    plans = [_plan(g_min, alpha, beta, gains) for _ in range(units)]
    asked: list[Candidate] = [next(plan) for plan in plans]
    scores: list[dict[Candidate, float]] = [{} for _ in plans]
    for number in range(budget):
        progress(number, budget)
        made = score(asked)
        open_ = False
        for unit, plan in enumerate(plans):
            value = made[unit] if math.isfinite(made[unit]) else math.inf
            scores[unit].setdefault(asked[unit], value)
            try:
                # A unit that is done repeats its best while others go on.
                asked[unit] = plan.send(value)
                open_ = True
            except StopIteration:
                asked[unit] = min(scores[unit], key=lambda item: scores[unit][item])
                plans[unit] = _done(asked[unit])
                next(plans[unit])
        if not open_:
            break
    progress(budget, budget)
    found = []
    for held in scores:
        best = min(held, key=lambda item: held[item])
        found.append(Found(best, held[best], held[None], len(held)))
    return found


def search_each(start: Found, units: int, score: Score, *, budget: int, gains: bool) -> list[Found]:
    """A setting for each unit of a program that has one error, from the best common one on.

    One unit after another: its limit, and with ``gains`` its gain, goes up or down by
    :data:`FACTOR` for as long as that helps. ``budget`` is that of this search alone.
    """
    held: list[Candidate] = [start.clip] * units
    best, tried = start.error, 0
    for unit in range(units):
        for field in ("beta", "gain") if gains else ("beta",):
            for factor in (FACTOR, 1 / FACTOR):
                while tried < budget and (moved := _moved(held[unit], field, factor)) is not None:
                    made = score([*held[:unit], moved, *held[unit + 1 :]])[0]
                    tried += 1
                    if not made < best:
                        break
                    best, held[unit] = made, moved
    return [Found(item, best, start.unclipped, start.tried + tried) for item in held]


def _moved(clip: Candidate, field: str, factor: float) -> Candidate:
    """The next setting on one side, None where there is no other."""
    if clip is None:
        return None
    if field == "gain":
        return replace(clip, gain=clip.gain * factor)
    beta = min(clip.beta * factor, 1.0)
    return replace(clip, beta=beta) if beta != clip.beta and beta > BETAS[-1] / 2 else None


def _done(best: Candidate) -> Generator[Candidate, float, None]:
    """Nothing more to try."""
    yield best


def _plan(
    g_min: float, alpha: float | None, beta: float | None, gains: Sequence[float]
) -> Generator[Candidate, float, None]:
    """Candidates of one unit; each is answered by its error."""
    yield None
    scores: dict[Clip, float] = {}

    def ask(*asked: Clip) -> Generator[Candidate, float, None]:
        for item in asked:
            if item not in scores:
                scores[item] = yield item

    def best() -> Clip:
        return min(scores, key=lambda item: scores[item])

    first = gains[0]
    limits = [b for b in BETAS if b > 2 * g_min] or [1.0] if beta is None else [beta]
    for limit in limits:
        yield from ask(Clip(alpha or 1.0, limit, first))
    if alpha is None:
        limit = best().beta
        fitting = [a for a in ALPHAS if a * g_min / (1 - g_min) <= 0.5]
        yield from ask(*(Clip(a, limit, first) for a in fitting))
        if beta is None:
            # A larger subtraction goes with another limit.
            held, grid = best(), sorted({1.0, *limits})
            place = grid.index(held.beta)
            near = [grid[i] for i in (place - 1, place + 1) if 0 <= i < len(grid)]
            yield from ask(*(replace(held, beta=b) for b in near))
    for gain in gains[1:]:
        # All three make a product smaller: a smaller gain goes with less of the other two.
        start = best()
        wider = [] if beta is not None else [b for b in (*limits[::-1], 1.0) if b > start.beta]
        less = [1.0] if alpha is not None else [1.0, 0.5, 0.25]
        shares = [share for share in less if start.alpha * share >= 1.0]
        yield from ask(
            *(
                Clip(start.alpha * share, limit, gain)
                for limit in (start.beta, *wider[:1])
                for share in shares
            )
        )
        if best().gain != gain:
            break
    while True:
        held = best()
        tries = []
        if alpha is None:
            around = _between(held.alpha, {item.alpha for item in scores})
            tries += [replace(held, alpha=value) for value in around]
        if beta is None:
            around = _between(held.beta, {1.0, *(item.beta for item in scores)})
            tries += [replace(held, beta=value) for value in around]
        if len(gains) > 1:
            around = _between(held.gain, {item.gain for item in scores})
            tries += [replace(held, gain=value) for value in around]
        tries = [item for item in tries if item not in scores]
        if not tries:
            return
        yield from ask(*tries)


def _between(value: float, known: set[float]) -> list[float]:
    """Geometric means of a value with its neighbours among those known, if they are apart."""
    order = sorted(known)
    place = order.index(value)
    sides = [order[i] for i in (place - 1, place + 1) if 0 <= i < len(order)]
    apart = [side for side in sides if max(value, side) / min(value, side) > FINEST**2]
    return [math.sqrt(value * side) for side in apart]


class ScoreCache:
    """A folder of scores, one JSON file for each simulation; stopped searches go on from it.

    ``identity`` is a text of everything that scores depend on besides the candidates; files are
    named by its hash and theirs.
    """

    def __init__(self, folder: str | None, identity: Mapping[str, object]) -> None:
        self.folder = Path(folder) if folder is not None else None
        self.identity = json.dumps(identity, sort_keys=True)
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as wrong:
                raise error(codes.OUTPUT, f"cache folder {folder}: {wrong}") from None

    def around(self, score: Score) -> Score:
        """``score``, which looks up what is known and keeps what is new."""
        folder = self.folder
        if folder is None:
            return score

        def cached(asked: Sequence[Candidate]) -> Sequence[float]:
            named = [None if item is None else vars(item) for item in asked]
            digest = hashlib.sha256((self.identity + json.dumps(named)).encode()).hexdigest()
            path = folder / f"{digest}.json"
            if path.exists():
                return _read(path, len(asked))
            made = list(score(asked))
            beside = path.with_suffix(f".{os.getpid()}.part")
            try:
                beside.write_text(json.dumps({"candidates": named, "errors": made}))
                beside.replace(path)
            except OSError as wrong:
                raise error(codes.OUTPUT, f"cache {path}: {wrong}") from None
            return made

        return cached


def _read(path: Path, count: int) -> list[float]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))["errors"]
        made = [float(item) for item in held]
    except (OSError, ValueError, TypeError, KeyError) as wrong:
        raise error(
            codes.ARTIFACT, f"cache {path} cannot be read: {wrong}", help="delete the file"
        ) from None
    if len(made) != count:
        raise error(codes.ARTIFACT, f"cache {path} is damaged", help="delete the file")
    return made
