"""A firewall with early drops at v1, and frames from its peer."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bpfilter.kernel.xdp import XdpMode
from bpfilter.rollout.early import (
    EarlyDrops,
    EarlyRequest,
)
from bpfilter.rollout.journal import Journal
from bpfilter.rollout.stages import Request, Rollout
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.rollout.network import FW4, FW6, PEER4, PEER6, Iptables, Net, call, entered, survivors


def ruleset(
    *rules: str, policy: str = "DROP", before: str = "", ports: tuple[int, ...] = ()
) -> str:
    lines = ["*filter", f":INPUT {policy} [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]"]
    return "\n".join([before.strip(), *lines, *rules, "COMMIT", survivors(*ports)]).lstrip()


def eventually(holds: Callable[[], bool]) -> None:
    """Packets may wait in the backlog of a busy machine."""
    for _ in range(500):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that within five seconds")


class Host(Net):
    """A firewall whose ingress is empty of offloads, and frames from its peer."""

    def __init__(self, backend: Backend = Backend.NFT, family: Family = Family.IPV4) -> None:
        super().__init__()
        self.backend, self.family = backend, family
        self.said: list[str] = []
        self.rollout: Rollout | None = None

    def _build(self) -> None:
        super()._build()
        for name, device in ((self.fw, "v1"), (self.peer, "p1")):
            with entered(name):
                call("ethtool", "-K", device, "rxvlan", "off", "txvlan", "off")
        with entered(self.peer):
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._wire.bind(("p1", 0))
            self.peer_mac = self._wire.getsockname()[4].hex(":")
        with entered(self.fw):
            self.index = socket.if_nametoindex("v1")
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as probe:
                probe.bind(("v1", 0))
                self.mac = probe.getsockname()[4].hex(":")

    def __exit__(self, *reason: object) -> None:
        if hasattr(self, "_wire"):
            self._wire.close()
        super().__exit__(*reason)

    @property
    def tables(self) -> Iptables:
        return self.iptables(self.backend, self.family)

    def frames(self, *frames: bytes) -> None:
        """From the peer; returns when the early programs have seen them."""
        early = self.rollout.early if self.rollout is not None else None
        before = early.looked_at() if early is not None else 0
        for frame in frames:
            self._wire.send(frame)
        if early is not None:
            eventually(lambda: early.looked_at() >= before + len(frames))

    def emit(self, *packets: Packet) -> None:
        self.frames(*[bytes(Ether(src=self.peer_mac, dst=self.mac) / each) for each in packets])

    def ip(self, **fields: object) -> Packet:
        """An IP header from the peer to the firewall."""
        if self.family is Family.IPV4:
            return IP(**({"src": PEER4, "dst": FW4} | fields))
        return IPv6(**({"src": PEER6, "dst": FW6} | fields))

    def judged(self) -> int:
        """Packets that ended in the policy of INPUT."""
        save = self.tables.save("-c", "-t", "filter")
        (line,) = (line for line in save.splitlines() if line.startswith(":INPUT"))
        return int(line.split("[")[1].split(":")[0])

    @contextmanager
    def dropping(
        self, mode: XdpMode | None = None, *, accept_sockets: bool = False
    ) -> Iterator[EarlyDrops]:
        """The enforce stage with early drops at v1, at XDP in a mode or at TC."""
        asked = EarlyRequest({"v1": mode} if mode else {}, accept_sockets)
        request = Request(("v1",), self.backend, 30.0, early=asked)
        with tempfile.TemporaryDirectory(prefix="bpfilter-early-") as directory:
            journal = Journal(Path(directory) / "state")
            self.rollout = Rollout(request, journal, self.said.append)
            try:
                with entered(self.fw):
                    self.rollout.shadow()
                    self.rollout.enforce()
                assert self.rollout.early is not None, self.said
                yield self.rollout.early
            finally:
                with entered(self.fw):
                    self.rollout.rollback()
                journal.remove()

    def tick(self) -> str | None:
        assert self.rollout is not None
        with entered(self.fw):
            return self.rollout.tick()
