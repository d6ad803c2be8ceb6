"""Which entries of two chains' tables hold the same packets and states? Array against array.

The tables are read back as `decode` does, and no diagram is built: every value of a field has a
class here and one there, every pair of classes a pair of rows, and an entry is the same in both
tables if it has the same bit in both rows of all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bpfilter.analysis.decode import AxisMap, Bits, Classes, Decoded, Group
from bpfilter.compiler.layout import U64

_CHUNK = 1 << 20
"""Words that are compared at a time."""
_MOST_PAIRS = 1 << 22

Pairs = tuple[Classes, Classes]


@dataclass(frozen=True, slots=True)
class Run:
    """Entries `start` … `stop` - 1 of the old tables stand `shift` further on in the new ones."""

    start: int
    stop: int
    shift: int


def disagreeing(old: Decoded, new: Decoded, runs: Sequence[Run]) -> Bits | None:
    """Per entry of the old tables, whether it holds other packets or states in the new ones.

    Only for entries of the runs; the others count as different. None if the two are not made alike:
    other fields, fields folded otherwise, or a summary that hides an entry.
    """
    differ = np.ones(old.entries, dtype=np.bool_)
    for run in runs:
        differ[run.start : run.stop] = False
    if [_fields(group) for group in old.groups] != [_fields(group) for group in new.groups]:
        return None
    if old.hides or new.hides:
        return None
    states = old.all_state_masks(), new.all_state_masks()
    for run in runs:
        there = states[1][run.start + run.shift : run.stop + run.shift]
        differ[run.start : run.stop] |= states[0][run.start : run.stop] != there
    for before, after in zip(old.groups, new.groups, strict=True):
        pairs = _pairs(before, after)
        if pairs is None:
            return None
        for run in runs:
            _compare((old, before), (new, after), pairs, run, differ)
    return differ


def _fields(group: Group) -> list[object]:
    return [axis.field for axis in group.axes]


def _pairs(old: Group, new: Group) -> Pairs | None:
    """All pairs of rows that a packet can find in the two groups; None if they are too many."""
    found = _classes(old.axes[0], new.axes[0])
    for level in range(1, len(old.axes)):
        here, there = _classes(old.axes[level], new.axes[level])
        if len(found[0]) * len(here) > _MOST_PAIRS:
            return None
        numbers = old.folds[level - 1][found[0][:, None], here[None, :]].ravel()
        others = new.folds[level - 1][found[1][:, None], there[None, :]].ravel()
        found = _unique(numbers, others)
    return found


def _classes(old: AxisMap, new: AxisMap) -> Pairs:
    """All pairs of classes that one value has; without a class it is the one behind the last."""
    starts = sorted({*old.starts, *new.starts})
    place = {start: index for index, start in enumerate(starts)}
    found = []
    for axis in (old, new):
        begins = np.array([place[start] for start in axis.starts])
        at = np.searchsorted(begins, np.arange(len(starts)), side="right")
        found.append(axis.places[at])
    return _unique(*found)


def _unique(old: Classes, new: Classes) -> Pairs:
    width = int(new.max(initial=0)) + 1
    both = np.unique(old.astype(np.int64) * width + new)
    return both // width, both % width


def _compare(
    old: tuple[Decoded, Group], new: tuple[Decoded, Group], pairs: Pairs, run: Run, differ: Bits
) -> None:
    """Note the entries of a run that are in one row of a pair and not in the other."""
    most = max(1, _CHUNK // max(len(pairs[0]), old[1].count + 1, new[1].count + 1))
    for first, behind in _chunks(run.start + run.shift, run.stop + run.shift, most):
        there = new[0].words(new[1], first, behind)[pairs[1]]
        word, bit = divmod(first * 64 - run.shift, 64)
        here = old[0].words(old[1], word, word + behind - first + 1)[pairs[0]]
        lower, upper = here[:, :-1], here[:, 1:]
        moved = lower if bit == 0 else (lower >> np.uint64(bit)) | (upper << np.uint64(64 - bit))
        found: U64 = np.bitwise_or.reduce(there ^ moved, axis=0)
        bits = np.unpackbits(found.astype("<u8").view(np.uint8), bitorder="little").astype(np.bool_)
        begin = max(run.start, first * 64 - run.shift)
        end = min(run.stop, behind * 64 - run.shift)
        offset = first * 64 - run.shift
        differ[begin:end] |= bits[begin - offset : end - offset]


def _chunks(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of words that hold the entries `start` … `stop` - 1."""
    last = -(-stop // 64)
    for word in range(start // 64, last, most):
        yield word, min(word + most, last)
