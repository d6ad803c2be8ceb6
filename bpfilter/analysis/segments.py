"""Compares rules and tables part by part, so that long chains need no diagram of the whole.

A chain is cut between rules of the built-in chain, and where one of those leads to many entries,
between the rules of the chain that it jumps to. If every part, as a function that ends in an
outcome, in "goes on behind" or in "returns", is the same on both sides, so is the whole. The
converse does not hold (parts may differ on packets that never get there), and the caller then
compares the whole.
Where to cut is taken from the compiler's list; a wrong cut makes parts differ, nothing else.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from bpfilter.analysis.contents import Contents
from bpfilter.analysis.diagrams import Diagrams, Packets
from bpfilter.analysis.meaning import Meaning
from bpfilter.analysis.outcomes import NEXT, RETURNS, OutcomeMap, Outcomes
from bpfilter.compiler.ir import FlatChain
from bpfilter.ruleset.model import RuleRef


@dataclass(frozen=True, slots=True)
class Segment:
    """Entries `start` … `stop` - 1 stand for rules `first` … `behind` - 1, counted from 0.

    Of the built-in chain, or of the chain that the last of the jumps `via` leads to. `nat`: for the
    nat chain before, and for none of the rules.
    """

    start: int
    stop: int
    first: int
    behind: int
    nat: bool = False
    via: tuple[RuleRef, ...] = ()


class Cutting:
    """Cuts one chain into parts of about `size` entries, around those that `stand` already."""

    def __init__(self, flat: FlatChain, size: int, stand: Sequence[Segment] = ()) -> None:
        self._steps = steps = Steps(flat)
        self.returning = steps.end
        self._size = size
        self._stand: dict[tuple[RuleRef, ...], list[Segment]] = {}
        for part in stand:
            self._stand.setdefault(part.via, []).append(part)

    def whole(self, rules: int, nat: bool) -> tuple[Segment, ...]:
        """The parts of the built-in chain; the last one holds the policy."""
        _, roots = self._steps.of(())
        position = bisect_left(roots, 1)
        before = (Segment(0, position, 0, 0, nat=True),) if nat else ()
        return (*before, *self._cut(Segment(position, len(roots) + 1, 0, rules)))

    def inside(self, part: Segment, target: Callable[[RuleRef], int | None]) -> list[Segment]:
        """The parts of a part that is a jump to many entries; none if it is not.

        `target`: how many rules the chain has that a rule jumps to; None if it does not jump.
        """
        start, steps = self._steps.of(part.via)
        if part.nat or part.stop - part.start < self._size or part.start - start >= len(steps):
            return []
        jump = self._steps.rule(part.start, len(part.via))
        rules = target(jump)
        inner = steps[part.start - start : part.stop - start]
        if rules is None or set(inner) != {part.first + 1} or jump.number != part.first + 1:
            return []
        parts = list(self._cut(Segment(part.start, part.stop, 0, rules, via=(*part.via, jump))))
        if parts == [part] or not self._steps.ordered((*part.via, jump)):
            return []
        found = [each for other in parts for each in self.inside(other, target) or [other]]
        # Rules behind it that have no entries.
        rest = Segment(part.stop, part.stop, part.first + 1, part.behind, via=part.via)
        return found if rest.first == rest.behind else [*found, rest]

    def _cut(self, whole: Segment) -> Iterator[Segment]:
        start, first = whole.start, whole.first
        for part in self._stand.get(whole.via, ()):
            if part.start < start or part.first < first or part.stop > whole.stop:
                continue
            if (start, first) != (part.start, part.first):
                yield from self._evenly(replace(whole, start=start, first=first,
                                                stop=part.start, behind=part.first))  # fmt: skip
            yield part
            start, first = part.stop, part.behind
        if whole.via == () or (start, first) != (whole.stop, whole.behind):
            yield from self._evenly(replace(whole, start=start, first=first))

    def _evenly(self, whole: Segment) -> Iterator[Segment]:
        """A rule that leads to many entries is a part: edits of its neighbours leave it alone."""
        offset, steps = self._steps.of(whole.via)
        start, first = whole.start, whole.first
        entries = Counter(steps[whole.start - offset : whole.stop - offset])
        for at in range(start + 1, min(whole.stop, offset + len(steps))):
            step = steps[at - offset]
            if step == steps[at - offset - 1]:
                continue
            if at - start >= self._size or entries[step] >= self._size:
                yield replace(whole, start=start, stop=at, first=first, behind=step - 1)
                start, first = at, step - 1
        if not whole.via and start < offset + len(steps) and entries[steps[-1]] >= self._size:
            yield replace(whole, start=start, stop=offset + len(steps), first=first,
                          behind=steps[-1])  # fmt: skip
            start, first = offset + len(steps), steps[-1]
        yield replace(whole, start=start, first=first)


class Steps:
    """Which rule of each chain on the way leads to each entry."""

    def __init__(self, flat: FlatChain) -> None:
        self._table = flat.table
        self._paths = [(*entry.via, entry.rule) for entry in flat.entries[:-1]]
        self._known: dict[tuple[RuleRef, ...], tuple[int, list[int]]] = {}

    def of(self, via: tuple[RuleRef, ...]) -> tuple[int, list[int]]:
        """The first entry behind some jumps, and for it and those behind it the rule's number.

        Behind none: of all entries but the policy's; 0 for those of the nat chain.
        """
        found = self._known.get(via)
        if found is None:
            found = self._known[via] = self._find(via)
        return found

    def _find(self, via: tuple[RuleRef, ...]) -> tuple[int, list[int]]:
        if not via:
            steps = (path[0] for path in self._paths)
            return 0, [ref.number if ref.table == self._table else 0 for ref in steps]
        start, steps_before = self.of(via[:-1])
        number = via[-1].number
        begin = start + bisect_left(steps_before, number)
        end = start + bisect_right(steps_before, number)
        paths = self._paths[begin:end]
        return begin, [path[len(via)].number if len(path) > len(via) else 0 for path in paths]

    def rule(self, entry: int, depth: int) -> RuleRef:
        """The rule at some depth of the way to an entry."""
        return self._paths[entry][depth]

    def ordered(self, via: tuple[RuleRef, ...]) -> bool:
        """Whether the entries behind some jumps stand in the order of their rules, once each."""
        _, steps = self.of(via)
        return all(a <= b for a, b in pairwise(steps)) and 0 not in steps

    def end(self, via: tuple[RuleRef, ...]) -> int:
        """The entry behind all those behind some jumps: where a packet goes that returns."""
        start, steps = self.of(via)
        return start + len(steps)

    def places(self, via: tuple[RuleRef, ...], first: int, behind: int) -> tuple[int, int]:
        """The entries of rules `first` … `behind` - 1 behind some jumps."""
        start, steps = self.of(via)
        return start + bisect_left(steps, first + 1), start + bisect_right(steps, behind)


def differing(
    cutting: Cutting,
    stand: Collection[Segment],
    by_rules: Meaning,
    by_tables: Contents,
    outcomes: Outcomes,
    diagrams: Diagrams,
    proven: Callable[[Segment], None],
) -> Packets | None:
    """Packets that the first differing part treats differently, or None if no part differs.

    `proven` is told of every part that is the same on both sides, in order; those that `stand` are
    known to be.
    """
    sides = _Sides(by_rules, by_tables, outcomes, cutting)
    cut = cutting.whole(len(by_rules.rules), by_rules.nat is not None)
    for index, segment in enumerate(cut):
        diagrams.check_time()
        last = segment is cut[-1]
        if segment in stand or sides.alike(segment, last):
            proven(segment)
            continue
        inside = [] if last else cutting.inside(segment, by_rules.jumps_to)
        if inside and all(part in stand or sides.same(part, diagrams) for part in inside):
            for part in inside:
                proven(part)
            continue
        difference = sides.difference(segment, last) & diagrams.valid
        if difference.satisfiable():
            # Behind a part that lets no packet pass, what the rules say does not matter.
            return None if any(sides.ends(other) for other in cut[:index]) else difference
        proven(segment)
    return None


class _Sides:
    """One part of a chain, as its rules and as its entries say."""

    def __init__(
        self, by_rules: Meaning, by_tables: Contents, outcomes: Outcomes, cutting: Cutting
    ) -> None:
        self._rules, self._tables, self._outcomes = by_rules, by_tables, outcomes
        self._cutting = cutting
        self._end = by_tables.count
        self._policy = by_tables.part(self._end - 1, self._end, {})
        self._going_on, self._leaving = outcomes.constant(NEXT), outcomes.constant(RETURNS)

    def alike(self, part: Segment, last: bool = False) -> bool:
        """Whether rules and entries are the same list of packets and actions, and so the same."""
        if part.nat or (last and self._policy != self._rules.policy):
            return False
        rules = self._rules.lines(part.first, part.behind, part.via)
        stop = min(part.stop, self._end - 1)
        return rules is not None and rules == self._tables.lines(part.start, stop)

    def same(self, part: Segment, diagrams: Diagrams) -> bool:
        """Whether a part of a chain that is jumped to is the same function on both sides."""
        if self.alike(part):
            return True
        if not part.via:
            return not (self.difference(part, False) & diagrams.valid).satisfiable()
        returning = self._cutting.returning(part.via)
        leaving = self._going_on if part.stop == returning else self._leaving
        rules = self._rules.part_behind(part.via, part.first, part.behind, self._going_on, leaving)
        on = {returning: leaving, part.stop: self._going_on}
        tables = self._tables.part(part.start, part.stop, {self._end - 1: self._policy, **on})
        difference = self._outcomes.difference(rules, tables)
        return not (difference & diagrams.valid).satisfiable()

    def difference(self, part: Segment, last: bool) -> Packets:
        """The packets that a part of the built-in chain treats differently."""
        behind = self._rules.policy if last else self._going_on
        on = {} if last else {part.stop: self._going_on}
        stop = min(part.stop, self._end - 1)
        tables = self._tables.part(part.start, stop, {self._end - 1: self._policy, **on})
        return self._outcomes.difference(self._part(part, behind), tables)

    def ends(self, part: Segment) -> bool:
        """Whether no packet goes on behind a part of the built-in chain."""
        return self._outcomes.ends(self._part(part, self._going_on))

    def _part(self, part: Segment, behind: OutcomeMap) -> OutcomeMap:
        if part.nat:
            return self._rules.before(behind)
        return self._rules.part(part.first, part.behind, behind)
