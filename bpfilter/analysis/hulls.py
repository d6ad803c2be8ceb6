"""Which earlier rules of a chain can have packets in common with a rule? A cheap first answer.

Every rule is reduced to one range per numeric field that encloses its values. Rules whose ranges
are apart share no packet; the others may.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bpfilter.ruleset.fields import Family, Field, Intervals
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
Rows = npt.NDArray[np.intp]


class Hulls:
    """Enclosing ranges of a chain's rules, in order."""

    def __init__(self, parts: Sequence[Part], family: Family) -> None:
        shape = (len(parts), len(_FIELDS))
        self._low = np.zeros(shape, dtype=np.uint64)
        self._high = np.full(shape, _TOP, dtype=np.uint64)
        # Of an IPv6 address the upper half is compared: a wider range than the true one.
        self._shift = 64 if family is Family.IPV6 else 0
        for row, part in enumerate(parts):
            for alternatives in part:
                self._narrow(row, alternatives)

    def _narrow(self, row: int, alternatives: Alternatives) -> None:
        ranges: dict[Field, list[tuple[int, int]]] = {}
        for terms in alternatives:
            for term in terms:
                if term.field in _COLUMN and isinstance(term.values, Intervals) and term.values:
                    hull = (term.values.ranges[0][0], term.values.ranges[-1][1])
                    ranges.setdefault(term.field, []).append(hull)
        for name, hulls in ranges.items():
            if len(hulls) == len(alternatives):
                shift = self._shift if name in (Field.SOURCE, Field.DESTINATION) else 0
                column = _COLUMN[name]
                low, high = min(h[0] for h in hulls) >> shift, max(h[1] for h in hulls) >> shift
                self._low[row, column] = max(int(self._low[row, column]), low)
                self._high[row, column] = min(int(self._high[row, column]), high)

    def earlier(self, row: int, usable: npt.NDArray[np.bool_]) -> Rows:
        """Usable rows before `row` that may share packets with it, in order."""
        found = np.flatnonzero(usable[:row])
        for column in range(len(_FIELDS)):
            low, high = self._low[row, column], self._high[row, column]
            if low > 0 or high < _TOP:
                apart = (self._low[found, column] > high) | (self._high[found, column] < low)
                found = found[~apart]
        return found

    def enclosing(self, row: int, rows: Rows) -> Rows:
        """Those of `rows` whose ranges enclose the ones of `row`."""
        wide = (self._low[rows] <= self._low[row]) & (self._high[rows] >= self._high[row])
        return rows[np.all(wide, axis=1)]
