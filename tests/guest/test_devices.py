"""Kinds of interfaces that not every kernel has: decided where IP receives, refused elsewhere.

CASES t9 and t10 on real devices, and the tunnels.
"""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from bpfilter.errors import RolloutError
from bpfilter.rollout import host
from bpfilter.rollout.attached import attached
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.cases.case import ACCEPT, DROP, FW4, PEER4, Case, compare, rules
from tests.cases.enforcing import enforcing
from tests.guest.topologies import Bond, Bridge, Gretap, Ipvlan, Macvlan, Netkit, Vlan, saved
from tests.rollout.network import FW6, PEER6, call, entered

pytestmark = [pytest.mark.kernel, pytest.mark.guest("6.12")]
PORT = "-A INPUT -i v1 -p udp -m udp --dport 5000 -j ACCEPT"
BELOW = "-A INPUT -i w1 -p gre -j ACCEPT"
LATER = "-A INPUT -i v1.10 -p udp -m udp --dport 5001 -j ACCEPT"
IP4 = IP(src=PEER4, dst=FW4)
BOTH = (UDP(sport=1000, dport=5000), UDP(sport=1000, dport=5001))
_LEGACY4 = (Backend.LEGACY, Family.IPV4)


def both_ports(case: Case) -> list[str]:
    head: Packet = IP4 if case.family is Family.IPV4 else IPv6(src=PEER6, dst=FW6)
    return case.judged(*(head / datagram for datagram in BOTH))


@pytest.mark.parametrize("topology", [Vlan, Bond, Bridge, Macvlan, Ipvlan, Gretap, Netkit])
def test_packets_are_decided_where_ip_receives(topology: type[Case]) -> None:
    backend = Backend.NFT if topology in (Bond, Macvlan, Netkit) else Backend.LEGACY
    ruleset = rules(PORT, BELOW)
    assert compare(ruleset, both_ports, topology=topology, backend=backend) == [ACCEPT, DROP]


def test_ipv6_is_decided_on_a_vlan_too() -> None:
    assert compare(rules(PORT), both_ports, topology=Vlan, family=Family.IPV6) == [ACCEPT, DROP]


STACKED = {
    "vlan": ["link", "v1", "name", "up0", "type", "vlan", "id", "10"],
    "macvlan": ["link", "v1", "name", "up0", "type", "macvlan"],
    "ipvlan": ["link", "v1", "name", "up0", "type", "ipvlan"],
    "macsec": ["link", "v1", "name", "up0", "type", "macsec"],
}
PORTS_OF = {
    "bond": ["up0", "type", "bond", "mode", "active-backup"],
    "bridge": ["up0", "type", "bridge"],
    "vrf": ["up0", "type", "vrf", "table", "10"],
}


@pytest.mark.parametrize("kind", [*STACKED, *PORTS_OF])
def test_what_lies_below_another_interface_is_refused_and_left_as_it_was(kind: str) -> None:
    with Case(*_LEGACY4) as case:
        case.tables.restore(rules(PORT))
        call("ip", "-n", case.fw, "link", "add", *(STACKED | PORTS_OF)[kind])
        if kind in PORTS_OF:
            call("ip", "-n", case.fw, "link", "set", "v1", "down")
            call("ip", "-n", case.fw, "link", "set", "v1", "master", "up0")
            call("ip", "-n", case.fw, "link", "set", "v1", "up")
        before = saved(case)
        words = rf"up0 \({kind}\) is stacked on v1" if kind in STACKED else "v1 .*VRF|has a master"
        with pytest.raises(RolloutError, match=words), enforcing(case, *_LEGACY4):
            pass
        assert saved(case) == before
        with entered(case.fw):
            assert attached() == ()


def test_a_vlan_that_is_added_later_keeps_its_packets() -> None:
    """A tagged frame passes the parent's program although it is not the parent's packet."""
    tagged, untagged = "10.97.1.1", FW4

    def scenario(case: Case) -> list[int]:
        found = [case.passing(IP4 / BOTH[0]), case.passing(IP4 / BOTH[1])]
        for name, device, address in ((case.fw, "v1", tagged), (case.peer, "p1", "10.97.1.2")):
            child = f"{device}.10"
            call("ip", "-n", name, "link", "add", "link", device, "name", child, "type", "vlan",
                 "id", "10")  # fmt: skip
            call("ip", "-n", name, "addr", "add", f"{address}/24", "dev", child)
            call("ip", "-n", name, "link", "set", child, "up")
        for target in (tagged, untagged):
            for datagram in BOTH:
                found.append(_through_child(case, IP(src="10.97.1.2", dst=target) / datagram))
        return found

    ruleset = rules(PORT, LATER).replace(
        "-A INPUT -i v1 -m comment", "-A INPUT -i v1.10 -m comment --comment survived\n"
        "-A INPUT -i v1 -m comment"
    ).replace(
        "-A PREROUTING -i v1 -m comment", "-A PREROUTING -i v1.10 -m comment --comment arrived\n"
        "-A PREROUTING -i v1 -m comment"
    )  # fmt: skip
    assert compare(ruleset, scenario) == [1, 0, 0, 1, 0, 1]


def _through_child(case: Case, packet: Packet) -> int:
    """Whether a packet from the peer's tagged interface passes filter."""
    import socket

    with entered(case.peer), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("p1.10", 0))
        plain, case._wire = case._wire, wire
        try:
            return case.passing(packet)
        finally:
            case._wire = plain


@pytest.mark.parametrize(
    "words",
    [
        ["ipip", "local", FW4, "remote", PEER4],
        ["gre", "local", FW4, "remote", PEER4],
        ["sit", "local", FW4, "remote", PEER4],
        ["ip6tnl", "local", FW6, "remote", PEER6],
        ["vti", "local", FW4, "remote", PEER4, "key", "7"],
        ["wireguard"],
    ],
    ids=lambda words: words[0],
)
def test_devices_without_ethernet_are_refused(words: list[str]) -> None:
    with Case(*_LEGACY4) as case, entered(case.fw):
        call("ip", "link", "add", "t0", "type", *words)
        (found,) = host.link_obstacles("t0")
        assert "t0 is not an Ethernet interface" in found.what


def test_what_comes_out_of_a_tunnel_takes_the_original_rules() -> None:
    """The outer packet is decided on v1; its code must not judge the inner one on t0."""
    inside = "10.96.1.1"

    def scenario(case: Case) -> list[int]:
        call("ip", "-n", case.fw, "link", "add", "t0", "type", "ipip", "local", FW4,
             "remote", PEER4)  # fmt: skip
        call("ip", "-n", case.fw, "addr", "add", f"{inside}/24", "dev", "t0")
        call("ip", "-n", case.fw, "link", "set", "t0", "up")
        inner = IP(src="10.96.1.2", dst=inside)
        with case.udp(case.fw, port=5001):  # else the peer answers the ICMP error with another
            return [case.passing(IP4 / inner / datagram, arriving=2) for datagram in BOTH]

    ruleset = rules(
        "-A INPUT -i v1 -p ipencap -j ACCEPT",
        "-A INPUT -i t0 -p udp -m udp --dport 5001 -j ACCEPT",
    )
    for chain, comment in (("INPUT", "survived"), ("PREROUTING", "arrived")):
        counting = f"-A {chain} -i v1 -m comment --comment {comment}"
        ruleset = ruleset.replace(counting, f"{counting}\n{counting.replace('v1', 't0')}")
    assert compare(ruleset, scenario) == [1, 2]


def test_an_address_of_another_interface_is_decided_where_the_packet_comes_in() -> None:
    def scenario(case: Case) -> list[str]:
        return case.judged(*(IP(src=PEER4, dst="10.95.1.1") / datagram for datagram in BOTH))

    assert compare(rules(PORT), scenario, topology=_WithDummy) == [ACCEPT, DROP]


class _WithDummy(Case):
    def _build(self) -> None:
        super()._build()
        call("ip", "-n", self.fw, "link", "add", "d0", "type", "dummy")
        call("ip", "-n", self.fw, "addr", "add", "10.95.1.1/24", "dev", "d0")
        call("ip", "-n", self.fw, "link", "set", "d0", "up")
