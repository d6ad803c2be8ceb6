"""Which earlier rules of a chain can have packets in common with a rule? A cheap first answer.

Every rule is reduced to one range per numeric field that encloses its values. Rules whose ranges
are apart share no packet; the others may.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bpfilter.ruleset.fields import Family, Field, Intervals, Term
from bpfilter.ruleset.model import Alternatives

_FIELDS = (
    Field.DESTINATION,
    Field.SOURCE,
    Field.DESTINATION_PORT,
    Field.SOURCE_PORT,
    Field.PROTOCOL,
)
_COLUMN = {name: column for column, name in enumerate(_FIELDS)}
_TOP = (1 << 64) - 1

Part = tuple[Alternatives, ...]
Known = dict[int, dict[Field, tuple[int, int]]]
"""Ranges by the identity of alternatives."""
Rows = npt.NDArray[np.intp]
Ends = npt.NDArray[np.uint64]
Ranks = npt.NDArray[np.unsignedinteger]


class Hulls:
    """Enclosing ranges of a chain's rules, in order; only `usable` ones are answers."""

    def __init__(
        self,
        parts: Sequence[Part],
        family: Family,
        usable: npt.NDArray[np.bool_],
        known: Known | None = None,
    ) -> None:
        """`known`: ranges of alternatives that live as long as it does; rules share many."""
        known = {} if known is None else known
        low = [[0] * len(parts) for _ in _FIELDS]
        high = [[_TOP] * len(parts) for _ in _FIELDS]
        # Of an IPv6 address the upper half is compared: a wider range than the true one.
        shift = 64 if family is Family.IPV6 else 0
        for row, part in enumerate(parts):
            for alternatives in part:
                ranges = known.get(id(alternatives))
                if ranges is None:
                    ranges = known[id(alternatives)] = _ranges(alternatives)
                for name, (first, last) in ranges.items():
                    by = shift if name in (Field.SOURCE, Field.DESTINATION) else 0
                    column = _COLUMN[name]
                    low[column][row] = max(low[column][row], first >> by)
                    high[column][row] = min(high[column][row], last >> by)
        self._shift = shift
        restricting = [
            (name, *_ranks(*ends))
            for name, ends in zip(_FIELDS, zip(low, high, strict=True), strict=True)
            if len(set(zip(*ends, strict=True))) > 1
        ]
        self._ends = [(name, distinct) for name, distinct, _, _ in restricting]
        self._columns = [(low, high, len(distinct) - 1) for _, distinct, low, high in restricting]
        self._usable = usable

    def earlier(self, row: int) -> Rows:
        """Usable rows before `row` that may share packets with it, in order."""
        found = self._usable[:row].copy()
        for low, high, top in self._columns:
            if low[row] > 0:
                found &= high[:row] >= low[row]
            if high[row] < top:
                found &= low[:row] <= high[row]
        return np.flatnonzero(found)

    def meeting(self, row: int) -> Rows:
        """Usable rows, itself and later ones too, that may share packets with `row`."""
        found = self._usable.copy()
        for low, high, top in self._columns:
            if low[row] > 0:
                found &= high >= low[row]
            if high[row] < top:
                found &= low <= high[row]
        return np.flatnonzero(found)

    def holding(self, packet: Mapping[Field, int]) -> Rows:
        """Usable rows whose ranges hold a packet's values; a field that it has not is 0."""
        found = self._usable.copy()
        for (name, ends), (low, high, _) in zip(self._ends, self._columns, strict=True):
            by = self._shift if name in (Field.SOURCE, Field.DESTINATION) else 0
            value = np.uint64(packet.get(name, 0) >> by)
            found &= low < np.searchsorted(ends, value, side="right")
            found &= high >= np.searchsorted(ends, value, side="left")
        return np.flatnonzero(found)

    def enclosing(self, row: int) -> Rows:
        """Usable rows before `row` whose ranges enclose the ones of `row`, in order."""
        found = self._usable[:row].copy()
        for low, high, _ in self._columns:
            found &= low[:row] <= low[row]
            found &= high[:row] >= high[row]
        return np.flatnonzero(found)


def _ranges(alternatives: Alternatives) -> dict[Field, tuple[int, int]]:
    """The enclosing range of every field that all alternatives restrict."""
    hulls = [_conjunction(terms) for terms in alternatives]
    common = set.intersection(*(set(hull) for hull in hulls)) if hulls else set()
    return {
        name: (min(hull[name][0] for hull in hulls), max(hull[name][1] for hull in hulls))
        for name in common
    }


def _conjunction(terms: Iterable[Term]) -> dict[Field, tuple[int, int]]:
    ranges: dict[Field, tuple[int, int]] = {}
    for term in terms:
        if term.field in _COLUMN and isinstance(term.values, Intervals) and term.values:
            low, high = term.values.ranges[0][0], term.values.ranges[-1][1]
            first, last = ranges.get(term.field, (low, high))
            ranges[term.field] = (max(low, first), min(high, last))
    return ranges


def _ranks(low: Sequence[int], high: Sequence[int]) -> tuple[Ends, Ranks, Ranks]:
    """The distinct ends of ranges, and both ends as small numbers in the same order."""
    ends = np.array([low, high], dtype=np.uint64)
    distinct, ranks = np.unique(ends, return_inverse=True)
    ranks = ranks.reshape(2, -1).astype(np.min_scalar_type(len(distinct)))
    return distinct, ranks[0], ranks[1]
