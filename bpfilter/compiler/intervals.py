"""Elementary intervals: where the sets of values that a chain's entries name begin and end.

Exact for every width: a position is a pair of u64 (high, low), so that IPv6 addresses need no
Python integers in arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bpfilter.compiler.ir import Entry
from bpfilter.compiler.layout import U64
from bpfilter.ruleset.fields import Field

I64 = npt.NDArray[np.int64]
Ranges = tuple[tuple[int, int], ...]

_LOW = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class FieldSets:
    """The distinct sets of one field's values that a chain's entries name.

    `of_entry`: i64[entries], index into `sets`; `len(sets)` for an entry that holds every value.
    """

    sets: tuple[Ranges, ...]
    of_entry: I64


@dataclass(frozen=True, slots=True)
class Partition:
    """A field's values cut into `len(starts)` intervals that no set splits.

    `starts`: u64[n, 2], ascending, first (0, 0). Set `toggle_set[t]` begins or ends at interval
    `toggle_at[t]`; the toggles are ordered by set. Set number `sets` holds every value.
    """

    starts: U64
    sets: int
    toggle_set: I64
    toggle_at: I64


@dataclass(slots=True)
class _Collector:
    numbers: dict[Ranges, int] = field(default_factory=dict)
    entries: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)


def collect_sets(entries: Sequence[Entry]) -> dict[Field, FieldSets]:
    """For every field that some entry constrains, its distinct sets and who names them."""
    collectors: dict[Field, _Collector] = {}
    for number, entry in enumerate(entries):
        for name, values in entry.box.items():
            collector = collectors.get(name)
            if collector is None:
                collector = collectors[name] = _Collector()
            ranges = values.ranges
            collector.entries.append(number)
            collector.chosen.append(collector.numbers.setdefault(ranges, len(collector.numbers)))
    result = {}
    for name, collector in collectors.items():
        of_entry = np.full(len(entries), len(collector.numbers), np.int64)
        of_entry[collector.entries] = collector.chosen
        result[name] = FieldSets(tuple(collector.numbers), of_entry)
    return result


def partition(sets: Sequence[Ranges], size: int) -> Partition:
    """Cut the values 0 … size - 1 at every bound of the sets; what lies beyond is ignored."""
    lows: list[int] = []
    stops: list[int] = []
    low_owner: list[int] = []
    stop_owner: list[int] = []
    for number, ranges in enumerate(sets):
        for low, high in ranges:
            if low < size:
                lows.append(low)
                low_owner.append(number)
                if high + 1 < size:
                    stops.append(high + 1)
                    stop_owner.append(number)
    positions = _columns([0, *lows, *stops])
    owners = np.array([len(sets), *low_owner, *stop_owner], np.int64)
    starts, at = _unique_pairs(positions)
    order = np.argsort(owners, kind="stable")
    return Partition(starts, len(sets), owners[order], at[order])


def _columns(values: Sequence[int]) -> U64:
    result = np.zeros((len(values), 2), np.uint64)
    if max(values) <= _LOW:
        result[:, 1] = values
    else:
        result[:, 0] = [value >> 64 for value in values]
        result[:, 1] = [value & _LOW for value in values]
    return result


def _unique_pairs(pairs: U64) -> tuple[U64, I64]:
    """Sorted distinct rows, and for each row the index of its equal."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    ordered = pairs[order]
    fresh = np.ones(len(pairs), np.bool_)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    inverse = np.empty(len(pairs), np.int64)
    inverse[order] = np.cumsum(fresh) - 1
    return ordered[fresh], inverse
