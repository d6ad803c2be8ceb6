"""By which rules iptables judges the packets that it judged unlike their prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from bpfilter.analysis.explain import explain
from bpfilter.errors import BpfilterError
from bpfilter.report.asked import sample_packet
from bpfilter.report.explain import rule_text
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Ruleset

_MOST = 8


def iptables_paths(
    detail: Mapping[str, Any], read: Callable[[Family], Ruleset]
) -> Mapping[str, Sequence[str]]:
    """For the first samples of `rollout.detail`, by their id: the rules as they are now.

    `read` gives the live rules. Nothing of those that it cannot say, whatever the reason.
    """
    samples = (detail["comparison"] or {}).get("samples", ())
    known = cache(read)
    found: dict[str, Sequence[str]] = {}
    for sample in samples[:_MOST]:
        try:
            question = sample_packet(sample)
            said = explain(known(question.family), question)
        except BpfilterError:
            continue
        steps = said.paths[0].steps
        found[sample["id"]] = [f"{s.rule} {rule_text(said.ruleset, s.rule)}" for s in steps]
    return found
