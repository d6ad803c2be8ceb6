"""Packets that a parser or a route lookup would read wrongly take the original rules.

CASES t1, t5, t10, t14, t21: fragments, padding, broadcasts, tags, loops, and the DHCP client that
must see what INPUT drops.
"""

from __future__ import annotations

import socket
import struct

import pytest
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    fragment6,
)
from scapy.layers.l2 import Dot1Q
from scapy.packet import Packet, Padding, Raw

from bpfilter.ruleset.fields import Family
from tests.cases.case import ACCEPT, DROP, ETH_P_IP, FW4, PEER4, Case, compare, rules
from tests.rollout.network import FW6, PEER6, entered

pytestmark = pytest.mark.kernel
IP4 = IP(src=PEER4, dst=FW4)
SHORT = "-A INPUT -p udp -m length --length 0:1000 -j ACCEPT"
PORT = "-A INPUT -p udp -m udp --dport 5000 -j ACCEPT"


def test_a_reassembled_datagram_is_not_judged_by_its_first_fragment() -> None:
    whole = IP4 / UDP(sport=1, dport=5000) / Raw(bytes(1900))

    def scenario(case: Case) -> list[int]:
        pieces = fragment(whole, fragsize=800)
        return [case.passing(*pieces), case.passing(IP4 / UDP(sport=2, dport=5000))]

    assert compare(rules(SHORT), scenario) == [0, 1]


def test_fragments_are_left_alone_where_conntrack_puts_them_together() -> None:
    tracking = "-A INPUT -p udp -m conntrack --ctstate INVALID -j DROP"
    whole = IP4 / UDP(sport=1, dport=5000) / Raw(bytes(1900))

    def scenario(case: Case) -> int:
        return case.passing(*fragment(whole, fragsize=800), arriving=1)

    assert compare(rules(tracking, SHORT), scenario, decided=False) == 0


def test_fragments_of_ipv6_are_left_alone() -> None:
    whole = IPv6(src=PEER6, dst=FW6) / IPv6ExtHdrFragment() / UDP(dport=5000) / Raw(bytes(1900))

    def scenario(case: Case) -> int:
        pieces = fragment6(whole, 900)
        return case.passing(*pieces)

    assert compare(rules(PORT), scenario, family=Family.IPV6, decided=False) == 1


def test_bytes_behind_the_length_field_are_not_a_header() -> None:
    ports = struct.pack(">HHHH", 1000, 5000, 8, 0)
    cut = IP(src=PEER4, dst=FW4, proto=17, len=24) / Raw(ports[:4]) / Padding(ports[4:] + bytes(30))

    def scenario(case: Case) -> list[str]:
        return case.judged(cut, IP4 / UDP(sport=1000, dport=5000))

    assert compare(rules(PORT), scenario) == [DROP, ACCEPT]


def test_ip_options_take_the_original_rules() -> None:
    options = bytes([7, 7, 4, 0, 0, 0, 0, 0])
    odd = IP(src=PEER4, dst=FW4, options=[Raw(options)]) / UDP(sport=1000, dport=5000)
    assert compare(rules(PORT), lambda case: case.judge(odd), decided=False) == ACCEPT


@pytest.mark.parametrize("port", [5000, 5001])
def test_extension_headers_are_walked_as_ip6tables_walks_them(port: int) -> None:
    here = IPv6(src=PEER6, dst=FW6)
    datagram = UDP(sport=1000, dport=port)
    six = [socket.IPPROTO_UDP, *bytes(7)]
    packets = [
        here / datagram,
        here / IPv6ExtHdrHopByHop() / datagram,
        here / IPv6ExtHdrDestOpt() / datagram,
        here / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / datagram,
        here / IPv6ExtHdrRouting(segleft=0) / datagram,
        here / IPv6ExtHdrFragment(offset=0, m=0) / datagram,
        IPv6(src=PEER6, dst=FW6, nh=59) / Raw(bytes(datagram)),
        IPv6(src=PEER6, dst=FW6, nh=51) / Raw(bytes([17, 1, *bytes(10)]) + bytes(datagram)),
        IPv6(src=PEER6, dst=FW6, nh=135) / Raw(bytes(six) + bytes(datagram)),
    ]
    last = ("-A INPUT -p udp -j DROP", "-A INPUT ! -p tcp -j ACCEPT")
    ruleset = rules(PORT, *last, counting="! -p ipv6-icmp")
    seen = compare(ruleset, lambda case: case.judged(*packets), family=Family.IPV6)
    assert seen[0] == (ACCEPT if port == 5000 else DROP)


@pytest.mark.parametrize(
    "source, destination, link",
    [
        ("0.0.0.0", "255.255.255.255", "ff:ff:ff:ff:ff:ff"),
        (PEER4, "255.255.255.255", "ff:ff:ff:ff:ff:ff"),
        (PEER4, "10.99.1.255", "ff:ff:ff:ff:ff:ff"),
        (PEER4, "224.0.0.1", "01:00:5e:00:00:01"),
    ],
)
def test_broadcast_and_multicast_take_the_original_rules(
    source: str, destination: str, link: str
) -> None:
    def scenario(case: Case) -> list[str]:
        packets = [IP(src=source, dst=destination) / UDP(dport=port) for port in (5000, 5001)]
        return [case.judge(packet, destination=link) for packet in packets]

    assert compare(rules(PORT), scenario, decided=False) == [ACCEPT, DROP]


def test_the_packet_type_is_that_of_the_frame() -> None:
    ruleset = rules("-A INPUT -p udp -m pkttype --pkt-type broadcast -j DROP", PORT)

    def scenario(case: Case) -> list[str]:
        packet = IP4 / UDP(sport=1000, dport=5000)
        return [case.judge(packet), case.judge(packet, destination="ff:ff:ff:ff:ff:ff")]

    assert compare(ruleset, scenario) == [ACCEPT, DROP]


def test_a_tagged_frame_is_not_the_interfaces_own() -> None:
    def scenario(case: Case) -> int:
        plain = IP4 / UDP(sport=1000, dport=5000)
        case.emit(Dot1Q(vlan=5) / plain)
        return case.passing(plain)

    assert compare(rules(PORT), scenario) == 1


def test_a_frame_for_another_host_is_nobodys() -> None:
    def scenario(case: Case) -> int:
        plain = IP4 / UDP(sport=1000, dport=5000)
        case.emit(plain, destination="02:00:00:00:00:99")
        return case.passing(plain)

    assert compare(rules(PORT), scenario) == 1


def test_looped_multicast_without_a_link_header_takes_the_original_rules() -> None:
    def scenario(case: Case) -> list[bool]:
        return [_loops(case, port) for port in (5000, 5001)]

    assert compare(rules(PORT), scenario, decided=False) == [True, False]


def _loops(case: Case, port: int) -> bool:
    """Whether a multicast datagram of the firewall on v1 comes back to itself."""
    with case.udp(case.fw, port=port) as receiver, case.udp(case.fw) as sender:
        group = socket.inet_aton("239.1.2.3") + socket.inet_aton(FW4)
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        receiver.settimeout(0.3)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(FW4))
        sender.sendto(b"loop", ("239.1.2.3", port))
        try:
            return receiver.recv(10) == b"loop"
        except TimeoutError:
            return False


@pytest.mark.parametrize("destination", [FW4, "255.255.255.255"])
def test_a_dhcp_client_sees_the_answers_that_input_drops(destination: str) -> None:
    def scenario(case: Case) -> tuple[int, int]:
        with entered(case.fw):
            client = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        with client:
            client.bind(("v1", ETH_P_IP))
            client.settimeout(2)
            link = None if destination == FW4 else "ff:ff:ff:ff:ff:ff"
            answers = [_dhcp(destination, number) for number in range(5)]
            passed = case.passing(*answers, destination=link)
            return passed, sum(len(client.recv(2000)) > 0 for _ in answers)

    assert compare(rules(PORT), scenario, decided=None) == (0, 5)


def _dhcp(destination: str, number: int) -> Packet:
    return IP(src=PEER4, dst=destination, id=number) / UDP(sport=67, dport=68) / Raw(bytes(240))
