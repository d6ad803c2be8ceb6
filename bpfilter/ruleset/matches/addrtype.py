"""addrtype: the type of an address by the local routing table (net/netfilter/xt_addrtype.c).

Over IPv4 without a limit to an interface the answer depends on the local table alone. IPv6 asks
for routes, and a limited one for the device's: those stay dynamic.
"""

from __future__ import annotations

from collections.abc import Sequence

from bpfilter.ruleset.fields import ADDRESS_TYPES, Family, Field, Intervals
from bpfilter.ruleset.matches.common import (
    DYNAMIC,
    BadWord,
    Meaning,
    Option,
    begins,
    intervals_term,
)

LIMITS = frozenset({"--limit-iface-in", "--limit-iface-out"})
OPTIONS = {"--src-type": 1, "--dst-type": 1, "--limit-iface-in": 0, "--limit-iface-out": 0}


def interpret(options: Sequence[Option], family: Family) -> Meaning:
    terms = []
    limited = family is Family.IPV6
    for option in options:
        if option.name.startswith("--limit"):
            limited = True
            continue
        field = Field.SOURCE_TYPE if option.name == "--src-type" else Field.DESTINATION_TYPE
        terms.append(intervals_term(field, _types(option.values[0]), option.negated, family))
    if not terms:
        raise BadWord("addrtype takes --src-type or --dst-type", "addrtype")
    return DYNAMIC if limited else Meaning((tuple(terms),))


def _types(word: str) -> Intervals:
    numbers = []
    for name in word.split(","):
        index = begins(name, ADDRESS_TYPES)
        if index is None:
            raise BadWord("not an address type", name, ", ".join(ADDRESS_TYPES))
        numbers.append((index, index))
    return Intervals.of(numbers)
