"""The rules that programs decide by, kept in the journal so that others can be held against them.

They stay there when the programs stop, for that is when one asks what was changed: they are the
rules that were decided by last.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from bpfilter.errors import RolloutError
from bpfilter.rollout.journal import GONE, Journal, running
from bpfilter.rollout.stages import Rollout
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset
from bpfilter.ruleset.read import read_text
from bpfilter.ruleset.writer import write

_NAME, _DIGESTS = "enforced", "enforced digests"


def keep(journal: Journal, rollout: Rollout) -> None:
    """Write down what is decided by, if it is not what was written last; cheap otherwise."""
    if not rollout.stage.decides or rollout.prepared is None:
        return
    rulesets = rollout.prepared.rulesets
    digests = " ".join(sorted(ruleset.digest for ruleset in rulesets.values()))
    if journal.get(_DIGESTS) == digests:
        return
    kept = {
        family: {"backend": ruleset.backend, "text": write(ruleset, counters=False)}
        for family, ruleset in rulesets.items()
    }
    journal.put(_NAME, {"at": time.time(), "rules": kept})
    journal.set(_DIGESTS, digests)


def is_enforced(directory: Path) -> bool:
    """Whether a daemon is in a stage that decides."""
    found = running(directory)
    return found is not None and found[1].decides


def read_enforced(directory: Path, family: Family) -> Ruleset:
    """What programs decide by, or did last; RolloutError if nothing of the family was."""
    try:
        with Journal(directory, create=False) as journal:
            found = journal.document(_NAME) or {"rules": {}, "at": 0.0}
    except GONE:
        found = {"rules": {}, "at": 0.0}
    kept = found["rules"].get(family)
    if kept is None:
        raise RolloutError(
            f"no {family} rules were enforced here",
            hint="`live` are the rules that iptables has; `bpfilter status` says the stage",
        )
    backend = kept["backend"] and Backend(kept["backend"])
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["at"]))
    name = f"{family} rules enforced since {when}"
    ruleset = read_text(kept["text"], source=name, family=family, backend=backend)
    return replace(ruleset, family_reason="as enforced")
