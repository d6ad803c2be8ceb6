"""Boxes of packets as sentences: "tcp to 10.0.0.0/8 port 22 from anywhere except 10.1.0.0/16"."""

from __future__ import annotations

import functools
import ipaddress
import operator
from collections.abc import Callable, Sequence

from bpfilter.analysis.cutting import Cut, enclosing_network
from bpfilter.analysis.describe import describe_value
from bpfilter.compiler.ir import Space
from bpfilter.ruleset.fields import (
    ADDRESS_TYPES,
    ALL_STATES,
    STATES,
    Family,
    Field,
    Intervals,
    field_bits,
)

PROTOCOLS = {
    1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 50: "esp", 51: "ah",
    58: "icmpv6", 89: "ospf", 112: "vrrp", 132: "sctp", 136: "udplite",
}  # fmt: skip
_NAMED = {
    Field.IN_INTERFACE: "arriving on",
    Field.OUT_INTERFACE: "leaving by",
    Field.TCP_FLAGS: "with TCP flags",
    Field.ICMP_TYPE: "of ICMP type",
    Field.LENGTH: "of length",
    Field.TTL: "with TTL",
    Field.TOS: "with TOS",
    Field.MAC_SOURCE: "from MAC",
    Field.PACKET_TYPE: "of packet type",
    Field.FRAGMENT: "fragment",
    Field.SOURCE_TYPE: "from address type",
    Field.DESTINATION_TYPE: "to address type",
}
_SHOWN = 6
_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_PACKET_TYPES = ("unicast", "broadcast", "multicast", "other host")


def box_words(box: Cut, space: Space) -> str:
    """One box, with what is taken out of it; of that, what the box does not say already."""
    holes = [box_words(_narrower(hole, box), space) for hole in box.without]
    return _plain(box, space) + "".join(f", except {hole}" for hole in holes)


def _narrower(hole: Cut, box: Cut) -> Cut:
    fields = {name: v for name, v in hole.fields.items() if box.fields.get(name) != v}
    return Cut(fields, ALL_STATES if hole.states == box.states else hole.states)


def _plain(box: Cut, space: Space) -> str:
    parts = [_protocol(box, space)]
    for preposition, address, port in (
        ("from", Field.SOURCE, Field.SOURCE_PORT),
        ("to", Field.DESTINATION, Field.DESTINATION_PORT),
    ):
        if address in box.fields:
            parts.append(f"{preposition} {_addresses(box.fields[address], space)}")
        if port in box.fields:
            where = "" if address in box.fields else f"{preposition} "
            parts.append(f"{where}port {_set(box.fields[port], _port(space))}")
    for name, words in _NAMED.items():
        if name in box.fields:
            parts.append(f"{words} {field_words(name, box.fields[name], space)}")
    if box.states != ALL_STATES:
        parts.append(f"in state {state_words(box.states)}")
    return " ".join(part for part in parts if part)


def state_words(states: int) -> str:
    """The names of a mask of states."""
    return ",".join(str(state.name) for state in STATES if states & state)


def _protocol(box: Cut, space: Space) -> str:
    values = box.fields.get(Field.PROTOCOL)
    if values is None:
        return "" if box.fields.keys() & {Field.SOURCE, Field.DESTINATION} else "any packet"
    return _set(values, _Describer(8, lambda value: PROTOCOLS.get(value, f"protocol {value}")))


def field_words(name: Field, values: Intervals, space: Space) -> str:
    """The values that a field may have, or may not if that is shorter."""
    if name in (Field.IN_INTERFACE, Field.OUT_INTERFACE):
        names = range(len(space.interfaces))
        # Index 0 stands for every name that no rule mentions.
        if 0 not in values:
            return _listed([space.interfaces[index] for index in names if index in values])
        others = [space.interfaces[index] for index in names if index not in values]
        return f"an interface other than {_listed(others)}"
    if name in (Field.SOURCE_TYPE, Field.DESTINATION_TYPE):
        # The field has room for more values than there are types.
        types = range(len(ADDRESS_TYPES))
        inside = [ADDRESS_TYPES[index] for index in types if index in values]
        others = [ADDRESS_TYPES[index] for index in types if index not in values]
        if others and len(others) < len(inside):
            return f"other than {_listed(others)}"
        return _listed(inside)
    if name is Field.TCP_FLAGS and (flags := _flags(values)) is not None:
        return flags
    if name is Field.PACKET_TYPE:
        inside = [word for number, word in enumerate(_PACKET_TYPES) if number in values]
        others = [word for word in _PACKET_TYPES if word not in inside]
        return f"other than {_listed(others)}" if len(others) == 1 else _listed(inside)
    return _set(values, _value(name, space))


def _flags(values: Intervals) -> str | None:
    """`SYN, not FIN, RST, ACK` if the values are all those with some flags and without others."""
    held = [value for low, high in values.ranges for value in range(low, high + 1)]
    every = functools.reduce(operator.and_, held)
    some = functools.reduce(operator.or_, held)
    if len(held) != 1 << (some & ~every).bit_count():
        return None
    there = [name for bit, name in enumerate(_TCP_FLAGS) if every >> bit & 1]
    absent = [name for bit, name in enumerate(_TCP_FLAGS) if not some >> bit & 1]
    without = f"not {', '.join(absent)}" if absent else ""
    return ", ".join(part for part in (*there, without) if part)


class _Describer:
    """How one field's values are written; `bits` is its width."""

    def __init__(self, bits: int, one: Callable[[int], str]) -> None:
        self.bits = bits
        self.one = one


def _port(space: Space) -> _Describer:
    return _value(Field.DESTINATION_PORT, space)


def _value(name: Field, space: Space) -> _Describer:
    bits = field_bits(name, space.family)
    return _Describer(bits, lambda value: describe_value(name, value, space))


def _set(values: Intervals, field: _Describer) -> str:
    """A set of values, or what it leaves out if that is shorter."""
    others = values.complement(field.bits)
    if others and len(others.ranges) < len(values.ranges):
        return f"other than {_ranges(others.ranges, field)}"
    return _ranges(values.ranges, field)


def _ranges(ranges: Sequence[tuple[int, int]], field: _Describer) -> str:
    written = [
        field.one(low) if low == high else f"{field.one(low)}-{field.one(high)}"
        for low, high in ranges
    ]
    return _listed(written)


def _listed(written: Sequence[str]) -> str:
    more = len(written) - _SHOWN
    return ", ".join(written[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _addresses(values: Intervals, space: Space) -> str:
    """The networks of a set, or the one around it and what that leaves out if it is shorter."""
    networks = _networks(values, space)
    bits = field_bits(Field.SOURCE, space.family)
    outer = enclosing_network(values, bits)
    others = _networks(outer.intersect(values.complement(bits)), space)
    if len(others) + 1 >= len(networks):
        return _listed(networks)
    (whole,) = _networks(outer, space)
    return f"{'anywhere' if whole.endswith('/0') else whole} except {_listed(others)}"


def _networks(values: Intervals, space: Space) -> Sequence[str]:
    found: list[str] = []
    for low, high in values.ranges:
        if space.family is Family.IPV4:
            four = ipaddress.summarize_address_range(
                ipaddress.IPv4Address(low), ipaddress.IPv4Address(high)
            )
            found += [str(network).removesuffix("/32") for network in four]
        else:
            six = ipaddress.summarize_address_range(
                ipaddress.IPv6Address(low), ipaddress.IPv6Address(high)
            )
            found += [str(network).removesuffix("/128") for network in six]
    return found
