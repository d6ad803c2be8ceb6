"""Puts a packet of the analysis into words."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from bpfilter.analysis.equivalence import Counterexample
from bpfilter.compiler.ir import Space
from bpfilter.ruleset.fields import ADDRESS_TYPES, Family, Field, State


def describe_packet(packet: Mapping[Field, int], space: Space) -> str:
    """The fields of a packet that are not zero, as `name value`, in the order given."""
    words = [
        f"{name} {describe_value(name, value, space)}" for name, value in packet.items() if value
    ]
    return ", ".join(words) or "a packet with all fields zero"


def describe_counterexample(example: Counterexample, space: Space) -> str:
    """One sentence: the packet, its connection state, and what either side makes of it."""
    return (
        f"{describe_packet(example.packet, space)}, in state {State(example.state).name}: "
        f"by the rules {example.rules}, by the tables {example.tables}"
    )


def describe_value(name: Field, value: int, space: Space) -> str:
    """One field's value as iptables would write it, or as a number."""
    if name in (Field.SOURCE, Field.DESTINATION):
        version = ipaddress.IPv4Address if space.family is Family.IPV4 else ipaddress.IPv6Address
        return str(version(value))
    if name in (Field.IN_INTERFACE, Field.OUT_INTERFACE):
        return space.interfaces[value]
    if name is Field.MAC_SOURCE:
        return value.to_bytes(6, "big").hex(":")
    if name is Field.ICMP_TYPE:
        return f"{value >> 8}/{value & 255}"
    if name in (Field.TCP_FLAGS, Field.TOS):
        return f"{value:#04x}"
    if name in (Field.SOURCE_TYPE, Field.DESTINATION_TYPE):
        return ADDRESS_TYPES[value]
    return str(value)
