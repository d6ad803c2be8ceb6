"""Compares rules and tables part by part, so that long chains need no diagram of the whole.

A chain is cut between rules of the built-in chain. If every part, as a function that ends in an
outcome or in "goes on behind", is the same on both sides, so is the whole. The converse does not
hold (parts may differ on packets that never get there), and the caller then compares the whole.
Where to cut is taken from the compiler's list; a wrong cut makes parts differ, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bpfilter.analysis.contents import Contents
from bpfilter.analysis.diagrams import Diagrams, Packets
from bpfilter.analysis.meaning import Meaning
from bpfilter.analysis.outcomes import NEXT, OutcomeMap, Outcomes
from bpfilter.compiler.ir import FlatChain


@dataclass(frozen=True, slots=True)
class Segment:
    """Entries `start` … `stop` - 1 stand for rules `first` … `behind` - 1, counted from 0.

    `nat`: for the nat chain before, and for none of the rules.
    """

    start: int
    stop: int
    first: int
    behind: int
    nat: bool = False


def segments(flat: FlatChain, rules: int, nat: bool, size: int) -> tuple[Segment, ...]:
    """Cut a chain into parts of about `size` entries; the last one holds the policy."""
    roots = [
        0 if entry.rule.table != flat.table else (entry.via[0] if entry.via else entry.rule).number
        for entry in flat.entries[:-1]
    ]
    position = sum(1 for root in roots if root == 0)
    result = [Segment(0, position, 0, 0, nat=True)] if nat else []
    start, first = position, 0
    for at in range(start + 1, len(roots)):
        if at - start >= size and roots[at] != roots[at - 1]:
            result.append(Segment(start, at, first, roots[at] - 1))
            start, first = at, roots[at] - 1
    result.append(Segment(start, len(flat.entries), first, rules))
    return tuple(result)


def differing(
    cut: tuple[Segment, ...],
    by_rules: Meaning,
    by_tables: Contents,
    outcomes: Outcomes,
    diagrams: Diagrams,
    proven: Callable[[Segment], None],
) -> Packets | None:
    """Packets that the first differing part treats differently, or None if no part differs.

    `proven` is told of every part that is the same on both sides, in order.
    """
    going_on = outcomes.constant(NEXT)
    end = cut[-1].stop
    policy = by_tables.part(end - 1, end, {})
    for index, segment in enumerate(cut):
        diagrams.check_time()
        last = segment is cut[-1]
        stop = min(segment.stop, end - 1)
        if _alike(segment, stop, by_rules, by_tables) and (not last or policy == by_rules.policy):
            proven(segment)
            continue
        behind = by_rules.policy if last else going_on
        positions = {end - 1: policy} if last else {end - 1: policy, segment.stop: going_on}
        tables = by_tables.part(segment.start, stop, positions)
        rules = _rules(segment, by_rules, behind)
        difference = outcomes.difference(rules, tables) & diagrams.valid
        if difference.satisfiable():
            # Behind a part that lets no packet pass, what the rules say does not matter.
            before = (_rules(other, by_rules, going_on) for other in cut[:index])
            return None if any(outcomes.ends(part) for part in before) else difference
        proven(segment)
    return None


def _rules(segment: Segment, by_rules: Meaning, behind: OutcomeMap) -> OutcomeMap:
    if segment.nat:
        return by_rules.before(behind)
    return by_rules.part(segment.first, segment.behind, behind)


def _alike(segment: Segment, stop: int, by_rules: Meaning, by_tables: Contents) -> bool:
    """Whether rules and entries are the same list of packets and actions, and so the same."""
    if segment.nat:
        return False
    rules = by_rules.lines(segment.first, segment.behind)
    return rules is not None and rules == by_tables.lines(segment.start, stop)
