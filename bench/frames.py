"""Frames of equal length for the driver: 60 bytes of Ethernet and IPv4, checksums right."""

from __future__ import annotations

import random
import struct

import numpy as np

from bpfilter.compiler.ir import FlatChain
from bpfilter.compiler.sample import Sampler
from bpfilter.compiler.walk import Packet
from bpfilter.ruleset.fields import Field

FRAME = 60
_ETHERNET = 14
_TCP, _UDP, _ICMP = 6, 17, 1
_MISSES = 0.1


def headers(
    flat: FlatChain, rng: np.random.Generator, count: int, misses: float = 0.1
) -> list[Packet]:
    """Headers for a chain: hits of rules drawn uniformly, and one in ten that is random.

    Rules are drawn with replacement, so every rule weighs the same whatever stands before it.
    """
    sampler = Sampler.of(flat, rng)
    choice = random.Random(int(rng.integers(1 << 62)))
    packets: list[Packet] = []
    while len(packets) < count:
        box = {} if choice.random() < _MISSES else choice.choice(flat.entries).box
        packet = sampler.packet(box)
        if packet is not None:
            packets.append(packet)
    return packets


def frame(packet: Packet, destination: bytes = bytes(6)) -> bytes:
    """A packet as a frame of `FRAME` bytes to that MAC address."""
    protocol = packet[Field.PROTOCOL]
    addresses = struct.pack("!II", packet[Field.SOURCE], packet[Field.DESTINATION])
    length = FRAME - _ETHERNET
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, 64, protocol, 0) + addresses
    header = header[:10] + _checksum(header) + header[12:]
    payload = _transport(packet, length - len(header), addresses)
    return destination + b"\x02\0\0\0\0\x01\x08\x00" + header + payload


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
    if protocol == _ICMP:
        kind = struct.pack("!HHHH", packet[Field.ICMP_TYPE], 0, 1, 1)
        return _summed(kind.ljust(length, b"\0"), 2, b"")
    return ports.ljust(length, b"\0")


def _summed(segment: bytes, at: int, pseudo: bytes) -> bytes:
    return segment[:at] + _checksum(pseudo + segment) + segment[at + 2 :]


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
