"""Connection state is never predicted: the dispatch confirms what conntrack itself assigned.

CASES t2, t2f, t3, t8, t27: packets of which the state that a lookup would suggest is wrong.
"""

from __future__ import annotations

import re
import socket

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.packet import Packet

from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.cases.case import ACCEPT, DROP, FW4, PEER4, Case, compare, rules
from tests.rollout.network import FW6, PEER6, call, entered

pytestmark = pytest.mark.kernel
BACKENDS = pytest.mark.parametrize("backend", list(Backend), ids=str)
REPLIES = "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
IP4 = IP(src=PEER4, dst=FW4)


def outbound(case: Case, port: int = 7000) -> tuple[socket.socket, socket.socket]:
    """A TCP connection from the firewall to a server of the peer."""
    with entered(case.peer):
        listener = socket.create_server((PEER4, port))
    with listener, entered(case.fw):
        client = socket.create_connection((PEER4, port), timeout=5)
        server, _ = listener.accept()
        server.settimeout(5)
        return client, server


def broken(packet: Packet) -> Packet:
    """The same packet with a wrong transport checksum."""
    packet[packet.lastlayer().__class__].chksum = 0xBAD0
    return packet


@BACKENDS
def test_forged_segments_of_a_live_flow_are_not_taken_for_established(backend: Backend) -> None:
    def scenario(case: Case) -> list[str]:
        with case.capture() as wire:
            client, server = outbound(case)
        with client, server:
            server.sendall(b"hello")
            assert client.recv(5) == b"hello"
            start = next(p[TCP].seq for p in wire() if TCP in p and p[TCP].flags == "SA")
            far = start + 0x40000000 & 0xFFFFFFFF
            ports = {"sport": 7000, "dport": client.getsockname()[1]}
            return case.judged(
                IP4 / TCP(flags="A", seq=far, ack=1, **ports),
                IP4 / TCP(flags="FPU", seq=far, **ports),
                broken(IP4 / TCP(flags="A", seq=start + 6, **ports)),
                IP4 / TCP(flags="SF", seq=start + 6, **ports),
            )

    assert compare(rules(REPLIES), scenario, backend=backend) == [DROP] * 4


def test_a_syn_on_an_entry_in_time_wait_is_new() -> None:
    def scenario(case: Case) -> list[str]:
        client, server = outbound(case)
        port = client.getsockname()[1]
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.close()
        assert client.recv(1) == b""
        client.close()
        with entered(case.fw):
            assert "TIME_WAIT" in call("conntrack", "-L", "-p", "tcp")
        syn = IP4 / TCP(flags="S", sport=7000, dport=port, seq=0x42424242)
        return case.judged(syn)

    assert compare(rules(REPLIES), scenario) == [DROP]


@BACKENDS
def test_packets_that_conntrack_refuses_are_not_new(backend: Backend) -> None:
    new = "-A INPUT -m conntrack --ctstate NEW -j ACCEPT"
    untracked = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p udp --dport 53 -j NOTRACK\nCOMMIT"

    def scenario(case: Case) -> list[str]:
        return case.judged(
            IP4 / UDP(sport=1000, dport=5000),
            broken(IP4 / UDP(sport=1001, dport=5000)),
            IP4 / UDP(sport=1002, dport=53),
            IP4 / TCP(sport=1003, dport=5000, flags="S"),
            broken(IP4 / TCP(sport=1004, dport=5000, flags="S")),
            IP4 / TCP(sport=1005, dport=5000, flags="SF"),
            IP4 / TCP(sport=1006, dport=5000, flags="A"),
            IP4 / ICMP(type=8, id=7),
            IP4 / ICMP(type=0, id=8),
        )

    seen = compare(rules(new, tables=untracked), scenario, backend=backend)
    assert seen[:6] == [ACCEPT, DROP, DROP, ACCEPT, DROP, DROP]
    assert seen[7:] == [ACCEPT, DROP]


def test_a_reply_that_input_drops_still_confirms_its_entry() -> None:
    def scenario(case: Case) -> tuple[list[str], list[str]]:
        with case.udp(case.fw) as sock:
            sock.sendto(b"?", (PEER4, 6000))
            port = sock.getsockname()[1]
            verdicts = case.judged(IP4 / UDP(sport=6000, dport=port))
        with entered(case.fw):
            listing = call("conntrack", "-L", "-p", "udp")
        line = next(line for line in listing.splitlines() if "dport=6000" in line)
        return verdicts, re.findall(r"\[\w+\]", line)

    tracking = "-A INPUT -p tcp -m conntrack --ctstate ESTABLISHED -j ACCEPT"
    verdicts, flags = compare(rules(tracking), scenario)
    assert verdicts == [DROP]
    assert "[UNREPLIED]" not in flags


def test_related_errors_follow_their_connection() -> None:
    def scenario(case: Case) -> list[str]:
        with case.udp(case.fw) as sock:
            sock.sendto(b"?", (PEER4, 6000))
            port = sock.getsockname()[1]
            own = IP(src=FW4, dst=PEER4) / UDP(sport=port, dport=6000)
            foreign = IP(src=FW4, dst=PEER4) / UDP(sport=port, dport=6001)
            error = IP4 / ICMP(type=3, code=1)
            return case.judged(error / own, error / foreign)

    assert compare(rules(REPLIES), scenario) == [ACCEPT, DROP]


def test_neighbour_discovery_is_untracked() -> None:
    ruleset = rules("-A INPUT -m conntrack --ctstate UNTRACKED -j ACCEPT")
    here = IPv6(src=PEER6, dst=FW6, hlim=255)

    def scenario(case: Case) -> list[str]:
        solicit = here / ICMPv6ND_NS(tgt=FW6) / ICMPv6NDOptSrcLLAddr(lladdr=case.peer_mac)
        return case.judged(solicit, here / ICMPv6EchoRequest(id=1))

    assert compare(ruleset, scenario, family=Family.IPV6) == [ACCEPT, DROP]
