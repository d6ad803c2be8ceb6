"""IPv4 addresses to class ids: an array of 2^16, below it tables of 2^8, or short lists.

A list takes a sixteenth of a table's memory, and most prefixes that a large ruleset splits are
split in few places; a table takes fewer instructions while it stays in the cache. (Lists are the
sparse nodes of Degermark et al., "Small Forwarding Tables for Fast Routing Lookups", SIGCOMM 1997.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.intervals import I64
from bpfilter.compiler.layout import LIST_INTERVALS, TRIE_LIST, TRIE_POINTER, U32, U64

TABLES_ALONE = 1 << 19
"""Numbers; a trie that needs no more has no lists: it fits into a second-level cache."""


@dataclass(frozen=True, slots=True)
class Trie4:
    """The `TRIE4` numbers of layout.py; its lists begin at `lists_base`."""

    ids: U32
    lists_base: int


def merge_equal(starts: U64, classes: I64) -> tuple[U64, I64]:
    """Join neighbouring intervals of one class."""
    fresh = np.ones(len(classes), np.bool_)
    fresh[1:] = classes[1:] != classes[:-1]
    return starts[fresh], classes[fresh]


@dataclass(slots=True)
class _Split:
    """Prefixes that the intervals split, ascending; `short` tells which become lists."""

    prefixes: I64
    short: npt.NDArray[np.bool_]


class _Intervals:
    """Where classes change: `first[i]` is the first address of class `classes[i]`."""

    def __init__(self, first: I64, classes: I64) -> None:
        self.first = first
        self.classes = classes
        self.lists: list[I64] = []
        self.lists_used = 0

    def class_at(self, addresses: I64) -> I64:
        """The class of each address."""
        return self.classes[np.searchsorted(self.first, addresses, side="right") - 1]

    def split(self, bits: int) -> _Split:
        """Prefixes that leave `bits` bits open and hold an address where the class changes."""
        inner = self.first[self.first & ((1 << bits) - 1) != 0] >> bits
        prefixes, changes = np.unique(inner, return_counts=True)
        return _Split(prefixes, changes < LIST_INTERVALS)

    def add_lists(self, prefixes: I64, bits: int) -> I64:
        """Lists of these prefixes; returns the numbers that point to them."""
        edges = np.searchsorted(self.first, np.stack([prefixes, prefixes + 1]) << bits)
        # Interval 0 begins with the prefix, wherever it began.
        before = np.searchsorted(self.first, prefixes << bits, side="right") - 1
        last = edges[1] - 1
        at = np.minimum(before[:, None] + np.arange(LIST_INTERVALS), last[:, None])
        starts = self.first[at] & ((1 << bits) - 1)
        starts[:, 0] = 0
        self.lists.append(np.concatenate([starts, self.classes[at]], axis=1))
        pointers = TRIE_POINTER | TRIE_LIST | (self.lists_used + np.arange(len(prefixes)))
        self.lists_used += len(prefixes)
        return pointers


def trie4(starts: U64, classes: I64) -> Trie4:
    """The trie of intervals that begin at `starts` (u64[n, 2]) and have these classes."""
    starts, classes = merge_equal(starts, classes)
    intervals = _Intervals(starts[:, 1].astype(np.int64), classes)
    split16, split24 = intervals.split(16), intervals.split(8)
    if 256 * (len(split16.prefixes) + len(split24.prefixes)) <= TABLES_ALONE:
        split16.short[:] = split24.short[:] = False
    top = intervals.class_at(np.arange(1 << 16, dtype=np.int64) << 16)
    top[split16.prefixes[split16.short]] = intervals.add_lists(split16.prefixes[split16.short], 16)
    tables16 = split16.prefixes[~split16.short]
    top[tables16] = TRIE_POINTER | np.arange(len(tables16))
    bytes_ = np.arange(256, dtype=np.int64)
    middle = intervals.class_at(((tables16[:, None] << 8 | bytes_) << 8).reshape(-1))
    below = np.isin(split24.prefixes >> 8, tables16)
    for prefixes, short in (
        (split24.prefixes[below & split24.short], True),
        (split24.prefixes[below & ~split24.short], False),
    ):
        at = np.searchsorted(tables16, prefixes >> 8) * 256 + (prefixes & 0xFF)
        if short:
            middle[at] = intervals.add_lists(prefixes, 8)
        else:
            middle[at] = TRIE_POINTER | (len(tables16) + np.arange(len(prefixes)))
    tables24 = split24.prefixes[below & ~split24.short]
    leaves = intervals.class_at((tables24[:, None] << 8 | bytes_).reshape(-1))
    lists = [part.reshape(-1) for part in intervals.lists]
    tables = np.concatenate([top, middle, leaves])
    return Trie4(np.concatenate([tables, *lists]).astype(np.uint32), len(tables))
