"""Functions from (packet, state) to what becomes of it, in decision diagrams.

An `OutcomeMap` holds the verdict as two bits and the passed items as a relation with the number of
their sequence, spelled by the lowest variables. Two maps are the same function exactly if their
diagrams are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from oxidd.bcdd import BCDDFunction
from oxidd.util import BooleanOperator

from bpfilter.analysis.diagrams import Diagrams, LimitReached, Packets
from bpfilter.compiler.ir import Item, ItemKind, Verdict
from bpfilter.ruleset.model import RuleRef


class Trace(NamedTuple):
    """The items a packet passes, then its verdict (None: the last item decides)."""

    items: tuple[Item, ...]
    verdict: Verdict | None

    def __str__(self) -> str:
        words = [f"{item.rule}" for item in self.items]
        return " → ".join([*words, self.verdict.value] if self.verdict else words) or "no entry"


ACCEPTED = Trace((), Verdict.ACCEPT)
DROPPED = Trace((), Verdict.DROP)
PUNTED = Trace((), Verdict.PUNT)
NO_ENTRY = Trace((), None)
"""No entry of a table holds the packet: never right, the last one must hold all."""

NEXT = Trace((Item(RuleRef("", "", 0), ItemKind.RULE, True, frozenset(), ""),), None)
"""Stands for "goes on behind this part of the chain" while parts are compared."""

RETURNS = Trace((Item(RuleRef("", "", 1), ItemKind.RULE, True, frozenset(), ""),), None)
"""Stands for "goes on behind the jump to this part's chain"."""

_VERDICTS: tuple[Verdict | None, ...] = (Verdict.DROP, Verdict.ACCEPT, Verdict.PUNT, None)
Relation: TypeAlias = BCDDFunction
Line: TypeAlias = tuple[Packets, Trace]
"""A line of a list: the packets that it holds, and what becomes of those (NEXT: goes on)."""


def passing(item: Item) -> Trace:
    """What a line with an item does."""
    return Trace((item,), None) if item.terminal else Trace((item, *NEXT.items), None)


@dataclass(frozen=True, slots=True)
class OutcomeMap:
    """`high` and `low` spell the index in _VERDICTS; `items` relates packets to item sequences."""

    high: Packets
    low: Packets
    items: Relation


class Outcomes:
    """Builds outcome maps; numbers the sequences of items, 0 being the empty one.

    A sequence is kept as its first item and the number of the rest: they grow by one item at a
    time, and can have thousands.
    """

    def __init__(self, diagrams: Diagrams) -> None:
        self._diagrams = diagrams
        self._bits = diagrams.outcome
        self._items: dict[Item, int] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._sequences: list[tuple[Item, int] | None] = [None]
        self._leaves: dict[int, Relation] = {}
        self._maps: dict[Trace, OutcomeMap] = {}

    def constant(self, trace: Trace) -> OutcomeMap:
        """The map that is `trace` everywhere."""
        found = self._maps.get(trace)
        if found is None:
            index = _VERDICTS.index(trace.verdict)
            true, false = self._diagrams.true, self._diagrams.false
            number = 0
            for item in reversed(trace.items):
                number = self._number(item, number)
            items = self._leaf(number)
            found = OutcomeMap(true if index & 2 else false, true if index & 1 else false, items)
            self._maps[trace] = found
        return found

    def choose(self, packets: Packets, then: OutcomeMap, behind: OutcomeMap) -> OutcomeMap:
        """`then` for the given packets, `behind` for all others."""
        return OutcomeMap(
            packets.ite(then.high, behind.high),
            packets.ite(then.low, behind.low),
            behind.items if then.items == behind.items else packets.ite(then.items, behind.items),
        )

    def prepend(self, item: Item, packets: Packets, behind: OutcomeMap) -> OutcomeMap:
        """Pass `item` first for the given packets, then go on as before; PUNT stays PUNT."""
        going = behind.high.imp_strict(packets) | (packets & behind.low)
        part = behind.items & going
        changes = {old: self._number(item, old) for old in self._present(part)}
        if not changes:
            return behind
        if len(changes) == 1:
            items = going.ite(self._leaf(*changes.values()), behind.items)
        else:
            items = going.ite(self._renumber(part, changes), behind.items)
        return OutcomeMap(behind.high, behind.low, items)

    def difference(self, one: OutcomeMap, other: OutcomeMap) -> Packets:
        """The packets that two maps send to different outcomes."""
        items = (one.items ^ other.items).exists(self._diagrams.outcome_variables)
        return (one.high ^ other.high) | (one.low ^ other.low) | items

    def ends(self, outcome: OutcomeMap) -> bool:
        """Whether no valid packet has the outcome NEXT (items passed before it or not)."""
        waiting = outcome.items & outcome.high & outcome.low & self._diagrams.valid
        if (waiting & self.constant(NEXT).items).satisfiable():
            return False
        numbers = self._present(waiting)
        return all(self._sequence(number)[-1:] != NEXT.items for number in numbers)

    def split(self, outcome: OutcomeMap, packets: Packets) -> Iterator[tuple[Trace, Packets]]:
        """The given packets, by what becomes of them; only outcomes that occur."""
        for index, verdict in enumerate(_VERDICTS):
            part = packets & (outcome.high if index & 2 else ~outcome.high)
            part = part & (outcome.low if index & 1 else ~outcome.low)
            if not part.satisfiable():
                continue
            related = outcome.items & part
            present = self._present(related)
            if len(present) == 1:
                yield Trace(self._sequence(present[0]), verdict), part
                continue
            for number, held in self._split(related, 0, 0):
                yield Trace(self._sequence(number), verdict), held

    def _number(self, item: Item, rest: int) -> int:
        key = (self._items.setdefault(item, len(self._items)), rest)
        number = self._numbers.get(key)
        if number is None:
            number = len(self._sequences)
            if number >> len(self._bits):
                raise LimitReached("numbers for different residuals")
            self._numbers[key] = number
            self._sequences.append((item, rest))
        return number

    def _sequence(self, number: int) -> tuple[Item, ...]:
        items = []
        while (link := self._sequences[number]) is not None:
            items.append(link[0])
            number = link[1]
        return tuple(items)

    def _leaf(self, number: int) -> Relation:
        found = self._leaves.get(number)
        if found is None:
            found = self._diagrams.true
            for weight, (positive, negative) in enumerate(reversed(self._bits)):
                found = (positive if number >> weight & 1 else negative) & found
            self._leaves[number] = found
        return found

    def _present(self, relation: Relation) -> list[int]:
        """The numbers of the sequences that some packet has."""
        found: list[int] = []
        rest = relation.exists(self._diagrams.packet_variables)
        while (cube := rest.pick_cube()) is not None:
            number = 0
            for bit in cube[len(cube) - len(self._bits) :]:
                number = number << 1 | bool(bit)
            found.append(number)
            rest = self._leaf(number).imp_strict(rest)
        return found

    def _renumber(self, relation: Relation, changes: dict[int, int]) -> Relation:
        """Replace numbers. The map is injective: a sequence without its first item is unique."""
        pairs = []
        for weight, variable in enumerate(reversed(self._diagrams.outcome_numbers)):
            leaves = [self._leaf(new) for old, new in changes.items() if old >> weight & 1]
            pairs.append((variable, self._diagrams.union(leaves)))
        renumbered = relation.substitute(BCDDFunction.make_substitution(pairs))
        return renumbered & self._diagrams.union([self._leaf(new) for new in changes.values()])

    def _split(self, relation: Relation, index: int, number: int) -> Iterator[tuple[int, Packets]]:
        if not relation.satisfiable():
            return
        if index == len(self._bits):
            yield number, relation
            return
        self._diagrams.check_time()
        for bit in (0, 1):
            variable, literal = self._bits[index][0], self._bits[index][1 - bit]
            rest = relation.apply_exists(BooleanOperator.AND, literal, variable)
            yield from self._split(rest, index + 1, number << 1 | bit)
