"""Two paths measured in pairs: what one keeps of the other, and how surely. Pure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEAST = 0.97
"""Of its rate an established stream is to keep in every stage."""
_CHANCE = 0.05


@dataclass(frozen=True, slots=True)
class Stream:
    """Gbit/s that arrived, and the processor time of a byte in ns, at the dearer end.

    A stream on one machine is bound by the processor, so a quiet one keeps of its rate what it
    keeps of the inverse of its cost; the cost says so on a machine that is not quiet too, for what
    others take of the processor is no part of it.
    """

    rate: float
    cost: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A stream of a path, and one without any filter right before or after it."""

    ours: Stream
    base: Stream


def kept_rate(pairs: Sequence[Pair]) -> Share | None:
    """By the rates that were measured."""
    return share([pair.ours.rate for pair in pairs], [pair.base.rate for pair in pairs])


def kept_cost(pairs: Sequence[Pair]) -> Share | None:
    """By processor time: the rate that it allows."""
    return share([1 / pair.ours.cost for pair in pairs], [1 / pair.base.cost for pair in pairs])


@dataclass(frozen=True, slots=True)
class Share:
    """What a path keeps of another's rate: the median of the rounds, and its confidence bounds."""

    median: float
    low: float
    high: float

    def keeps(self, bound: float) -> bool | None:
        """Whether it is at least so much; None if these rounds do not tell."""
        if self.low >= bound:
            return True
        return False if self.high < bound else None


def keeps(pairs: Sequence[Pair], control: Sequence[Pair]) -> bool | None:
    """Whether a path keeps `LEAST` of the rate, by processor time; None where it cannot be told.

    The control is a path without a filter beside its like: while that is not known to be as good
    as the other, within what is to be told, the machine is too busy for any answer.
    """
    kept, same = kept_cost(pairs), kept_cost(control)
    if kept is None or same is None or same.low < LEAST or same.high > 2 - LEAST:
        return None
    return kept.keeps(LEAST)


def share(ours: Sequence[float], theirs: Sequence[float]) -> Share | None:
    """Of paired measurements; None with fewer than six, whose extremes even do not bound a median.

    By the sign test, for ratios of any distribution: the k-th smallest and largest bound the
    median where a fair coin falls fewer than k times on one side with a chance of at most 2.5 %.
    """
    ratios = sorted(one / other for one, other in zip(ours, theirs, strict=True))
    n = len(ratios)
    below = itertools.accumulate(math.comb(n, k) / 2**n for k in range(n // 2))
    outside = sum(chance <= _CHANCE / 2 for chance in below)
    if not outside:
        return None
    return Share(statistics.median(ratios), ratios[outside - 1], ratios[-outside])
