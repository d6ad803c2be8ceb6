"""Writing connection tracking entries through ctnetlink, as conntrack(8) does.

Layout: include/uapi/linux/netfilter/nfnetlink_conntrack.h; net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from bpfilter.errors import LabError
from bpfilter.lab.netns import Namespace
from bpfilter.ruleset.fields import Family

_NETLINK_NETFILTER = 12
_CTNETLINK_NEW = 1 << 8
_REQUEST, _ACK, _CREATE, _EXCLUSIVE = 1, 4, 0x400, 0x200
_NESTED = 0x8000
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _PROTOINFO, _TIMEOUT, _TUPLE_MASTER = 1, 2, 3, 4, 7, 14
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_STATUS_BITS = {"seen-reply": 1 << 1, "assured": 1 << 2, "confirmed": 1 << 3}
_TCP_ESTABLISHED, _BE_LIBERAL = 3, 0x08
_SECONDS = 600
_TCP = 6
_ICMP = {Family.IPV4: 1, Family.IPV6: 58}
_ICMP_KEYS = {Family.IPV4: (4, 5, 6), Family.IPV6: (7, 8, 9)}


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a connection. For ICMP: the type << 8 | code, and the identifier."""

    family: Family
    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    destination_port: int

    def reply(self) -> Tuple:
        """The other direction; ICMP echo requests and replies answer each other."""
        first, second = self.destination_port, self.source_port
        if self.protocol == _ICMP[self.family]:
            answer = _ANSWERS[self.family].get(self.source_port >> 8, self.source_port >> 8)
            first, second = answer << 8, self.destination_port
        return Tuple(self.family, self.destination, self.source, self.protocol, first, second)


_ANSWERS = {Family.IPV4: {8: 0, 0: 8, 13: 14, 14: 13}, Family.IPV6: {128: 129, 129: 128}}


@dataclass(frozen=True, slots=True)
class Connection:
    """An entry to be made. `answered`: both directions were seen; `master`: it is expected."""

    original: Tuple
    answered: bool
    master: Tuple | None = None


def create(namespace: Namespace, connections: Sequence[Connection]) -> int:
    """Make the entries; returns how many the kernel took (existing ones are left alone).

    LabError if the kernel has no ctnetlink.
    """
    with namespace.inside():
        channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    made = 0
    with channel:
        channel.bind((0, 0))
        for number, connection in enumerate(connections, 1):
            channel.send(_message(connection, number))
            (code,) = struct.unpack_from("=i", channel.recv(4096), 16)
            if code == -errno.EOPNOTSUPP or (code == -errno.EINVAL and number == 1):
                raise LabError(
                    f"connection entries cannot be made: {os.strerror(-code)}",
                    hint="load the module nf_conntrack_netlink",
                )
            made += code == 0
    return made


def _message(connection: Connection, sequence: int) -> bytes:
    original = connection.original
    status = _STATUS_BITS["confirmed"]
    if connection.answered:
        status |= _STATUS_BITS["seen-reply"] | _STATUS_BITS["assured"]
    body = (
        _nest(_TUPLE_ORIG, _tuple(original))
        + _nest(_TUPLE_REPLY, _tuple(original.reply()))
        + _attribute(_STATUS, struct.pack("!I", status))
        + _attribute(_TIMEOUT, struct.pack("!I", _SECONDS))
    )
    if original.protocol == _TCP:
        body += _nest(_PROTOINFO, _nest(1, _tcp_state()))
    if connection.master is not None:
        body += _nest(_TUPLE_MASTER, _tuple(connection.master))
    family = socket.AF_INET if original.family is Family.IPV4 else socket.AF_INET6
    payload = struct.pack("!BBH", family, 0, 0) + body
    flags = _REQUEST | _ACK | _CREATE | _EXCLUSIVE
    head = struct.pack("=IHHII", 16 + len(payload), _CTNETLINK_NEW, flags, sequence, 0)
    return head + payload


def _tcp_state() -> bytes:
    liberal = bytes((_BE_LIBERAL, _BE_LIBERAL))
    return (
        _attribute(1, bytes((_TCP_ESTABLISHED,))) + _attribute(4, liberal) + _attribute(5, liberal)
    )


def _tuple(direction: Tuple) -> bytes:
    source, destination = (1, 2) if direction.family is Family.IPV4 else (3, 4)
    ip = _attribute(source, direction.source) + _attribute(destination, direction.destination)
    proto = _attribute(1, bytes((direction.protocol,)))
    if direction.protocol == _ICMP[direction.family]:
        identifier, kind, code = _ICMP_KEYS[direction.family]
        proto += _attribute(identifier, struct.pack("!H", direction.destination_port))
        proto += _attribute(kind, bytes((direction.source_port >> 8,)))
        proto += _attribute(code, bytes((direction.source_port & 255,)))
    else:
        proto += _attribute(2, struct.pack("!H", direction.source_port))
        proto += _attribute(3, struct.pack("!H", direction.destination_port))
    return _nest(_TUPLE_IP, ip) + _nest(_TUPLE_PROTO, proto)


def _attribute(kind: int, value: bytes) -> bytes:
    head = struct.pack("=HH", 4 + len(value), kind)
    return head + value + bytes(-len(value) % 4)


def _nest(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)
