"""Reads compiled tables back: which values of which fields does every entry hold?

Follows the description in `compiler/layout.py` and nothing else; what the program would not find
(an index outside its array, unsorted bounds) belongs to no class, so that no entry holds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.layout import (
    BLOCK_WORDS,
    LIST_INTERVALS,
    PART_BLOCKS,
    TRIE_LIST,
    TRIE_POINTER,
    U32,
    U64,
    Axis,
    AxisKind,
    ChainTables,
    Side,
)
from bpfilter.ruleset.fields import Field, Intervals, field_bits

NONE = -1
"""The class of values that a table does not map to a class."""

Classes = npt.NDArray[np.int64]
Bits = npt.NDArray[np.bool_]
BLOCK_ENTRIES = BLOCK_WORDS * 64


@dataclass(frozen=True)
class AxisMap:
    """One axis: values from `starts[i]` up to the next start have class `classes[i]`."""

    field: Field
    starts: list[int]
    classes: Classes
    count: int
    last: int

    @cached_property
    def places(self) -> Classes:
        """The class of every range, between two that are in none: their class is `count`."""
        known = (self.classes >= 0) & (self.classes < self.count)
        outside = np.array([self.count])
        return np.concatenate([outside, np.where(known, self.classes, self.count), outside])

    def values(self, member: Bits) -> Intervals:
        """The values whose class is a member; behind its `count` elements stands one that is not.

        So do all members here: what a table does not map finds that last element.
        """
        inside = member.take(self.places)
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        starts = self.starts
        ranges = []
        for at in range(0, len(edges), 2):
            first, behind = int(edges[at]), int(edges[at + 1])
            high = starts[behind] - 1 if behind < len(starts) else self.last
            ranges.append((starts[first], high))
        return Intervals(tuple(ranges))


@dataclass(frozen=True)
class Group:
    """Axes folded into one class number, which selects a row.

    `folds[i]` maps (number so far, class of axis i + 1) to the next number; where the table has no
    such place, to the number behind the last. A last row and a last column lead there as well.
    """

    axes: tuple[AxisMap, ...]
    folds: tuple[Classes, ...]
    row_base: int
    count: int


class Decoded:
    """The tables of one chain, read back."""

    def __init__(self, tables: ChainTables) -> None:
        self._tables = tables
        self.groups = tuple(_groups(tables))
        self.state_classes = tables.state_classes
        self.entries = len(tables.ops)

    @cached_property
    def _part_numbers(self) -> U32:
        """Per row: the references to parts."""
        return np.ascontiguousarray(self._tables.rows[:, self._tables.summaries :]).view("<u4")

    def _block_of(self, block: int, base: int, count: int) -> tuple[U64, Bits]:
        """Of `count` rows from `base`: the words of one block, u64[rows, 8], and which of them each
        top and summary show, [summaries, rows, 8].
        """
        tables = self._tables
        number, place = divmod(block, PART_BLOCKS)
        named = self._part_numbers[base : base + count, number].astype(np.int64)
        known = named < len(tables.parts)
        parts = tables.parts[np.where(known, named, 0)] * known[:, None].astype(np.uint64)
        references = np.ascontiguousarray(parts[:, tables.summaries :]).view("<u4")[:, place]
        found = references < len(tables.blocks)
        words = tables.blocks[np.where(found, references, 0)] * (found & known)[:, None]
        tops = tables.rows[base : base + count, : tables.summaries]
        seen = tops >> np.uint64(number) & np.uint64(1)
        summaries = np.ascontiguousarray(parts[:, : tables.summaries] * seen)
        bits = np.unpackbits(summaries.view(np.uint8), axis=1, bitorder="little")
        shown = bits.reshape(len(named), tables.summaries, 64).astype(np.bool_)
        return words, shown[:, :, place * 8 : place * 8 + 8].transpose(1, 0, 2)

    def _side(self, base: int) -> int | None:
        """Whether the rows from `base` are those of the source (0) or destination (1) of a pair."""
        if not self._tables.paired:
            return None
        bases = [group.row_base for group in self.groups[:2]]
        return bases.index(base) if base in bases else None

    def columns(self, block: int, base: int, count: int) -> Bits:
        """Bits [entry, row] of the entries of one block, for `count` rows from `base`.

        Behind them stands a row that no entry is in.
        """
        result = np.zeros((count + 1, BLOCK_ENTRIES), dtype=np.bool_)
        have = max(0, min(count, len(self._tables.rows) - base))
        words, shown = self._block_of(block, base, have)
        side = self._side(base)
        if side is None:
            words = words * shown[0]
        octets = np.ascontiguousarray(words.astype("<u8")).view(np.uint8)
        result[:have] = np.unpackbits(octets, axis=1, bitorder="little").astype(np.bool_)
        columns = np.ascontiguousarray(result.T)
        if side is not None:
            columns[self._hidden(block, side, columns[:, :have], shown[0], shown[1])] ^= True
        return columns

    def _hidden(self, block: int, side: int, held: Bits, first: Bits, second: Bits) -> Bits:
        """Entries that some row of a pair holds and the summary that should does not show.

        The program may then find them or not, by what else is in the word: they are read as
        their opposite, so that no proof of them succeeds. If there are none, summaries hide nothing
        and a pair of rows holds just what both hold.
        """
        sides = np.full(BLOCK_ENTRIES, side, dtype=np.int64)
        named = self._tables.sides[block * BLOCK_ENTRIES : (block + 1) * BLOCK_ENTRIES]
        sides[: len(named)] = np.where(named > Side.BOTH, side, named)
        own = np.repeat(first.T, 64, axis=0) | (sides != side)[:, None]
        shared = np.repeat(second.T, 64, axis=0) | (sides != Side.BOTH)[:, None]
        hidden: Bits = (held & ~(own & shared)).any(axis=1)
        return hidden

    def words(self, group: Group, first: int, behind: int) -> U64:
        """Leaf words `first` … `behind` - 1 [row, word] of a group's rows, if nothing `hides`.

        Words that there are not are 0, and so is a last row, that of no class.
        """
        return self._words(group.row_base, group.count, first, behind)

    def _words(self, base: int, count: int, first: int, behind: int) -> U64:
        result = np.zeros((count + 1, behind - first), dtype=np.uint64)
        have = max(0, min(count, len(self._tables.rows) - base))
        low, high = max(first, 0), min(behind, 64 * self._tables.summary_words)
        for block in range(low // BLOCK_WORDS, -(-high // BLOCK_WORDS)):
            begin = max(low, block * BLOCK_WORDS)
            end = min(high, (block + 1) * BLOCK_WORDS)
            inside = slice(begin - block * BLOCK_WORDS, end - block * BLOCK_WORDS)
            found, shown = self._block_of(block, base, have)
            if self._side(base) is None:
                found = found * shown[0]
            result[:have, begin - first : end - first] = found[:, inside]
        return result

    @cached_property
    def hides(self) -> bool:
        """Whether some row of a pair holds an entry that the summary which should does not show."""
        tables = self._tables
        if not tables.paired:
            return False
        words = tables.summary_words * 64
        sides = np.full(words * 64, Side.BOTH + 1, dtype=np.uint8)
        sides[: min(len(tables.sides), words * 64)] = tables.sides[: words * 64]
        both = _packed(sides == Side.BOTH)
        for side, group in enumerate(self.groups[:2]):
            own = ~(both | _packed(sides == 1 - side))
            have = max(0, min(group.count, len(tables.rows) - group.row_base))
            for block in range(words // BLOCK_WORDS):
                part = slice(block * BLOCK_WORDS, (block + 1) * BLOCK_WORDS)
                held, (first, second) = self._block_of(block, group.row_base, have)
                missing = own[part] * ~first | both[part] * ~second
                if (held & missing).any():
                    return True
        return False

    def all_state_masks(self) -> npt.NDArray[np.int64]:
        """`state_masks` of all entries, one after the other."""
        blocks = range(-(-self.entries // BLOCK_ENTRIES))
        return np.concatenate([self.state_masks(block) for block in blocks])[: self.entries]

    def state_masks(self, block: int) -> npt.NDArray[np.int64]:
        """The states in which each entry of a block applies, as bits of `State`."""
        columns = self.columns(block, self._tables.state_row_base, len(self.state_classes))
        weights = np.array([*self.state_classes, 0], dtype=np.int64)
        masks: npt.NDArray[np.int64] = np.sum(columns * weights, axis=1, dtype=np.int64)
        return masks


def _groups(tables: ChainTables) -> Iterator[Group]:
    members: list[Axis] = []
    for axis in (axis for axis in tables.axes if axis.kind is not AxisKind.UNUSED):
        if members and not axis.combine:
            yield _group(tables, members)
            members = []
        members.append(axis)
    if members:
        yield _group(tables, members)


def _group(tables: ChainTables, members: list[Axis]) -> Group:
    maps = tuple(_axis(tables, axis) for axis in members)
    folds = []
    count = members[0].classes
    for axis in members[1:]:
        numbers = np.arange(count * axis.classes) + axis.combine_base
        fold = _ids(tables, numbers).reshape(count, axis.classes)
        count = int(fold.max(initial=NONE)) + 1
        fold = np.pad(fold, (0, 1), constant_values=NONE)
        folds.append(np.where(fold == NONE, count, fold))
    return Group(maps, tuple(folds), members[-1].row_base, count)


def _ids(tables: ChainTables, numbers: npt.NDArray[np.int64]) -> Classes:
    known = numbers < len(tables.ids)
    ids = tables.ids[np.where(known, numbers, 0)].astype(np.int64)
    return np.where(known, ids, NONE)


def _axis(tables: ChainTables, axis: Axis) -> AxisMap:
    last = (1 << field_bits(axis.field, tables.flat.family)) - 1
    if axis.kind is AxisKind.TRIE4:
        starts, classes = _trie(tables, axis)
    elif axis.kind is AxisKind.BOUNDS6:
        starts, classes = _bounds(tables, axis)
    elif axis.kind is AxisKind.MAC:
        starts, classes = _macs(tables, axis, last)
    else:
        starts = list(range(axis.size))
        classes = _ids(tables, np.arange(axis.size) + axis.base)
        if axis.size <= last:
            starts.append(axis.size)
            classes = np.append(classes, NONE)
    return AxisMap(axis.field, starts, classes, axis.classes, last)


def _trie(tables: ChainTables, axis: Axis) -> tuple[list[int], Classes]:
    starts = np.arange(1 << 16, dtype=np.int64) << 16
    classes = _ids(tables, np.arange(1 << 16) + axis.base)
    listed = []
    for shift in (8, 0):
        inside, starts, classes = _lists(tables, axis, starts, classes, shift + 8)
        listed.append(inside)
        pointer = (classes & TRIE_POINTER != 0) & (classes >= 0)
        tables_at = (classes[pointer] & (TRIE_POINTER - 1)) * 256 + axis.base + (1 << 16)
        below = _ids(tables, (tables_at[:, None] + np.arange(256)).ravel())
        below_starts = starts[pointer][:, None] + (np.arange(256, dtype=np.int64) << shift)
        starts = np.concatenate([starts[~pointer], below_starts.ravel()])
        classes = np.concatenate([classes[~pointer], below])
    classes = np.where(classes & TRIE_POINTER != 0, NONE, classes)
    starts = np.concatenate([starts, *(part[0] for part in listed)])
    classes = np.concatenate([classes, *(part[1] for part in listed)])
    order = np.argsort(starts)
    starts, classes = starts[order], classes[order]
    changes = np.flatnonzero(np.diff(classes, prepend=classes[0] + 1))
    return starts[changes].tolist(), classes[changes]


def _lists(
    tables: ChainTables, axis: Axis, starts: Classes, classes: Classes, bits: int
) -> tuple[tuple[Classes, Classes], Classes, Classes]:
    """The intervals of all numbers that name lists, and what the other numbers are.

    A list's class is found by counting starts: their order does not matter, and those that `bits`
    bits cannot reach are never counted.
    """
    named = (classes >= 0) & (classes & TRIE_POINTER != 0) & (classes & TRIE_LIST != 0)
    first = axis.base + axis.lists_base + (classes[named] & (TRIE_LIST - 1)) * 2 * LIST_INTERVALS
    numbers = _ids(tables, first[:, None] + np.arange(2 * LIST_INTERVALS))
    broken = numbers.min(axis=1, keepdims=True, initial=0) < 0
    within = np.sort(np.where(broken, 1 << bits, numbers[:, 1:LIST_INTERVALS]), axis=1)
    within = np.concatenate([np.zeros((len(within), 1), np.int64), within], axis=1)
    of_start = np.where(broken, NONE, numbers[:, LIST_INTERVALS:])
    behind = np.append(within[:, 1:], np.full((len(within), 1), 1 << bits), axis=1)
    reached = (within < behind) & (within < 1 << bits)
    begin = (starts[named][:, None] + within)[reached]
    return (begin, of_start[reached]), starts[~named], classes[~named]


def _bounds(tables: ChainTables, axis: Axis) -> tuple[list[int], Classes]:
    bounds = tables.bounds[axis.bounds_base : axis.bounds_base + axis.bounds_count]
    starts = [high << 64 | low for high, low in bounds.tolist()]
    ordered = all(a < b for a, b in pairwise(starts))
    if len(starts) != axis.bounds_count or not ordered or starts[:1] != [0]:
        return [0], np.array([NONE])
    return starts, _ids(tables, np.arange(axis.bounds_count) + axis.base)


def _macs(tables: ChainTables, axis: Axis, last: int) -> tuple[list[int], Classes]:
    starts, values = [0], [0]
    for address, value in sorted(tables.macs.items()):
        if starts[-1] == address:
            values[-1] = value
        else:
            starts.append(address)
            values.append(value)
        if address < last:
            starts.append(address + 1)
            values.append(0)
    return starts, _ids(tables, np.array(values, dtype=np.int64) + axis.base)


def _packed(bits: Bits) -> U64:
    """Bits of entries as leaf words."""
    packed: U64 = np.packbits(bits, bitorder="little").view("<u8").astype(np.uint64)
    return packed


def opcodes(ops: U32) -> list[tuple[int, int]]:
    """(kind, argument) of every entry."""
    return [(op >> 28, op & 0x0FFFFFFF) for op in ops.tolist()]
