"""multiport: up to 15 ports or ranges of either or both ports (net/netfilter/xt_multiport.c)."""

from __future__ import annotations

from collections.abc import Sequence

from bpfilter.ruleset.fields import Family, Field, Intervals
from bpfilter.ruleset.matches.common import BadWord, Meaning, Option, intervals_term, port_range

OPTIONS = {
    "--sports": 1, "--source-ports": 1, "--dports": 1, "--destination-ports": 1, "--ports": 1,
    "--sport": 1, "--dport": 1, "--port": 1,
}  # fmt: skip


def interpret(options: Sequence[Option], family: Family) -> Meaning:
    if len(options) != 1:
        raise BadWord(
            "multiport takes exactly one of --sports, --dports, --ports",
            options[1].name if options else "multiport",
        )
    option = options[0]
    items = option.values[0].split(",")
    ranges = Intervals.of(port_range(word, "tcp") for word in items)
    if sum(2 if ":" in word else 1 for word in items) > 15:
        raise BadWord("multiport takes at most 15 ports (a range counts as two)", option.values[0])
    source = intervals_term(Field.SOURCE_PORT, ranges, option.negated, family)
    destination = intervals_term(Field.DESTINATION_PORT, ranges, option.negated, family)
    if option.name.lstrip("-").startswith("s"):
        return Meaning(((source,),))
    if option.name.lstrip("-").startswith("d"):
        return Meaning(((destination,),))
    if option.negated:
        return Meaning(((source, destination),))
    not_source = intervals_term(Field.SOURCE_PORT, ranges, True, family)
    return Meaning(((source,), (not_source, destination)))
