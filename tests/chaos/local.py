"""What the firewall itself sends: through OUTPUT, whose verdict the sender is told at once.

Where filter drops or rejects, sending gives EPERM; nothing else may. Crafted packets go by raw
sockets with a header of their own, some datagrams by ordinary sockets, and connections are the
kernel's.
"""

from __future__ import annotations

import itertools
import random
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack

from tests.chaos.book import OUTPUT, Kind
from tests.chaos.namespaces import entered
from tests.chaos.packets import UDP, Way, ip, stamp, udp
from tests.chaos.rules import BARRED
from tests.chaos.world import World

CLIENT_PORTS = range(45_000, 50_000)
_ABORT = struct.pack("ii", 1, 0)
_SOCKETS = 4
_PROBES = 10
_LARGE = 3000
"""Bytes that make a datagram go out in fragments, which are made behind the filter."""


class Local:
    """Sockets in the firewall's namespace; `send` may be used by several threads.

    `barred`: datagrams refused for which the ruleset has a rule in OUTPUT alone.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._ports = itertools.cycle(CLIENT_PORTS)
        self._stack = ExitStack()
        self._raw: dict[int, socket.socket] = {}
        self._udp: dict[int, list[socket.socket]] = {}
        self.barred = 0
        with entered(world.fw):
            for family, domain in ((4, socket.AF_INET), (6, socket.AF_INET6)):
                self._raw[family] = self._open(domain, socket.SOCK_RAW, socket.IPPROTO_RAW)
                self._udp[family] = [
                    self._open(domain, socket.SOCK_DGRAM, 0) for _ in range(_SOCKETS)
                ]

    def close(self) -> None:
        self._stack.close()

    def _open(self, domain: int, kind: int, protocol: int) -> socket.socket:
        return self._stack.enter_context(socket.socket(domain, kind, protocol))

    def send(self, number: int, kind: Kind, way: Way, parts: Sequence[bytes]) -> None:
        """Send a packet, in several fragments perhaps, and enter in the book what came of it.

        OSError if it could not be sent, for another reason than a filter.
        """
        book, datagram = self._world.book, _datagram(parts)
        ordinary = datagram is not None and number % 3 > 0
        book.sending(number, kind)
        try:
            if datagram is not None and ordinary:
                port, payload = datagram
                payload += bytes(_LARGE if number % 12 == 1 else 0)
                sockets = self._udp[kind.family]
                sockets[number % len(sockets)].sendto(payload, _to(way, port))
            else:
                for part in parts:
                    self._raw[kind.family].sendto(part, _to(way))
        except PermissionError:
            book.refused(number)
            self.barred += datagram is not None and datagram[0] in BARRED
        except OSError:
            book.unsent(number)
            raise
        book.sent(number)

    def talk(self, way: Way, port: int, kind: Kind, rng: random.Random) -> bool:
        """One connection to where there is a listener, or nobody: judged by whether it reached.

        A lone SYN that is dropped is sent again, so what this says of single packets is little;
        it is there for what conntrack and the kernel's TCP make of them. Returns whether data
        went to and fro.
        """
        book, number = self._world.book, self._world.book.number()
        with entered(self._world.fw):
            domain = socket.AF_INET if kind.family == 4 else socket.AF_INET6
            client = socket.socket(domain, socket.SOCK_STREAM)
        with client:
            client.settimeout(2 if kind.name.endswith("accepted") else 0.1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            client.bind(("", next(self._ports)))
            book.sending(number, kind)
            try:
                client.connect(_to(way, port))
            except ConnectionRefusedError:
                book.received(number)
                return False
            except OSError:
                book.refused(number)
                return False
            book.received(number)
            for _ in range(rng.randrange(1, 6)):
                client.send(b"x" * rng.randrange(1, 1000))
                client.recv(4096)
            client.shutdown(socket.SHUT_WR)
            client.recv(4096)
        return True


def refused_early(world: World, local: Local) -> int:
    """Of some datagrams that OUTPUT has a rule for, so many were refused to the sender with no
    rule of iptables counting them: they ended in the program."""
    before = local.barred, world.barred()
    for family, port in itertools.product((4, 6), BARRED[:_PROBES]):
        number, way = world.book.number(), world.way(OUTPUT, family)
        packet = ip(way, UDP, udp(way, 9_999, port, stamp(number)))
        local.send(number, Kind(OUTPUT, family, "udp dropped"), way, [packet])
    return max(local.barred - before[0] - (world.barred() - before[1]), 0)


def _datagram(parts: Sequence[bytes]) -> tuple[int, bytes] | None:
    """The port and payload of a plain packet of UDP; None for anything else."""
    whole = parts[0]
    six = whole[0] >> 4 == 6
    at = 40 if six else 20
    if len(parts) > 1 or whole[6 if six else 9] != UDP or not (six or whole[0] == 0x45):
        return None
    return struct.unpack_from("!H", whole, at + 2)[0], whole[at + 8 :]


def _to(way: Way, port: int = 0) -> tuple[str, int]:
    family = socket.AF_INET6 if way.v6 else socket.AF_INET
    return socket.inet_ntop(family, way.destination), port
