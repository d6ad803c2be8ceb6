"""A host judged twice: by iptables alone, and with bpfilter enforcing in front of it.

`compare` runs one scenario on both and demands that everything it observed is equal. The rules of a
case count what arrives (mangle PREROUTING) and what filter let pass (security), so that a verdict
is read from the kernel's own counters.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.cases.enforcing import enforcing
from tests.rollout.network import FW4, PEER4, Iptables, Net, call, entered

T = TypeVar("T")

ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800
ACCEPT, DROP = "ACCEPT", "DROP"
_COUNTED = re.compile(r"\[(\d+):\d+\] -A .*--comment (arrived|survived)\b")


def rules(
    *lines: str,
    policy: str = "DROP",
    chains: Sequence[str] = (),
    mangle: Sequence[str] = (),
    tables: str = "",
    counting: str = "",
) -> str:
    """A ruleset with these filter rules; `mangle` rules stand before the counting one.

    `counting`: a match of the packets to count, where others can come in between.
    """
    comment = f"{counting} -m comment --comment".lstrip()
    return "\n".join(
        [
            tables.strip("\n"),
            "*mangle",
            ":PREROUTING ACCEPT [0:0]",
            *mangle,
            f"-A PREROUTING -i v1 {comment} arrived",
            "COMMIT",
            "*security",
            ":INPUT ACCEPT [0:0]",
            ":FORWARD ACCEPT [0:0]",
            f"-A INPUT -i v1 {comment} survived",
            f"-A FORWARD -i v1 {comment} survived",
            "COMMIT",
            "*filter",
            f":INPUT {policy} [0:0]",
            ":FORWARD ACCEPT [0:0]",
            ":OUTPUT ACCEPT [0:0]",
            *(f":{name} - [0:0]" for name in chains),
            *lines,
            "COMMIT",
            "",
        ]
    ).lstrip("\n")


class Case(Net):
    """Two namespaces, a ruleset in the firewall's, and frames from the peer."""

    def __init__(self, backend: Backend, family: Family) -> None:
        super().__init__()
        self.backend = backend
        self.family = family

    def _build(self) -> None:
        super()._build()
        with entered(self.peer):
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._wire.bind(("p1", 0))
        self.mac = self._mac(self.fw, "v1")
        self.peer_mac = self._mac(self.peer, "p1")

    def __exit__(self, *reason: object) -> None:
        if hasattr(self, "_wire"):
            self._wire.close()
        super().__exit__(*reason)

    def _mac(self, namespace: str, device: str) -> str:
        with entered(namespace), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as probe:
            probe.bind((device, 0))
            return str(probe.getsockname()[4].hex(":"))

    @property
    def tables(self) -> Iptables:
        """The family's iptables in the firewall namespace."""
        return self.iptables(self.backend, self.family)

    def counted(self) -> tuple[int, int]:
        """Packets that arrived on v1, and those that passed filter."""
        found = Counter[str]()
        for count, name in _COUNTED.findall(self.tables.save("-c")):
            found[name] += int(count)
        return found["arrived"], found["survived"]

    def emit(self, packet: Packet, *, destination: str | None = None) -> None:
        """Put an IP packet on the peer's wire."""
        self.send(bytes(Ether(src=self.peer_mac, dst=destination or self.mac) / packet))

    def send(self, frame: bytes) -> None:
        """Put a frame on the peer's wire."""
        self._wire.send(frame)

    @contextmanager
    def capture(self) -> Iterator[Callable[[], list[Packet]]]:
        """Record the peer's IPv4 packets, both ways; afterwards the call gives them."""
        with entered(self.peer):
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        seen: list[Packet] = []
        with tap:
            tap.bind(("p1", ETH_P_ALL))
            tap.setblocking(False)
            yield lambda: seen
            with suppress(BlockingIOError):
                while True:
                    data, (_, protocol, *_) = tap.recvfrom(65536)
                    if protocol == ETH_P_IP:
                        seen.append(IP(data))

    def passing(
        self,
        *packets: Packet,
        destination: str | None = None,
        arriving: int | None = None,
    ) -> int:
        """How many of these packets filter lets pass, sent in this order.

        `arriving`: how many the first counter sees of them, if not each (fragments).
        """
        before, survived = self.counted()
        expected = before + (len(packets) if arriving is None else arriving)
        for packet in packets:
            self.emit(packet, destination=destination)
        for _ in range(200):
            if self.counted()[0] >= expected:
                # Read again: the tables are not listed at one instant.
                arrived, survivors = self.counted()
                assert arrived == expected, "other traffic got in between"
                return survivors - survived
            time.sleep(0.01)
        raise AssertionError(f"not all arrived: {[packet.summary() for packet in packets]}")

    def judge(self, packet: Packet, *, destination: str | None = None) -> str:
        """What filter does with one packet."""
        return ACCEPT if self.passing(packet, destination=destination) else DROP

    def judged(self, *packets: Packet) -> list[str]:
        return [self.judge(packet) for packet in packets]


class Router(Case):
    """A case whose firewall forwards to a host behind it (v3)."""

    BEHIND, INSIDE = "10.99.3.2", "10.99.3.1"

    def __init__(self, backend: Backend, family: Family) -> None:
        super().__init__(backend, family)
        self.behind = f"{self.fw}b"

    def _build(self) -> None:
        super()._build()
        call("ip", "netns", "add", self.behind)
        call("ip", "-n", self.fw, "link", "add", "v3", "type", "veth", "peer", "name", "b1",
             "netns", self.behind)  # fmt: skip
        call("ip", "-n", self.fw, "addr", "add", f"{self.INSIDE}/24", "dev", "v3")
        call("ip", "-n", self.behind, "addr", "add", f"{self.BEHIND}/24", "dev", "b1")
        for namespace, device in ((self.fw, "v3"), (self.behind, "b1"), (self.behind, "lo")):
            call("ip", "-n", namespace, "link", "set", device, "up")
        call("ip", "-n", self.behind, "route", "add", "default", "via", self.INSIDE)
        call("ip", "-n", self.peer, "route", "add", "10.99.3.0/24", "via", FW4)
        with entered(self.fw):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def __exit__(self, *reason: object) -> None:
        subprocess.run(["ip", "netns", "del", self.behind], capture_output=True)
        super().__exit__(*reason)

    def pings(self, source: str, target: str, count: int = 3) -> int:
        """How many of some pings between two namespaces' addresses are answered."""
        words = ["ping", "-c", str(count), "-i", "0.05", "-W", "1", "-q", target]
        with entered(source):
            done = subprocess.run(words, capture_output=True, text=True)
        found = re.search(r"(\d+) received", done.stdout)
        assert found is not None, done.stderr
        return int(found[1])


def compare(
    ruleset: str,
    scenario: Callable[[Case], T],
    *,
    backend: Backend = Backend.LEGACY,
    family: Family = Family.IPV4,
    decided: bool | None = True,
    topology: type[Case] = Case,
) -> T:
    """What a scenario observes, equal on a plain host and on one where bpfilter enforces.

    `decided`: whether the program must have decided packets of the scenario, or none at all
    (None: either).
    """
    with topology(backend, family) as case:
        case.tables.restore(ruleset)
        plain = scenario(case)
    with topology(backend, family) as case:
        case.tables.restore(ruleset)
        with enforcing(case, backend, family) as program:
            enforced = scenario(case)
            count = program.decided()
    assert enforced == plain
    assert decided is None or (count > 0) == decided, f"{count} packets were decided by the program"
    return plain


__all__ = ["ACCEPT", "DROP", "FW4", "PEER4", "Case", "Router", "compare", "rules"]
