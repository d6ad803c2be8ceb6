"""No packet is judged by neither, or wrongly, while stages and rules change under traffic."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from bpfilter.rollout.journal import Journal
from bpfilter.rollout.stages import Request, Rollout
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.cases.case import FW4, PEER4, Case, rules
from tests.rollout.network import call, entered

pytestmark = pytest.mark.kernel
MOST = 60_000
"""Packets of one kind that are sent at most."""


class Traffic(threading.Thread):
    """Sends an accepted and a dropped datagram in turns, until told to stop."""

    def __init__(self, case: Case) -> None:
        super().__init__(daemon=True)
        self._case = case
        self._stop_sending = threading.Event()
        link = Ether(src=case.peer_mac, dst=case.mac)
        self._frames = [
            bytes(link / IP(src=PEER4, dst=FW4) / UDP(sport=1000, dport=port))
            for port in (5000, 5001)
        ]
        self.sent = 0

    def run(self) -> None:
        while self.sent < MOST and not self._stop_sending.is_set():
            for frame in self._frames:
                self._case.send(frame)
            self.sent += 1
            if self.sent % 20 == 0:
                time.sleep(0.001)

    def stop(self) -> None:
        self._stop_sending.set()
        self.join()


@contextmanager
def traffic(case: Case) -> Iterator[Traffic]:
    running = Traffic(case)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_every_packet_gets_its_verdict_while_stages_and_rules_change(backend: Backend) -> None:
    replies = "-A INPUT -p tcp -m conntrack --ctstate ESTABLISHED -j ACCEPT"
    port = "-A INPUT -p udp -m udp --dport 5000 -j ACCEPT"
    decided = 0
    with Case(backend, Family.IPV4) as case, tempfile.TemporaryDirectory() as directory:
        case.tables.restore(rules(replies, port))
        journal = Journal(Path(directory) / "state")
        with traffic(case) as sending:
            for number in range(3):
                with entered(case.fw):
                    rollout = Rollout(Request(("v1",), backend), journal, lambda _line: None)
                    with rollout:
                        rollout.shadow()
                        rollout.enforce()
                        time.sleep(0.2)
                        decided += case.tables.packets("-A INPUT .* -j BPF-")
                        unrelated = ["INPUT", "-p", "udp", "--dport", str(6000 + number)]
                        call(case.tables.prefix, "-I", *unrelated, "-j", "ACCEPT")
                        assert rollout.tick() is not None
        for _ in range(200):
            if case.counted()[0] == 2 * sending.sent:
                break
            time.sleep(0.01)
        assert case.counted() == (2 * sending.sent, sending.sent)
        assert decided > 0


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_generations_are_swapped_under_traffic_and_rules_keep_their_counts(
    backend: Backend,
) -> None:
    replies = "-A INPUT -p tcp -m conntrack --ctstate ESTABLISHED -j ACCEPT"
    port = "-A INPUT -p udp -m udp --dport 5000 -j ACCEPT"
    with Case(backend, Family.IPV4) as case, tempfile.TemporaryDirectory() as directory:
        case.tables.restore(rules(replies, port))
        journal = Journal(Path(directory) / "state")
        with entered(case.fw), Rollout(Request(("v1",), backend), journal, lambda _l: None) as live:
            live.shadow()
            live.enforce()
            with traffic(case) as sending:
                for number in range(4):
                    case.tables.restore(
                        f"*filter\n-I INPUT -p udp --dport {6000 + number} -j ACCEPT\nCOMMIT\n",
                        "--noflush",
                    )
                    assert live.edited()
                    live.swap()
                    time.sleep(0.1)
                    assert live.tick() is None
            for _ in range(200):
                if case.counted()[0] == 2 * sending.sent:
                    break
                time.sleep(0.01)
            assert case.counted() == (2 * sending.sent, sending.sent)
            iptables = case.tables.packets(r"^-A INPUT .*--dport 5000 -j ACCEPT$")
            certain = sum(b.certain for n, b in live.totals().items() if "--dport 5000" in n.text)
            # In shadow nothing came; each packet was counted by one of the two, at most.
            assert 0 < certain <= sending.sent
            assert certain + iptables >= sending.sent
            assert live.decided() < certain + iptables
