"""IPv4 and IPv6 packets made by hand, each with a number in it that its receiver can find."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC = b"chaos\xc5"
_NUMBER = struct.Struct("!Q")
UDP, TCP, ICMP, ICMPV6, FRAGMENT = 17, 6, 1, 58, 44
FIN, SYN = 0x01, 0x02


def stamp(number: int) -> bytes:
    """A payload that says which packet this is."""
    return MAGIC + _NUMBER.pack(number)


def numbered(data: bytes) -> int | None:
    """The number of a packet of ours, wherever its payload begins."""
    at = data.find(MAGIC)
    if at < 0 or len(data) < at + len(MAGIC) + _NUMBER.size:
        return None
    return int(_NUMBER.unpack_from(data, at + len(MAGIC))[0])


@dataclass(frozen=True, slots=True)
class Way:
    """From one address to another; 4 or 16 bytes each."""

    source: bytes
    destination: bytes

    @property
    def v6(self) -> bool:
        return len(self.source) == 16

    def pseudo(self, protocol: int, length: int) -> bytes:
        """The pseudo header of RFC 768 and RFC 8200, section 8.1."""
        if self.v6:
            return self.source + self.destination + struct.pack("!II", length, protocol)
        return self.source + self.destination + struct.pack("!HH", protocol, length)


def way(source: str, destination: str) -> Way:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    return Way(socket.inet_pton(family, source), socket.inet_pton(family, destination))


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(way: Way, sport: int, dport: int, payload: bytes) -> bytes:
    length = 8 + len(payload)
    head = struct.pack("!HHH", sport, dport, length)
    total = checksum(way.pseudo(UDP, length) + head + b"\0\0" + payload) or 0xFFFF
    return head + struct.pack("!H", total) + payload


def tcp(
    way: Way,
    sport: int,
    dport: int,
    payload: bytes,
    *,
    sequence: int,
    bad: bool = False,
    flags: int = SYN,
) -> bytes:
    """A SYN; `bad`: with a wrong checksum, which conntrack calls INVALID where it arrives."""
    head = struct.pack("!HHIIBBH", sport, dport, sequence, 0, 5 << 4, flags, 8192)
    length = len(head) + 4 + len(payload)
    total = checksum(way.pseudo(TCP, length) + head + b"\0\0\0\0" + payload)
    return head + struct.pack("!HH", total ^ 0x5555 if bad else total, 0) + payload


def icmp(way: Way, kind: int, payload: bytes, identity: int) -> bytes:
    """A query; packets of one identity are one flow to conntrack."""
    head, tail = struct.pack("!BB", kind, 0), struct.pack("!HH", identity & 0xFFFF, 1) + payload
    pseudo = way.pseudo(ICMPV6, 4 + len(tail)) if way.v6 else b""
    return head + struct.pack("!H", checksum(pseudo + head + b"\0\0" + tail)) + tail


def ip(way: Way, protocol: int, body: bytes, *, odd: bool = False) -> bytes:
    """A whole packet; `odd`: with IPv4 options or an IPv6 hop-by-hop header."""
    if way.v6:
        extension = struct.pack("!BBBBI", protocol, 0, 1, 4, 0) if odd else b""
        first = 0 if odd else protocol
        return _ipv6(way, first, extension + body)
    return _ipv4(way, protocol, body, options=b"\1\1\1\0" if odd else b"")


def fragments(way: Way, protocol: int, body: bytes, identity: int) -> Iterator[bytes]:
    """Two fragments, the first of 16 bytes."""
    for offset, part, more in ((0, body[:16], 1), (16, body[16:], 0)):
        if way.v6:
            head = struct.pack("!BBHI", protocol, 0, offset | more, identity)
            yield _ipv6(way, FRAGMENT, head + part)
        else:
            yield _ipv4(way, protocol, part, identity & 0xFFFF, more << 13 | offset >> 3)


def _ipv6(way: Way, following: int, body: bytes) -> bytes:
    return (
        struct.pack("!IHBB", 6 << 28, len(body), following, 64)
        + way.source
        + (way.destination + body)
    )


def _ipv4(
    way: Way, protocol: int, body: bytes, identity: int = 0, place: int = 0, options: bytes = b""
) -> bytes:
    length = 20 + len(options) + len(body)
    words = (0x40 | 5 + len(options) // 4, 0, length, identity, place, 64, protocol)
    head = struct.pack("!BBHHHBB", *words)
    tail = way.source + way.destination + options
    return head + struct.pack("!H", checksum(head + b"\0\0" + tail)) + tail + body
