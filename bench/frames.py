"""Frames of equal length for the driver: Ethernet and IPv4 or IPv6, checksums right."""

from __future__ import annotations

import random
import struct
from enum import StrEnum
from itertools import accumulate

import numpy as np

from bpfilter.compiler.ir import Box, FlatChain
from bpfilter.compiler.sample import Sampler
from bpfilter.compiler.walk import Packet
from bpfilter.ruleset.fields import Family, Field

FRAMES = {Family.IPV4: 60, Family.IPV6: 78}
"""Bytes of every frame of a family, as `bpfilter.lab.driver` takes them."""

_ETHERNET = 14
_TCP, _UDP, _ICMP, _ICMP6 = 6, 17, 1, 58
_MISSES = 0.1


class Match(StrEnum):
    """Which rule the packets hit."""

    FIRST = "first"
    LAST = "last"
    RANDOM = "random"  # every rule as often
    ZIPF = "zipf"  # the rule of rank r, in a random order, r times as seldom as the first


def headers(
    flat: FlatChain,
    rng: np.random.Generator,
    count: int,
    misses: float = _MISSES,
    match: Match = Match.RANDOM,
) -> list[Packet]:
    """Headers for a chain: hits of rules drawn as `match` says, and one in ten that is random.

    Rules are drawn with replacement, whatever stands before them.
    """
    sampler = Sampler.of(flat, rng)
    choice = random.Random(int(rng.integers(1 << 62)))
    weights = _weights(match, len(flat.entries), choice)
    packets: list[Packet] = []
    while len(packets) < count:
        box: Box = {}
        if choice.random() >= misses:
            box = choice.choices(flat.entries, cum_weights=weights)[0].box
        packet = sampler.packet(box)
        if packet is not None:
            packets.append(packet)
    return packets


def _weights(match: Match, count: int, choice: random.Random) -> list[float]:
    """Cumulative weights of the entries; the last one is the policy, and is no rule."""
    weights = [0.0] * count
    rules = max(1, count - 1)
    if match in (Match.FIRST, Match.LAST):
        weights[0 if match is Match.FIRST else rules - 1] = 1.0
    elif match is Match.ZIPF:
        ranks = choice.sample(range(rules), rules)
        weights[:rules] = [1 / (1 + rank) for rank in ranks]
    else:
        weights = [1.0] * count
    return list(accumulate(weights))


def frame(packet: Packet, destination: bytes = bytes(6), family: Family = Family.IPV4) -> bytes:
    """A packet as a frame of its family's length to that MAC address."""
    if family is Family.IPV6:
        ethertype, header, addresses = b"\x86\xdd", *_header6(packet)
    else:
        ethertype, header, addresses = b"\x08\x00", *_header4(packet)
    payload = _transport(packet, FRAMES[family] - _ETHERNET - len(header), addresses)
    return destination + b"\x02\0\0\0\0\x01" + ethertype + header + payload


def _header4(packet: Packet) -> tuple[bytes, bytes]:
    """The header, and the addresses alone."""
    addresses = struct.pack("!II", packet[Field.SOURCE], packet[Field.DESTINATION])
    length = FRAMES[Family.IPV4] - _ETHERNET
    protocol = packet[Field.PROTOCOL]
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, 64, protocol, 0) + addresses
    return header[:10] + _checksum(header) + header[12:], addresses


def _header6(packet: Packet) -> tuple[bytes, bytes]:
    ends = (packet[Field.SOURCE], packet[Field.DESTINATION])
    addresses = b"".join(address.to_bytes(16, "big") for address in ends)
    length = FRAMES[Family.IPV6] - _ETHERNET - 40
    header = struct.pack("!IHBB", 6 << 28, length, packet[Field.PROTOCOL], 64) + addresses
    return header, addresses


def _transport(packet: Packet, length: int, addresses: bytes) -> bytes:
    protocol = packet[Field.PROTOCOL]
    ports = struct.pack("!HH", packet[Field.SOURCE_PORT], packet[Field.DESTINATION_PORT])
    pseudo = addresses + struct.pack("!HH", protocol, length)
    if protocol == _TCP:
        flags = packet[Field.TCP_FLAGS]
        segment = ports + struct.pack("!IIBBHHH", 1, 0, 0x50, flags, 1024, 0, 0)
        return _summed(segment.ljust(length, b"\0"), 16, pseudo)
    if protocol == _UDP:
        return _summed((ports + struct.pack("!HH", length, 0)).ljust(length, b"\0"), 6, pseudo)
    if protocol in (_ICMP, _ICMP6):
        kind = struct.pack("!HHHH", packet[Field.ICMP_TYPE], 0, 1, 1)
        return _summed(kind.ljust(length, b"\0"), 2, pseudo if protocol == _ICMP6 else b"")
    return ports.ljust(length, b"\0")


def _summed(segment: bytes, at: int, pseudo: bytes) -> bytes:
    return segment[:at] + _checksum(pseudo + segment) + segment[at + 2 :]


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
