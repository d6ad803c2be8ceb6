"""Which parts of a proof an edit of a few rules leaves standing.

A part of a chain was proven: its rules and its entries are the same function. Where the rules of
the part are still the same, and its entries hold and do the same in the new tables, so it is in
those. Rules are compared with rules and arrays with arrays; whatever differs is to be proven anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bpfilter.analysis.agreement import Run, disagreeing
from bpfilter.analysis.decode import Decoded, opcodes
from bpfilter.analysis.segments import Segment, Steps
from bpfilter.compiler.ir import OpKind, Treatment
from bpfilter.compiler.plan import ChainPlan
from bpfilter.ruleset.model import Chain, Rule, RuleRef, Ruleset


@dataclass(frozen=True, slots=True)
class Proven:
    """A chain of a ruleset whose parts `segments` were proven to be what their rules say."""

    ruleset: Ruleset
    chain: ChainPlan
    segments: tuple[Segment, ...]


def kept(before: Proven, ruleset: Ruleset, chain: ChainPlan) -> tuple[Segment, ...]:
    """Parts of a chain that are as proven before, in order; never its last one."""
    same = _Same(before.ruleset, ruleset, before.chain, chain)
    if not same.comparable:
        return ()
    entries = len(before.chain.flat.entries)
    parts = [old for old in before.segments if not old.nat and old.stop < entries]
    pairs = [(old, new) for old in parts if (new := same.place(old)) is not None]
    ends = tuple(_policy(plan) for plan in (before.chain, chain))
    moves = [(old, new.start - old.start) for old, new in (*pairs, ends)]
    old_tables, new_tables = Decoded(before.chain.tables), Decoded(chain.tables)
    differ = disagreeing(old_tables, new_tables, list(_runs(moves)))
    # Where a packet returns from the built-in chain its entries lead to the policy.
    if differ is None or differ[-1] or not same.operations(*ends):
        return ()
    return tuple(
        new
        for old, new in pairs
        if not differ[old.start : old.stop].any() and same.operations(old, new)
    )


class _Same:
    """What of the rules is the same before and after."""

    def __init__(self, before: Ruleset, after: Ruleset, old: ChainPlan, new: ChainPlan) -> None:
        self._treatments = old.treatments, new.treatments
        self._operations = opcodes(old.tables.ops), opcodes(new.tables.ops)
        self._items = old.flat.items, new.flat.items
        self._steps = Steps(old.flat), Steps(new.flat)
        self._chains = before.tables[old.table].chains, after.tables[new.table].chains
        self._root = old.chain
        self._known: dict[str, bool] = {}
        self._ends: dict[str, tuple[int, int]] = {}
        self.comparable = (
            old.flat.space == new.flat.space
            and (old.table, old.chain) == (new.table, new.chain)
            and self._chains[0][old.chain].policy == self._chains[1][new.chain].policy
        )

    def place(self, part: Segment) -> Segment | None:
        """Where a part's rules and their entries are now; None if something of it was edited."""
        chain: str | None = self._root
        via = []
        for ref in part.via:
            shift = self._shift(ref.chain, ref.number - 1, ref.number)
            moved = ref._replace(number=ref.number + (shift or 0))
            old, new = self._treatments[0][ref], self._treatments[1].get(moved)
            if shift is None or new is None or not _means_alike(old, new, moved):
                return None
            via.append(moved)
            chain = old.target
        shift = None if chain is None else self._shift(chain, part.first, part.behind)
        if shift is None or chain is None:
            return None
        first, behind = part.first + shift, part.behind + shift
        before, after = (side[chain].rules for side in self._chains)
        if not all(map(self._treated, before[part.first : part.behind], after[first:behind])):
            return None
        start, stop = self._steps[1].places(tuple(via), first, behind)
        if stop - start != part.stop - part.start:
            return None
        return Segment(start, stop, first, behind, via=tuple(via))

    def _shift(self, chain: str, first: int, behind: int) -> int | None:
        """How far rules `first` … `behind` - 1 of a chain moved; None if they were edited."""
        if chain not in self._chains[1]:
            return None
        before, after = (side[chain].rules for side in self._chains)
        if chain not in self._ends:
            self._ends[chain] = _ends(before, after)
        head, tail = self._ends[chain]
        if behind <= head:
            return 0
        return len(after) - len(before) if first >= len(before) - tail else None

    def _treated(self, old: Rule, new: Rule) -> bool:
        """Whether two rules that are alike mean the same, and lead to chains that do."""
        left, right = self._treatments[0][old.ref], self._treatments[1][new.ref]
        if not _means_alike(left, right, new.ref):
            return False
        targets = {left.target, left.item.chain if left.item else None, old.target.name}
        return all(self._chain(name) for name in targets if name and name in self._chains[0])

    def _chain(self, name: str) -> bool:
        """Whether a chain and all that it leads to are the same before and after."""
        if name not in self._known:
            self._known[name] = False
            left, right = (side.get(name) for side in self._chains)
            self._known[name] = (
                left is not None
                and right is not None
                and _same_rules(left, right)
                and all(map(self._treated_within, left.rules, right.rules))
            )
        return self._known[name]

    def _treated_within(self, old: Rule, new: Rule) -> bool:
        known = old.ref in self._treatments[0], new.ref in self._treatments[1]
        if known == (False, False):
            # A chain that is copied: its rules have no treatment, and are what they say.
            return self._chain(old.target.name) if old.target.name in self._chains[0] else True
        return all(known) and self._treated(old, new)

    def operations(self, old: Segment, new: Segment) -> bool:
        """Whether two parts' entries do the same, each counted from where its part begins."""
        before, after = self._operations
        ends = len(before) - 1, len(after) - 1
        returning = tuple(
            side.end(part.via) for side, part in zip(self._steps, (old, new), strict=True)
        )
        # In the last part of a chain, returning is going on.
        if (old.stop == returning[0]) != (new.stop == returning[1]):
            return False
        left, right = before[old.start : old.stop], after[new.start : new.stop]
        for (kind, argument), (other, moved) in zip(left, right, strict=True):
            if kind != other:
                return False
            if kind == OpKind.SKIP:
                # What a part leads to is within it, just behind it, or one of these two.
                within = argument - old.start == moved - new.start
                far = argument > old.stop and moved > new.stop
                leaves = (argument, moved) in (ends, returning)
                if not (leaves if far else within):
                    return False
            elif kind == OpKind.ITEM and not self._item(argument, moved, old, new):
                return False
        return True

    def _item(self, old: int, new: int, before: Segment, after: Segment) -> bool:
        """Whether an item is that of the same rule, which moved as its part did."""
        if old >= len(self._items[0]) or new >= len(self._items[1]):
            return False
        left, right = self._items[0][old], self._items[1][new]
        chain = self._treatments[0][before.via[-1]].target if before.via else self._root
        moved = after.first - before.first if left.rule.chain == chain else 0
        rule = left.rule._replace(number=left.rule.number + moved)
        return replace(left, rule=rule) == right


def _ends(before: Sequence[Rule], after: Sequence[Rule]) -> tuple[int, int]:
    """How many rules at the beginning and at the end of two lists are the same."""
    shorter = min(len(before), len(after))
    head = 0
    while head < shorter and _alike(before[head], after[head]):
        head += 1
    tail = 0
    while tail < shorter - head and _alike(before[-1 - tail], after[-1 - tail]):
        tail += 1
    return head, tail


def _alike(old: Rule, new: Rule) -> bool:
    return old.matches == new.matches and old.target == new.target


def _same_rules(old: Chain, new: Chain) -> bool:
    return len(old.rules) == len(new.rules) and all(map(_alike, old.rules, new.rules))


def _means_alike(old: Treatment, new: Treatment, place: RuleRef) -> bool:
    """What of a treatment says how the rule's words are understood; the rest is the compiler's."""
    item = None if old.item is None else replace(old.item, rule=place)
    return (old.action, old.static_matches, old.target, item) == (
        new.action,
        new.static_matches,
        new.target,
        new.item,
    )


def _policy(chain: ChainPlan) -> Segment:
    last = len(chain.flat.entries)
    return Segment(last - 1, last, 0, 0)


def _runs(moved: Sequence[tuple[Segment, int]]) -> Iterator[Run]:
    """Parts that follow each other and moved equally far, put together."""
    current: Run | None = None
    for segment, shift in moved:
        if current is not None and (segment.start, shift) == (current.stop, current.shift):
            current = replace(current, stop=segment.stop)
            continue
        if current is not None:
            yield current
        current = Run(segment.start, segment.stop, shift)
    if current is not None:
        yield current
