"""The mark field is seen by nobody but the dispatch, and a code is obeyed by its own chain only.

CASES t7, t17: an INPUT code that FORWARD executed, a log that showed the mark.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, UDP

from bpfilter.ruleset.model import Backend
from tests.cases.case import FW4, PEER4, Case, Router, compare, rules
from tests.cases.nflog import NflogGroup
from tests.rollout.network import entered

pytestmark = pytest.mark.kernel
BACKENDS = pytest.mark.parametrize("backend", list(Backend), ids=str)
IP4 = IP(src=PEER4, dst=FW4)
MASQUERADE = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o v1 -j MASQUERADE\nCOMMIT"


@BACKENDS
def test_a_log_rule_shows_no_mark(backend: Backend) -> None:
    ruleset = rules("-A INPUT -p udp -j NFLOG --nflog-group 5 --nflog-threshold 1")

    def scenario(case: Case) -> list[int | None]:
        with entered(case.fw):
            group = NflogGroup(5)
        with group:
            assert case.passing(*(IP4 / UDP(sport=n, dport=5000) for n in (1, 2, 3))) == 0
            return group.marks(3)

    assert compare(ruleset, scenario, backend=backend) == [None] * 3


def test_an_accepted_socket_inherits_no_mark() -> None:
    ruleset = rules("-A INPUT -p tcp -m tcp --dport 5000 -j ACCEPT")

    def scenario(case: Case) -> int:
        with entered(case.fw):
            Path("/proc/sys/net/ipv4/tcp_fwmark_accept").write_text("1")
            listener = socket.create_server((FW4, 5000))
        with listener, entered(case.peer):
            client = socket.create_connection((FW4, 5000), timeout=5)
            with client, listener.accept()[0] as accepted:
                return accepted.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)

    assert compare(ruleset, scenario) == 0


@BACKENDS
def test_a_masqueraded_reply_is_not_dropped_by_a_rule_of_input(backend: Backend) -> None:
    ruleset = rules("-A INPUT -i v1 -p icmp -j DROP", policy="ACCEPT", tables=MASQUERADE)

    def scenario(router: Case) -> int:
        assert isinstance(router, Router)
        return router.pings(router.behind, PEER4)

    assert compare(ruleset, scenario, backend=backend, decided=None, topology=Router) == 3


def test_a_masqueraded_reply_is_not_accepted_for_a_rule_of_input() -> None:
    ruleset = rules(
        "-A INPUT -p icmp -j ACCEPT", "-A FORWARD -i v1 -p icmp -j DROP", tables=MASQUERADE
    )

    def scenario(router: Case) -> int:
        assert isinstance(router, Router)
        return router.pings(router.behind, PEER4)

    assert compare(ruleset, scenario, decided=None, topology=Router) == 0


def test_the_errors_of_a_router_are_sent_though_forward_would_drop() -> None:
    ruleset = rules("-A INPUT -p udp -j DROP", "-A FORWARD -j DROP")

    def scenario(router: Case) -> list[tuple[int, int]]:
        assert isinstance(router, Router)
        with router.capture() as wire:
            dead = IP(src=PEER4, dst=Router.BEHIND, ttl=1) / UDP(sport=1, dport=5000)
            router.passing(dead)
            router.passing(IP(src=PEER4, dst="192.0.2.1") / UDP(sport=2, dport=5000))
        return [(p[ICMP].type, p[ICMP].code) for p in wire() if ICMP in p and p[IP].src == FW4]

    assert compare(ruleset, scenario, decided=False, topology=Router) == [(11, 0), (3, 0)]
