"""Real traffic for the demonstration: what a public server sees, wanted and unwanted."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType

from bpfilter.demo.network import CLIENT4, CLIENT6, EXTRA4, EXTRA6, SERVER4, SERVER6, Network

TCP_SERVICES = (22, 25, 80, 443, 3306, 8080, 8443, 9100)
UDP_SERVICES = (53, 443)
_ADMIN, _MONITOR, _APPLICATION, _ABUSE, _PROXY = range(5)


@dataclass(frozen=True, slots=True)
class Probe:
    """One attempt of the client. `wanted`: whether the ruleset lets it through."""

    name: str
    kind: str
    port: int
    wanted: bool
    extra: int | None = None


PROBES = (
    Probe("HTTPS", "tcp", 443, True),
    Probe("HTTP", "tcp", 80, True),
    Probe("DNS", "udp", 53, True),
    Probe("HTTP/3", "udp", 443, True),
    Probe("ping", "icmp", 0, True),
    Probe("SSH as an administrator", "tcp", 22, True, _ADMIN),
    Probe("metrics as monitoring", "tcp", 9100, True, _MONITOR),
    Probe("metrics as anyone", "tcp", 9100, False),
    Probe("database as an application", "tcp", 3306, True, _APPLICATION),
    Probe("database as anyone", "tcp", 3306, False),
    Probe("front end as a proxy", "tcp", 8443, True, _PROXY),
    Probe("front end as anyone", "tcp", 8443, False),
    Probe("HTTPS as an abuser", "tcp", 443, False, _ABUSE),
    Probe("NetBIOS", "udp", 137, False),
    Probe("unknown port", "tcp", 4444, False),
)


class Services:
    """TCP and UDP echo services in the server's namespace, both families; a context manager."""

    def __init__(self, network: Network) -> None:
        self._stack = ExitStack()
        self._selector = selectors.DefaultSelector()
        for family in (socket.AF_INET, socket.AF_INET6):
            for port in TCP_SERVICES:
                self._listen(network, family, socket.SOCK_STREAM, port)
            for port in UDP_SERVICES:
                self._listen(network, family, socket.SOCK_DGRAM, port)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _listen(self, network: Network, family: int, kind: int, port: int) -> None:
        sock = self._stack.enter_context(network.socket(network.server, family, kind))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("", port))
        if kind == socket.SOCK_STREAM:
            sock.listen(64)
        self._selector.register(sock, selectors.EVENT_READ)

    def __enter__(self) -> Services:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        self._selector.close()
        self._stack.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(timeout=0.1):
                sock = key.fileobj
                if isinstance(sock, socket.socket):
                    with suppress(OSError):
                        _answer(sock)


def _answer(sock: socket.socket) -> None:
    if sock.type == socket.SOCK_DGRAM:
        data, sender = sock.recvfrom(2048)
        sock.sendto(data, sender)
        return
    connection, _ = sock.accept()
    with connection:
        connection.settimeout(1)
        connection.sendall(connection.recv(2048))


def run_probes(
    network: Network, probes: Sequence[Probe] = PROBES, *, patience: float = 0.15
) -> Mapping[tuple[str, str], bool]:
    """Try every probe over both families; (probe, family) → whether it was answered."""
    results = {}
    for label, family in (("IPv4", socket.AF_INET), ("IPv6", socket.AF_INET6)):
        for probe in probes:
            results[probe.name, label] = _attempt(network, family, probe, patience)
    return results


def _attempt(network: Network, family: int, probe: Probe, patience: float) -> bool:
    four = family == socket.AF_INET
    extras, plain = (EXTRA4, CLIENT4) if four else (EXTRA6, CLIENT6)
    source = plain if probe.extra is None else extras[probe.extra]
    target = SERVER4 if four else SERVER6
    if probe.kind == "icmp":
        return _ping(network, family, source, target, patience)
    kind = socket.SOCK_STREAM if probe.kind == "tcp" else socket.SOCK_DGRAM
    with network.socket(network.client, family, kind) as sock:
        sock.settimeout(patience)
        try:
            sock.bind((source, 0))
            sock.connect((target, probe.port))
            sock.sendall(b"hello")
            return sock.recv(100) == b"hello"
        except OSError:
            return False


def _ping(network: Network, family: int, source: str, target: str, patience: float) -> bool:
    four = family == socket.AF_INET
    protocol = socket.IPPROTO_ICMP if four else socket.IPPROTO_ICMPV6
    with network.socket(network.client, family, socket.SOCK_RAW, protocol) as sock:
        sock.bind((source, 0))
        sock.connect((target, 0))
        body = struct.pack("!BBHHH", 8 if four else 128, 0, 0, 0x5A5A, 1) + b"bpfilter"
        sock.send(body[:2] + struct.pack("!H", checksum(body)) + body[4:] if four else body)
        end = time.monotonic() + patience
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                data = sock.recv(200)
            except OSError:
                return False
            if data[20 if four else 0] == (0 if four else 129):
                return True
    return False


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(_words(data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _words(data: bytes) -> Iterator[int]:
    return (word for (word,) in struct.iter_unpack("!H", data))
