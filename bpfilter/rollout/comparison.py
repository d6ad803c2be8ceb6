"""What comparing predictions with iptables' verdicts found: the values between kernel and rollout.

A *prediction* is what the program would decide for a packet, made at TC or XDP (or just before
filter OUTPUT). It is *comparable* if it names one verdict for the connection state the packet
turned out to have. Every prediction ends as exactly one of match, mismatch, open, unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from bpfilter.kernel.config import Reason
from bpfilter.ruleset.fields import Family, State
from bpfilter.ruleset.model import RuleRef

_Cause = TypeVar("_Cause")


class Mechanism(StrEnum):
    """How predictions are compared here."""

    PACKETS = "packets"  # each packet's own fate, by netfilter links and raw_tp/kfree_skb
    COUNTERS = "counters"  # per-rule counters, where the kernel lacks those


class Verdict(StrEnum):
    """What filter did with a packet, or would."""

    ACCEPT = "ACCEPT"
    DROP = "DROP"
    OPEN = "OPEN"  # of predictions only: dynamic rules decide


class Unseen(StrEnum):
    """Why a predicted packet was never seen at its filter hook."""

    BEFORE = "dropped or consumed before filter"  # raw, mangle, nat, routing, rp_filter
    QUEUED = "held by a queue in filter, or its end went unnoticed"
    VANISHED = "its address was used again before it was seen"
    LOST = "no room to remember it"


class Incomparable(StrEnum):
    """Why a packet that was seen on both sides says nothing about the prediction."""

    OPEN = "dynamic rules decide"  # its set of possible verdicts was still checked
    TRANSLATED = "NAT rewrote it after the prediction"
    OTHER_CHAIN = "it went to the other chain, as NAT may make it"
    EDITED = "the rules were edited while it was on its way"
    FOREIGN = "a chain of native nft beside filter may have dropped it"


@dataclass(frozen=True, slots=True)
class RuleKey:
    """A rule (number 0: the policy) of one family's ruleset."""

    family: Family
    rule: RuleRef


@dataclass(frozen=True, slots=True)
class Pairs:
    """Packets whose predicted deciding rule is one rule, by (predicted, actual) verdict."""

    counts: Mapping[tuple[Verdict, Verdict], int]
    first_seen: float | None = None
    """Wall-clock seconds of the first packet, as far as the reader noticed; None if none came."""

    @property
    def matches(self) -> int:
        return sum(n for (said, was), n in self.counts.items() if said is was)

    @property
    def mismatches(self) -> int:
        pairs = self.counts.items()
        return sum(n for (said, was), n in pairs if said is not was and said is not Verdict.OPEN)

    @property
    def open(self) -> int:
        return sum(n for (said, _), n in self.counts.items() if said is Verdict.OPEN)


@dataclass(frozen=True, slots=True)
class Sample:
    """A packet whose actual verdict the prediction excluded.

    `header`: its first bytes from the network header on, as they were at the prediction.
    `predicted_rule` is the rule that the program found decisive for `state`.
    """

    at: float
    key: RuleKey
    chain: tuple[str, str]
    interface: str
    out_interface: str
    header: bytes
    state: State
    predicted: Verdict
    actual: Verdict
    via: tuple[RuleRef, ...] = ()
    """The jumps that the prediction passed on its way to the rule."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All since the stage began. `predicted` counts every packet the program looked at.

    `rules`: those that predicted a packet; `known`: how many could. A rule that is not there has
    predicted none.

    `punted`: left to iptables, by reason, so nothing was predicted. `lost_samples`: mismatches of
    which no sample was kept, for the ring is bounded; they are counted all the same.
    """

    mechanism: Mechanism
    since: float
    share: float
    predicted: int
    punted: Mapping[Reason, int]
    rules: Mapping[RuleKey, Pairs]
    unseen: Mapping[Unseen, int]
    incomparable: Mapping[Incomparable, int]
    samples: tuple[Sample, ...]
    lost_samples: int = 0
    known: int = 0
    remembered: int = 0
    """Predictions that were made to be compared: all that follows from `rules` on is about them."""

    @property
    def matches(self) -> int:
        return sum(pairs.matches for pairs in self.rules.values())

    @property
    def mismatches(self) -> int:
        return sum(pairs.mismatches for pairs in self.rules.values())

    @property
    def incomparable_share(self) -> float:
        """Of the remembered predictions, how many said nothing; 0.0 if there are none."""
        return sum(self.incomparable.values()) / self.remembered if self.remembered else 0.0

    @property
    def unseen_share(self) -> float:
        """Of the remembered predictions, how many were never settled; 0.0 if there are none."""
        return sum(self.unseen.values()) / self.remembered if self.remembered else 0.0

    @property
    def attributed_share(self) -> float:
        """Of the comparable packets, how many got a match or mismatch; 1.0 if there were none."""
        judged = self.matches + self.mismatches
        return judged / (judged + sum(self.unseen.values())) if judged else 1.0


def together(parts: Sequence[Comparison]) -> Comparison:
    """Comparisons of several hooks over the same time as one; there is at least one."""
    first = parts[0]
    rules: dict[RuleKey, Pairs] = {}
    for part in parts:
        for key, pairs in part.rules.items():
            rules[key] = _both(rules[key], pairs) if key in rules else pairs
    return Comparison(
        mechanism=first.mechanism,
        since=min(part.since for part in parts),
        share=first.share,
        predicted=sum(part.predicted for part in parts),
        punted=_sums(part.punted for part in parts),
        rules=rules,
        unseen=_sums(part.unseen for part in parts),
        incomparable=_sums(part.incomparable for part in parts),
        samples=tuple(sorted((s for part in parts for s in part.samples), key=lambda s: s.at)),
        lost_samples=sum(part.lost_samples for part in parts),
        known=sum(part.known for part in parts),
        remembered=sum(part.remembered for part in parts),
    )


def _both(left: Pairs, right: Pairs) -> Pairs:
    seen = [time for time in (left.first_seen, right.first_seen) if time is not None]
    return Pairs(_sums((left.counts, right.counts)), min(seen, default=None))


def _sums(parts: Iterable[Mapping[_Cause, int]]) -> dict[_Cause, int]:
    sums: dict[_Cause, int] = {}
    for part in parts:
        for cause, count in part.items():
            sums[cause] = sums.get(cause, 0) + count
    return sums


def unjudged(since: float, decided: int, punted: Mapping[Reason, int]) -> Comparison:
    """Of a stage that compares nothing: how many packets were looked at, and no more."""
    return Comparison(
        mechanism=Mechanism.COUNTERS,
        since=since,
        share=0.0,
        predicted=decided + sum(punted.values()),
        punted=punted,
        rules={},
        unseen={},
        incomparable={},
        samples=(),
    )
