"""What earlier hooks do to a packet is what filter sees: translated addresses, rewritten fields.

CASES t7 and the rules of DESIGN on NAT: the program sees a packet before nat and mangle do.
"""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Raw

from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.cases.case import ACCEPT, DROP, FW4, PEER4, Case, Router, compare, rules
from tests.cases.enforcing import enforcing
from tests.rollout.network import call, entered

pytestmark = pytest.mark.kernel
BACKENDS = pytest.mark.parametrize("backend", list(Backend), ids=str)
IP4 = IP(src=PEER4, dst=FW4)
OPEN = "-A INPUT -p udp -m udp --dport 5000 -j ACCEPT"
TRACKING = "-A INPUT -p tcp -m conntrack --ctstate ESTABLISHED -j ACCEPT"
REDIRECT = "-A PREROUTING -p udp -m udp --dport 80 -j REDIRECT --to-ports 5000"


def nat(*lines: str) -> str:
    return "\n".join(["*nat", ":PREROUTING ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]", *lines, "COMMIT"])


@BACKENDS
def test_redirected_packets_are_judged_by_their_new_port(backend: Backend) -> None:
    def scenario(case: Case) -> list[str]:
        ports = (80, 5000, 80, 81)
        return case.judged(*(IP4 / UDP(sport=1000, dport=port) for port in ports))

    ruleset = rules(OPEN, tables=nat(REDIRECT))
    assert compare(ruleset, scenario, backend=backend) == [ACCEPT, ACCEPT, ACCEPT, DROP]


@BACKENDS
def test_all_packets_of_a_redirected_connection_get_through(backend: Backend) -> None:
    redirect = "-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 5000"
    ruleset = rules(
        "-A INPUT -p tcp -m tcp --dport 80 -j DROP",
        "-A INPUT -p tcp -m tcp --dport 5000 -j ACCEPT",
        tables=nat(redirect),
    )

    def scenario(case: Case) -> bytes:
        with entered(case.fw):
            listener = socket.create_server((FW4, 5000))
        with listener, entered(case.peer):
            client = socket.create_connection((FW4, 80), timeout=5)
            server, _ = listener.accept()
        with client, server:
            for word in (b"one ", b"two ", b"three"):
                client.sendall(word)
                server.sendall(server.recv(100))
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
            server.close()
            return b"".join(iter(lambda: client.recv(100), b""))

    assert compare(ruleset, scenario, backend=backend) == b"one two three"


def test_a_published_port_is_forwards_and_not_inputs() -> None:
    publish = f"-A PREROUTING -i v1 -p udp --dport 80 -j DNAT --to-destination {Router.BEHIND}:90"
    ruleset = rules(
        "-A INPUT -p udp -m udp --dport 80 -j DROP",
        "-A INPUT -p udp -m udp --dport 81 -j ACCEPT",
        "-A FORWARD -p udp -m udp --dport 90 -j ACCEPT",
        tables=nat(publish),
    )

    def scenario(router: Case) -> list[str]:
        assert isinstance(router, Router)
        with router.udp(router.behind, port=90) as service:
            first = router.judge(IP4 / UDP(sport=1000, dport=80) / Raw(b"?"))
            data, source = service.recvfrom(100)
            service.sendto(data, source)
            later = [IP4 / UDP(sport=1000, dport=port) / Raw(b"!") for port in (80, 81, 82)]
            return [first, *router.judged(*later)]

    assert compare(ruleset, scenario, topology=Router) == [ACCEPT, ACCEPT, ACCEPT, DROP]


@BACKENDS
def test_a_translation_outlives_its_rule(backend: Backend) -> None:
    """The entry of a connection keeps its mapping when the rule that made it is deleted."""
    with Case(backend, Family.IPV4) as case:
        case.tables.restore(rules(OPEN, TRACKING, tables=nat(REDIRECT)))
        flow = IP4 / UDP(sport=1000, dport=80)
        assert case.judge(flow) == ACCEPT
        with entered(case.fw):
            call(case.tables.prefix, "-t", "nat", "-F", "PREROUTING")
        assert case.judge(flow) == ACCEPT
        with enforcing(case, backend, Family.IPV4) as program:
            assert case.judge(flow) == ACCEPT
            assert case.judge(IP4 / UDP(sport=1001, dport=80)) == DROP
            assert program.decided() > 0


@BACKENDS
@pytest.mark.parametrize("present", ["", nat()], ids=["no-nat-table", "empty-nat-table"])
@pytest.mark.parametrize("tracking", [(), (TRACKING,)], ids=["untracked", "tracked"])
def test_a_new_nat_rule_holds_from_the_next_packet_on(
    tracking: tuple[str, ...], present: str, backend: Backend
) -> None:
    closed = "-A INPUT -p udp -m udp --dport 80 -j DROP"
    with Case(backend, Family.IPV4) as case:
        case.tables.restore(rules(*tracking, closed, OPEN, tables=present))
        with enforcing(case, backend, Family.IPV4) as program:
            assert case.judge(IP4 / UDP(sport=1000, dport=80)) == DROP
            assert program.decided() > 0
            with entered(case.fw):
                call(case.tables.prefix, "-t", "nat", *REDIRECT.split())
            assert case.judge(IP4 / UDP(sport=1001, dport=80)) == ACCEPT


def test_replies_to_a_masqueraded_port_are_judged_by_the_port_that_asked() -> None:
    masquerade = "-A POSTROUTING -p udp -m udp --dport 6000 -j MASQUERADE --to-ports 7000"
    ruleset = rules(
        "-A INPUT -p udp -m udp --dport 7000 -j DROP",
        "-A INPUT -p udp -m udp --sport 6000 -j ACCEPT",
        tables=nat(":POSTROUTING ACCEPT [0:0]", masquerade),
    )

    def scenario(case: Case) -> list[str]:
        with case.udp(case.fw) as sock:
            sock.sendto(b"?", (PEER4, 6000))
            return case.judged(
                IP4 / UDP(sport=6000, dport=7000),
                IP4 / UDP(sport=6000, dport=7001),
                IP4 / UDP(sport=6001, dport=7000),
            )

    assert compare(ruleset, scenario) == [ACCEPT, ACCEPT, DROP]


@BACKENDS
def test_fields_that_mangle_rewrites_are_read_behind_it(backend: Backend) -> None:
    ruleset = rules(
        "-A INPUT -p udp -m ttl --ttl-eq 9 -j ACCEPT",
        "-A INPUT -p tcp -m tos --tos 0x10/0xff -j ACCEPT",
        mangle=[
            "-A PREROUTING -p udp -m udp --dport 5000 -j TTL --ttl-set 9",
            "-A PREROUTING -p tcp -m tcp --dport 5000 -j TOS --set-tos 0x10/0xff",
        ],
    )

    def scenario(case: Case) -> list[str]:
        return case.judged(
            IP4 / UDP(dport=5000),
            IP4 / UDP(dport=5001),
            IP4 / TCP(dport=5000, flags="S"),
            IP4 / TCP(dport=5001, flags="S"),
        )

    expected = [ACCEPT, DROP, ACCEPT, DROP]
    assert compare(ruleset, scenario, backend=backend) == expected


def test_a_mark_of_mangle_reaches_the_rules_that_ask_for_it() -> None:
    ruleset = rules(
        "-A INPUT -m mark --mark 0x5/0xff -j ACCEPT",
        "-A INPUT -p udp -m udp --dport 5001 -j ACCEPT",
        mangle=["-A PREROUTING -p udp -m udp --dport 5000 -j MARK --set-xmark 0x5/0xff"],
    )

    def scenario(case: Case) -> list[str]:
        return case.judged(*(IP4 / UDP(dport=port) for port in (5000, 5001, 5002)))

    assert compare(ruleset, scenario) == [ACCEPT, ACCEPT, DROP]


def test_connection_marks_are_not_ours() -> None:
    ruleset = rules(
        "-A INPUT -p udp -m udp --dport 5000 -j CONNMARK --set-xmark 0x7/0xff",
        "-A INPUT -p udp -m connmark --mark 0x7/0xff -j ACCEPT",
    )

    def scenario(case: Case) -> tuple[list[str], bool]:
        verdicts = case.judged(IP4 / UDP(sport=9, dport=5000), IP4 / UDP(sport=9, dport=5001))
        with entered(case.fw):
            return verdicts, "mark=7" in call("conntrack", "-L", "-p", "udp")

    assert compare(ruleset, scenario) == ([ACCEPT, DROP], True)


def test_packets_cut_short_are_judged_as_iptables_judges_them() -> None:
    ruleset = rules("-A INPUT -p tcp -m tcp --dport 5000 -j DROP", policy="ACCEPT")
    segment = bytes(TCP(sport=1, dport=5001, flags="S"))

    def scenario(case: Case) -> list[str]:
        whole = IP(src=PEER4, dst=FW4, proto=socket.IPPROTO_TCP)
        return case.judged(*(whole / Raw(segment[:size]) for size in (4, 19, 20)))

    assert compare(ruleset, scenario)[-1] == ACCEPT
