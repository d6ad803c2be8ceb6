"""A whole NAPI batch passes TC before its first packet comes to conntrack.

CASES t18: a reply and the next packet of a flow in one batch. Whoever asked conntrack at TC would
find the second packet's flow without a reply, and call it NEW; at filter it is ESTABLISHED.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from bpfilter.lab.driver import Driver, take_by_napi
from bpfilter.ruleset.model import Backend
from tests.cases.case import PEER4, Case, compare, rules
from tests.rollout.network import call, entered

pytestmark = pytest.mark.kernel
OTHER4 = "10.99.1.3"
FLOWS = range(32)
RULES = rules(
    "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
    "-A FORWARD -p udp -m dscp --dscp 0x04 -j DROP",
    counting="-p udp",
)


class OneLink(Case):
    """The firewall forwards between two stations of one link, both of which are the peer."""

    def _build(self) -> None:
        super()._build()
        with entered(self.fw):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            for name in ("all", "v1"):
                Path(f"/proc/sys/net/ipv4/conf/{name}/send_redirects").write_text("0")
            take_by_napi("v1")
        for address in (PEER4, OTHER4):
            call("ip", "-n", self.fw, "neigh", "replace", address, "lladdr", self.peer_mac,
                 "dev", "v1", "nud", "permanent")  # fmt: skip


def asked(flow: int, *, again: bool = False) -> IP:
    """From the peer to another station of its link; `again` only passes if there was an answer."""
    head = IP(src=PEER4, dst=OTHER4, tos=0x10 if again else 0)
    return head / UDP(sport=1000 + flow, dport=2000) / bytes(18)


def answered(flow: int) -> IP:
    return IP(src=OTHER4, dst=PEER4) / UDP(sport=2000, dport=1000 + flow) / bytes(18)


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_the_state_is_that_at_filter_and_not_that_at_tc(backend: Backend) -> None:
    def scenario(case: Case) -> int:
        assert case.passing(*(asked(flow) for flow in FLOWS)) == len(FLOWS)
        before = case.counted()[1]
        pairs = [(answered(flow), asked(flow, again=True)) for flow in FLOWS]
        with passed_tc(case) as order:
            in_batches(case, [packet for pair in pairs for packet in pair])
        assert "in in in" in " ".join(order), "these were no batches"
        return case.counted()[1] - before

    assert compare(RULES, scenario, backend=backend, topology=OneLink) == 2 * len(FLOWS)


def in_batches(case: Case, packets: list[IP]) -> None:
    frames = [bytes(Ether(src=case.peer_mac, dst=case.mac) / packet) for packet in packets]
    with entered(case.peer), Driver(frames, [socket.if_nametoindex("p1")]) as driver:
        driver.send(len(frames))


@contextmanager
def passed_tc(case: Case) -> Iterator[list[str]]:
    """Afterwards: in which order packets came in, where TC sees them, and left again."""
    with entered(case.fw):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    order: list[str] = []
    with tap:
        tap.bind(("v1", 3))
        tap.settimeout(0.3)
        yield order
        try:
            while True:
                outgoing = tap.recvfrom(64)[1][2] == socket.PACKET_OUTGOING
                order.append("out" if outgoing else "in")
        except TimeoutError:
            pass
