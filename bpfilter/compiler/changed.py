"""Which packets edited rules can match, as hulls that a running program can look through.

While thousands of rules are translated again, a program made before an edit stays right for all
packets outside (`ruleset.edited`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bpfilter.errors import TooMuchEdited
from bpfilter.ruleset.fields import Family, Field, Intervals, Term, field_bits
from bpfilter.ruleset.model import Match, Rule

MAX_CHANGED = 64
"""Hulls that a program looks through, one after the other; as in bpf_templates/config.h."""

_FIELDS = (
    Field.SOURCE,
    Field.DESTINATION,
    Field.PROTOCOL,
    Field.SOURCE_PORT,
    Field.DESTINATION_PORT,
)

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Hull:
    """Packets of one family: all whose fields lie in these ranges, first and last included.

    `source`, `destination`: (value, mask) of an address as a number.
    """

    family: Family
    source: Range
    destination: Range
    protocols: Range
    source_ports: Range
    destination_ports: Range


def hulls_of(rules: Iterable[Rule], family: Family) -> tuple[Hull, ...]:
    """Every packet that one of the rules can match, or that changes its state, lies in a hull.

    TooMuchEdited for a rule that all packets match, and for more than MAX_CHANGED hulls.
    """
    hulls = tuple(dict.fromkeys(hull for rule in rules for hull in _hull(rule, family)))
    if len(hulls) > MAX_CHANGED:
        raise TooMuchEdited(f"rules for {len(hulls)} kinds of packets were edited")
    return hulls


def _hull(rule: Rule, family: Family) -> Iterator[Hull]:
    """Around what a rule can match; none if it matches nothing."""
    ranges = {field: (0, (1 << field_bits(field, family)) - 1) for field in _FIELDS}
    everything = dict(ranges)
    for match in _before_dynamic(rule.matches):
        for field, (low, high) in _ranges(match, ranges):
            ranges[field] = (max(ranges[field][0], low), min(ranges[field][1], high))
    if any(low > high for low, high in ranges.values()):
        return
    if ranges == everything:
        raise TooMuchEdited("an edited rule names no address, protocol or port")
    bits = field_bits(Field.SOURCE, family)
    yield Hull(
        family,
        _prefix(ranges[Field.SOURCE], bits),
        _prefix(ranges[Field.DESTINATION], bits),
        ranges[Field.PROTOCOL],
        ranges[Field.SOURCE_PORT],
        ranges[Field.DESTINATION_PORT],
    )


def _before_dynamic(matches: Sequence[Match]) -> Iterator[Match]:
    """Those of the header, and those as written up to a dynamic one.

    What that leaves behind (a limit, a counter) it does so for packets that fail later matches too.
    """
    dynamic = False
    for match in sorted(matches, key=lambda match: not match.header):
        dynamic |= match.dynamic
        if not dynamic:
            yield match


def _ranges(match: Match, full: Mapping[Field, Range]) -> Iterator[tuple[Field, Range]]:
    """Per field, the range around the values with which the match can hold."""
    if match.alternatives is None:
        return
    for field in full:
        found = [_range(field, terms) for terms in match.alternatives]
        bounds = [each for each in found if each is not None]
        if len(bounds) == len(found):
            if bounds:
                yield field, (min(low for low, _ in bounds), max(high for _, high in bounds))
            else:
                yield field, (1, 0)


def _range(field: Field, terms: Sequence[Term]) -> Range | None:
    """Around the values that a conjunction leaves a field; None if it says nothing of it."""
    low, high, says = 0, 1 << 128, False
    for term in terms:
        if term.field is field and isinstance(term.values, Intervals) and not term.negated:
            says = True
            if not term.values:
                return 1, 0
            low = max(low, term.values.ranges[0][0])
            high = min(high, term.values.ranges[-1][1])
    return (low, high) if says else None


def _prefix(addresses: Range, bits: int) -> Range:
    """The smallest network that holds a range of addresses, as value and mask."""
    low, high = addresses
    free = (low ^ high).bit_length()
    mask = ((1 << bits) - 1) >> free << free
    return low & mask, mask
