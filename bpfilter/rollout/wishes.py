"""How often the wish for a deployment changed, so that nobody changes it unseen by another.

Who asks can say which wish was the last that they saw; the daemon, which answers one after the
other, refuses if there was a later one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bpfilter.errors import RolloutError
from bpfilter.rollout.journal import Journal

_NAME = "wishes"
_SEEN = "seen"


class ChangedMeanwhile(RolloutError):
    """Somebody else asked for another deployment in between."""

    problem = "precondition-failed"
    sentence = "the deployment is another one than the change is based on"

    def __init__(self) -> None:
        super().__init__(self.sentence, hint="look at what changed, and try again")


def last(journal: Journal) -> str:
    """The number of the last wish, as a word."""
    return journal.get(_NAME) or "0"


def based_on(wish: Mapping[str, Any], seen: str) -> dict[str, Any]:
    """The same wish, good only while `seen` is still the last one."""
    return {**wish, _SEEN: seen}


def plain(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The wish without what `based_on` added."""
    return {name: value for name, value in asked.items() if name != _SEEN}


def refuse_late(journal: Journal, asked: Mapping[str, Any]) -> None:
    """ChangedMeanwhile if the wish is based on another than the last one."""
    if asked.get(_SEEN, last(journal)) != last(journal):
        raise ChangedMeanwhile


def note(journal: Journal) -> None:
    """Another wish was accepted."""
    journal.set(_NAME, str(int(last(journal)) + 1))
