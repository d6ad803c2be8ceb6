"""conntrack --ctstate and state: the unknown of the translation (net/netfilter/xt_conntrack.c)."""

from __future__ import annotations

from collections.abc import Sequence

from bpfilter.ruleset.fields import Family, Field, Intervals, Term
from bpfilter.ruleset.matches.common import DYNAMIC, BadWord, Meaning, Option, begins

STATE_OPTIONS = {"--state": 1}
CONNTRACK_OPTIONS = {
    "--ctstate": 1, "--ctproto": 1, "--ctorigsrc": 1, "--ctorigdst": 1, "--ctreplsrc": 1,
    "--ctrepldst": 1, "--ctorigsrcport": 1, "--ctorigdstport": 1, "--ctreplsrcport": 1,
    "--ctrepldstport": 1, "--ctstatus": 1, "--ctexpire": 1, "--ctdir": 1,
}  # fmt: skip
NAMES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
TRANSLATED = ("SNAT", "DNAT")


def interpret(options: Sequence[Option], family: Family) -> Meaning:
    """A STATE term over bit numbers of `State`; SNAT, DNAT and other options are dynamic."""
    terms = []
    for option in options:
        if option.name not in ("--state", "--ctstate"):
            return DYNAMIC
        names = NAMES if option.name == "--state" else (*NAMES, *TRANSLATED)
        bits = []
        for name in option.values[0].split(","):
            index = begins(name, names)
            if index is None:
                raise BadWord("not a connection state", name, f"states are {', '.join(NAMES)}")
            bits.append(index)
        if max(bits) >= len(NAMES):
            return DYNAMIC
        wanted = set(range(5)) - set(bits) if option.negated else set(bits)
        terms.append(Term(Field.STATE, Intervals.of((bit, bit) for bit in wanted)))
    return Meaning((tuple(terms),))
