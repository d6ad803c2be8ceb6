"""Packets and rule paths in words."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from bpfilter.compiler.ir import FlatChain
from bpfilter.compiler.plan import ChainPlan
from bpfilter.compiler.walk import Packet, holds, visited
from bpfilter.lab.oracle import Observation
from bpfilter.lab.report import Divergence
from bpfilter.ruleset.fields import ADDRESS_TYPES, Family, Field, State

_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_PACKET_TYPES = ("host", "broadcast", "multicast", "otherhost")


def describe(packet: Packet, flat: FlatChain) -> Mapping[str, str]:
    """A packet's fields as people write them; fields that say nothing are left out."""
    said = {}
    for field, value in packet.items():
        text = _value(field, value, flat)
        if text:
            said[str(field)] = text
    return said


def _value(field: Field, value: int, flat: FlatChain) -> str:
    if field in (Field.SOURCE, Field.DESTINATION):
        four = flat.family is Family.IPV4
        return str(ipaddress.IPv4Address(value) if four else ipaddress.IPv6Address(value))
    if field in (Field.IN_INTERFACE, Field.OUT_INTERFACE):
        return flat.space.interfaces[value] or "(a name that no rule has)"
    if field is Field.TCP_FLAGS:
        return ",".join(name for bit, name in enumerate(_FLAGS) if value >> bit & 1)
    if field is Field.ICMP_TYPE:
        return f"{value >> 8}/{value & 255}" if value else ""
    if field in (Field.SOURCE_TYPE, Field.DESTINATION_TYPE):
        return ADDRESS_TYPES[value]
    if field is Field.PACKET_TYPE:
        return _PACKET_TYPES[value]
    if field is Field.MAC_SOURCE:
        return value.to_bytes(6, "big").hex(":")
    if field in (Field.MASKS, Field.FRAGMENT):
        return ""
    return str(value)


def program_path(flat: FlatChain, packet: Packet, state: State) -> tuple[str, ...]:
    """The rules of the walk in this state: jumps passed, items, and where it ends."""
    path: list[str] = []
    matching = (i for i, e in enumerate(flat.entries) if e.states & state and holds(e, packet))
    for index in visited(flat, matching):
        entry = flat.entries[index]
        path += [str(ref) for ref in entry.via if str(ref) not in path]
        path.append(f"{entry.rule} {entry.kind.name}")
    return tuple(path)


def explain(
    run: str,
    cause: str,
    observation: Observation,
    chain: ChainPlan,
    kernel_path: tuple[str, ...],
) -> Divergence:
    """A divergence with the packet and both rule paths."""
    packet = observation.stimulus.packet
    state = observation.state
    path = () if state is None else program_path(chain.flat, packet, state)
    shape = observation.stimulus.shape
    fields = {**describe(packet, chain.flat), "shape": str(shape)}
    name = "" if state is None else state.name or ""
    return Divergence(run, cause, fields, name, path, kernel_path)
