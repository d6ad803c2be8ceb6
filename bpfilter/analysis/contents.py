"""The tables' side of the proof: what the arrays of a chain make of every packet and state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bpfilter.analysis.decode import BLOCK_ENTRIES, AxisMap, Bits, Decoded, Group, opcodes
from bpfilter.analysis.diagrams import Diagrams, Packets
from bpfilter.analysis.outcomes import (
    NO_ENTRY,
    PUNTED,
    Line,
    OutcomeMap,
    Outcomes,
    Trace,
    passing,
)
from bpfilter.compiler.ir import Item, OpKind, Verdict
from bpfilter.compiler.layout import ChainTables
from bpfilter.ruleset.fields import ALL_STATES, Field, Intervals


class Entries:
    """The packets and states that every entry of the tables holds."""

    def __init__(self, tables: ChainTables, diagrams: Diagrams) -> None:
        self._decoded = Decoded(tables)
        self._diagrams = diagrams
        space = tables.flat.space
        self._mask_bits = [diagrams.masked(name, mask) for name, mask in reversed(space.masks)]
        self._held: dict[int, Packets] = {}
        self._block: tuple[int, list[Bits], Sequence[int]] = (-1, [], ())
        self._columns: dict[tuple[int, bytes], Packets] = {}
        self._partial: dict[tuple[int, int, bytes], Packets] = {}
        self._sets: dict[tuple[Field, bytes], Packets] = {}

    def of(self, position: int) -> Packets:
        """The packets of one entry."""
        found = self._held.get(position)
        if found is None:
            found = self._held[position] = self._entry(position)
        return found

    def _entry(self, position: int) -> Packets:
        block, entry = divmod(position, BLOCK_ENTRIES)
        if block != self._block[0]:
            self._block = self._read(block)
        _, columns, masks = self._block
        if not masks[entry]:
            return self._diagrams.false
        result = self._diagrams.true
        # The last groups lie deepest in the variable order: joined first, each step is short.
        for index, group in reversed(list(enumerate(self._decoded.groups))):
            member = columns[index][entry]
            key = (index, np.packbits(member).tobytes())
            held = self._columns.get(key)
            if held is None:
                held = self._columns[key] = self._group(group, member)
            result = held & result
        if masks[entry] != ALL_STATES:
            result = self._diagrams.states(masks[entry]) & result
        return result

    def _read(self, block: int) -> tuple[int, list[Bits], Sequence[int]]:
        """Entries lie in blocks and are asked for in order: the last block is kept."""
        self._diagrams.check_time()
        columns = [
            self._decoded.columns(block, group.row_base, group.count)
            for group in self._decoded.groups
        ]
        return block, columns, self._decoded.state_masks(block).tolist()

    def _group(self, group: Group, member: Bits) -> Packets:
        return self._folded(group, len(group.axes) - 1, member)

    def _folded(self, group: Group, level: int, member: Bits) -> Packets:
        """Packets whose number after `level` folds is a member."""
        axis = group.axes[level]
        if level == 0:
            return self._values(axis, member)
        key = (group.row_base, level, np.packbits(member).tobytes())
        found = self._partial.get(key)
        if found is None:
            inside = member.take(group.folds[level - 1])
            parts = [
                self._values(axis, classes) & self._folded(group, level - 1, numbers)
                for classes, numbers in _products(inside)
            ]
            found = self._partial[key] = self._diagrams.union(parts)
        return found

    def _values(self, axis: AxisMap, member: Bits) -> Packets:
        key = (axis.field, np.packbits(member).tobytes())
        found = self._sets.get(key)
        if found is None:
            found = self._sets[key] = self._build(axis, member)
        return found

    def _build(self, axis: AxisMap, member: Bits) -> Packets:
        values = axis.values(member)
        if axis.field is Field.MASKS:
            return self._masks(values)
        if values.ranges == ((0, axis.last),):
            return self._diagrams.true
        return self._diagrams.values(axis.field, values)

    def _masks(self, values: Intervals) -> Packets:
        bits = len(self._mask_bits)
        inside = values.intersect(Intervals.full(bits))
        return (
            self._diagrams.by_bits(self._mask_bits, inside)
            if bits
            else (self._diagrams.true if inside else self._diagrams.false)
        )


def _products(inside: Bits) -> list[tuple[Bits, Bits]]:
    """A bit matrix [number, class] as a union of products (classes, numbers)."""
    some: Bits = np.any(inside, axis=1)
    numbers = np.flatnonzero(some)
    if not len(numbers):
        return []
    first = inside[numbers[0]]
    chosen = inside[numbers]
    if (chosen == first).all():
        return [(first, some)]
    patterns: dict[bytes, list[int]] = {}
    for number, pattern in zip(numbers.tolist(), np.packbits(chosen, axis=1), strict=True):
        patterns.setdefault(pattern.tobytes(), []).append(number)
    result = []
    for alike in patterns.values():
        held = np.zeros(len(inside), dtype=np.bool_)
        held[alike] = True
        result.append((inside[alike[0]], held))
    return result


_VERDICTS = {
    int(OpKind.ACCEPT): Verdict.ACCEPT,
    int(OpKind.DROP): Verdict.DROP,
    int(OpKind.PUNT): Verdict.PUNT,
}


class Contents:
    """The walk of `compiler/ir.py` over what the arrays hold.

    Composed from the last entry up: the function of an entry's position is its operation's for
    the packets that it holds, and that of the next position for the others.
    """

    def __init__(self, tables: ChainTables, outcomes: Outcomes, diagrams: Diagrams) -> None:
        self._entries = Entries(tables, diagrams)
        self._codes = opcodes(tables.ops)
        self._items = tables.flat.items
        self._outcomes = outcomes
        self._diagrams = diagrams
        self._nothing = outcomes.constant(NO_ENTRY)
        self._final = {
            kind: outcomes.constant(Trace((), verdict)) for kind, verdict in _VERDICTS.items()
        }

    @property
    def count(self) -> int:
        """How many entries there are."""
        return len(self._codes)

    def whole(self) -> OutcomeMap:
        """What becomes of every packet in every state."""
        return self.part(0, len(self._codes), {len(self._codes): self._nothing})

    def part(self, start: int, stop: int, behind: Mapping[int, OutcomeMap]) -> OutcomeMap:
        """What entries `start` … `stop` - 1 do, given what is behind some positions from `stop`."""
        targets = {argument for kind, argument in self._codes[start:stop] if kind == OpKind.SKIP}
        at = dict(behind)
        result = at.get(stop, self._nothing)
        for position in range(stop - 1, start - 1, -1):
            self._diagrams.check_time()
            result = self._entry(position, result, at)
            if position in targets:
                at[position] = result
        return result

    def lines(self, start: int, stop: int) -> list[Line] | None:
        """Entries `start` … `stop` - 1 that hold a packet; None if one is not a line."""
        found: list[Line] = []
        for position in range(start, stop):
            kind, argument = self._codes[position]
            packets = self._entries.of(position)
            if not packets.satisfiable():
                continue
            if kind == OpKind.ITEM and argument < len(self._items):
                trace = passing(self._items[argument])
            elif kind in _VERDICTS:
                trace = Trace((), _VERDICTS[kind])
            else:
                return None
            found.append((packets, trace))
        return found

    def trace(self, point: Packets) -> Trace:
        """What becomes of a single packet in one state, given as a set, entry by entry."""
        items: list[Item] = []
        position = 0
        while position < len(self._codes):
            kind, argument = self._codes[position]
            if not (self._entries.of(position) & point).satisfiable():
                position += 1
            elif kind == OpKind.ITEM and argument < len(self._items):
                items.append(self._items[argument])
                if self._items[argument].terminal:
                    return Trace(tuple(items), None)
                position += 1
            elif kind == OpKind.SKIP and argument > position:
                position = argument
            else:
                verdict = _VERDICTS.get(kind)
                return PUNTED if verdict is Verdict.PUNT else Trace(tuple(items), verdict)
        return Trace(tuple(items), None)

    def _entry(self, position: int, behind: OutcomeMap, at: Mapping[int, OutcomeMap]) -> OutcomeMap:
        kind, argument = self._codes[position]
        held = self._entries.of(position)
        if kind == OpKind.ITEM and argument < len(self._items):
            item = self._items[argument]
            if not item.terminal:
                return self._outcomes.prepend(item, held, behind)
            then = self._outcomes.constant(Trace((item,), None))
        elif kind == OpKind.SKIP and argument > position:
            then = at.get(argument, self._nothing)
        else:
            then = self._final.get(kind, self._nothing)
        return self._outcomes.choose(held, then, behind)
