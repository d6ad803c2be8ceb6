"""A router between a client and a container network, in three network namespaces of their own."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import threading
from contextlib import suppress

from bpfilter.errors import BpfilterError
from bpfilter.rollout.teardown import teardown
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.rollout.network import call, entered, run

_COUNT = itertools.count()
CLIENT = {Family.IPV4: "10.91.1.2", Family.IPV6: "fd91:1::2"}
ROUTER = {Family.IPV4: "10.91.1.1", Family.IPV6: "fd91:1::1"}
BRIDGE = {Family.IPV4: "10.91.2.1", Family.IPV6: "fd91:2::1"}
CONTAINER = {Family.IPV4: "10.91.2.2", Family.IPV6: "fd91:2::2"}
_LENGTH = {Family.IPV4: 24, Family.IPV6: 64}


class Router:
    """`router` has r0 towards the client's c0, and br0 with the container's eth0 on a port."""

    def __init__(self) -> None:
        tag = f"bpfo{os.getpid()}x{next(_COUNT)}"
        self.router, self.client, self.container = f"{tag}r", f"{tag}c", f"{tag}d"
        self._names = (self.router, self.client, self.container)

    def __enter__(self) -> Router:
        try:
            for name in self._names:
                call("ip", "netns", "add", name)
                call("ip", "-n", name, "link", "set", "lo", "up")
                self.sysctl(name, "net.ipv6.conf.default.accept_dad=0")
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, BpfilterError), entered(self.router):
            teardown()
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def sysctl(self, name: str, *assignments: str) -> None:
        call("ip", "netns", "exec", name, "sysctl", "-qw", *assignments)

    def ip(self, name: str, *words: str) -> str:
        return call("ip", "-n", name, *words)

    def link(self, device: str, other: str, device2: str) -> None:
        """A veth pair between the router and another namespace."""
        self.ip(self.router, "link", "add", device, "type", "veth", "peer", "name", device2,
                "netns", other)  # fmt: skip

    def address(self, name: str, device: str, addresses: dict[Family, str]) -> None:
        for family, address in addresses.items():
            nodad = ("nodad",) if family is Family.IPV6 else ()
            prefix = f"{address}/{_LENGTH[family]}"
            self.ip(name, "addr", "add", prefix, "dev", device, *nodad)

    def _build(self) -> None:
        self.link("r0", self.client, "c0")
        self.link("d0", self.container, "eth0")
        self.ip(self.router, "link", "add", "br0", "type", "bridge")
        self.ip(self.router, "link", "set", "d0", "master", "br0")
        for name, device in (
            (self.router, "r0"), (self.router, "d0"), (self.router, "br0"),
            (self.client, "c0"), (self.container, "eth0"),
        ):  # fmt: skip
            self.ip(name, "link", "set", device, "up")
        self.address(self.router, "r0", ROUTER)
        self.address(self.router, "br0", BRIDGE)
        self.address(self.client, "c0", CLIENT)
        self.address(self.container, "eth0", CONTAINER)
        for family in Family:
            version = "-4" if family is Family.IPV4 else "-6"
            for name, via in ((self.client, ROUTER), (self.container, BRIDGE)):
                call("ip", version, "-n", name, "route", "add", "default", "via", via[family])
        self.sysctl(
            self.router, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.r0.send_redirects=0", "net.ipv4.conf.all.send_redirects=0",
        )  # fmt: skip
        for version in ("", "6"):
            run("ip", "netns", "exec", self.router, "sysctl", "-qw",
                f"net.bridge.bridge-nf-call-ip{version}tables=0")  # fmt: skip

    def restore(self, backend: Backend, family: Family, text: str) -> None:
        with entered(self.router):
            call(f"{_prefix(family)}-{backend}-restore", data=text)

    def packets(self, backend: Backend, family: Family, word: str) -> int:
        """The sum of packet counters of the filter rules that have a word."""
        with entered(self.router):
            saved = call(f"{_prefix(family)}-{backend}-save", "-c", "-t", "filter")
        lines = [line for line in saved.splitlines() if word in line and line.startswith("[")]
        return sum(int(line[1:].split(":")[0]) for line in lines)

    def tcp(self, source: str, address: str, port: int, family: Family, wait: float) -> bool:
        """Whether a TCP connection gets the echo of what it sends, both ways."""
        with entered(source):
            sock = socket.socket(_af(family))
        with sock:
            sock.settimeout(wait)
            try:
                sock.connect((address, port))
                sock.sendall(b"x" * 3000)
                received = 0
                while received < 3000:
                    data = sock.recv(4096)
                    if not data:
                        return False
                    received += len(data)
                return True
            except OSError:
                return False

    def udp(self, source: str, address: str, port: int, family: Family, wait: float) -> bool:
        """Whether a UDP datagram is echoed, twice in one flow."""
        with entered(source):
            sock = socket.socket(_af(family), socket.SOCK_DGRAM)
        with sock:
            sock.settimeout(wait)
            try:
                for _ in range(2):
                    sock.sendto(b"x", (address, port))
                    sock.recv(100)
                return True
            except OSError:
                return False

    def ping(self, source: str, address: str, wait: float) -> bool:
        done = run("ip", "netns", "exec", source, "ping", "-c1", f"-W{wait}", address)
        return done.returncode == 0


class Echo:
    """Servers in a namespace that send back what they get, over TCP and UDP of both families."""

    def __init__(self, name: str, ports: tuple[int, ...]) -> None:
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        with entered(name):
            for port in ports:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    self._serve(port, kind)

    def _serve(self, port: int, kind: socket.SocketKind) -> None:
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::", port))
        stream = kind is socket.SOCK_STREAM
        if stream:
            sock.listen(16)
        target = self._accept if stream else self._reflect
        thread = threading.Thread(target=target, args=(sock,), daemon=True)
        thread.start()
        self._sockets.append(sock)
        self._threads.append(thread)

    def _accept(self, sock: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = sock.accept()
                threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        with connection, suppress(OSError):
            while data := connection.recv(4096):
                connection.sendall(data)

    def _reflect(self, sock: socket.socket) -> None:
        with suppress(OSError):
            while True:
                data, sender = sock.recvfrom(100)
                if not data:
                    return
                sock.sendto(data, sender)

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def _prefix(family: Family) -> str:
    return "iptables" if family is Family.IPV4 else "ip6tables"


def _af(family: Family) -> socket.AddressFamily:
    return socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
