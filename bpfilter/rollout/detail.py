"""What the daemon knows rule by rule, published when it is asked for: it may be long."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bpfilter.errors import BpfilterError, RolloutError
from bpfilter.rollout import evidence
from bpfilter.rollout.asking import ANSWER_SECONDS, ask
from bpfilter.rollout.comparison import Comparison, Pairs, RuleKey
from bpfilter.rollout.journal import GONE, Journal, Stage, running
from bpfilter.rollout.prepare import Prepared
from bpfilter.rollout.shadow import Bounds, RuleCount, ShadowReport
from bpfilter.rollout.stages import Rollout
from bpfilter.rollout.status import STATUS
from bpfilter.rollout.totals import RuleName, rule_name
from bpfilter.ruleset.model import Ruleset

DETAIL, VERB = "detail", "detail"
REPEATED_SECONDS = 0.2
COUNTERS_SECONDS = 10.0
"""How old the comparison of counters may be: it takes a reading of all rules."""

_MOST_SAMPLES = 256


class Publisher:
    """Leaves the document in the journal, as it was up to REPEATED_SECONDS ago.

    However many ask, renewing the lease waits for one counting at most that often.
    """

    def __init__(self) -> None:
        self._last = self._counted = float("-inf")
        self._counters: Mapping[str, Any] | None = None

    def publish(self, rollout: Rollout, journal: Journal) -> None:
        """Count anew if it is time, and keep the document."""
        if time.monotonic() >= self._last + REPEATED_SECONDS:
            old = time.monotonic() >= self._counted + COUNTERS_SECONDS
            if old or rollout.stage is not Stage.SHADOW:
                self._counters, self._counted = counters(rollout), time.monotonic()
            journal.put(DETAIL, {**document(rollout), "counters": self._counters})
            self._last = time.monotonic()


def ask_detail(directory: Path, seconds: float = ANSWER_SECONDS) -> Mapping[str, Any]:
    """What the running daemon knows now; RolloutError if there is none, or it is silent so long."""
    ask(directory, VERB, {}, seconds)
    with Journal(directory, create=False) as journal:
        found = journal.document(DETAIL)
    if found is None:
        raise RolloutError("bpfilterd ended meanwhile", hint="`bpfilter status` says why")
    return found


def kept_samples(directory: Path) -> Mapping[str, Mapping[str, Any]]:
    """Mismatches by their id: the running daemon's, else what one that ended has left."""
    if running(directory) is not None:
        ask_detail(directory)
    try:
        with Journal(directory, create=False) as journal:
            documents = [journal.document(name) or {} for name in (STATUS, DETAIL)]
    except GONE:
        return {}
    compared = (document.get("comparison") or {} for document in documents)
    return {sample["id"]: sample for found in compared for sample in found.get("samples", ())}


def document(rollout: Rollout) -> Mapping[str, Any]:
    """Per rule of the translated chains, in iptables' order: what was predicted and decided.

    `decides`: whether packets can end there; `item`: iptables itself executes it, in our chains
    too. `predicted`, `decided`: packets that end there for
    certain, and those that do in some connection states only; `decided` while programs decided.
    """
    prepared, comparison = rollout.prepared, rollout.comparison()
    rules = [] if prepared is None else list(_rules(rollout, prepared, comparison))
    found = None if comparison is None else evidence.summary(comparison, _MOST_SAMPLES)
    return {
        "at": time.time(),
        "stage": rollout.stage,
        "since": rollout.since,
        "packets": None if comparison is None else comparison.predicted,
        "punted": {reason.name.lower(): count for reason, count in rollout.punted().items()},
        "comparison": found,
        "rules": rules,
    }


def counters(rollout: Rollout) -> Mapping[str, Any] | None:
    """What the program says that rules counted, and what they did; None outside of shadow.

    Bounds are already widened by what `rollout.shadow` allows for; rules without traffic on either
    side are left out.
    """
    try:
        reports = rollout.compare()
    except BpfilterError:  # not in shadow, or the rules are just being edited
        return None
    prepared = rollout.prepared
    chains = [] if prepared is None else prepared.chains()
    return {
        "at": time.time(),
        "chains": [
            {
                "family": plan.family,
                "table": chain.table,
                "chain": chain.chain,
                "judged": report.judged,
                "unseen": report.unseen,
                "left_out": report.left_out,
                "rules": [_counted(each, report) for each in report.rules if _moved(each)],
            }
            for (plan, chain), report in zip(chains, reports, strict=True)
        ],
    }


def _moved(count: RuleCount) -> bool:
    return bool(count.iptables or count.bounds.possible)


def _counted(count: RuleCount, report: ShadowReport) -> dict[str, Any]:
    above, below = report.unseen, report.lost + report.diverted
    return {
        "chain": count.rule.chain,
        "number": count.rule.number,
        "least": max(count.bounds.certain - below, 0),
        "most": count.bounds.possible + above,
        "iptables": count.iptables,
        "holds": count.holds(above, below),
    }


def _rules(
    rollout: Rollout, prepared: Prepared, comparison: Comparison | None
) -> Iterator[dict[str, Any]]:
    totals, decided = rollout.totals(), rollout.totals(decided=True)
    deciding = prepared.deciding()
    items = {
        RuleKey(plan.family, item.rule)
        for plan, chain in prepared.chains()
        for item in chain.flat.items
    }
    pairs = {} if comparison is None else comparison.rules
    for ruleset in prepared.rulesets.values():
        for key in _keys(ruleset):
            name = rule_name(ruleset, key.rule)
            seen, counted = pairs.get(key), totals.get(name)
            if key in deciding or seen is not None or counted is not None:
                document = _rule(key, name, seen)
                document["decides"], document["item"] = key in deciding, key in items
                document["predicted"] = _bounds(counted)
                document["decided"] = _bounds(decided.get(name))
                yield document


def _keys(ruleset: Ruleset) -> Iterator[RuleKey]:
    """The rules of `filter` and `raw` in order, each built-in chain's policy behind its rules."""
    for rule in ruleset.rules():
        if rule.table in ("filter", "raw"):
            yield RuleKey(ruleset.family, rule.ref)
            chain = ruleset.tables[rule.table].chains[rule.chain]
            if rule.number == len(chain.rules) and chain.policy is not None:
                yield RuleKey(ruleset.family, rule.ref._replace(number=0))


def _rule(key: RuleKey, name: RuleName, seen: Pairs | None) -> dict[str, Any]:
    return {
        "family": key.family,
        "table": key.rule.table,
        "chain": key.rule.chain,
        "number": key.rule.number,
        "text": name.text,
        "matches": 0 if seen is None else seen.matches,
        "mismatches": 0 if seen is None else seen.mismatches,
        "open": 0 if seen is None else seen.open,
        "first_seen": None if seen is None else seen.first_seen,
    }


def _bounds(found: Bounds | None) -> dict[str, int]:
    if found is None:
        return {"packets": 0, "bytes": 0, "possible": 0}
    possible = found.possible - found.certain
    return {"packets": found.certain, "bytes": found.bytes, "possible": possible}
