"""Packets drawn from the boxes of a chain's entries: hits, near misses, and intersections.

Every packet is coherent: a real frame can carry its values. Deterministic for a given generator.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bpfilter.compiler.axes import axis_size
from bpfilter.compiler.guards import intersect
from bpfilter.compiler.ir import Box, FlatChain, OpKind, Space
from bpfilter.compiler.layout import AXES
from bpfilter.compiler.walk import Packet
from bpfilter.ruleset.fields import Family, Field, Intervals

PORT_PROTOCOLS = (6, 17, 33, 132, 136)
"""TCP, UDP, DCCP, SCTP, UDP-Lite: protocols whose ports are read."""

_TRIES = 6
_DEPTH = 4
_PORTS = (Field.SOURCE_PORT, Field.DESTINATION_PORT)
_TCP, _ICMP4, _ICMP6 = 6, 1, 58
_SYN = 2
_ALWAYS_DRAWN = {Field.SOURCE, Field.DESTINATION, *_PORTS}
_DEFAULTS = dict.fromkeys((*AXES, Field.FRAGMENT), 0) | {
    Field.LENGTH: 100,
    Field.TTL: 64,
    Field.SOURCE_TYPE: 1,
    Field.DESTINATION_TYPE: 2,
    Field.MAC_SOURCE: 0x020000000001,
}
"""Values of fields that no entry constrains: a SYN from a unicast to a local address."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws packets of one chain. `points`: per field, the bounds that its entries name, sorted.

    Only the fields in `drawn` vary: addresses, ports, and those that some entry constrains.
    """

    space: Space
    points: dict[Field, tuple[int, ...]]
    drawn: tuple[Field, ...]
    random: random.Random

    @classmethod
    def of(cls, flat: FlatChain, rng: np.random.Generator) -> Sampler:
        points: dict[Field, dict[int, None]] = {field: {} for field in AXES}
        for entry in flat.entries:
            for field, values in entry.box.items():
                if field in points and len(values.ranges) <= 8:
                    for low, high in values.ranges:
                        points[field][low] = None
                        points[field][high] = None
        used = {field for entry in flat.entries for field in entry.box} | _ALWAYS_DRAWN
        return cls(
            flat.space,
            {field: tuple(sorted(values)) for field, values in points.items()},
            tuple(field for field in AXES if field in used),
            random.Random(int(rng.integers(1 << 62))),
        )

    def packet(self, box: Box) -> Packet | None:
        """A coherent packet in the box, or None if none was found."""
        for _ in range(_TRIES):
            packet = self._draw(box)
            if packet is not None and all(packet[f] in values for f, values in box.items()):
                return packet
        return None

    def mutate(self, packet: Packet) -> Packet:
        """A packet that differs in one or two fields."""
        changed = dict(packet)
        for field in self.random.sample(self.drawn, self.random.choice((1, 2))):
            changed[field] = self._value(field, None)
        return self._settle(changed, None)

    def _draw(self, box: Box) -> Packet | None:
        protocol = self._protocol(box)
        if protocol is None:
            return None
        packet = dict(_DEFAULTS)
        for field in self.drawn:
            packet[field] = self._value(field, box.get(field))
        packet[Field.PROTOCOL] = protocol
        return self._settle(packet, box.get(Field.MASKS))

    def _settle(self, packet: dict[Field, int], masks: Intervals | None) -> Packet:
        """Make the packet coherent, with MASKS as wanted if the addresses can be changed so."""
        protocol = packet[Field.PROTOCOL]
        if protocol not in PORT_PROTOCOLS:
            packet[Field.SOURCE_PORT] = packet[Field.DESTINATION_PORT] = 0
        if protocol != _TCP:
            packet[Field.TCP_FLAGS] = 0
        elif Field.TCP_FLAGS not in self.drawn:
            packet[Field.TCP_FLAGS] = _SYN
        if protocol != self._icmp:
            packet[Field.ICMP_TYPE] = 0
        elif Field.ICMP_TYPE not in self.drawn:
            packet[Field.ICMP_TYPE] = self._echo_request
        self._masks(packet, masks)
        return packet

    @property
    def _icmp(self) -> int:
        return _ICMP4 if self.space.family is Family.IPV4 else _ICMP6

    @property
    def _echo_request(self) -> int:
        return 8 << 8 if self.space.family is Family.IPV4 else 128 << 8

    def _protocol(self, box: Box) -> int | None:
        """A protocol of the box that has the headers which the box's other fields need."""
        needed: Sequence[int] | None = None
        if _needs_header(box, Field.TCP_FLAGS):
            needed = (_TCP,)
        elif any(_needs_header(box, field) for field in _PORTS):
            needed = PORT_PROTOCOLS
        elif _needs_header(box, Field.ICMP_TYPE):
            needed = (self._icmp,)
        wanted = box.get(Field.PROTOCOL)
        if wanted is None:
            return self.random.choice(needed or (_TCP, _TCP, 17, self._icmp, 47, 132))
        if needed is None:
            return self._inside(wanted)
        candidates = [value for value in needed if value in wanted]
        return self.random.choice(candidates) if candidates else None

    def _value(self, field: Field, wanted: Intervals | None) -> int:
        plausible = _PLAUSIBLE.get(field)
        if field in _ADDRESSES:
            plausible = _UNICAST[self.space.family]
        if wanted is None:
            points = self.points[field]
            if points and self.random.random() < 0.5:
                bound = self.random.choice(points) + self.random.choice((-1, 0, 0, 1))
                if plausible is None or bound in plausible:
                    return min(max(bound, 0), axis_size(field, self.space) - 1)
            wanted = plausible or Intervals.single(0, axis_size(field, self.space) - 1)
        else:
            wanted = wanted if plausible is None else wanted.intersect(plausible) or wanted
            within = self._bound_within(field, wanted)
            if within is not None:
                return within
        return self._inside(wanted)

    def _bound_within(self, field: Field, wanted: Intervals) -> int | None:
        """Now and then a bound of another entry inside `wanted`, or its neighbour."""
        if self.random.random() < 0.7:
            return None
        low, high = self.random.choice(wanted.ranges)
        points = self.points[field]
        first, last = bisect.bisect_left(points, low), bisect.bisect_right(points, high)
        if first >= last:
            return None
        bound = points[self.random.randrange(first, last)] + self.random.choice((-1, 0, 1))
        return min(max(bound, low), high)

    def _inside(self, values: Intervals) -> int:
        low, high = self.random.choice(values.ranges)
        kind = self.random.randrange(4)
        if kind < 2:
            return low if kind == 0 else high
        return self.random.randint(low, high)

    def _masks(self, packet: dict[Field, int], wanted: Intervals | None) -> None:
        """Compute MASKS from the addresses, which are first changed towards a wanted value."""
        if wanted is not None:
            goal = self._inside(wanted)
            for bit, (field, masked) in enumerate(self.space.masks):
                address = packet[field]
                if goal >> bit & 1:
                    packet[field] = address & ~masked.mask | masked.value
                elif address & masked.mask == masked.value:
                    packet[field] = address ^ (masked.mask & -masked.mask)
        packet[Field.MASKS] = sum(
            (packet[field] & masked.mask == masked.value) << bit
            for bit, (field, masked) in enumerate(self.space.masks)
        )


def _needs_header(box: Box, field: Field) -> bool:
    values = box.get(field)
    return values is not None and 0 not in values


_ADDRESSES = (Field.SOURCE, Field.DESTINATION)
_UNICAST = {
    Family.IPV4: Intervals(((1 << 24, (127 << 24) - 1), (128 << 24, (224 << 24) - 1))),
    Family.IPV6: Intervals(((2 << 124, (4 << 124) - 1), (0xFC << 120, (0xFE << 120) - 1))),
}
_PLAUSIBLE = {
    Field.LENGTH: Intervals.single(80, 1400),
    Field.TTL: Intervals.single(2, 255),
    Field.PACKET_TYPE: Intervals.single(0, 2),
    Field.SOURCE_TYPE: Intervals.single(1, 5),
    Field.DESTINATION_TYPE: Intervals.single(1, 5),
}
"""What is drawn where an entry leaves a choice."""


def sample_packets(flat: FlatChain, rng: np.random.Generator, count: int) -> list[Packet]:
    """About half hits (each entry once before any twice), a quarter near misses, and pairs.

    Fewer than `count` only if coherent packets in the boxes are not found.
    """
    sampler = Sampler.of(flat, rng)
    boxes = [entry.box for entry in flat.entries]
    turns = boxes if len(boxes) <= count // 2 else sampler.random.sample(boxes, len(boxes))
    packets: list[Packet] = []
    _fill(packets, map(sampler.packet, _repeat(turns, count)), count // 2)
    _fill(packets, near_misses(sampler, turns), count * 3 // 4)
    _fill(packets, grown(sampler, flat, 4 * count), count)
    _fill(packets, map(sampler.packet, _repeat(turns, 4 * count)), count)
    return packets


def _fill(packets: list[Packet], source: Iterator[Packet | None], limit: int) -> None:
    if len(packets) < limit:
        for packet in source:
            if packet is not None:
                packets.append(packet)
                if len(packets) >= limit:
                    return


def _repeat(boxes: Sequence[Box], limit: int) -> Iterator[Box]:
    for number in range(limit):
        yield boxes[number % len(boxes)]


def near_misses(sampler: Sampler, boxes: Sequence[Box]) -> Iterator[Packet | None]:
    """One packet beside each bound of each field, the other fields still inside the box."""
    for box in boxes:
        for field, values in box.items():
            if field is Field.MASKS:
                continue
            size = axis_size(field, sampler.space)
            for low, high in values.ranges[:4]:
                for value in (low - 1, high + 1):
                    if 0 <= value < size and value not in values:
                        yield sampler.packet({**box, field: Intervals.single(value)})


def grown(sampler: Sampler, flat: FlatChain, limit: int) -> Iterator[Packet | None]:
    """Packets in the intersection of two to four entries, the first one not final if possible."""
    boxes = [entry.box for entry in flat.entries]
    special = [e.box for e in flat.entries if e.kind in (OpKind.ITEM, OpKind.SKIP)] or boxes
    for _ in range(limit):
        box = sampler.random.choice(special)
        depth = 0
        for _ in range(_DEPTH * 4):
            both = intersect(box, sampler.random.choice(boxes))
            if both is not None and both is not box:
                box = both
                depth += 1
                yield sampler.packet(box)
                if depth == _DEPTH:
                    break
