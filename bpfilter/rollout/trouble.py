"""Why a stage may not go on, as sentences with a cause that policies can tell apart. Pure."""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """What ended or suspended a stage."""

    RULESET = "ruleset"  # the rules that were translated are not those that are there
    MARKS = "marks"  # so they are, and a new rule may write our bits of the mark
    DISPATCH = "dispatch"  # somebody took our chains or rules away
    HOST = "host"  # interfaces, other programs, mark users, IPsec …
    LINKS = "links"  # patterns of interface names mean others now
    UNCONFIRMED = "unconfirmed"
    CANCELLED = "cancelled"
    MISMATCH = "mismatch"
    LOST = "lost"  # more events were lost than allowed
    PROBE = "probe"
    STOPPED = "stopped"  # bpfilterd was told to stop


class Trouble(str):
    """A sentence, and its cause."""

    __slots__ = ("cause",)
    cause: Cause

    def __new__(cls, sentence: str, cause: Cause) -> Trouble:
        made = super().__new__(cls, sentence)
        made.cause = cause
        return made
