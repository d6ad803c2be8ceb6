"""Drift: whether the live ruleset is still the one that was translated.

The programs themselves compare the kernel's generation for every packet; this is user space's
slower check, before each renewal of the lease, and the only one where a kernel hides it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

from bpfilter.rollout import ours
from bpfilter.rollout.mark import WRITERS
from bpfilter.ruleset.edited import plain
from bpfilter.ruleset.lexer import lines_of

_WRITES_MARKS = re.compile(rf"-j (?:{'|'.join(sorted(WRITERS))})\b")


@dataclass(frozen=True, slots=True)
class Drift:
    """What of a save text is not as it was when the plan was made; false if nothing."""

    ruleset: bool
    dispatch: bool
    marks: bool = False
    """A rule that may write marks, ours among them, is new."""

    def __bool__(self) -> bool:
        return self.ruleset or self.dispatch

    def __str__(self) -> str:
        what = [
            name
            for name, changed in (("ruleset", self.ruleset), ("dispatch", self.dispatch))
            if changed
        ]
        return " and ".join(what) + " changed" if what else "no drift"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Counter-free SHA-256 digests of the operator's rules and of everything including ours."""

    ruleset: str
    whole: str
    writers: frozenset[str] = frozenset()
    """The operator's rules that write marks of packets, in iptables-save's words."""

    @classmethod
    def of(cls, save: str) -> Fingerprint:
        """The fingerprint of iptables-save text, with or without counters or comments."""
        return _fingerprint(plain(save))

    def drift(self, save: str) -> Drift:
        """Compare the present save text with this fingerprint."""
        now = Fingerprint.of(save)
        changed = now.ruleset != self.ruleset
        dispatch = now.whole != self.whole and not changed
        return Drift(changed, dispatch, marks=bool(now.writers - self.writers))


@lru_cache(maxsize=8)
def _fingerprint(save: str) -> Fingerprint:
    """Kept for the texts that the daemon sees again every second: one per family and backend."""
    rules = ours.strip(save)
    writers = frozenset(line for line in lines_of(rules) if _WRITES_MARKS.search(line))
    return Fingerprint(_digest(rules), _digest(save), writers)


def rules_of(save: str) -> str:
    """The operator's rules in the text of iptables-save: no comments, no counters, not ours."""
    return ours.strip(plain(save))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
