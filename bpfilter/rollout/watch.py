"""Watches the host for what a deciding program rests on and no generation of the rules shows.

The kernel tells by netlink of links, addresses, local routes, routing rules, tc filters, nftables
transactions and IPsec (linux/rtnetlink.h, nfnetlink.h, xfrm.h); bridge sysctls and tcx programs
have no such messages and are looked at whenever `drain` is called. Nothing here changes the host.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from bpfilter.rollout.attached import tcx_revision

_ROUTE, _XFRM, _NETFILTER = 0, 6, 12  # NETLINK_*
_RTNL_GROUPS = (1, 4, 5, 7, 8, 9, 11, 19)
"""RTNLGRP_LINK, TC, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE."""
_XFRM_GROUPS, _NFT_GROUPS = (3, 4), (7,)  # XFRMNLGRP_SA and _POLICY, NFNLGRP_NFTABLES
_BUFFER = 1 << 20
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK_HEAD, _IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER = 16, 3, 5, 10
_TABLE_OFFSET, _TABLE_LOCAL = 4, 255
_SWITCHES = tuple(Path(f"/proc/sys/net/bridge/bridge-nf-call-ip{v}tables") for v in ("", "6"))


class Kind(StrEnum):
    """What changed."""

    LINK = "link"  # an interface came, went, was renamed, or has another master
    ADDRESS = "address"  # an address of the host, or a route of the local table
    RULE = "rule"  # ip rule
    TC = "tc"  # filters, or tcx programs at watched interfaces
    NFT = "nft"  # a transaction of nf_tables, whoever made it
    XFRM = "xfrm"  # IPsec states or policies
    BRIDGE = "bridge"  # whether bridges pass frames to iptables


_KINDS = {
    16: Kind.LINK, 17: Kind.LINK, 20: Kind.ADDRESS, 21: Kind.ADDRESS, 24: Kind.ADDRESS,
    25: Kind.ADDRESS, 32: Kind.RULE, 33: Kind.RULE, 36: Kind.TC, 37: Kind.TC, 44: Kind.TC,
    45: Kind.TC,
}  # fmt: skip
_ROUTES = (24, 25)


@dataclass(frozen=True, slots=True)
class Event:
    """One change. `at`: when it was read, CLOCK_MONOTONIC seconds.

    For links `index` and `name` are the interface's, `below` its master's and lower device's
    indexes; for TC `index` is the interface's. Zero and empty elsewhere, and also after messages
    were lost: then anything of the kind may have changed.
    """

    kind: Kind
    at: float
    index: int = 0
    name: str = ""
    below: tuple[int, ...] = ()

    def concerns(self, indexes: Iterable[int]) -> bool:
        """Whether one of these interfaces may be meant."""
        return not self.index or not {self.index, *self.below}.isdisjoint(indexes)


class Watcher:
    """Watches the network namespace of the thread that made it; used by that thread."""

    def __init__(self) -> None:
        """OSError if the kernel refuses routing messages; other sources may be absent."""
        self._stack = ExitStack()
        self._route = self._open(_ROUTE, _RTNL_GROUPS)
        self._others: dict[Kind, socket.socket] = {}
        for kind, protocol, groups in (
            (Kind.XFRM, _XFRM, _XFRM_GROUPS),
            (Kind.NFT, _NETFILTER, _NFT_GROUPS),
        ):
            try:
                self._others[kind] = self._open(protocol, groups)
            except OSError as error:
                if error.errno not in (errno.EPROTONOSUPPORT, errno.ENOENT):
                    self._stack.close()
                    raise
        self._switches = _read_switches()
        self._revisions: dict[int, int | None] = {}

    def _open(self, protocol: int, groups: Iterable[int]) -> socket.socket:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
        self._stack.enter_context(opened)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        opened.bind((0, sum(1 << (group - 1) for group in groups)))
        return opened

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching."""
        self._stack.close()

    def watch(self, indexes: Iterable[int]) -> None:
        """The interfaces whose tcx programs are looked at; changes count from the first call on."""
        known = self._revisions
        self._revisions = {
            index: known[index] if index in known else tcx_revision(index) for index in indexes
        }

    @property
    def files(self) -> tuple[int, ...]:
        """Descriptors that can be read as soon as the kernel has told something."""
        return tuple(source.fileno() for source in (self._route, *self._others.values()))

    def drain(self) -> tuple[Event, ...]:
        """What changed since the last call, each change once."""
        found: dict[Event, None] = {}
        now = time.monotonic()
        for event in (*self._routing(now), *self._other(now), *self._looked_at(now)):
            found[event] = None
        return tuple(found)

    def _routing(self, now: float) -> Iterator[Event]:
        for message in _messages(self._route):
            if message is None:
                for kind in (Kind.LINK, Kind.ADDRESS, Kind.RULE, Kind.TC):
                    yield Event(kind, now)
            else:
                yield from _events(message, now)

    def _other(self, now: float) -> Iterator[Event]:
        for kind, source in self._others.items():
            # A transaction may have ten thousand messages; that there was one is enough.
            if sum(1 for _ in _messages(source)):
                yield Event(kind, now)

    def _looked_at(self, now: float) -> Iterator[Event]:
        switches = _read_switches()
        if switches != self._switches:
            self._switches = switches
            yield Event(Kind.BRIDGE, now)
        for index, before in self._revisions.items():
            revision = tcx_revision(index)
            if revision != before:
                self._revisions[index] = revision
                yield Event(Kind.TC, now, index)


def _read_switches() -> tuple[str | None, ...]:
    return tuple(path.read_text() if path.exists() else None for path in _SWITCHES)


def _messages(source: socket.socket) -> Iterator[bytes | None]:
    """Datagrams that wait; None where the kernel says that some were lost."""
    while True:
        try:
            yield source.recv(_BUFFER)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield None


def _events(datagram: bytes, now: float) -> Iterator[Event]:
    """The events in one datagram of routing messages."""
    start = 0
    while start + _HEADER.size <= len(datagram):
        length, number, *_ = _HEADER.unpack_from(datagram, start)
        if length < _HEADER.size:
            return
        body = datagram[start + _HEADER.size : start + length]
        start += (length + 3) & ~3
        kind = _KINDS.get(number)
        if kind is None or (number in _ROUTES and body[_TABLE_OFFSET] != _TABLE_LOCAL):
            continue
        if kind is Kind.LINK:
            yield _link(body, now)
        elif kind is Kind.TC:
            yield Event(kind, now, struct.unpack_from("=i", body, 4)[0])
        else:
            yield Event(kind, now)


def _link(body: bytes, now: float) -> Event:
    """struct ifinfomsg, then attributes."""
    index = struct.unpack_from("=i", body, 4)[0]
    name, below = "", []
    start = _LINK_HEAD
    while start + _ATTRIBUTE.size <= len(body):
        length, number = _ATTRIBUTE.unpack_from(body, start)
        value = body[start + _ATTRIBUTE.size : start + length]
        if number == _IFLA_IFNAME:
            name = value.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif number in (_IFLA_LINK, _IFLA_MASTER):
            below.append(struct.unpack("=I", value)[0])
        start += max((length + 3) & ~3, _ATTRIBUTE.size)
    return Event(Kind.LINK, now, index, name, tuple(below))
