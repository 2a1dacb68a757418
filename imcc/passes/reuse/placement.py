"""Which encoders reuse attention: the three families of patterns of TReX.

TReX (IEEE TETC 2024, 10.1109/tetc.2024.3480524) names strided, continuous and pyramid placements
without giving indices; these are the readings of it here. Encoder 0 always computes attention, so
that there is something to reuse.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Family: TypeAlias = Literal["strided", "continuous", "pyramid"]
Side: TypeAlias = Literal["late", "early"]

FAMILIES: tuple[Family, ...] = get_args(Family)
SIDES: tuple[Side, ...] = get_args(Side)


def placement(family: Family, side: Side, count: int, encoders: int) -> tuple[int, ...]:
    """``count`` of the encoders ``1 .. encoders - 1``, in order.

    ``strided`` spreads them evenly: encoder i reuses where ``floor((i + 1) count / encoders)``
    exceeds ``floor(i count / encoders)``. ``continuous`` is one run. ``pyramid`` has runs of
    growing length, one encoder with attention before each; encoders left over keep attention.
    Patterns lie towards the output (``late``); ``early`` mirrors them, i to ``encoders - i``.

    >>> placement("pyramid", "late", 6, 12)
    (4, 6, 7, 9, 10, 11)

    Raises ``ValueError`` unless ``0 <= count < encoders``.
    """
    if not 0 <= count < max(encoders, 1):
        raise ValueError(f"{count} of {encoders} encoders")
    if family == "strided":
        late = [i for i in range(encoders) if (i + 1) * count // encoders > i * count // encoders]
    elif family == "continuous":
        late = list(range(encoders - count, encoders))
    else:
        late = _pyramid(count, encoders)
    chosen = late if side == "late" else [encoders - i for i in late]
    return tuple(sorted(chosen))


def _pyramid(count: int, encoders: int) -> list[int]:
    """Runs as many as fit, as even a slope as the count allows, the longest at the end."""
    runs = 0
    while (runs + 1) * (runs + 2) // 2 <= count and count + runs + 1 <= encoders:
        runs += 1
    if not runs:
        return []
    each, rest = divmod(count - runs * (runs + 1) // 2, runs)
    lengths = [number + 1 + each + (number >= runs - rest) for number in range(runs)]
    made: list[int] = []
    following = encoders
    for length in reversed(lengths):
        made.extend(range(following - length, following))
        following -= length + 1
    return made


def candidates(count: int, encoders: int) -> dict[tuple[int, ...], str]:
    """The distinct placements of ``count`` encoders, each with the first name it has."""
    made: dict[tuple[int, ...], str] = {}
    for family in FAMILIES:
        for side in SIDES:
            made.setdefault(placement(family, side, count, encoders), f"{family}, {side}")
    return made
