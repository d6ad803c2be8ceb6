"""Senders and receivers: light, continuous, mixed, and every packet entered in the book.

What passed filter is what raw sockets behind it are given: they see a packet before its protocol
does, so no port needs a listener and no checksum needs to be right. Real TCP conversations are the
kernel's own; a tap at the sender reads what it put on the wire.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator

from tests.chaos import packets
from tests.chaos.book import FLIGHT, OUTPUT, Kind
from tests.chaos.local import Local
from tests.chaos.namespaces import entered
from tests.chaos.packets import TCP, UDP, Way
from tests.chaos.rules import CHANGING, name_of
from tests.chaos.world import World

_RAW = {4: (UDP, TCP, packets.ICMP), 6: (UDP, TCP, packets.ICMPV6)}
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_BUFFER = 1 << 23
_BURST_SECONDS = 0.02
LISTENING, DEAF = 1001, 2001
_FLAWS = {False: ("a bad checksum", "impossible flags"), True: ("impossible flags",)}
"""What conntrack calls INVALID in a packet, by whether it is the firewall's own (whose checksum
it takes for right)."""
_CLIENT_PORTS = range(50_000, 60_000)
_SOL_PACKET, _PACKET_STATISTICS, _RCVBUFFORCE = 263, 6, 33
_ONLY_ASKED = {
    packets.ICMP: [(255, 1, struct.pack("=I", ~(1 << 8 | 1 << 13) & 0xFFFFFFFF))],
    packets.ICMPV6: [(58, 1, struct.pack("=8I", *[0xFFFFFFFF] * 4, ~(1 | 1 << 11) & 0xFFFFFFFF,
                                         *[0xFFFFFFFF] * 3))],
}  # fmt: skip
"""ICMP_FILTER (raw(7)), ICMP6_FILTER (RFC 3542): no answers, which quote what they answer."""
_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER: close sends a RST at once, so that no retransmission follows later."""


def _raw(namespace: str, family: int, protocol: int) -> socket.socket:
    with entered(namespace):
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        opened = socket.socket(kind, socket.SOCK_RAW, protocol)
    opened.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
    for level, option, blocked in _ONLY_ASKED.get(protocol, ()):
        opened.setsockopt(level, option, blocked)
    opened.setblocking(False)
    return opened


class Traffic:
    """Packets from the peer at about `rate` a second, while the context lasts."""

    def __init__(self, world: World, rate: int, seed: int) -> None:
        self._world, self._rate = world, rate
        self._rng = random.Random(seed)
        self._ending = threading.Event()
        self._flowing = threading.Event()
        self._flowing.set()
        self._talking = threading.Event()
        self._talking.set()
        self._at_rest = threading.Event()
        self._silent = threading.Event()
        self._idle = threading.Event()
        self._sport = 10_000
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._wire_keys: dict[tuple[object, ...], deque[int]] = {}
        self._early: dict[tuple[object, ...], int] = {}
        self.trouble: list[str] = []
        self.conversations = 0

    def __enter__(self) -> Traffic:
        world = self._world
        self._selector = selectors.DefaultSelector()
        for chain, namespace in world.receivers.items():
            for family, protocols in _RAW.items():
                for protocol in protocols:
                    self._listen(_raw(namespace, family, protocol), (chain, family, protocol))
        with entered(world.peer):
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._wire.bind(("p1", 0))
            self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            self._tap.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
            self._tap.bind(("p1", 3))
        self._tap.setblocking(False)
        self._sockets.append(self._wire)
        self._listen(self._tap, None)
        self._servers = list(self._serving())
        self.local = Local(world)
        for work in (self._send, self._receive, self._converse, self._answer):
            thread = threading.Thread(target=self._guarded, args=(work,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()
        self._ending.set()
        self.resume()
        for thread in self._threads:
            thread.join(10)
        self._world.book.settle(everything=True)
        if lost := struct.unpack("II", self._tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]:
            self.trouble.append(f"the tap lost {lost} packets")
        for opened in (*self._sockets, *self._servers):
            opened.close()
        self.local.close()
        self._selector.close()

    def pause(self) -> None:
        """Send nothing more, and wait until all that was sent has been judged and read."""
        self._flowing.clear()
        self.hush()
        self._at_rest.wait(5)
        self._idle.wait(5)
        time.sleep(2 * FLIGHT / 1e9)

    def hush(self) -> None:
        """End the conversations, not the other packets.

        While rules drop some segments of a connection, what conntrack says of the next ones is
        not known by construction.
        """
        self._talking.clear()
        self._silent.wait(5)

    def resume(self) -> None:
        self._talking.set()
        self._flowing.set()

    def _listen(self, opened: socket.socket, what: object) -> None:
        self._sockets.append(opened)
        self._selector.register(opened, selectors.EVENT_READ, what)

    def _guarded(self, work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except Exception as error:
            self.trouble.append(f"{getattr(work, '__name__', work)} ended: {error!r}")
            for event in (self._at_rest, self._silent, self._idle):
                event.set()

    # Crafted packets.

    def _send(self) -> None:
        burst = max(1, round(self._rate * _BURST_SECONDS))
        while not self._ending.is_set():
            if not self._flowing.is_set():
                self._at_rest.set()
                self._flowing.wait(1)
                continue
            self._at_rest.clear()
            for _ in range(burst):
                self._one()
            self._ending.wait(_BURST_SECONDS)

    def _one(self) -> None:
        chain = self._rng.choice(list(self._world.receivers))
        family = self._rng.choice((4, 6))
        number = self._world.book.number()
        way = self._rng.choice(self._world.ways(chain, family))
        name, sent = self._make(chain, way, number)
        self._emit(number, Kind(chain, family, name), way, sent)

    def probe(self, chain: str, family: int, port: int, name: str) -> int:
        """Send one UDP packet now; its number, whose arrival the book then knows."""
        number, way = self._world.book.number(), self._world.way(chain, family)
        self._world.book.awaited(number)
        body = packets.udp(way, 9_999, port, packets.stamp(number))
        self._emit(number, Kind(chain, family, name), way, [packets.ip(way, UDP, body)])
        return number

    def _emit(self, number: int, kind: Kind, way: Way, sent: list[bytes]) -> None:
        world, family = self._world, kind.family
        if kind.chain == OUTPUT:
            try:
                self.local.send(number, kind, way, sent)
            except OSError as error:
                self.trouble.append(f"the firewall could not send: {error}")
            return
        world.book.sending(number, kind)
        head = world.macs["v1"] + world.macs["p1"] + struct.pack("!H", _ETHERTYPE[family])
        try:
            for packet in sent:
                self._wire.send(head + packet)
        except OSError as error:
            self.trouble.append(f"could not send: {error}")
            world.book.unsent(number)
        world.book.sent(number)

    def _make(self, chain: str, way: Way, number: int) -> tuple[str, list[bytes]]:
        """A random packet: the name of its kind, and its frames' contents."""
        rng, family = self._rng, 6 if way.v6 else 4
        data = packets.stamp(number)
        self._sport = 10_000 + (self._sport - 9_999) % 30_000
        sport, good = self._sport, rng.random() < 0.5
        verdict = "accepted" if good else "dropped"
        port = rng.randrange(1010, 1800) if good else rng.randrange(2010, 2800)
        form = rng.randrange(12)
        if form < 4:
            port = rng.choice(CHANGING)
            return name_of(port), [packets.ip(way, UDP, packets.udp(way, sport, port, data))]
        if form < 6:
            return f"udp {verdict}", [packets.ip(way, UDP, packets.udp(way, sport, port, data))]
        if form == 6:
            body = packets.udp(way, sport, port, data)
            return f"udp with options {verdict}", [packets.ip(way, UDP, body, odd=True)]
        if form == 7:
            body = packets.udp(way, sport, port, data + bytes(20))
            parts = packets.fragments(way, UDP, body, number)
            return f"udp in fragments {verdict}", list(parts)
        if form == 8:
            port = rng.randrange(*((1800, 1900) if good else (2800, 2900)))
            name = "udp by a dynamic rule accepted" if good else "udp rejected"
            return name, [packets.ip(way, UDP, packets.udp(way, sport, port, data))]
        if form < 11:
            flaw = rng.choice(["", "", "", "", *_FLAWS[chain == OUTPUT]])
            flags = packets.SYN | (packets.FIN if "flags" in flaw else 0)
            bad = "checksum" in flaw
            body = packets.tcp(way, sport, port, data, sequence=number & 0xFFFFFFFF,
                               bad=bad, flags=flags)  # fmt: skip
            return (f"tcp with {flaw} dropped" if flaw else f"tcp {verdict}",
                    [packets.ip(way, TCP, body)])  # fmt: skip
        if family == 6:
            kind, protocol = 128 if good else 139, packets.ICMPV6
        else:
            kind, protocol = 8 if good else 13, packets.ICMP
        name = "echo request accepted" if good else "icmp of another type dropped"
        return name, [packets.ip(way, protocol, packets.icmp(way, kind, data, number))]

    # What arrives.

    def _receive(self) -> None:
        settled = time.monotonic()
        while not self._ending.is_set():
            events = self._selector.select(0.2)
            for key, _ in events:
                with contextlib.suppress(BlockingIOError):
                    for _ in range(64):
                        self._take(key.fileobj, key.data)  # type: ignore[arg-type]
            if not events and not self._flowing.is_set():
                self._idle.set()
            elif self._flowing.is_set():
                self._idle.clear()
            if time.monotonic() - settled > 1:
                self._world.book.settle()
                settled = time.monotonic()

    def _take(self, opened: socket.socket, what: tuple[str, int, int] | None) -> None:
        if what is None:
            data, (_, protocol, kind, *_) = opened.recvfrom(2048)
            if kind == socket.PACKET_OUTGOING and protocol in _ETHERTYPE.values():
                self._left(data, 4 if protocol == _ETHERTYPE[4] else 6)
            return
        data = opened.recv(2048)
        number = packets.numbered(data)
        if number is not None:
            self._world.book.received(number)
        elif what[2] == TCP:
            chain, family, _ = what
            body = data[(data[0] & 15) * 4 :] if family == 4 else data
            self._arrived((chain, family, body[:14]))

    def _left(self, data: bytes, family: int) -> None:
        """The peer's own TCP put a segment on the wire."""
        if family == 4:
            if data[9] != TCP:
                return
            destination, body = data[16:20], data[(data[0] & 15) * 4 :]
        else:
            if data[6] != TCP:
                return
            destination, body = data[24:40], data[40:]
        sport, dport = struct.unpack_from("!HH", body)
        if sport not in _CLIENT_PORTS or dport not in (LISTENING, DEAF):
            return
        chain = next(c for c in self._world.receivers
                     if self._world.way(c, family).destination == destination)  # fmt: skip
        book, key = self._world.book, (chain, family, body[:14])
        number = book.number()
        kind = Kind(chain, family, "tcp accepted" if dport == LISTENING else "tcp dropped")
        book.sending(number, kind, time.monotonic_ns() - FLIGHT)
        book.sent(number)
        if self._early.get(key, 0):
            self._early[key] -= 1
            book.received(number)
        else:
            self._wire_keys.setdefault(key, deque()).append(number)
            if len(self._wire_keys) > 10_000:
                del self._wire_keys[next(iter(self._wire_keys))]

    def _arrived(self, key: tuple[str, int, bytes]) -> None:
        sport, dport = struct.unpack_from("!HH", key[2])
        if sport not in _CLIENT_PORTS or dport not in (LISTENING, DEAF):
            return
        waiting = self._wire_keys.get(key)
        if waiting:
            self._world.book.received(waiting.popleft())
            if not waiting:
                del self._wire_keys[key]
        else:
            self._early[key] = self._early.get(key, 0) + 1

    # Real TCP.

    def _serving(self) -> Iterator[socket.socket]:
        for namespace in self._world.receivers.values():
            with entered(namespace):
                server = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("::", LISTENING))
            server.listen(64)
            server.setblocking(False)
            yield server

    def _answer(self) -> None:
        """Echo what comes, on every connection."""
        with selectors.DefaultSelector() as waiting:
            for server in self._servers:
                waiting.register(server, selectors.EVENT_READ, True)
            while not self._ending.is_set():
                for key, _ in waiting.select(0.2):
                    with contextlib.suppress(OSError):
                        if key.data:
                            waiting.register(key.fileobj.accept()[0], selectors.EVENT_READ, False)  # type: ignore[union-attr]
                            continue
                        self._echo(waiting, key.fileobj)  # type: ignore[arg-type]
            for key in list(waiting.get_map().values()):
                if not key.data:
                    key.fileobj.close()  # type: ignore[union-attr]

    def _echo(self, waiting: selectors.BaseSelector, opened: socket.socket) -> None:
        try:
            data = opened.recv(4096)
        except OSError:
            data = b""
        if data:
            opened.send(data)
        else:
            waiting.unregister(opened)
            opened.close()

    def _converse(self) -> None:
        rng = random.Random(1)
        ports = iter(_CLIENT_PORTS)
        while not self._ending.is_set():
            if not self._talking.is_set():
                self._silent.set()
                self._talking.wait(1)
                continue
            self._silent.clear()
            try:
                sport = next(ports)
            except StopIteration:
                ports = iter(_CLIENT_PORTS)
                continue
            chain, family = rng.choice(list(self._world.receivers)), rng.choice((4, 6))
            with contextlib.suppress(OSError):
                if chain == OUTPUT:
                    self._talk_ourselves(family, rng)
                else:
                    self._talk(self._world.address(chain, family), family, sport, rng)
            self._ending.wait(0.05)

    def _talk_ourselves(self, family: int, rng: random.Random) -> None:
        """The firewall calls."""
        deaf = rng.random() < 0.3
        kind = Kind(OUTPUT, family, f"tcp {'dropped' if deaf else 'accepted'}")
        way = rng.choice(self._world.ways(OUTPUT, family))
        self.conversations += self.local.talk(way, DEAF if deaf else LISTENING, kind, rng)

    def _talk(self, address: str, family: int, sport: int, rng: random.Random) -> None:
        with entered(self._world.peer):
            kind = socket.AF_INET if family == 4 else socket.AF_INET6
            client = socket.socket(kind, socket.SOCK_STREAM)
        deaf = rng.random() < 0.3
        with client:
            client.settimeout(0.1 if deaf else 2)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            client.bind(("", sport))
            client.connect((address, DEAF if deaf else LISTENING))
            for _ in range(rng.randrange(1, 6)):
                client.send(b"x" * rng.randrange(1, 1000))
                client.recv(4096)
            client.shutdown(socket.SHUT_WR)
            client.recv(4096)
            self.conversations += 1
