"""The operator's live rules, without what a deployed stage added to them."""

from __future__ import annotations

from dataclasses import replace

from bpfilter.rollout import ours
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.live import read_live
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.writer import write


def read_operators(family: Family, backend: Backend | None = None) -> Ruleset:
    """As `read_live`, whatever the stage: our chains and the jumps to them are left out."""
    live = read_live(family, backend)
    text = write(live, counters=True)
    if (rest := ours.strip(text)) == text:
        return live
    found = read_text(rest, source=live.source, family=family, backend=live.backend)
    return replace(found, family_reason=live.family_reason, warnings=live.warnings)
