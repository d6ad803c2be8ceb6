"""multiport: up to 15 ports or ranges of either or both ports (net/netfilter/xt_multiport.c)."""

from __future__ import annotations

from collections.abc import Sequence

from bpfilter.ruleset.fields import Family, Field, Intervals
from bpfilter.ruleset.matches.common import (
    BadWord,
    Interpreter,
    Meaning,
    Option,
    intervals_term,
    port,
)

OPTIONS = {
    "--sports": 1, "--source-ports": 1, "--dports": 1, "--destination-ports": 1, "--ports": 1,
    "--sport": 1, "--dport": 1, "--port": 1,
}  # fmt: skip


PROTOCOLS = {6: "tcp", 17: "udp", 136: "udplite", 132: "sctp", 33: "dccp"}


def interpreter(protocol: str) -> Interpreter:
    """The interpreter for rules of this protocol: service names are looked up in it."""

    def interpret(options: Sequence[Option], family: Family) -> Meaning:
        (option,) = options
        ranges = _ranges(option.values[0], protocol)
        source = intervals_term(Field.SOURCE_PORT, ranges, option.negated, family)
        destination = intervals_term(Field.DESTINATION_PORT, ranges, option.negated, family)
        if option.name.startswith("--s"):
            return Meaning(((source,),))
        if option.name.startswith("--d"):
            return Meaning(((destination,),))
        if option.negated:
            return Meaning(((source, destination),))
        not_source = intervals_term(Field.SOURCE_PORT, ranges, True, family)
        return Meaning(((source,), (not_source, destination)))

    return interpret


def _ranges(word: str, protocol: str) -> Intervals:
    items = word.split(",")
    if sum(2 if ":" in item else 1 for item in items) > 15:
        raise BadWord("multiport takes at most 15 ports (a range counts as two)", word)
    ranges = []
    for item in items:
        low, colon, high = item.partition(":")
        first = port(low, protocol)
        last = port(high, protocol) if colon else first
        if first > last or (colon and first == last):
            raise BadWord("a range goes from a lower to a higher port", item)
        ranges.append((first, last))
    return Intervals.of(ranges)
