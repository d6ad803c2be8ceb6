"""Packets as field values, encoded into Ethernet frames and decoded again.

Formats: RFC 791, 8200, 9293, 768, 3828, 792, 4443, 9260 (SCTP with its CRC32c), 4340 (DCCP).
Checksums are right unless asked otherwise: conntrack calls a wrong one INVALID.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Mapping
from enum import StrEnum

from bpfilter.compiler.walk import Packet
from bpfilter.ruleset.fields import Family, Field

ETHERNET = 14
IP_BYTES = {Family.IPV4: 20, Family.IPV6: 40}
LONGEST = 65535
_ETHERTYPE = {Family.IPV4: b"\x08\x00", Family.IPV6: b"\x86\xdd"}
_BROADCAST, _MULTICAST, _OTHERHOST = (
    b"\xff" * 6,
    b"\x01\x00\x5e\x00\x00\x01",
    b"\x02\xfe" + bytes(4),
)
_TCP, _UDP, _DCCP, _SCTP, _UDPLITE = 6, 17, 33, 132, 136


class Shape(StrEnum):
    """What a frame has besides the packet's fields."""

    PLAIN = "plain"
    PADDED = "padded"  # bytes behind the packet's end, as short Ethernet frames have them
    OPTIONS = "options"  # IPv4 options; an IPv6 destination options header
    FRAGMENT = "fragment"  # more fragments follow


_EXTRA = {
    (Family.IPV4, Shape.OPTIONS): 4,
    (Family.IPV6, Shape.OPTIONS): 8,
    (Family.IPV6, Shape.FRAGMENT): 8,
}
_OPTIONS4 = bytes((1, 1, 1, 0))  # three no-operations, end of list
_PADDING6 = bytes((0, 1, 4, 0, 0, 0, 0))  # PadN over six bytes
_FRAGMENT6 = bytes((0, 0, 1, 0, 0, 0, 7))  # offset 0, more follow


def decidable(shape: Shape, family: Family) -> bool:
    """Whether the program may decide packets of this shape; others it always punts."""
    return shape is not Shape.FRAGMENT and (shape is not Shape.OPTIONS or family is Family.IPV6)


def can_encode(
    packet: Packet, family: Family, *, forwarded: bool = False, shape: Shape = Shape.PLAIN
) -> bool:
    """Whether a frame can carry these values; `forwarded`: TTL is as after the decrement."""
    length = packet[Field.LENGTH]
    wire_ttl = packet[Field.TTL] + forwarded
    return (
        IP_BYTES[family] + _EXTRA.get((family, shape), 0) <= length
        and length + len(_padding(shape)) <= LONGEST
        and wire_ttl <= 255
        and not packet[Field.FRAGMENT]
        and packet[Field.PACKET_TYPE] <= 3
    )


def encode(
    packet: Packet,
    family: Family,
    number: int,
    mac: bytes,
    *,
    forwarded: bool = False,
    corrupt: bool = False,
    quoted: bytes = b"",
    shape: Shape = Shape.PLAIN,
) -> bytes:
    """The frame of a packet for the device with this address.

    `number` goes into the IPv4 ID or the flow label's low 16 bits. `forwarded`: the wire's TTL is
    one more than the hook's. `corrupt`: with a wrong transport checksum. `quoted`: what an ICMP
    error quotes. `shape`: LENGTH counts the options, but not padding.
    """
    wire_ttl = packet[Field.TTL] + forwarded
    source, destination = addresses(packet, family)
    room = packet[Field.LENGTH] - IP_BYTES[family] - _EXTRA.get((family, shape), 0)
    protocol = packet[Field.PROTOCOL]
    pseudo = _pseudo_header(family, source, destination, protocol, room)
    body = _transport(packet, family, number, room, pseudo, corrupt, quoted)
    ethernet = _destination(packet, mac) + packet[Field.MAC_SOURCE].to_bytes(6, "big")
    header = _header(
        family, source, destination, protocol, room, number, wire_ttl, packet[Field.TOS], shape
    )
    return ethernet + _ETHERTYPE[family] + header + body + _padding(shape)


def _padding(shape: Shape) -> bytes:
    return b"\xff" * 9 if shape is Shape.PADDED else b""


def _header(
    family: Family,
    source: bytes,
    destination: bytes,
    protocol: int,
    room: int,
    number: int,
    ttl: int,
    tos: int,
    shape: Shape,
) -> bytes:
    """The IP header with what the shape adds to it."""
    if family is Family.IPV6 and shape in (Shape.OPTIONS, Shape.FRAGMENT):
        options = shape is Shape.OPTIONS
        extension = bytes((protocol,)) + (_PADDING6 if options else _FRAGMENT6)
        outer = 60 if options else 44
        header = ip_header(
            family, source, destination, outer, room + len(extension), number, ttl, tos
        )
        return header + extension
    options4 = _OPTIONS4 if shape is Shape.OPTIONS else b""
    more = 0x2000 if shape is Shape.FRAGMENT else 0
    return ip_header(family, source, destination, protocol, room, number, ttl, tos, options4, more)


def addresses(packet: Packet, family: Family) -> tuple[bytes, bytes]:
    """Source and destination in network order."""
    width = 4 if family is Family.IPV4 else 16
    return (
        packet[Field.SOURCE].to_bytes(width, "big"),
        packet[Field.DESTINATION].to_bytes(width, "big"),
    )


def ip_header(
    family: Family,
    source: bytes,
    destination: bytes,
    protocol: int,
    room: int,
    number: int = 0,
    ttl: int = 64,
    tos: int = 0,
    options: bytes = b"",
    fragment: int = 0,
) -> bytes:
    """An IP header; `room` is what follows it. `options`, `fragment` (16 bits): IPv4 only."""
    if family is Family.IPV6:
        first = 6 << 28 | tos << 20 | number
        return struct.pack("!IHBB", first, room, protocol, ttl) + source + destination
    size = 20 + len(options)
    fields = (0x40 | size // 4, tos, room + size, number, fragment, ttl, protocol)
    rest = source + destination + options
    check = checksum(struct.pack("!BBHHHBBH", *fields, 0) + rest)
    return struct.pack("!BBHHHBBH", *fields, check) + rest


def checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071."""
    words = array("H", data if len(data) % 2 == 0 else data + b"\0")
    if sys.byteorder == "little":
        words.byteswap()
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _destination(packet: Packet, mac: bytes) -> bytes:
    return {0: mac, 1: _BROADCAST, 2: _MULTICAST, 3: _OTHERHOST}[packet[Field.PACKET_TYPE]]


def _pseudo_header(
    family: Family, source: bytes, destination: bytes, protocol: int, room: int
) -> bytes:
    if family is Family.IPV4:
        return source + destination + struct.pack("!HH", protocol, room)
    return source + destination + struct.pack("!II", room, protocol)


def _transport(
    packet: Packet,
    family: Family,
    number: int,
    room: int,
    pseudo: bytes,
    corrupt: bool,
    quoted: bytes,
) -> bytes:
    """The transport header and zeros, cut to `room` bytes; an echo's identifier is `number`."""
    protocol = packet[Field.PROTOCOL]
    ports = struct.pack("!HH", packet[Field.SOURCE_PORT], packet[Field.DESTINATION_PORT])
    wrong = 0x5555 if corrupt else 0
    if protocol == _TCP:
        head = ports + struct.pack("!IIBBHHH", 1, 1, 0x50, packet[Field.TCP_FLAGS], 512, 0, 0)
        return _summed(head, room, pseudo, 16, wrong)
    if protocol == _UDP:
        return _summed(ports + struct.pack("!HH", room, 0), room, pseudo, 6, wrong, zero=0xFFFF)
    if protocol == _UDPLITE:
        return _summed(ports + bytes(4), room, pseudo, 6, wrong, zero=0xFFFF)
    if protocol == _SCTP:
        return _sctp(ports, room, wrong)
    if protocol == _DCCP:
        # A request with a 48 bit sequence number; the checksum covers everything.
        head = ports + bytes((7, 0, 0, 0, 1, 0, 0, 0)) + struct.pack("!II", 1, 0)
        return _summed(head, room, pseudo, 6, wrong)
    if protocol == (1 if family is Family.IPV4 else 58):
        echo = struct.pack("!HH", number, 1) if not quoted else bytes(4)
        head = struct.pack("!HH", packet[Field.ICMP_TYPE], 0) + echo + quoted
        return _summed(head, room, b"" if family is Family.IPV4 else pseudo, 2, wrong)
    return bytes(max(room, 0))


def _summed(head: bytes, room: int, pseudo: bytes, offset: int, wrong: int, zero: int = 0) -> bytes:
    body = head.ljust(room, b"\0")[:room]
    if len(body) < offset + 2:
        return body
    value = (checksum(pseudo + body) or zero) ^ wrong
    return body[:offset] + struct.pack("!H", value) + body[offset + 2 :]


def _sctp(ports: bytes, room: int, wrong: int) -> bytes:
    """An INIT chunk with tag 0, which begins an association."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
    body = (ports + bytes(8) + chunk).ljust(room, b"\0")[:room]
    if len(body) < 12:
        return body
    value = struct.pack("<I", crc32c(body) ^ wrong)
    return body[:8] + value + body[12:]


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC32c as SCTP uses it, RFC 9260 appendix A."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


def decode(frame: bytes) -> tuple[Mapping[Field, int], int]:
    """The fields that a frame shows, as the wire has them, and its number.

    ValueError if it is not a whole IPv4 or IPv6 packet without options or extension headers.
    """
    if frame[12:14] == _ETHERTYPE[Family.IPV4] and len(frame) >= 34 and frame[14] == 0x45:
        return _decode(frame, Family.IPV4, _ipv4_fields)
    if frame[12:14] == _ETHERTYPE[Family.IPV6] and len(frame) >= 54 and frame[14] >> 4 == 6:
        return _decode(frame, Family.IPV6, _ipv6_fields)
    raise ValueError("neither IPv4 without options nor IPv6")


def _ipv4_fields(header: bytes) -> tuple[dict[Field, int], int]:
    _, tos, length, number, _, ttl, protocol = struct.unpack_from("!BBHHHBB", header)
    return {
        Field.SOURCE: int.from_bytes(header[12:16], "big"),
        Field.DESTINATION: int.from_bytes(header[16:20], "big"),
        Field.PROTOCOL: protocol,
        Field.LENGTH: length,
        Field.TTL: ttl,
        Field.TOS: tos,
    }, number


def _ipv6_fields(header: bytes) -> tuple[dict[Field, int], int]:
    first, room, protocol, limit = struct.unpack_from("!IHBB", header)
    return {
        Field.SOURCE: int.from_bytes(header[8:24], "big"),
        Field.DESTINATION: int.from_bytes(header[24:40], "big"),
        Field.PROTOCOL: protocol,
        Field.LENGTH: room + 40,
        Field.TTL: limit,
        Field.TOS: first >> 20 & 255,
    }, first & 0xFFFF


def _decode(
    frame: bytes, family: Family, read: Callable[[bytes], tuple[dict[Field, int], int]]
) -> tuple[Mapping[Field, int], int]:
    size = IP_BYTES[family]
    fields, number = read(frame[ETHERNET : ETHERNET + size])
    body = frame[ETHERNET + size : ETHERNET + fields[Field.LENGTH]]
    protocol = fields[Field.PROTOCOL]
    fields[Field.MAC_SOURCE] = int.from_bytes(frame[6:12], "big")
    fields |= dict.fromkeys(
        (Field.SOURCE_PORT, Field.DESTINATION_PORT, Field.TCP_FLAGS, Field.ICMP_TYPE), 0
    )
    if protocol in (_TCP, _UDP, _DCCP, _SCTP, _UDPLITE) and len(body) >= 4:
        fields[Field.SOURCE_PORT], fields[Field.DESTINATION_PORT] = struct.unpack_from("!HH", body)
    if protocol == _TCP and len(body) >= 14:
        fields[Field.TCP_FLAGS] = body[13]
    if protocol == (1 if family is Family.IPV4 else 58) and len(body) >= 2:
        fields[Field.ICMP_TYPE] = int.from_bytes(body[:2], "big")
    return fields, number
