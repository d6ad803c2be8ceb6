"""Frames that hosts should never send: wrong lengths, options, fragments, chains of headers.

Every frame carries its number in the IPv4 ID or the flow label, as the lab's own frames do. Right
checksums where there is a whole header to carry one: conntrack calls the rest INVALID anyway.
"""

from __future__ import annotations

import random
import struct
from typing import TypeVar

from bpfilter.lab.packets import checksum
from bpfilter.ruleset.fields import Family

T = TypeVar("T")

PROTOCOLS4 = (6, 6, 17, 17, 1, 33, 47, 50, 132, 136, 0, 255)
PROTOCOLS6 = (6, 6, 17, 17, 58, 33, 47, 50, 132, 136, 59, 135, 139, 140, 253)
EXTENSIONS = (0, 60, 60, 43, 44, 50, 51, 135, 139)
OPTIONS = ("01010100", "94040000", "00000000", "0707040000000000", "8307040a00000100")
SUMS = {6: 16, 17: 6, 136: 6, 1: 2, 58: 2}
HOPS = (1, 2, 10, 64, 100, 255)
SERVICES = (0, 16, 8, 0x1C)


class OddFrames:
    """Makes frames from a seed."""

    def __init__(self, seed: int, family: Family, mac: bytes) -> None:
        self._random = random.Random(seed)
        self._family = family
        self._ethernet = mac + bytes.fromhex("020000000001")

    def frame(self, number: int) -> bytes:
        """The next frame; short ones are sometimes padded with zeros or with noise."""
        four = self._family is Family.IPV4
        kind, packet = (
            (b"\x08\x00", self._ipv4(number)) if four else (b"\x86\xdd", self._ipv6(number))
        )
        frame = self._ethernet + kind + packet
        return (
            frame.ljust(60, self._random.choice((b"\0", b"\x55"))) if self._rarely(0.3) else frame
        )

    def _rarely(self, share: float) -> bool:
        return self._random.random() < share

    def _one(self, *choices: T) -> T:
        return self._random.choice(choices)

    def _bent(self, length: int) -> int:
        return (
            max(0, length + self._one(-20, -8, -4, -1, 1, 4, 100)) if self._rarely(0.15) else length
        )

    def _cut(self, data: bytes, share: float) -> bytes:
        return data[: self._random.randrange(len(data) + 1)] if self._rarely(share) else data

    def _transport(self, protocol: int) -> bytes:
        ports = struct.pack("!HH", self._one(7, 9, 53, 4000), self._one(5, 7, 22, 80, 443))
        payload = bytes(self._random.randrange(256) for _ in range(self._one(0, 0, 1, 4, 12, 30)))
        if protocol == 6:
            offset = self._one(5, 5, 5, 6, 8, 4, 0, 15) << 4 | self._one(0, 0, 1)
            flags = self._one(2, 2, 16, 18, 1, 0, 4, 24)
            rest = struct.pack("!IIBBHHH", 1, 1, offset, flags, 512, 0, self._one(0, 1))
            return ports + rest + payload
        if protocol in (17, 136):
            length = max(0, 8 + len(payload) + self._one(0, 0, 0, 1, -1, -8, 5))
            return ports + struct.pack("!HH", length, 0) + payload
        if protocol in (1, 58):
            kind = self._one(0, 1, 3, 8, 11, 128, 129)
            return struct.pack("!BBHHH", kind, self._one(0, 1), 0, 7, 1) + payload
        if protocol == 132:
            chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
            return ports + bytes(8) + chunk + payload
        return ports + bytes(self._one(0, 4, 16, 30)) + payload

    def _summed(self, protocol: int, pseudo: bytes, body: bytes) -> bytes:
        at = SUMS.get(protocol)
        if at is None or len(body) < at + 2:
            return body
        value = checksum((b"" if protocol == 1 else pseudo) + body) or 0xFFFF
        return body[:at] + struct.pack("!H", value) + body[at + 2 :]

    def _ipv4(self, number: int) -> bytes:
        protocol = self._one(*PROTOCOLS4)
        addresses = bytes((10, 0, 0, self._random.randrange(1, 250), 198, 51, 100, 7))
        body = self._transport(protocol)
        pseudo = addresses + struct.pack("!HH", protocol, len(body))
        body = self._cut(self._summed(protocol, pseudo, body), 0.3)
        options = bytes.fromhex(self._one(*OPTIONS)) if self._rarely(0.15) else b""
        words = self._one(4, 5, 6, 15) if self._rarely(0.03) else 5 + len(options) // 4
        version = self._one(0, 5, 6) if self._rarely(0.01) else 4
        fragment = (
            self._one(1, 5, 0x1FFF, 0x2000, 0x2001, 0x4000, 0x8000) if self._rarely(0.1) else 0
        )
        length = self._bent(20 + len(options) + len(body))
        first = (version << 4 | words, self._one(*SERVICES), length, number, fragment)
        head = struct.pack("!BBHHHBBH", *first, self._one(*HOPS), protocol, 0) + addresses + options
        covered = (head + body)[: 4 * max(words, 5)]
        return head[:10] + struct.pack("!H", checksum(covered)) + head[12:] + body

    def _ipv6(self, number: int) -> bytes:
        protocol = self._one(*PROTOCOLS6)
        prefix = bytes.fromhex("20010db8") + bytes(11)
        addresses = prefix + bytes((self._random.randrange(1, 250),)) + prefix + b"\xff"
        body = self._transport(protocol)
        pseudo = addresses + struct.pack("!II", len(body), protocol)
        body = self._cut(self._summed(protocol, pseudo, body), 0.3)
        following = protocol
        for _ in range(self._one(0, 0, 0, 1, 1, 2, 3, 8)):
            kind = self._one(*EXTENSIONS)
            body = self._extension(kind, following, number) + body
            following = kind
        body = self._cut(body, 0.1)
        length = 0 if self._rarely(0.02) else self._bent(len(body))
        first = self._one(*((6,) * 50), 0, 4, 5) << 28 | self._one(*SERVICES) << 20 | number
        return struct.pack("!IHBB", first, length, following, self._one(*HOPS)) + addresses + body

    def _extension(self, kind: int, following: int, number: int) -> bytes:
        units = self._one(0, 0, 1, 2)
        if kind == 44:
            header = struct.pack("!BBHI", following, 0, self._one(0, 0, 1, 6, 8, 9), number)
        elif kind == 51:
            units = self._one(1, 2, 4)
            header = struct.pack("!BBHII", following, units, 0, 1, 1).ljust(4 * (units + 2), b"\0")
        elif kind == 43:
            left = self._one(0, 0, 1)
            header = struct.pack("!BBBB", following, units, self._one(0, 2, 4, 253), left)
            header += bytes(4 + 8 * units)
        else:
            padding = struct.pack("!BB", 1, 4 + 8 * units) + bytes(4 + 8 * units)
            header = struct.pack("!BB", following, units) + padding
        if self._rarely(0.05):
            header = header[:1] + bytes((self._one(0, 1, 5, 255),)) + header[2:]
        return header
