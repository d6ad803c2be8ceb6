"""Known differences between prediction and verdict that an operator accepts, for a time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from bpfilter.errors import UsageError
from bpfilter.rollout.comparison import Comparison, RuleKey, Verdict
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import RuleRef, Ruleset

Difference = tuple[RuleKey, Verdict, Verdict]
"""A rule, what was predicted of its packets, what happened to them."""


@dataclass(frozen=True, slots=True)
class Waiver:
    """Differences of one kind at one rule are explained by `reason` until `expires`.

    `expires`: wall-clock seconds; at that instant it holds no longer.
    """

    key: RuleKey
    predicted: Verdict
    actual: Verdict
    reason: str
    expires: float

    def covers(self, difference: Difference, now: float) -> bool:
        return now < self.expires and difference == (self.key, self.predicted, self.actual)


def differences(comparison: Comparison) -> Mapping[Difference, int]:
    """Packets whose verdict the prediction excluded, by rule and pair."""
    return {
        (key, said, was): count
        for key, pairs in comparison.rules.items()
        for (said, was), count in pairs.counts.items()
        if said is not was and said is not Verdict.OPEN and count
    }


def unexplained(
    comparison: Comparison, waivers: Iterable[Waiver], now: float
) -> Mapping[Difference, int]:
    """The differences that no waiver covers at this time (wall-clock seconds)."""
    held = tuple(waivers)
    return {
        difference: count
        for difference, count in differences(comparison).items()
        if not any(waiver.covers(difference, now) for waiver in held)
    }


def still_meant(
    waivers: Iterable[Waiver], before: Mapping[Family, Ruleset], after: Mapping[Family, Ruleset]
) -> tuple[Waiver, ...]:
    """The waivers whose rule stands word for word where it stood: others name another rule now."""
    return tuple(
        waiver
        for waiver in waivers
        if (words := _words(before, waiver.key)) and words == _words(after, waiver.key)
    )


def _words(rulesets: Mapping[Family, Ruleset], key: RuleKey) -> tuple[str, ...]:
    ruleset, ref = rulesets.get(key.family), key.rule
    table = None if ruleset is None else ruleset.tables.get(ref.table)
    chain = None if table is None else table.chains.get(ref.chain)
    if chain is None or ref.number > len(chain.rules):
        return ()
    if ref.number == 0:
        return (chain.policy or "",)
    rule = chain.rules[ref.number - 1]
    return (*(word for match in rule.matches for word in match.words), *rule.target.words)


def parse_rule(text: str) -> RuleKey:
    """`ipv4:filter/INPUT/3`, 0 for the policy; UsageError otherwise."""
    family, _, rest = text.partition(":")
    parts = rest.split("/")
    if family not in list(Family) or len(parts) != 3 or not parts[2].isdecimal():
        raise UsageError(f"{text!r} names no rule", hint="as in ipv4:filter/INPUT/3")
    return RuleKey(Family(family), RuleRef(parts[0], parts[1], int(parts[2])))


def parse_waiver(text: str) -> Waiver:
    """`RULE,PREDICTED,ACTUAL,EXPIRES,REASON`, the time in ISO 8601 (UTC); UsageError otherwise."""
    parts = [part.strip() for part in text.split(",", 4)]
    if len(parts) != 5 or not parts[4]:
        raise UsageError(
            f"{text!r} is no waiver: it takes a rule, two verdicts, an expiry and a reason",
            hint="as in ipv4:filter/INPUT/3,ACCEPT,DROP,2026-12-31,known until the upgrade",
        )
    try:
        predicted, actual = Verdict(parts[1]), Verdict(parts[2])
        expires = datetime.fromisoformat(parts[3])
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no waiver: {error}", hint="verdicts are ACCEPT or DROP, times ISO 8601"
        ) from None
    if expires.tzinfo is None:
        expires = expires.replace(tzinfo=UTC)
    return Waiver(parse_rule(parts[0]), predicted, actual, parts[4], expires.timestamp())
