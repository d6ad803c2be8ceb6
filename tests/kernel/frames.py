"""Frames from field values, for the tests of the program: an encoder of its own.

`coherent` first makes values fit together: no ports on ICMP, a length that holds the headers.
"""

from __future__ import annotations

import struct

from bpfilter.compiler.ir import Space
from bpfilter.compiler.walk import Packet
from bpfilter.ruleset.fields import Family, Field

PORTS = (6, 17, 33, 132, 136)
_TRANSPORT = {6: 20, 17: 8, 136: 8, 33: 12, 132: 12}
_EXTENSIONS = (0, 43, 44, 51, 60)
LONGEST = 3000


def transport_bytes(family: Family, protocol: int) -> int:
    """The header that must be there."""
    if protocol == (1 if family is Family.IPV4 else 58):
        return 8
    return _TRANSPORT.get(protocol, 0)


def coherent(packet: Packet, space: Space, out_class: int = 0) -> dict[Field, int]:
    """The nearest packet that can exist, as BPF_PROG_RUN can be given it."""
    family = space.family
    fields = dict(packet)
    if family is Family.IPV6 and fields[Field.PROTOCOL] in _EXTENSIONS:
        fields[Field.PROTOCOL] = 6
    protocol = fields[Field.PROTOCOL]
    if protocol not in PORTS:
        fields[Field.SOURCE_PORT] = fields[Field.DESTINATION_PORT] = 0
    if protocol != 6:
        fields[Field.TCP_FLAGS] = 0
    if protocol != (1 if family is Family.IPV4 else 58):
        fields[Field.ICMP_TYPE] = 0
    header = 20 if family is Family.IPV4 else 40
    needed = header + transport_bytes(family, protocol)
    fields[Field.LENGTH] = min(max(fields[Field.LENGTH], needed), LONGEST)
    fields[Field.PACKET_TYPE] = min(fields[Field.PACKET_TYPE], 2)
    fields[Field.OUT_INTERFACE] = out_class
    fields[Field.MASKS] = sum(
        (fields[field] & masked.mask == masked.value) << bit
        for bit, (field, masked) in enumerate(space.masks)
    )
    return fields


def ethernet(fields: Packet, family: Family) -> bytes:
    destination = {0: bytes(6), 1: b"\xff" * 6, 2: b"\x01\0\x5e\0\0\1"}[fields[Field.PACKET_TYPE]]
    source = fields[Field.MAC_SOURCE].to_bytes(6, "big")
    return destination + source + (b"\x08\0" if family is Family.IPV4 else b"\x86\xdd")


def transport(fields: Packet, family: Family) -> bytes:
    """The transport header, and payload up to the IP length."""
    protocol = fields[Field.PROTOCOL]
    size = fields[Field.LENGTH] - (20 if family is Family.IPV4 else 40)
    head = b""
    if protocol in PORTS:
        head = struct.pack("!HH", fields[Field.SOURCE_PORT], fields[Field.DESTINATION_PORT])
    elif protocol == (1 if family is Family.IPV4 else 58):
        head = struct.pack("!H", fields[Field.ICMP_TYPE])
    if protocol == 6:
        head += struct.pack("!IIBB", 1, 2, 0x50, fields[Field.TCP_FLAGS])
    elif protocol in (17, 136):
        head += struct.pack("!H", size)
    return head.ljust(size, b"\0")


def frame(fields: Packet, family: Family, identifier: int = 0) -> bytes:
    """The packet behind an Ethernet header; `identifier`: IPv4 ID or flow label."""
    ttl, tos = fields[Field.TTL], fields[Field.TOS]
    if family is Family.IPV4:
        head = struct.pack(
            "!BBHHHBBH", 0x45, tos, fields[Field.LENGTH], identifier, 0, ttl,
            fields[Field.PROTOCOL], 0
        )  # fmt: skip
        addresses = 4
    else:
        head = struct.pack(
            "!IHBB",
            6 << 28 | tos << 20 | identifier,
            fields[Field.LENGTH] - 40,
            fields[Field.PROTOCOL],
            ttl,
        )
        addresses = 16
    head += fields[Field.SOURCE].to_bytes(addresses, "big")
    head += fields[Field.DESTINATION].to_bytes(addresses, "big")
    return ethernet(fields, family) + head + transport(fields, family)
