"""Bringing a packet before the rules in a wanted connection state.

Nothing is sent for it: entries are written into the connection table, so the ruleset under test has
no say. What state the packet really has is what the oracle observes; a wish may fail.

- ESTABLISHED: an entry that was answered. RELATED: an entry expected by another one, or for ICMP
  errors an entry of the packet that they quote.
- INVALID: a wrong transport checksum (net/netfilter/nf_conntrack_proto_*.c).
- UNTRACKED: a number from `UNTRACKED_NUMBERS`; the oracle's own nft rule exempts those.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bpfilter.compiler.walk import Packet
from bpfilter.lab.conntrack import Connection, Tuple
from bpfilter.lab.packets import Shape, addresses, ip_header
from bpfilter.ruleset.fields import Family, Field, State

UNTRACKED_NUMBERS = (0xC000, 0xFFFF)
TRACKED_NUMBERS = (1, 0xBFFF)
_ICMP = {Family.IPV4: 1, Family.IPV6: 58}
_ERRORS = {Family.IPV4: (3, 4, 5, 11, 12), Family.IPV6: (1, 2, 3, 4)}
_REQUESTS = {Family.IPV4: (8, 13, 15, 17), Family.IPV6: (128, 139)}
_TCP, _UDP = 6, 17
_BEGINNING_FLAGS = (0x02, 0x22, 0x10, 0x30)
"""SYN or ACK, with URG or without."""
_SUMMED = (6, 17, 33, 132, 136)


@dataclass(frozen=True, slots=True)
class Stimulus:
    """A packet to be sent, with its number and the connection state it should have."""

    number: int
    packet: Packet
    wanted: State
    shape: Shape = Shape.PLAIN


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a stimulus needs: entries made first, and how its frame is encoded."""

    connections: tuple[Connection, ...] = ()
    corrupt: bool = False
    quoted: bytes = b""


def prepare(stimulus: Stimulus, family: Family) -> Preparation:
    """How to send the packet so that it gets the wanted state, as far as that is possible."""
    packet = stimulus.packet
    protocol = packet[Field.PROTOCOL]
    icmp = protocol == _ICMP[family]
    kind = packet[Field.ICMP_TYPE] >> 8
    if stimulus.wanted is State.INVALID:
        return Preparation(corrupt=icmp or protocol in _SUMMED)
    if stimulus.wanted is State.RELATED and icmp and kind in _ERRORS[family]:
        return _quoting(stimulus, family)
    if stimulus.wanted is State.ESTABLISHED:
        return Preparation((Connection(_tuple(stimulus, family), answered=True),))
    if stimulus.wanted is State.RELATED:
        master = master_of(family)
        expected = Connection(_tuple(stimulus, family), answered=False, master=master.original)
        return Preparation((expected,))
    return Preparation()


def likely_state(packet: Packet, states: State, family: Family) -> State:
    """The one of these states that the packet can best be brought into.

    NEW where conntrack begins a connection with such a packet (tcp_new and the flags table of
    net/netfilter/nf_conntrack_proto_tcp.c; no ICMP error does), else UNTRACKED, which any can be.
    """
    order = [State.UNTRACKED, State.ESTABLISHED, State.RELATED, State.INVALID, State.NEW]
    if _begins(packet, family):
        order.insert(0, State.NEW)
    return next(state for state in order if state & states)


def _begins(packet: Packet, family: Family) -> bool:
    protocol = packet[Field.PROTOCOL]
    if protocol == _ICMP[family]:
        return packet[Field.ICMP_TYPE] >> 8 in _REQUESTS[family]
    # PSH, ECE and CWR play no part.
    return protocol != _TCP or packet[Field.TCP_FLAGS] & 0x37 in _BEGINNING_FLAGS


def master_of(family: Family) -> Connection:
    """The connection that expects all the RELATED ones."""
    width = 4 if family is Family.IPV4 else 16
    source, destination = b"\xc6" * width, b"\xc7" * width
    return Connection(Tuple(family, source, destination, _UDP, 9, 9), answered=True)


def _tuple(stimulus: Stimulus, family: Family) -> Tuple:
    packet = stimulus.packet
    source, destination = addresses(packet, family)
    protocol = packet[Field.PROTOCOL]
    if protocol != _ICMP[family]:
        ports = packet[Field.SOURCE_PORT], packet[Field.DESTINATION_PORT]
        return Tuple(family, source, destination, protocol, *ports)
    this = Tuple(family, source, destination, protocol, packet[Field.ICMP_TYPE], stimulus.number)
    # An entry begins with a request: a reply belongs to the other direction.
    replies = (0, 14, 16, 18) if family is Family.IPV4 else (129, 140)
    return this.reply() if packet[Field.ICMP_TYPE] >> 8 in replies else this


def _quoting(stimulus: Stimulus, family: Family) -> Preparation:
    """An ICMP error about a datagram that its destination once sent."""
    source, destination = addresses(stimulus.packet, family)
    quoted = Tuple(family, destination, source, _UDP, stimulus.number, 53)
    header = ip_header(family, destination, source, _UDP, 8)
    udp = struct.pack("!HHHH", stimulus.number, 53, 8, 0)
    return Preparation((Connection(quoted, answered=True),), quoted=header + udp)
