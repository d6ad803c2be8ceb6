"""Functions from (packet, state) to what becomes of it, as relations in decision diagrams.

Every outcome, a sequence of items and a verdict, has a number; the lowest variables spell it. A
function is the relation "this packet in this state has outcome number n", so two sides agree
exactly if their relations are the same diagram.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from oxidd.bcdd import BCDDFunction
from oxidd.util import BooleanOperator

from bpfilter.analysis.diagrams import Diagrams, LimitReached, Packets
from bpfilter.compiler.ir import Item, Verdict


class Trace(NamedTuple):
    """The items a packet passes, then its verdict (None: the last item decides)."""

    items: tuple[Item, ...]
    verdict: Verdict | None

    def __str__(self) -> str:
        words = [f"{item.rule}" for item in self.items]
        return " → ".join([*words, self.verdict.value] if self.verdict else words) or "no entry"


PUNTED = Trace((), Verdict.PUNT)
NO_ENTRY = Trace((), None)
"""No entry of a table holds the packet: never right, the last one must hold all."""

Relation: TypeAlias = BCDDFunction


class Outcomes:
    """Numbers traces and builds relations. Number 0 is never used."""

    def __init__(self, diagrams: Diagrams) -> None:
        self._diagrams = diagrams
        self._bits = diagrams.outcome
        self._numbers: dict[Trace, int] = {}
        self._traces: list[Trace | None] = [None]
        self._leaves: dict[int, Relation] = {}

    def trace(self, number: int) -> Trace:
        trace = self._traces[number]
        assert trace is not None
        return trace

    def leaf(self, trace: Trace) -> Relation:
        """The function that is `trace` everywhere."""
        return self._leaf(self._number(trace))

    def _number(self, trace: Trace) -> int:
        number = self._numbers.get(trace)
        if number is None:
            number = len(self._traces)
            if number >> len(self._bits):
                raise LimitReached("number of different residuals")
            self._numbers[trace] = number
            self._traces.append(trace)
        return number

    def _leaf(self, number: int) -> Relation:
        found = self._leaves.get(number)
        if found is None:
            found = self._diagrams.true
            for weight, (positive, negative) in enumerate(reversed(self._bits)):
                found = (positive if number >> weight & 1 else negative) & found
            self._leaves[number] = found
        return found

    def numbers(self, relation: Relation) -> list[int]:
        """The outcomes that some packet has."""
        found: list[int] = []
        rest = relation.exists(self._diagrams.packet_variables)
        while (cube := rest.pick_cube()) is not None:
            bits = cube[len(cube) - len(self._bits) :]
            number = 0
            for bit in bits:
                number = number << 1 | bool(bit)
            found.append(number)
            rest = self._leaf(number).imp_strict(rest)
        return found

    def prepend(self, item: Item, relation: Relation, packets: Packets) -> Relation:
        """Pass `item` first for the given packets, then go on as before; PUNT stays PUNT."""
        part = relation & packets
        numbers = self.numbers(part)
        changes = {old: self._behind(item, old) for old in numbers}
        if all(old == new for old, new in changes.items()):
            return relation
        if len(changes) == 1:
            return packets.ite(self._leaf(*changes.values()), relation)
        return packets.ite(self._renumber(part, changes), relation)

    def _behind(self, item: Item, number: int) -> int:
        trace = self.trace(number)
        return (
            number if trace == PUNTED else self._number(Trace((item, *trace.items), trace.verdict))
        )

    def _renumber(self, relation: Relation, changes: dict[int, int]) -> Relation:
        """Replace numbers. The map is injective: a trace without its first item is unique."""
        inverse = {new: old for old, new in changes.items()}
        pairs = []
        for weight, number in enumerate(reversed(self._diagrams.outcome_numbers)):
            leaves = [self._leaf(new) for new, old in inverse.items() if old >> weight & 1]
            pairs.append((number, self._diagrams.union(leaves)))
        return relation.substitute(BCDDFunction.make_substitution(pairs))

    def split(self, relation: Relation) -> Iterator[tuple[Trace, Packets]]:
        """The packets of every outcome that occurs."""
        yield from ((self.trace(n), packets) for n, packets in self._split(relation, 0, 0))

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
