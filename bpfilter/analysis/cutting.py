"""Cuts a set of packets into few boxes that a person can read.

A box fixes a set of values for each field; fields that may have any value are left out. Greedy:
a packet of the set is grown, field by field, to the largest box around it that stays in the set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bpfilter.analysis.diagrams import Diagrams, Packets
from bpfilter.ruleset.fields import ALL_STATES, Field, Intervals, field_bits

_GROWN_FIRST = (
    Field.FRAGMENT,
    Field.SOURCE_PORT,
    Field.TCP_FLAGS,
    Field.LENGTH,
    Field.TTL,
    Field.TOS,
    Field.MAC_SOURCE,
    Field.PACKET_TYPE,
    Field.OUT_INTERFACE,
    Field.IN_INTERFACE,
    Field.SOURCE_TYPE,
    Field.DESTINATION_TYPE,
    Field.ICMP_TYPE,
    Field.SOURCE,
    Field.DESTINATION,
    Field.DESTINATION_PORT,
    Field.PROTOCOL,
)
"""What readers expect to be unrestricted comes first, so it grows the most."""

_ADDRESSES = frozenset({Field.SOURCE, Field.DESTINATION})
_FILLED = _ADDRESSES | {Field.SOURCE_PORT, Field.DESTINATION_PORT, Field.LENGTH, Field.TTL}
_MOST_RANGES = 48
_FEW_RANGES = 8


@dataclass(frozen=True, slots=True)
class Cut:
    """A box: every packet whose fields have these values, in these states (bits of `State`).

    `without`: smaller boxes that are taken out of it.
    """

    fields: Mapping[Field, Intervals]
    states: int
    without: tuple[Cut, ...] = ()


def cut(packets: Packets, diagrams: Diagrams, most: int) -> tuple[tuple[Cut, ...], Packets]:
    """At most `most` boxes, the first ones the most natural, and the packets they leave over."""
    whole = _hull(packets, diagrams)
    rest = diagrams.false
    if whole is not None:
        inside = _packets(whole, diagrams)
        holes = inside & ~packets
        if not holes.satisfiable():
            return (whole,), rest
        if not most:
            return (), packets
        taken, left = _greedy(holes, diagrams, 2)
        if not left.satisfiable() and _count(holes, diagrams) < _count(inside, diagrams) / 2:
            return (Cut(whole.fields, whole.states, taken),), rest
    return _greedy(packets, diagrams, most)


def around(packets: Packets, diagrams: Diagrams) -> Cut:
    """A box that holds the set, near the smallest: fields of many values may have any.

    Small gaps in a field's values are filled, so that they read as one network or range.
    """
    fields = {}
    for name in diagrams.fields:
        bits = field_bits(name, diagrams.family)
        values = _values(packets.exists(diagrams.all_but(name)), name, diagrams)
        if values is not None and name in _FILLED:
            values = _filled(values, name, bits)
        # Flags are some bits that are set and some that are not, in however many ranges.
        if values is not None and (name is Field.TCP_FLAGS or _is_short(values, bits)):
            fields[name] = values
    states = _states(packets.exists(diagrams.all_but(None)), diagrams)
    return Cut(_restricting(fields, diagrams), states)


def _filled(values: Intervals, name: Field, bits: int) -> Intervals:
    """The range or network around some values, if they are at least half of it."""
    if name in _ADDRESSES:
        outer = enclosing_network(values, bits)
    else:
        outer = Intervals.single(values.ranges[0][0], values.ranges[-1][1])
    return outer if 2 * _size(values) >= _size(outer) else values


def _size(values: Intervals) -> int:
    return sum(high - low + 1 for low, high in values.ranges)


def enclosing_network(values: Intervals, bits: int) -> Intervals:
    """The smallest network around some addresses, of so many bits."""
    low, high = values.ranges[0][0], values.ranges[-1][1]
    free = (low ^ high).bit_length()
    first = low >> free << free
    return Intervals.single(first, first + (1 << free) - 1)


def _is_short(values: Intervals, bits: int) -> bool:
    others = values.complement(bits)
    return min(len(values.ranges), len(others.ranges)) <= _FEW_RANGES


def share(packets: Packets, diagrams: Diagrams) -> float:
    """The part of all header values and states that a set is, between 0 and 1."""
    return _count(packets, diagrams) / _count(diagrams.valid, diagrams)


def _count(packets: Packets, diagrams: Diagrams) -> float:
    return float(packets.sat_count_float(diagrams.variables))


def _greedy(packets: Packets, diagrams: Diagrams, most: int) -> tuple[tuple[Cut, ...], Packets]:
    found: list[Cut] = []
    while len(found) < most and packets.satisfiable():
        box = _grown(packets, diagrams)
        found.append(box)
        packets = packets & ~_packets(box, diagrams)
    return tuple(found), packets


def _grown(packets: Packets, diagrams: Diagrams) -> Cut:
    """The box around one packet of the set, as large as it gets in the order of `_GROWN_FIRST`."""
    example = diagrams.example(packets)
    assert example is not None
    packet, states = example
    fields = {name: Intervals.single(packet[name]) for name in diagrams.fields}
    # Values that cannot occur may be in a box: they read better, and mean no packet.
    allowed = packets | ~diagrams.valid
    for name in (*(f for f in _GROWN_FIRST if f in fields), None):
        others = {other: values for other, values in fields.items() if other is not name}
        given = _packets(Cut(others, ALL_STATES if name is None else states), diagrams)
        values = allowed.imp_strict(given)  # in the box for the other fields, not in the set
        bad = values.exists(diagrams.all_but(name))
        if name is None:
            states = _states(~bad, diagrams)
        else:
            fields[name] = _around(~bad, name, packet[name], diagrams)
    return Cut(_restricting(fields, diagrams), states)


def _around(packets: Packets, name: Field, value: int, diagrams: Diagrams) -> Intervals:
    """All values of a field that a set allows, or if they are too many ranges, that of a value."""
    values = _values(packets, name, diagrams)
    if values is not None:
        return values
    bits = field_bits(name, diagrams.family)
    low = high = value
    for start, stop in _ranges(packets, diagrams.first_bit(name), bits, 0):
        if start <= high + 1 and stop >= low - 1:
            low, high = min(low, start), max(high, stop)
        elif start > high + 1:
            break
    return Intervals.single(low, high)


def _hull(packets: Packets, diagrams: Diagrams) -> Cut | None:
    """The smallest box that holds the set; None if a field's values are too many ranges."""
    fields = {}
    for name in diagrams.fields:
        values = _values(packets.exists(diagrams.all_but(name)), name, diagrams)
        if values is None:
            return None
        fields[name] = values
    states = _states(packets.exists(diagrams.all_but(None)), diagrams)
    return Cut(_restricting(fields, diagrams), states)


def _restricting(
    fields: Mapping[Field, Intervals], diagrams: Diagrams
) -> Mapping[Field, Intervals]:
    return {
        name: values
        for name, values in fields.items()
        if (diagrams.valid & ~diagrams.values(name, values)).satisfiable()
    }


def _packets(box: Cut, diagrams: Diagrams) -> Packets:
    result = diagrams.states(box.states) & diagrams.valid
    for name, values in box.fields.items():
        result = diagrams.values(name, values) & result
    for hole in box.without:
        result = result & ~_packets(hole, diagrams)
    return result


def _states(packets: Packets, diagrams: Diagrams) -> int:
    return sum(
        state for state in (1, 2, 4, 8, 16) if (packets & diagrams.states(state)).satisfiable()
    )


def _values(packets: Packets, name: Field, diagrams: Diagrams) -> Intervals | None:
    """A set over one field's bits as ranges; None if there are too many."""
    found: list[tuple[int, int]] = []
    bits = field_bits(name, diagrams.family)
    for low, high in _ranges(packets, diagrams.first_bit(name), bits, 0):
        if found and found[-1][1] + 1 == low:
            found[-1] = (found[-1][0], high)
        elif len(found) == _MOST_RANGES:
            return None
        else:
            found.append((low, high))
    return Intervals.of(found)


def _ranges(packets: Packets, bit: int, left: int, value: int) -> Iterator[tuple[int, int]]:
    """The ranges of values, in order, of a diagram over `left` bits from variable `bit` on."""
    if not packets.satisfiable():
        return
    if packets.valid():
        yield value << left, (value + 1 << left) - 1
        return
    if packets.node_level() > bit:
        high = low = packets
    else:
        cofactors = packets.cofactors()
        assert cofactors is not None
        high, low = cofactors
    yield from _ranges(low, bit + 1, left - 1, value << 1)
    yield from _ranges(high, bit + 1, left - 1, value << 1 | 1)
