"""Mixed traffic from the peer to the firewall: real connections, and frames of many kinds."""

from __future__ import annotations

import errno
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpfilter.ruleset.fields import Family
from tests.rollout.network import FW4, FW6, Net, call, entered

OPEN_PORTS, CLOSED_PORTS = (22, 80, 443, 8080), (23, 139, 3306, 6000)
_UDP_SEGMENT = 103
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_SOURCES = 40
_FLAGS = ("S", "A", "PA", "FA", "R", "RA", "SF", "", "SA", "FPU", "SE", "U")


class Traffic:
    """All that is needed to send; a context manager."""

    def __init__(self, net: Net, seed: int) -> None:
        self._net = net
        self._random = random.Random(seed)
        self._stack = ExitStack()

    def __enter__(self) -> Traffic:
        self._mac = call(
            "ip", "-n", self._net.fw, "-br", "link", "show", "dev", "v1"
        ).split()[2]  # fmt: skip
        with entered(self._net.peer):
            self._wire = self._stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
            self._wire.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            self._wire.bind(("p1", 0))
        self._servers = [
            self._stack.enter_context(self._server(family, port))
            for family in Family
            for port in OPEN_PORTS[:2]
        ]
        self._frames = self._some_frames(1500)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def round(self, frames: int) -> None:
        """One round of everything; about so many frames besides the connections."""
        for family in Family:
            self._connections(family, 6)
            self._refused(family, 4)
            self._datagrams(family, 60)
            self._fragments(family, 6)
            self._stream(family, 200_000)
        self._extension_headers(20)
        self._send(frames)

    def _stream(self, family: Family, size: int) -> None:
        with self._connected(family, 22) as client:
            client.sendall(bytes(size))

    def _connections(self, family: Family, count: int) -> None:
        for _ in range(count):
            with self._connected(family, 80) as client:
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                assert client.recv(16) == b"hello"

    @contextmanager
    def _connected(self, family: Family, port: int) -> Iterator[socket.socket]:
        with entered(self._net.peer):
            client = socket.socket(_kind(family), socket.SOCK_STREAM)
        with client:
            client.settimeout(10)
            client.connect((_firewall(family), port))
            yield client

    def _refused(self, family: Family, count: int) -> None:
        """SYNs that are dropped or rejected."""
        for port in self._random.choices(CLOSED_PORTS, k=count):
            with entered(self._net.peer):
                client = socket.socket(_kind(family), socket.SOCK_STREAM)
            with client:
                client.setblocking(False)
                assert client.connect_ex((_firewall(family), port)) == errno.EINPROGRESS

    def _datagrams(self, family: Family, count: int) -> None:
        with self._net.udp(self._net.peer, family) as client:
            for _ in range(count):
                with suppress(ConnectionRefusedError):
                    client.sendto(b"x", (_firewall(family), self._random.choice((53, 123, 9))))
            client.setsockopt(socket.SOL_UDP, _UDP_SEGMENT, 1000)
            client.sendto(bytes(30_000), (_firewall(family), 53))

    def _fragments(self, family: Family, count: int) -> None:
        with self._net.udp(self._net.peer, family) as client:
            for _ in range(count):
                client.sendto(bytes(4000), (_firewall(family), 53))

    def _extension_headers(self, count: int) -> None:
        with self._net.udp(self._net.peer, Family.IPV6) as client:
            options = struct.pack("BBBBBBBB", 0, 0, 1, 4, 0, 0, 0, 0)
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, options)
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, options)
            for _ in range(count):
                client.sendto(b"x", (FW6, 53))

    def _send(self, count: int) -> None:
        for frame in self._random.choices(self._frames, k=count):
            try:
                self._wire.send(frame)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                time.sleep(0.001)  # the firewall's backlog is full

    def _some_frames(self, count: int) -> Sequence[bytes]:
        # From a device of no neighbour: no answer is addressed to it for long.
        ether = Ether(src=self._peer_mac(), dst=self._mac)
        return [bytes(ether / self._packet()) for _ in range(count)]

    def _peer_mac(self) -> str:
        return call("ip", "-n", self._net.peer, "-br", "link", "show", "dev", "p1").split()[2]

    def _packet(self) -> Packet:
        if self._random.random() < 0.5:
            source = f"10.99.1.{self._random.randrange(3, _SOURCES)}"
            top = IP(src=source, dst=FW4, id=self._random.randrange(1, 65536))
            top.ttl, top.tos = self._random.choice((1, 64, 255)), self._random.choice((0, 8, 184))
            return top / self._transport(ICMP(type=8))
        top = IPv6(src=f"fd99::{self._random.randrange(3, _SOURCES):x}", dst=FW6)
        top.hlim, top.fl = self._random.choice((1, 64, 255)), self._random.randrange(1 << 20)
        extensions: Callable[[], Packet] = self._random.choice(
            (Raw, Raw, Raw, Raw, Raw, Raw, IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt)
        )
        if extensions is not Raw:
            top = top / extensions()
        if self._random.random() < 0.02:
            top = IPv6(src=top.src, dst=top.dst) / IPv6ExtHdrFragment(
                id=self._random.randrange(1 << 32)
            )
        elif self._random.random() < 0.02:
            top = IPv6(src=top.src, dst=top.dst) / IPv6ExtHdrRouting(segleft=0)
        return top / self._transport(ICMPv6EchoRequest(id=self._random.randrange(65536)))

    def _transport(self, echo: Packet) -> Packet:
        sport = self._random.randrange(1024, 65536)
        port = self._random.choice((*OPEN_PORTS, *CLOSED_PORTS, 53, 123, 9, 5060, 33434))
        load = Raw(bytes(self._random.randrange(0, 200)))
        kind = self._random.random()
        if kind < 0.15:
            return echo / load
        if kind < 0.55:
            return UDP(sport=sport, dport=port) / load
        flags = self._random.choice(_FLAGS)
        return TCP(sport=sport, dport=port, flags=flags, seq=self._random.randrange(1 << 32)) / load

    @contextmanager
    def _server(self, family: Family, port: int) -> Iterator[None]:
        """Echoes what it reads until it is closed."""
        with entered(self._net.fw):
            listener = socket.create_server(
                ("", port), family=_kind(family), backlog=64, dualstack_ipv6=False
            )
        thread = threading.Thread(target=_serve, args=(listener,), daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client, suppress(OSError):
            client.settimeout(5)
            while data := client.recv(1 << 16):
                if len(data) < 16:
                    client.sendall(data)


def _kind(family: Family) -> socket.AddressFamily:
    return socket.AF_INET if family is Family.IPV4 else socket.AF_INET6


def _firewall(family: Family) -> str:
    return FW4 if family is Family.IPV4 else FW6
