"""A firewall and a peer in two network namespaces of their own, for the rollout tests."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pyroute2 import netns

from bpfilter.errors import BpfilterError
from bpfilter.kernel.syscall import OBJ_GET_INFO, KernelCallFailed, bpf
from bpfilter.rollout.attached import attached
from bpfilter.rollout.teardown import teardown
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend

_COUNT = itertools.count()
_ALL = 3  # ETH_P_ALL
_BEHIND_TAP = 0.01
"""Seconds in which a packet gets from the tap, which sees it first, to the filter hook."""
FW4, PEER4 = "10.99.1.1", "10.99.1.2"
FW6, PEER6 = "fd99::1", "fd99::2"


def run(*words: str, data: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, input=data, capture_output=True, text=True, errors="surrogateescape", timeout=60
    )


def call(*words: str, data: str | None = None) -> str:
    done = run(*words, data=data)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}\n{data or ''}"
    return done.stdout


@contextmanager
def entered(name: str) -> Iterator[None]:
    """The calling thread works in another network namespace."""
    netns.pushns(name)
    try:
        yield
    finally:
        netns.popns()


class Net:
    """`fw` has v1 towards `peer`; the firewall's legacy tools use a lock of their own."""

    def __init__(self) -> None:
        tag = f"bpfr{os.getpid()}x{next(_COUNT)}"
        self.fw, self.peer = f"{tag}f", f"{tag}p"

    def __enter__(self) -> Net:
        try:
            for name in (self.fw, self.peer):
                call("ip", "netns", "add", name)
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, BpfilterError), entered(self.fw):
            teardown()
        for name in (self.fw, self.peer):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def _link(self) -> None:
        """Make v1 and p1."""
        call("ip", "-n", self.fw, "link", "add", "v1", "type", "veth", "peer", "name", "p1",
             "netns", self.peer)  # fmt: skip

    def _build(self) -> None:
        self._link()
        sides = ((self.fw, "v1", FW4, FW6), (self.peer, "p1", PEER4, PEER6))
        for name, device, ipv4, ipv6 in sides:
            call("ip", "-n", name, "link", "set", "lo", "up")
            call("ip", "-n", name, "addr", "add", f"{ipv4}/24", "dev", device)
            call("ip", "-n", name, "addr", "add", f"{ipv6}/64", "dev", device, "nodad")
            call("ip", "-n", name, "link", "set", device, "up")

    def iptables(self, backend: Backend, family: Family = Family.IPV4) -> Iptables:
        return Iptables(self, backend, family)

    def udp(self, namespace: str, family: Family = Family.IPV4, port: int = 0) -> socket.socket:
        """A UDP socket bound in a namespace."""
        with entered(namespace):
            kind = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
            sock = socket.socket(kind, socket.SOCK_DGRAM)
        sock.settimeout(2)
        sock.bind(("", port))
        return sock

    def send(self, port: int, count: int = 1, family: Family = Family.IPV4) -> None:
        """UDP datagrams from the peer to a port of the firewall, each from a port of its own."""
        address = FW4 if family is Family.IPV4 else FW6
        with self.arriving(port, count):
            for _ in range(count):
                with self.udp(self.peer, family) as sock:
                    sock.sendto(b"x", (address, port))

    @contextmanager
    def arriving(self, port: int, count: int = 1) -> Iterator[None]:
        """Wait at the end until so many UDP packets to a port went through the firewall's v1.

        On a busy machine packets wait in the backlog after `sendto` has returned.
        """
        with entered(self.fw):
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        with tap:
            tap.bind(("v1", _ALL))
            tap.settimeout(5)
            yield
            while count:
                frame, (_, _, kind, *_) = tap.recvfrom(200)
                count -= kind == socket.PACKET_HOST and _udp_port(frame) == port
            time.sleep(_BEHIND_TAP)

    def frame(self, packet: bytes) -> None:
        """An IPv4 packet from the peer to a UDP port, whatever else it holds."""
        with entered(self.peer):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with raw, self.arriving(int.from_bytes(packet[22:24], "big")):
            raw.sendto(packet, (FW4, 0))


def _udp_port(frame: bytes) -> int | None:
    """The destination port of an Ethernet frame with UDP."""
    if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_UDP:
        return int.from_bytes(frame[36:38], "big")
    if frame[12:14] == b"\x86\xdd" and frame[20] == socket.IPPROTO_UDP:
        return int.from_bytes(frame[56:58], "big")
    return None


class Iptables:
    """One family's tables of the firewall namespace."""

    def __init__(self, net: Net, backend: Backend, family: Family) -> None:
        self.net = net
        self.prefix = ("iptables" if family is Family.IPV4 else "ip6tables") + f"-{backend}"

    def restore(self, text: str, *options: str) -> None:
        with entered(self.net.fw):
            call(f"{self.prefix}-restore", *options, data=text)

    def save(self, *options: str) -> str:
        with entered(self.net.fw):
            return call(f"{self.prefix}-save", *options)

    def empty(self) -> None:
        """Remove all rules and user chains of all tables."""
        with entered(self.net.fw):
            for table in ("raw", "mangle", "nat", "filter", "security"):
                for verb in ("-F", "-X"):
                    call(self.prefix, "-t", table, verb)

    def packets(self, pattern: str) -> int:
        """The sum of the packet counters of the rules whose text has the pattern."""
        counted = re.compile(r"\[(\d+):\d+\] (-A .*)")
        found = [counted.fullmatch(line) for line in self.save("-c").splitlines()]
        return sum(int(m[1]) for m in found if m is not None and re.search(pattern, m[2]))


def survivors(*ports: int) -> str:
    """A security table that counts, per UDP port, the packets which filter let pass."""
    rules = [f"-A INPUT -p udp -m udp --dport {port}" for port in ports]
    return "\n".join(["*security", ":INPUT ACCEPT [0:0]", *rules, "COMMIT", ""])


class _Info(ctypes.Structure):
    """The head of struct bpf_prog_info."""

    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("number", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("lengths", ctypes.c_uint32 * 2),
        ("instructions", ctypes.c_uint64 * 2),
        ("load_time", ctypes.c_uint64),
        ("user", ctypes.c_uint32),
        ("map_count", ctypes.c_uint32),
        ("maps", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
    )


class InfoRequest(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_uint32), ("size", ctypes.c_uint32), ("info", ctypes.c_uint64))


class ById(ctypes.Structure):
    _fields_ = (("number", ctypes.c_uint32), ("next", ctypes.c_uint32), ("flags", ctypes.c_uint32))


_PROG_BY_ID, MAP_BY_ID = 13, 14


def loaded_objects(net: Net) -> list[tuple[int, int]]:
    """The programs at the firewall's interfaces and their maps, as (command to open, number)."""
    found = []
    with entered(net.fw):
        for program in attached():
            descriptor = bpf(_PROG_BY_ID, ById(program.number), "open a program")
            maps = (ctypes.c_uint32 * 64)()
            info = _Info(map_count=64, maps=ctypes.addressof(maps))
            request = InfoRequest(descriptor, ctypes.sizeof(info), ctypes.addressof(info))
            bpf(OBJ_GET_INFO, request, "describe a program")
            os.close(descriptor)
            found.append((_PROG_BY_ID, program.number))
            found += [(MAP_BY_ID, number) for number in maps[: info.map_count]]
    return found


def still_loaded(objects: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Which of these objects the kernel still has; they go a moment after their last user."""
    end = time.monotonic() + 5
    left = list(objects)
    while left and time.monotonic() < end:
        left = [found for found in left if _exists(*found)]
        time.sleep(0.05)
    return left


def _exists(command: int, number: int) -> bool:
    try:
        os.close(bpf(command, ById(number), "open an object"))
    except KernelCallFailed as error:
        assert error.errno == errno.ENOENT
        return False
    return True
