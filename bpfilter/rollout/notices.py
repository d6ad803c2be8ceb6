"""What an operator will notice once the programs decide, said before it happens. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bpfilter.errors import RolloutError
from bpfilter.ruleset.model import Backend, Rule, RuleRef, Ruleset, StateEffect, TargetKind

COUNTERS = "packets that the programs decide no longer move the original rules' counters"
OUTPUT = (
    "OUTPUT gains nothing for what it accepts; what it drops at once never reaches iptables, and"
    " the sender gets the same error"
)
LEGACY_POLICIES = "iptables-legacy zeroes the counters of policies at every edit, also at ours"


def refilled(ruleset: Ruleset) -> tuple[RuleRef, ...]:
    """Rules of `filter` whose own state (limit, quota, statistic) can decide a verdict.

    iptables-legacy replaces the whole table at each edit, which makes such state start anew;
    iptables-nft keeps it.
    """
    table = ruleset.tables.get("filter")
    if table is None:
        return ()
    rules = (rule for chain in table.chains.values() for rule in chain.rules)
    return tuple(rule.ref for rule in rules if _keeps_state(rule) and _decides(rule))


def refuse_resets(backend: Backend, rulesets: Iterable[Ruleset]) -> None:
    """RolloutError if our edits of legacy tables would start anew what decides verdicts."""
    if backend is not Backend.LEGACY:
        return
    for ruleset in rulesets:
        if refs := refilled(ruleset):
            raise RolloutError(
                f"an edit of the legacy table starts the state of {', '.join(map(str, refs))} anew,"
                " and that state decides verdicts",
                hint="--accept-state-reset if that is acceptable; iptables-nft keeps such state",
            )


def _keeps_state(rule: Rule) -> bool:
    return any(match.effect is StateEffect.INSTANCE for match in rule.matches)


def _decides(rule: Rule) -> bool:
    return rule.target.kind is not TargetKind.NONE and rule.target.name not in (
        "LOG",
        "NFLOG",
        "ULOG",
    )


def notices(rulesets: Iterable[Ruleset], backend: Backend) -> Iterator[str]:
    """Sentences for the operator, most important first."""
    rulesets = tuple(rulesets)
    if backend is Backend.LEGACY:
        for ruleset in rulesets:
            refs = refilled(ruleset)
            if refs:
                yield (
                    f"{ruleset.family}: installing and removing our chains resets the state of"
                    f" {', '.join(map(str, refs))} (iptables-legacy replaces the whole table)"
                )
        yield LEGACY_POLICIES
    yield COUNTERS
