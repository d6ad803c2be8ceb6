"""The semantic diff of two rulesets, with what it would have touched so far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bpfilter.analysis.difference import HOOKS, compare
from bpfilter.errors import UsageError
from bpfilter.report.difference import difference_document
from bpfilter.rollout.counters import with_traffic
from bpfilter.rollout.shadow import judged
from bpfilter.ruleset.model import Ruleset


def differences(
    old: Ruleset,
    new: Ruleset,
    traffic: Path | None,
    seconds: float,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """The document of `report.difference`; UsageError for rulesets of two families.

    `traffic`: the state directory of the host whose rules `old` are; None if they are nobody's.
    `seconds`: how long packets of one chain are followed at most.
    """
    if old.family is not new.family:
        raise UsageError(
            f"one ruleset is {old.family}, the other {new.family}", hint="say which family is meant"
        )
    found = []
    for hook in HOOKS:
        say(f"comparing {hook[0]} {hook[1]}")
        compared = compare(old, new, hook, seconds=seconds)
        if compared is not None:
            found.append(compared)
    once = True
    if traffic is not None and any(each.changes for each in found):
        say("reading counters")
        old, once = with_traffic(old, traffic)
    return difference_document(old, new, found, _judged(old, once))


def _judged(ruleset: Ruleset, once: bool) -> dict[tuple[str, str], int | None]:
    hooks = [
        hook
        for hook in HOOKS
        if hook[0] in ruleset.tables and hook[1] in ruleset.tables[hook[0]].chains
    ]
    counts = {hook: judged(ruleset, *hook) for hook in hooks}
    return {hook: count if once or not count else None for hook, count in counts.items()}
