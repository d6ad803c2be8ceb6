"""How fast packets go which way: the difference between two looks at a daemon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bpfilter.report.shadow import rule_name


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the daemon; `at` in seconds of any clock. `detail` is None where none runs."""

    at: float
    status: Mapping[str, Any]
    detail: Mapping[str, Any] | None
    events: Sequence[Mapping[str, Any]]


def rates(before: Look | None, now: Look) -> Mapping[str, Any]:
    """Packets a second since the look before: decided, left to iptables, and by rule."""
    seconds = 0.0 if before is None else now.at - before.at
    if before is None or seconds <= 0 or before.detail is None or now.detail is None:
        return {"decided": None, "punted": None, "rules": {}}

    def rate(new: int, old: int) -> float:
        # A new generation starts to count anew.
        return (new - old if new >= old else new) / seconds

    punted = [sum(each.status.get("punted", {}).values()) for each in (now, before)]
    old = {rule_name(rule): seen_by(rule) for rule in before.detail["rules"]}
    per_rule = {
        name: rate(seen_by(rule), old.get(name, 0))
        for rule in now.detail["rules"]
        for name in [rule_name(rule)]
        if seen_by(rule) != old.get(name, 0)
    }
    decided = rate(now.status.get("decided", 0), before.status.get("decided", 0))
    return {"decided": decided, "punted": rate(punted[0], punted[1]), "rules": per_rule}


def seen_by(rule: Mapping[str, Any]) -> int:
    """Packets that ended at a rule, or may have."""
    return int(rule["predicted"]["packets"] + rule["predicted"]["possible"])
