"""What stands against enforcement on a host is found, named, and nothing else is."""

from __future__ import annotations

import pytest

from bpfilter.rollout.attached import attached
from bpfilter.rollout.host import host_obstacles, link_obstacles, mark_uses
from bpfilter.rollout.mark import WHOLE
from tests.rollout.network import Net, call, entered, run

pytestmark = pytest.mark.kernel


def test_a_plain_host_has_no_obstacles(net: Net) -> None:
    with entered(net.fw):
        assert host_obstacles() == ()
        assert link_obstacles("v1") == ()
        assert mark_uses() == ()
        assert attached() == ()


def test_routing_rules_and_native_rules_that_use_the_mark_are_found(net: Net) -> None:
    with entered(net.fw):
        call("ip", "rule", "add", "fwmark", "0x10/0xf0", "lookup", "5")
        call("ip", "-6", "rule", "add", "fwmark", "7", "lookup", "9")
        assert {use.bits for use in mark_uses()} == {0xF0, WHOLE}
        call("nft", "add table inet shop;"
             "add chain inet shop out {type filter hook output priority 0;};"
             "add rule inet shop out meta mark 5 drop")  # fmt: skip
        assert any("inet shop out" in use.user for use in mark_uses())
        assert host_obstacles() == ()


def test_sets_that_hold_marks_are_found_and_others_are_not(net: Net) -> None:
    """The kernel may lack the type hash:ip,mark: then no set can hold marks either."""
    with entered(net.fw):
        call("ipset", "create", "guests", "hash:ip")
        assert mark_uses() == ()
        made = run("ipset", "create", "marked", "hash:ip,mark").returncode == 0
        assert ["ipset marked" in use.user for use in mark_uses()] == [True] * made


@pytest.mark.parametrize(
    ("commands", "found"),
    [
        (["ip link add m1 link v1 type macvlan"], "m1 (macvlan) is stacked on v1"),
        (["ip link add br0 type bridge", "ip link set v1 master br0"], "v1 has a master"),
    ],
)
def test_interfaces_where_ip_does_not_receive_are_refused(
    net: Net, commands: list[str], found: str
) -> None:
    with entered(net.fw):
        for command in commands:
            call(*command.split())
        assert [found in obstacle.what for obstacle in link_obstacles("v1")] == [True]


def test_loopback_and_missing_interfaces_are_refused(net: Net) -> None:
    with entered(net.fw):
        assert "not an Ethernet" in link_obstacles("lo")[0].what
        assert "no interface eth9" in link_obstacles("eth9")[0].what


def test_a_bridge_whose_frames_pass_iptables_is_an_obstacle(net: Net) -> None:
    with entered(net.fw):
        call("ip", "link", "add", "br0", "type", "bridge")
        for family in ("", "6"):
            call("sysctl", "-qw", f"net.bridge.bridge-nf-call-ip{family}tables=1")
        assert ["br_netfilter" in obstacle.what for obstacle in host_obstacles()] == [True]
        for family in ("", "6"):
            call("sysctl", "-qw", f"net.bridge.bridge-nf-call-ip{family}tables=0")
        assert host_obstacles() == ()


@pytest.mark.parametrize(
    ("rule", "verb"),
    [
        ("ip ttl set 5", "mangle"),
        ("tcp dport 80 dnat to 10.0.0.1", "dnat"),
        ("log", "log"),
    ],
)
def test_native_tables_are_an_obstacle_if_they_may_alter_or_show_packets(
    net: Net, rule: str, verb: str
) -> None:
    kind = "nat" if verb == "dnat" else "filter"
    with entered(net.fw):
        call("nft", f"add table ip shop; add chain ip shop pre {{type {kind} hook prerouting"
             " priority -100;}; add rule ip shop pre tcp dport 22 counter accept")  # fmt: skip
        assert host_obstacles() == ()
        call("nft", f"add rule ip shop pre {rule}")
        assert [f"({verb})" in obstacle.what for obstacle in host_obstacles()] == [True]
