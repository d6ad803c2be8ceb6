"""Which packets are sent: for every rule's boundaries, and for every state that makes a difference.

Deterministic for a given generator and plan.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bpfilter.compiler.batch import matching_bits, state_bits
from bpfilter.compiler.coverage import passed_entries, reaching_packets
from bpfilter.compiler.ir import FlatChain
from bpfilter.compiler.layout import ChainTables
from bpfilter.compiler.plan import ChainPlan
from bpfilter.compiler.sample import PORT_PROTOCOLS, sample_packets
from bpfilter.compiler.walk import Packet
from bpfilter.lab.addresses import unroutable
from bpfilter.lab.conversation import TRACKED_NUMBERS, UNTRACKED_NUMBERS, Stimulus, likely_state
from bpfilter.lab.packets import Shape, can_encode
from bpfilter.ruleset.fields import STATES, Field, State

_ACK, _TCP = 0x10, 6
_MOST_REACHING = 6000
_LOST_SHARE = 0.05
_ODD_SHARE = 0.12
_ATTEMPTS = 4
_WEIGHTS = {
    State.NEW: 10,
    State.ESTABLISHED: 5,
    State.RELATED: 3,
    State.INVALID: 2,
    State.UNTRACKED: 3,
}


Chosen = tuple[Packet, State, Shape]


@dataclass(frozen=True, slots=True)
class Stimuli:
    """The packets to send, and how many could not be, by cause."""

    chosen: tuple[Stimulus, ...]
    unsendable: Mapping[str, int]


def choose_stimuli(
    chain: ChainPlan,
    rng: np.random.Generator,
    count: int,
    *,
    in_classes: Sequence[int],
    out_classes: Sequence[int],
    untracked: bool,
) -> Stimuli:
    """About `count` packets, and more if the rules need more to be reached each.

    `in_classes`, `out_classes`: interface classes that have a device.
    """
    chooser = _Chooser(chain, random.Random(int(rng.integers(1 << 62))), in_classes, out_classes)
    reaching = {id(p): p for p in reaching_packets(chain.tables, rng).values()}
    wishes = list(_wishes(chain.tables, list(reaching.values())[:_MOST_REACHING]))
    for packet, state in wishes:
        chooser.add(packet, state)
    missing = max(count - len(chooser.chosen), count // 4)
    states = [s for s in STATES if untracked or s is not State.UNTRACKED]
    weights = [_WEIGHTS[state] for state in states]
    target = len(chooser.chosen) + missing
    for attempt in range(_ATTEMPTS):
        for packet in sample_packets(chain.flat, rng, 2 * missing):
            wanted = chooser.routable(packet) or chooser.rarely() or attempt == _ATTEMPTS - 1
            if len(chooser.chosen) < target and wanted:
                state = chooser.random.choices(states, weights)[0]
                chooser.add(packet, state, chooser.shape())
        if len(chooser.chosen) >= target:
            break
    return Stimuli(tuple(_numbered(chooser.chosen, untracked)), chooser.unsendable)


def _wishes(tables: ChainTables, packets: Sequence[Packet]) -> Iterator[tuple[Packet, State]]:
    """The packets, each in the states in which it passes an entry that none before passed."""
    states = state_bits(tables)
    reached: set[int] = set()
    for packet, bits in zip(packets, matching_bits(tables, packets), strict=True):
        for mask, entries in zip(tables.state_classes, states, strict=True):
            passed = set(passed_entries(tables.flat, bits & entries))
            if passed - reached:
                reached |= passed
                yield packet, likely_state(packet, State(mask), tables.flat.family)


def _numbered(chosen: Sequence[Chosen], untracked: bool) -> Iterator[Stimulus]:
    tracked = iter(range(TRACKED_NUMBERS[0], TRACKED_NUMBERS[1] + 1))
    exempt = iter(range(UNTRACKED_NUMBERS[0], UNTRACKED_NUMBERS[1] + 1))
    for packet, state, shape in chosen:
        number = next(exempt if untracked and state is State.UNTRACKED else tracked, None)
        if number is not None:
            yield Stimulus(number, packet, state, shape)


class _Chooser:
    """Makes sampled packets sendable."""

    def __init__(
        self,
        chain: ChainPlan,
        source: random.Random,
        in_classes: Sequence[int],
        out_classes: Sequence[int],
    ) -> None:
        self.random = source
        self.chosen: list[Chosen] = []
        self.unsendable: dict[str, int] = {}
        self._flat = chain.flat
        self._forwarded = chain.chain == "FORWARD"
        self._constrained = constrained_fields(chain.flat)
        self._classes = {Field.IN_INTERFACE: in_classes}
        if self._forwarded:
            self._classes[Field.OUT_INTERFACE] = out_classes

    def routable(self, packet: Packet) -> bool:
        """Whether the kernel would bring the packet to the chain."""
        return unroutable(packet, self._flat.family, forwarded=self._forwarded) is None

    def shape(self) -> Shape:
        """Mostly plain."""
        return self.random.choice(list(Shape)) if self.random.random() < _ODD_SHARE else Shape.PLAIN

    def rarely(self) -> bool:
        """Packets that are lost on the way are sent now and then all the same."""
        return self.random.random() < _LOST_SHARE

    def add(self, packet: Packet, state: State, shape: Shape = Shape.PLAIN) -> None:
        """Take the packet if a frame can carry it."""
        changed = dict(packet)
        for field, classes in self._classes.items():
            if field not in self._constrained:
                changed[field] = self.random.choice(classes)
            elif changed[field] not in classes:
                self._refuse("no device can bear the interface's name")
                return
        protocol = changed[Field.PROTOCOL]
        if Field.SOURCE_PORT not in self._constrained and protocol in PORT_PROTOCOLS:
            # Connections stay apart, so that a packet gets the state it should have.
            changed[Field.SOURCE_PORT] = 1024 + (len(self.chosen) * 7919) % 60000
        if (
            Field.TCP_FLAGS not in self._constrained
            and protocol == _TCP
            and state is State.ESTABLISHED
        ):
            changed[Field.TCP_FLAGS] = _ACK
        if can_encode(changed, self._flat.family, forwarded=self._forwarded, shape=shape):
            self.chosen.append((changed, state, shape))
        else:
            self._refuse("no frame can carry the packet's length or TTL")

    def _refuse(self, cause: str) -> None:
        self.unsendable[cause] = self.unsendable.get(cause, 0) + 1


def constrained_fields(flat: FlatChain) -> frozenset[Field]:
    """The fields that some entry of the chain looks at."""
    return frozenset(field for entry in flat.entries for field in entry.box)
