"""Early drops on real interfaces: what they drop, and every packet that they must leave alone."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Ether

from bpfilter.compiler.early import Depth, early_image
from bpfilter.kernel.config import Early, Mode
from bpfilter.kernel.options import Template
from bpfilter.kernel.program import Classifier, Options
from bpfilter.kernel.xdp import XdpMode, present
from bpfilter.rollout.early import (
    EarlyRefused,
    EarlyRequest,
    early_chains,
    require_conditions,
)
from bpfilter.rollout.teardown import remains, teardown
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, RuleRef
from bpfilter.ruleset.read import read_text
from tests.rollout.early_host import Host, eventually, ruleset
from tests.rollout.network import FW4, PEER4, PEER6, call, entered

pytestmark = pytest.mark.kernel

BACKENDS = list(Backend)
FAMILIES = list(Family)
HOOKS = [None, XdpMode.NATIVE]
EVERYWHERE = [
    (Backend.LEGACY, Family.IPV4, XdpMode.NATIVE),
    (Backend.LEGACY, Family.IPV6, None),
    (Backend.NFT, Family.IPV4, None),
    (Backend.NFT, Family.IPV4, XdpMode.GENERIC),
    (Backend.NFT, Family.IPV6, XdpMode.NATIVE),
]
POLICY = RuleRef("filter", "INPUT", 0)


@pytest.mark.parametrize(("backend", "family", "mode"), EVERYWHERE)
def test_a_flood_is_dropped_before_netfilter_and_the_rest_passes(
    backend: Backend, family: Family, mode: XdpMode | None
) -> None:
    rules = ruleset(
        "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT",
        "-A INPUT -p udp --dport 53 -j ACCEPT",
        "-A INPUT -p tcp --syn --dport 22 -j ACCEPT",
        "-A INPUT -p udp --dport 99 -j DROP",
        ports=(53,),
    )
    with Host(backend, family) as host:
        host.tables.restore(rules)
        with host.dropping(mode) as early:
            assert early.trouble is None
            ip = host.ip()
            host.emit(*[ip / UDP(sport=n, dport=99) / b"x" for n in range(1000, 1050)])
            host.emit(*[ip / TCP(sport=n, dport=23, flags="S") for n in range(1000, 1020)])
            host.emit(*[ip / UDP(sport=n, dport=53) / b"x" for n in range(1000, 1010)])
            counted = early.counted()
            assert early.dropped() == 70
            rule = RuleRef("filter", "INPUT", 4)
            assert counted[family, rule].certain == 50
            assert counted[family, POLICY].certain == 20
            eventually(lambda: host.tables.packets("--dport 53$") == 10)
            assert host.tables.packets("--dport 99 -j DROP$") == 0
    assert host.said[-1] == "stage off"


@pytest.mark.parametrize("mode", HOOKS)
def test_without_a_lease_nothing_is_dropped_early(mode: XdpMode | None) -> None:
    with Host() as host:
        host.tables.restore(ruleset())
        with host.dropping(mode) as early:
            host.emit(host.ip() / UDP(dport=99))
            assert early.dropped() == 1
            assert host.rollout is not None and host.rollout.lease is not None
            host.rollout.lease.revoke()
            host.emit(host.ip() / UDP(dport=99))
            assert early.dropped() == 1
            eventually(lambda: host.judged() == 1)


@pytest.mark.parametrize("mode", HOOKS)
def test_rollback_leaves_no_early_program(mode: XdpMode | None) -> None:
    with Host() as host:
        host.tables.restore(ruleset())
        with host.dropping(mode), entered(host.fw):
            assert (present(host.index) is not None) == (mode is not None)
            assert remains()
        with entered(host.fw):
            assert present(host.index) is None
            assert remains() == ()


def test_a_foreign_xdp_program_is_left_alone_and_tc_drops() -> None:
    with Host() as host:
        host.tables.restore(ruleset())
        text = read_text(ruleset())
        image = early_image(early_chains([text], Depth.XDP, expectations=False))
        options = Options(mode=Mode.FORCED, template=Template.XDP, early=Early.DROPS, leased=True)
        with Classifier.load(image, options) as foreign, entered(host.fw), IPRoute() as ipr:
            attributes = [("IFLA_XDP_FD", foreign.fd), ("IFLA_XDP_FLAGS", 2)]
            ipr.link("set", index=host.index, xdp={"attrs": attributes})
            before = present(host.index)
            assert before is not None
            with host.dropping(XdpMode.GENERIC) as early:
                host.emit(host.ip() / UDP(dport=99))
                assert early.dropped() == 1
            assert any(str(before) in line and "TC is used" in line for line in host.said)
            assert present(host.index) == before


def test_no_xdp_where_the_device_hides_vlan_tags() -> None:
    with Host() as host:
        with entered(host.fw):
            call("ethtool", "-K", "v1", "rxvlan", "on")
        host.tables.restore(ruleset())
        with host.dropping(XdpMode.GENERIC) as early:
            with entered(host.fw):
                assert present(host.index) is None
            host.emit(host.ip() / UDP(dport=99))
            assert early.dropped() == 1
        assert any("rxvlan off" in line for line in host.said)


@pytest.mark.parametrize("mode", HOOKS)
def test_a_dhcp_client_gets_what_input_drops(mode: XdpMode | None) -> None:
    with Host() as host:
        host.tables.restore(ruleset())
        with entered(host.fw):
            client = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        with client, host.dropping(mode, accept_sockets=True) as early:
            client.settimeout(2)
            host.emit(*[host.ip() / UDP(sport=67, dport=68) / b"offer"] * 5)
            assert [client.recv(100)[-5:] for _ in range(5)] == [b"offer"] * 5
            assert early.dropped() == 0


def test_a_packet_socket_of_another_process_prevents_early_drops_unless_accepted() -> None:
    with Host() as host:
        host.tables.restore(ruleset())
        with host.dropping() as early:
            with entered(host.fw):
                tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
            with tap:
                assert host.tick() is None
                assert early.trouble is not None and "packet socket" in early.trouble
                host.emit(host.ip() / UDP(dport=99) / b"seen")
                tap.settimeout(2)
                assert tap.recv(100).endswith(b"seen")
                assert early.dropped() == 0
                with entered(host.fw), pytest.raises(EarlyRefused, match="packet socket of"):
                    require_conditions(("v1",), EarlyRequest())
            assert host.tick() is None and early.trouble is None
            host.emit(host.ip() / UDP(dport=99))
            assert early.dropped() == 1


@pytest.mark.parametrize(("mode", "seen"), [(None, 5), (XdpMode.GENERIC, 0), (XdpMode.NATIVE, 0)])
def test_taps_see_what_tc_drops_and_not_what_xdp_drops(mode: XdpMode | None, seen: int) -> None:
    assert ("tcpdump" in " ".join(EarlyRequest({"v1": mode} if mode else {}).notices())) == (
        seen == 0
    )
    with Host() as host:
        host.tables.restore(ruleset())
        with host.dropping(mode) as early:
            with entered(host.fw):
                tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            with tap:
                tap.bind(("v1", 3))
                tap.settimeout(0.2)
                host.emit(*[host.ip() / UDP(dport=99) / b"x"] * 5)
                got = 0
                try:
                    while True:
                        got += tap.recv(200).endswith(b"x")
                except TimeoutError:
                    pass
            assert early.dropped() == 5
            assert got == seen


STATEFUL = "-A OUTPUT -m state --state ESTABLISHED -m comment --comment known"


@pytest.mark.parametrize("mode", HOOKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_dropped_reply_still_moves_its_entry(family: Family, mode: XdpMode | None) -> None:
    """A UDP reply that INPUT drops clears UNREPLIED; a packet without an entry goes early."""
    with Host(Backend.NFT, family) as host:
        host.tables.restore(ruleset(STATEFUL))
        with host.dropping(mode) as early, host.udp(host.fw, family, 4444) as sock:
            address = PEER4 if family is Family.IPV4 else PEER6
            sock.sendto(b"ask", (address, 5555))
            host.emit(host.ip() / UDP(sport=5555, dport=4444) / b"reply")
            host.emit(host.ip() / UDP(sport=5556, dport=4444) / b"stray")
            sock.sendto(b"again", (address, 5555))
            assert early.dropped() == 1
            eventually(lambda: host.tables.packets("known") == 1)


def test_a_dropped_reset_still_closes_its_entry() -> None:
    rules = ruleset("-A INPUT -p tcp --tcp-flags RST RST -j DROP", STATEFUL, policy="ACCEPT")
    with Host() as host:
        host.tables.restore(rules)
        with entered(host.peer):
            server = socket.create_server((PEER4, 7000))
        with server, host.dropping() as early:
            with entered(host.fw):
                client = socket.create_connection((PEER4, 7000), timeout=2)
            port = client.getsockname()[1]
            with client:
                accepted, _ = server.accept()
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                accepted.close()
            with entered(host.fw):
                shown = Path("/proc/thread-self/net/nf_conntrack").read_text()
            assert early.dropped() == 0
            assert "CLOSE" in next(line for line in shown.splitlines() if f"={port} " in line)


@pytest.mark.parametrize("mode", HOOKS)
def test_where_conntrack_works_icmp_is_never_dropped_early(mode: XdpMode | None) -> None:
    """The reply to a masqueraded ping has the router's own address."""
    for family, echo in ((Family.IPV4, ICMP()), (Family.IPV6, ICMPv6EchoRequest())):
        with Host(Backend.NFT, family) as host:
            host.tables.restore(ruleset(STATEFUL))
            with host.dropping(mode) as early:
                host.emit(host.ip() / echo)
                assert early.dropped() == 0
                assert early.trouble is None


def test_where_conntrack_is_not_used_icmp_is_dropped_early() -> None:
    with Host() as host:
        host.tables.restore(ruleset())
        with host.dropping() as early:
            host.emit(host.ip() / ICMP())
            assert early.dropped() == 1


def test_packets_for_other_hosts_keep_their_icmp_errors() -> None:
    """FORWARD drops all; a packet whose TTL is over is answered before."""
    with Host() as host:
        rules = ruleset("-A OUTPUT -p icmp -m comment --comment answered").replace(
            ":FORWARD ACCEPT", ":FORWARD DROP"
        )
        host.tables.restore(rules)
        with entered(host.fw):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        with host.dropping() as early:
            host.emit(host.ip(dst="10.98.7.6", ttl=1) / UDP(dport=99))
            assert early.dropped() == 0
            eventually(lambda: host.tables.packets("answered") == 1)


RAW = """*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
{}
COMMIT"""


@pytest.mark.parametrize("mode", HOOKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_raw_drops_is_dropped_early_wherever_it_goes(
    backend: Backend, mode: XdpMode | None
) -> None:
    before = RAW.format("-A PREROUTING -s 203.0.113.0/24 -j DROP")
    rules = ruleset(STATEFUL, policy="ACCEPT", before=before)
    with Host(backend) as host:
        host.tables.restore(rules)
        with host.dropping(mode) as early:
            for target in (FW4, "10.98.7.6"):
                host.emit(host.ip(src="203.0.113.9", dst=target) / UDP(dport=53))
                host.emit(host.ip(src="203.0.113.9", dst=target) / ICMP())
            assert early.dropped() == 4
            rule = RuleRef("raw", "PREROUTING", 1)
            assert early.counted()[Family.IPV4, rule].certain == 4


@pytest.mark.parametrize("mode", HOOKS)
def test_nothing_is_dropped_before_a_rule_that_leaves_a_trace(mode: XdpMode | None) -> None:
    before = RAW.format("-A PREROUTING -p udp --dport 99 -m recent --set --name early")
    with Host() as host:
        host.tables.restore(ruleset(before=before))
        with host.dropping(mode) as early:
            host.emit(host.ip() / UDP(dport=99), host.ip() / UDP(dport=98))
            assert early.dropped() == 1
            eventually(lambda: host.tables.packets("--name early") == 1)


@pytest.mark.parametrize(
    ("backend", "mode", "table"),
    [
        (Backend.LEGACY, None, "raw"),
        (Backend.LEGACY, XdpMode.NATIVE, "raw"),
        (Backend.LEGACY, XdpMode.NATIVE, "filter"),
        (Backend.NFT, XdpMode.NATIVE, "raw"),
    ],
)
def test_an_edit_ends_early_drops_with_the_next_packet(
    backend: Backend, mode: XdpMode | None, table: str
) -> None:
    chain = "PREROUTING" if table == "raw" else "INPUT"
    with Host(backend) as host:
        host.tables.restore(ruleset(before=RAW.format("")))
        with host.dropping(mode) as early:
            host.emit(host.ip() / UDP(dport=99))
            assert early.dropped() == 1
            with entered(host.fw):
                call(f"iptables-{backend}", "-t", table, "-I", chain, "-p", "udp", "-j", "ACCEPT")
            host.emit(host.ip() / UDP(dport=99))
            assert early.dropped() == 1
            eventually(lambda: host.tables.packets("-p udp -j ACCEPT") == 1)


REDIRECT = """table ip translating {
    chain early {
        type nat hook prerouting priority dstnat;
        udp dport 8053 redirect to :9053
    }
}"""
COUNT = """table inet counting {
    chain early {
        type filter hook prerouting priority raw;
        udp dport 8053 counter
    }
}"""


@pytest.mark.parametrize("mode", HOOKS)
def test_native_nft_dnat_is_never_dropped_over(mode: XdpMode | None) -> None:
    with Host() as host:
        host.tables.restore(ruleset("-A INPUT -p udp --dport 8053 -j DROP", policy="ACCEPT"))
        with host.dropping(mode) as early, host.udp(host.fw, port=9053) as service:
            host.emit(host.ip() / UDP(sport=5, dport=8053) / b"early")
            assert early.dropped() == 1
            with entered(host.fw):
                call("nft", "-f", "-", data=REDIRECT)
            host.emit(host.ip() / UDP(sport=6, dport=8053) / b"hello")
            assert service.recv(10) == b"hello"
            assert "native nft" in str(host.tick())
            host.emit(host.ip() / UDP(sport=7, dport=8053) / b"still")
            assert service.recv(10) == b"still"
            assert early.dropped() == 1


def test_native_nft_rules_before_filter_make_drops_late() -> None:
    with Host() as host:
        host.tables.restore(ruleset())
        with host.dropping() as early:
            with entered(host.fw):
                call("nft", "-f", "-", data=COUNT)
            assert host.tick() is None
            assert early.trouble is not None and "chain inet counting early" in early.trouble
            host.emit(host.ip() / UDP(dport=8053))
            assert early.dropped() == 0
            assert host.rollout is not None and host.rollout.decided() == 1
            with entered(host.fw):
                call("nft", "flush", "table", "inet", "counting")
            assert host.tick() is None and early.trouble is None


def test_an_extension_header_is_left_to_the_kernel() -> None:
    with Host(family=Family.IPV6) as host:
        host.tables.restore(ruleset())
        with host.dropping() as early:
            host.emit(host.ip() / IPv6ExtHdrHopByHop() / UDP(dport=99))
            host.emit(host.ip() / UDP(dport=99))
            assert early.dropped() == 1


def test_frames_for_others_are_left_to_the_kernel() -> None:
    with Host() as host:
        host.tables.restore(ruleset())
        with host.dropping(XdpMode.NATIVE) as early:
            for destination in ("02:00:00:00:77:77", "ff:ff:ff:ff:ff:ff"):
                host.frames(
                    bytes(Ether(src=host.peer_mac, dst=destination) / host.ip() / UDP(dport=99))
                )
            assert early.dropped() == 0


def test_behind_a_bridge_nothing_is_dropped_early() -> None:
    """The port's frames are the bridge's, from the moment on at which it is enslaved."""
    with Host() as host:
        host.tables.restore(ruleset())
        with host.dropping(XdpMode.GENERIC) as early:
            host.emit(host.ip() / UDP(dport=99))
            with entered(host.fw):
                call("ip", "link", "add", "br9", "type", "bridge")
                call("ip", "link", "set", "v1", "master", "br9")
            host.emit(host.ip() / UDP(dport=99))
            assert early.dropped() == 1


@pytest.mark.parametrize("mode", HOOKS)
def test_a_new_generation_takes_the_place_of_the_old_one(mode: XdpMode | None) -> None:
    """The device is not reset: its XDP link stays, only the program in it changes."""
    with Host() as host:
        host.tables.restore(ruleset())
        with host.dropping(mode) as early:
            links = early.links
            with entered(host.fw):
                call("iptables-nft", "-A", "INPUT", "-p", "udp", "--dport", "99", "-j", "ACCEPT")
                host.rollout.swap()
            assert host.rollout.early is not None and host.rollout.early is not early
            assert host.rollout.early.links == links
            host.emit(host.ip() / UDP(dport=99), host.ip() / UDP(dport=98))
            assert host.rollout.early.dropped() == 1


@pytest.mark.parametrize("mode", HOOKS)
def test_teardown_removes_what_a_killed_daemon_left(mode: XdpMode | None) -> None:
    with Host() as host:
        host.tables.restore(ruleset())
        with host.dropping(mode), entered(host.fw):
            teardown()
            assert remains() == ()
            assert present(host.index) is None
