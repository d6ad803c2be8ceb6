"""The packet fields that a static match may constrain, and sets of their values.

A set of values of one field is `Intervals` (any union of ranges), a `MaskedValue` (an address
under a mask that is not a prefix) or a `NamePattern` (an interface name, `+` as wildcard).
All are immutable and hashable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntFlag, StrEnum


class Family(StrEnum):
    """Address family; the value is what `--family` takes."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"


class Field(StrEnum):
    """A field of a packet as the netfilter hook sees it."""

    SOURCE = "source"  # 32 or 128 bits
    DESTINATION = "destination"  # 32 or 128 bits
    IN_INTERFACE = "in-interface"  # in the compiler: index of a name class
    OUT_INTERFACE = "out-interface"
    PROTOCOL = "protocol"  # IPv4 protocol, or the IPv6 header after the extension headers
    SOURCE_PORT = "source-port"  # TCP, UDP, UDP-Lite, SCTP, DCCP; else 0
    DESTINATION_PORT = "destination-port"
    TCP_FLAGS = "tcp-flags"  # byte 13 of the TCP header; else 0
    ICMP_TYPE = "icmp-type"  # type << 8 | code of ICMP or ICMPv6; else 0
    LENGTH = "length"  # tot_len, or payload_len + 40
    TTL = "ttl"  # TTL or hop limit as the hook sees it (FORWARD: after the decrement)
    TOS = "tos"  # whole TOS or traffic class byte
    MAC_SOURCE = "mac-source"  # 48 bits
    PACKET_TYPE = "packet-type"  # PACKET_HOST 0, BROADCAST 1, MULTICAST 2, OTHERHOST 3
    FRAGMENT = "fragment"  # 1 for second and further IPv4 fragments (those are always punted)
    SOURCE_TYPE = "source-type"  # RTN_* of linux/rtnetlink.h by the local-address table
    DESTINATION_TYPE = "destination-type"
    STATE = "state"  # bits of `State`; never part of a compiled box, see `Guard.states`
    MASKS = "masks"  # compiler only: bit i set when the i-th MaskedValue of the space holds


class State(IntFlag):
    """Connection states as `-m conntrack --ctstate` names them."""

    NEW = 1
    ESTABLISHED = 2
    RELATED = 4
    INVALID = 8
    UNTRACKED = 16


ALL_STATES = 31
STATES = (State.NEW, State.ESTABLISHED, State.RELATED, State.INVALID, State.UNTRACKED)


def field_bits(field: Field, family: Family) -> int:
    """Width of a field in bits; its values are 0 … 2**bits - 1."""
    if field in (Field.SOURCE, Field.DESTINATION):
        return 32 if family is Family.IPV4 else 128
    return _BITS[field]


_BITS = {
    Field.IN_INTERFACE: 12,
    Field.OUT_INTERFACE: 12,
    Field.PROTOCOL: 8,
    Field.SOURCE_PORT: 16,
    Field.DESTINATION_PORT: 16,
    Field.TCP_FLAGS: 8,
    Field.ICMP_TYPE: 16,
    Field.LENGTH: 16,
    Field.TTL: 8,
    Field.TOS: 8,
    Field.MAC_SOURCE: 48,
    Field.PACKET_TYPE: 3,
    Field.FRAGMENT: 1,
    Field.SOURCE_TYPE: 4,
    Field.DESTINATION_TYPE: 4,
    Field.STATE: 5,
    Field.MASKS: 8,
}


@dataclass(frozen=True, slots=True)
class Intervals:
    """A set of non-negative integers: sorted, disjoint, non-adjacent inclusive ranges."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Intervals:
        """Normalise any ranges (empty ones, `low > high`, vanish)."""
        merged: list[tuple[int, int]] = []
        for low, high in sorted(r for r in ranges if r[0] <= r[1]):
            if merged and low <= merged[-1][1] + 1:
                if high > merged[-1][1]:
                    merged[-1] = (merged[-1][0], high)
            else:
                merged.append((low, high))
        return cls(tuple(merged))

    @classmethod
    def single(cls, low: int, high: int | None = None) -> Intervals:
        return cls(((low, low if high is None else high),))

    @classmethod
    def full(cls, bits: int) -> Intervals:
        return cls(((0, (1 << bits) - 1),))

    def complement(self, bits: int) -> Intervals:
        result = []
        start = 0
        for low, high in self.ranges:
            if low > start:
                result.append((start, low - 1))
            start = high + 1
        if start <= (1 << bits) - 1:
            result.append((start, (1 << bits) - 1))
        return Intervals(tuple(result))

    def intersect(self, other: Intervals) -> Intervals:
        a, b = self.ranges, other.ranges
        if len(a) == 1 and len(b) == 1:
            low, high = max(a[0][0], b[0][0]), min(a[0][1], b[0][1])
            return Intervals(((low, high),)) if low <= high else EMPTY
        result = []
        i = j = 0
        while i < len(a) and j < len(b):
            low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
            if low <= high:
                result.append((low, high))
            if a[i][1] < b[j][1]:
                i += 1
            else:
                j += 1
        return Intervals(tuple(result))

    def union(self, other: Intervals) -> Intervals:
        return Intervals.of((*self.ranges, *other.ranges))

    def __contains__(self, value: int) -> bool:
        return any(low <= value <= high for low, high in self.ranges)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.ranges)


EMPTY = Intervals(())


@dataclass(frozen=True, slots=True)
class MaskedValue:
    """Addresses `a` with `a & mask == value`, for a mask that is not a prefix."""

    mask: int
    value: int


@dataclass(frozen=True, slots=True)
class NamePattern:
    """An interface name as `-i` and `-o` take it: a trailing `+` matches any suffix."""

    text: str

    def matches(self, name: str) -> bool:
        if self.text.endswith("+"):
            return name.startswith(self.text[:-1])
        return name == self.text


@dataclass(frozen=True, slots=True)
class Term:
    """One field constrained to a set of values, or to its complement when `negated`.

    `Intervals` are stored already complemented, so `negated` is used with the other two only.
    """

    field: Field
    values: Intervals | MaskedValue | NamePattern
    negated: bool = False


ADDRESS_TYPES = (
    "UNSPEC",
    "UNICAST",
    "LOCAL",
    "BROADCAST",
    "ANYCAST",
    "MULTICAST",
    "BLACKHOLE",
    "UNREACHABLE",
    "PROHIBIT",
    "THROW",
    "NAT",
    "XRESOLVE",
)
"""Names of address types as `-m addrtype` writes them; the index is the RTN_* number."""
