"""Two network namespaces for the demonstration: a server with `wan0`, and a client beyond it.

Everything the demonstration does happens in them; leaving the context removes both, whatever
happened. Sockets are made inside a namespace and used from outside.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from pyroute2 import netns

from bpfilter.errors import LabError

PREFIX = "bpfilter-demo-"
DEVICE = "wan0"
SERVER4, CLIENT4 = "192.0.2.200", "192.0.2.201"
FLOOD4 = "192.0.2.250"
"""The source of the packets that measure."""
SERVER6, CLIENT6 = "2001:db8:1::1", "2001:db8:1::2"
EXTRA4 = ("10.20.0.9", "10.20.9.10", "10.30.4.4", "203.0.113.70", "162.158.7.7")
EXTRA6 = ("fd20::9", "fd20:0:0:9::10", "fd30::44", "2001:db8:bad:3::7", "2606:4700::77")
"""More addresses of the client: an administrator, monitoring, an application, abuse, a proxy."""


def ip(*words: str) -> None:
    """Run ip(8); LabError with its message if it fails."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise LabError(
            f"ip {' '.join(words)}: {done.stderr.strip()}",
            hint="it needs root and network namespaces",
        )


@contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread works in the named namespace."""
    netns.pushns(name)
    try:
        yield
    finally:
        netns.popns()


class Namespaces:
    """Named network namespaces; entering the context makes them, leaving it removes them."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def build(self) -> None:
        """Make the namespaces, with `lo` up; a subclass goes on from there."""
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")

    def remove(self) -> None:
        """Delete the namespaces, and with them everything inside."""
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30)

    def __enter__(self) -> Self:
        try:
            self.build()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


class Network(Namespaces):
    """The server's and the client's namespace, joined by a veth pair."""

    def __init__(self) -> None:
        self.server = f"{PREFIX}{os.getpid()}-server"
        self.client = f"{PREFIX}{os.getpid()}-client"
        super().__init__(self.server, self.client)

    def build(self) -> None:
        """Addresses and routes as the demonstration needs them."""
        _remove_abandoned()
        super().build()
        ip("-n", self.server, "link", "add", DEVICE, "type", "veth",
           "peer", "name", "eth0", "netns", self.client)  # fmt: skip
        for name, device, ipv4, ipv6 in (
            (self.server, DEVICE, (SERVER4,), (SERVER6,)),
            (self.client, "eth0", (CLIENT4, *EXTRA4), (CLIENT6, *EXTRA6)),
        ):
            for address in ipv4:
                ip("-n", name, "addr", "add", f"{address}/32", "dev", device)
            for address in ipv6:
                ip("-n", name, "addr", "add", f"{address}/128", "dev", device, "nodad")
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "route", "add", "default", "dev", device, "src", ipv4[0])
            ip("-n", name, "-6", "route", "add", "default", "dev", device, "src", ipv6[0])

    def socket(self, name: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket that lives in the named namespace."""
        with inside(name):
            return socket.socket(family, kind, protocol)


def _remove_abandoned() -> None:
    """Delete the namespaces of demonstrations whose process was killed."""
    for name in netns.listnetns():
        words = name.split("-")
        if name.startswith(PREFIX) and words[2].isdigit() and not Path("/proc", words[2]).exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30)
