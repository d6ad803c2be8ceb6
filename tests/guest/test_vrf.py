"""VRF: INPUT sees the VRF device only, and PREROUTING runs twice."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, UDP

from bpfilter.errors import RolloutError
from bpfilter.rollout import host
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.cases.case import FW4, PEER4, Case, compare, rules
from tests.cases.enforcing import enforcing
from tests.rollout.network import call, entered

pytestmark = [pytest.mark.kernel, pytest.mark.guest("6.12")]
_LEGACY4 = (Backend.LEGACY, Family.IPV4)
PACKETS = tuple(IP(src=PEER4, dst=FW4) / UDP(sport=1000, dport=port) for port in (5000, 5001, 5002))
RULES = rules(
    "-A INPUT -i v1 -p udp -m udp --dport 5000 -j ACCEPT",
    "-A INPUT -i vrf0 -p udp -m udp --dport 5001 -j ACCEPT",
).replace(
    "-A INPUT -i v1 -m comment",
    "-A INPUT -i vrf0 -m comment --comment survived\n-A INPUT -i v1 -m comment",
)


def enslave(case: Case) -> None:
    call("ip", "-n", case.fw, "link", "add", "vrf0", "type", "vrf", "table", "10")
    call("ip", "-n", case.fw, "link", "set", "vrf0", "up")
    call("ip", "-n", case.fw, "link", "set", "v1", "master", "vrf0")


def test_a_port_of_a_vrf_is_refused_and_so_is_the_vrf_itself() -> None:
    with Case(*_LEGACY4) as case:
        case.tables.restore(RULES)
        enslave(case)
        with pytest.raises(RolloutError, match="VRF") as refused, enforcing(case, *_LEGACY4):
            pass
        assert refused.value.hint == "leave it to iptables, and attach interfaces outside of VRFs"
        with entered(case.fw):
            (found,) = host.link_obstacles("vrf0")
        assert "VRF" in found.what


def test_an_interface_that_joins_a_vrf_is_judged_by_the_rules_of_the_vrf() -> None:
    def scenario(case: Case) -> list[int]:
        found = [case.passing(packet) for packet in PACKETS]
        enslave(case)
        return [*found, *(case.passing(packet) for packet in PACKETS)]

    assert compare(RULES, scenario) == [1, 0, 0, 0, 1, 0]


def test_a_vrf_beside_the_interface_changes_nothing() -> None:
    def scenario(case: Case) -> list[int]:
        call("ip", "-n", case.fw, "link", "add", "vrf0", "type", "vrf", "table", "10")
        call("ip", "-n", case.fw, "link", "add", "d0", "type", "dummy")
        call("ip", "-n", case.fw, "link", "set", "d0", "master", "vrf0")
        for device in ("vrf0", "d0"):
            call("ip", "-n", case.fw, "link", "set", device, "up")
        call("ip", "-n", case.fw, "addr", "add", "10.95.1.1/24", "dev", "d0")
        return [case.passing(packet) for packet in PACKETS]

    assert compare(RULES, scenario) == [1, 0, 0]
