"""Sets of packets as decision diagrams (BDDs with complement edges, the oxidd package).

One `Diagrams` holds the variables of one chain: the connection state on top, then interfaces and
protocol, the addresses, the rest, and at the bottom the number of an outcome.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from oxidd.bcdd import BCDDFunction, BCDDManager
from oxidd.util import DDMemoryError

from bpfilter.ruleset.fields import (
    Family,
    Field,
    Intervals,
    MaskedValue,
    field_bits,
)

NODE_BYTES = 40
"""Memory per node, unique table included (measured with oxidd 0.13: 36 bytes)."""
CACHE_ENTRY_BYTES = 24

_STATE_BITS = 3
_FIRST = (Field.FRAGMENT, Field.IN_INTERFACE, Field.OUT_INTERFACE, Field.PROTOCOL)
_LAST = (
    Field.SOURCE_PORT,
    Field.DESTINATION_PORT,
    Field.PACKET_TYPE,
    Field.SOURCE_TYPE,
    Field.DESTINATION_TYPE,
    Field.TCP_FLAGS,
    Field.ICMP_TYPE,
    Field.LENGTH,
    Field.TTL,
    Field.TOS,
    Field.MAC_SOURCE,
)


class LimitReached(Exception):
    """The proof's time, memory or number of outcomes is spent; the argument says which."""


class Diagrams:
    """Variables, values and states of one chain's packets.

    `limits` gives for a field the number of values that can occur where that is not a power of
    two. `check_time` raises LimitReached behind `deadline` (monotonic seconds), which callers may
    move; operations raise MemoryExhausted once `nodes` are in use.
    """

    def __init__(
        self,
        family: Family,
        fields: Iterable[Field],
        limits: Mapping[Field, int],
        *,
        addresses: Sequence[Field] = (Field.SOURCE, Field.DESTINATION),
        outcome_bits: int = 16,
        nodes: int = 1 << 20,
        cache: int = 1 << 16,
        deadline: float = float("inf"),
    ) -> None:
        self.family = family
        self.deadline = deadline
        self._manager = BCDDManager(nodes, cache, 1)
        self.true: BCDDFunction = self._manager.true()
        self.false: BCDDFunction = self._manager.false()
        used = set(fields)
        order = [f for f in (*_FIRST, *addresses, *_LAST) if f in used]
        widths = [field_bits(f, family) for f in order]
        self._manager.add_vars(_STATE_BITS + sum(widths) + outcome_bits)
        self._first: dict[Field, int] = {}
        start = _STATE_BITS
        for name, width in zip(order, widths, strict=True):
            self._first[name] = start
            start += width
        self._state = self._literals(range(_STATE_BITS))
        self._bits = {
            f: self._literals(range(at, at + field_bits(f, family)))
            for f, at in self._first.items()
        }
        self.outcome_numbers = range(start, start + outcome_bits)
        self.outcome = self._literals(self.outcome_numbers)
        self._chunks: dict[tuple[Field, int, int, int], BCDDFunction] = {}
        self._sets: dict[tuple[Field, Intervals], BCDDFunction] = {}
        self._states: dict[int, BCDDFunction] = {}
        self._others: dict[Field | None, BCDDFunction] = {}
        self.valid = self._valid(limits)
        self.packet_variables = self._cube(range(start))
        self.outcome_variables = self._cube(self.outcome_numbers)
        self.state_variables = self._cube(range(_STATE_BITS))

    def _literals(self, numbers: Iterable[int]) -> list[tuple[BCDDFunction, BCDDFunction]]:
        return [(self._manager.var(n), self._manager.not_var(n)) for n in numbers]

    def _cube(self, numbers: range) -> BCDDFunction:
        result = self.true
        for number in reversed(numbers):
            result = self._manager.var(number) & result
        return result

    def _valid(self, limits: Mapping[Field, int]) -> BCDDFunction:
        result = self.states(31)
        for name, limit in limits.items():
            if name in self._bits and limit < 1 << len(self._bits[name]):
                result = result & self.values(name, Intervals.single(0, limit - 1))
        return result

    @property
    def variables(self) -> int:
        """How many there are."""
        return self.outcome_numbers.stop

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields that packets have here, in the order of their variables."""
        return tuple(self._first)

    def first_bit(self, name: Field) -> int:
        """The variable of a field's highest bit; the others follow."""
        return self._first[name]

    def all_but(self, name: Field | None) -> BCDDFunction:
        """All variables but a field's, or but the state's, to be quantified."""
        if name not in self._others:
            start = 0 if name is None else self._first[name]
            width = _STATE_BITS if name is None else len(self._bits[name])
            kept = range(start, start + width)
            rest = self.true
            for number in reversed(range(self.outcome_numbers.start)):
                if number not in kept:
                    rest = self._manager.var(number) & rest
            self._others[name] = rest
        return self._others[name]

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise LimitReached("time")

    def states(self, mask: int) -> BCDDFunction:
        """Packets in one of the states of a mask of `State` bits."""
        if mask not in self._states:
            numbers = Intervals.of((bit, bit) for bit in range(5) if mask >> bit & 1)
            self._states[mask] = self._ranges(self._state, numbers)
        return self._states[mask]

    def values(self, name: Field, values: Intervals) -> BCDDFunction:
        """Packets whose field has one of the values."""
        key = (name, values)
        found = self._sets.get(key)
        if found is None:
            found = self._build(name, values)
            self._sets[key] = found
        return found

    def masked(self, name: Field, mask: MaskedValue) -> BCDDFunction:
        """Packets whose address has the given value under a mask."""
        bits = self._bits[name]
        if mask.value & ~mask.mask:
            return self.false
        result = self.true
        for weight in range(len(bits)):
            if mask.mask >> weight & 1:
                positive, negative = bits[len(bits) - 1 - weight]
                result = (positive if mask.value >> weight & 1 else negative) & result
        return result

    def by_bits(self, bits: Sequence[BCDDFunction], values: Intervals) -> BCDDFunction:
        """Packets for which the number whose bits (highest first) are functions is in a set."""
        return self._ranges([(bit, ~bit) for bit in bits], values)

    def _build(self, name: Field, values: Intervals) -> BCDDFunction:
        bits = self._bits[name]
        if len(values.ranges) == 1:
            low, high = values.ranges[0]
            size = high - low + 1
            if size & (size - 1) == 0 and low % size == 0:
                return self._prefix(name, low, len(bits) - (size.bit_length() - 1))
        return self._ranges(bits, values)

    def _prefix(self, name: Field, value: int, length: int) -> BCDDFunction:
        """Values with a given prefix, put together from shared cubes of eight bits."""
        width = len(self._bits[name])
        result = self.true
        for start in range((length - 1) // 8 * 8, -1, -8):
            used = min(8, length - start)
            byte = value >> (width - start - used) & ((1 << used) - 1)
            result = self._chunk(name, start, used, byte) & result
        return result

    def _chunk(self, name: Field, start: int, length: int, value: int) -> BCDDFunction:
        key = (name, start, length, value)
        found = self._chunks.get(key)
        if found is None:
            found = self.true
            for offset in range(length - 1, -1, -1):
                positive, negative = self._bits[name][start + offset]
                found = (positive if value >> (length - 1 - offset) & 1 else negative) & found
            self._chunks[key] = found
        return found

    def _ranges(
        self, bits: Sequence[tuple[BCDDFunction, BCDDFunction]], values: Intervals
    ) -> BCDDFunction:
        parts = [self._range(bits, low, high) for low, high in values.ranges]
        return self.union(parts)

    def _range(
        self, bits: Sequence[tuple[BCDDFunction, BCDDFunction]], low: int, high: int
    ) -> BCDDFunction:
        at_least = at_most = self.true
        for weight, (positive, negative) in enumerate(reversed(bits)):
            at_least = positive & at_least if low >> weight & 1 else positive | at_least
            at_most = negative | at_most if high >> weight & 1 else negative & at_most
        return at_least & at_most

    def union(self, parts: Sequence[BCDDFunction]) -> BCDDFunction:
        """The union of many sets, in a balanced tree."""
        level = list(parts)
        if not level:
            return self.false
        while len(level) > 1:
            pairs = [a | b for a, b in zip(level[::2], level[1::2], strict=False)]
            level = pairs + level[len(level) & ~1 :]
        return level[0]

    def example(self, packets: BCDDFunction) -> tuple[dict[Field, int], int] | None:
        """A packet and a state (one bit) of a set of valid packets, or None if it is empty."""
        cube = packets.pick_cube()
        if cube is None:
            return None
        number = _number(cube[:_STATE_BITS])
        packet = {
            name: _number(cube[at : at + len(self._bits[name])]) for name, at in self._first.items()
        }
        return packet, 1 << number

    def point(self, packet: Mapping[Field, int], state: int) -> BCDDFunction:
        """The set of one packet in one state."""
        result = self.states(state)
        for name in self._first:
            value = packet.get(name, 0)
            result = result & self._build(name, Intervals.single(value))
        return result


def _number(bits: Sequence[bool | None]) -> int:
    value = 0
    for bit in bits:
        value = value << 1 | bool(bit)
    return value


Packets: TypeAlias = BCDDFunction
MemoryExhausted = DDMemoryError
