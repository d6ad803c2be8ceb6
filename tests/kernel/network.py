"""A pair of network namespaces joined by a veth: `firewall` with fw0, `peer` with peer0."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str, check: bool = True, stdin: str | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, input=stdin)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Network:
    """IPv4 10.77.0.1/24 and fd77::1/64 at fw0; the peer has .2 and ::2."""

    def __init__(self, label: str) -> None:
        self.firewall = f"bpfk{os.getpid()}{label}f"
        self.peer = f"bpfk{os.getpid()}{label}p"

    def build(self) -> None:
        for name in (self.firewall, self.peer):
            run("ip", "netns", "add", name)
            self.do(name, "ip", "link", "set", "lo", "up")
            self.do(name, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        run("ip", "link", "add", "fw0", "netns", self.firewall, "address", "02:00:00:00:00:01",
            "type", "veth", "peer", "name", "peer0", "netns", self.peer, "address",
            "02:00:00:00:00:02")  # fmt: skip
        self.do(self.peer, "ip", "link", "set", "peer0", "multicast", "off")
        for name, device, last in ((self.firewall, "fw0", 1), (self.peer, "peer0", 2)):
            self.do(name, "ip", "link", "set", device, "addrgenmode", "none")
            self.do(name, "ip", "address", "add", f"10.77.0.{last}/24", "dev", device)
            self.do(name, "ip", "address", "add", f"fd77::{last}/64", "dev", device, "nodad")
            self.do(name, "ip", "link", "set", device, "up")
        for address in ("10.77.0.2", "fd77::2"):
            self.do(self.firewall, "ip", "neigh", "replace", address, "lladdr",
                    "02:00:00:00:00:02", "dev", "fw0")  # fmt: skip

    def destroy(self) -> None:
        for name in (self.firewall, self.peer):
            run("ip", "netns", "delete", name, check=False)

    def do(self, namespace: str, *command: str, stdin: str | None = None) -> str:
        return run("ip", "netns", "exec", namespace, *command, stdin=stdin)

    def fw(self, *command: str, stdin: str | None = None) -> str:
        return self.do(self.firewall, *command, stdin=stdin)

    @contextmanager
    def inside(self, namespace: str) -> Iterator[None]:
        """This thread is in the namespace."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
        try:
            setns(there)
            yield
        finally:
            setns(home)
            os.close(home)
            os.close(there)

    def send(self, *frames: bytes) -> None:
        """From the peer to the firewall; synchronous, as veth is."""
        with self.inside(self.peer), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packet:
            packet.bind(("peer0", 0))
            for frame in frames:
                packet.send(frame)

    @property
    def index(self) -> int:
        with self.inside(self.firewall):
            return socket.if_nametoindex("fw0")


@contextmanager
def network(label: str) -> Iterator[Network]:
    made = Network(label)
    try:
        made.build()
        yield made
    finally:
        made.destroy()
