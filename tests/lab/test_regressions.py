"""What the lab and the fuzzer once found, each as the smallest ruleset that shows it."""

from __future__ import annotations

import pytest

from bpfilter.lab.report import Report
from bpfilter.lab.verify import Request, verify
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text

pytestmark = pytest.mark.kernel
BOTH = pytest.mark.parametrize("backend", list(Backend))


def verified(
    lines: str, backend: Backend, family: Family = Family.IPV4, chain: str = "INPUT"
) -> Report:
    text = f"*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n{lines}COMMIT\n"
    if lines.startswith("*"):
        text = lines
    return verify(
        Request(
            read_text(text, family=family, backend=backend),
            backend,
            packets=150,
            text=text.encode(),
            prove=False,
            chains=(("filter", chain),),
        )
    )


@BOTH
@pytest.mark.parametrize(
    "match",
    [
        "-p tcp -m tcp ! --sport 0:65535",
        "-p udp -m udp ! --dport :",
        "-p tcp -m tcp ! --tcp-flags NONE NONE",
        "-p tcp -m tcp --tcp-flags NONE SYN",
        "-p tcp -m tcp ! --sport 53 ! --dport 80",
        "-p udp -m udp ! --dport 65535 ! --sport 1",
        "-p udp -m udp ! --dport 80 ! --sport 0",
    ],
)
def test_what_the_backends_take_differently_is_left_to_them(backend: Backend, match: str) -> None:
    """iptables-nft 1.8.9 drops some matches; of two negated ports it makes "not both"."""
    report = verified(f"-A INPUT {match} -j ACCEPT\n", backend)
    assert report.holds, report.divergences


@BOTH
def test_multicast_for_a_joined_group_is_not_taken_for_forwarded(backend: Backend) -> None:
    """The host's own groups go to INPUT, whatever the route says."""
    rules = "-A INPUT -d 224.0.0.0/4 -j ACCEPT\n-A FORWARD -d 224.0.0.0/4 -j DROP\n"
    report = verified(rules, backend, chain="FORWARD")
    assert report.holds, report.divergences


@BOTH
def test_packets_get_past_a_reverse_path_filter(backend: Backend) -> None:
    rules = (
        "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m rpfilter --invert -j DROP\nCOMMIT\n"
        "*filter\n:INPUT DROP [0:0]\n-A INPUT -i eth+ -p tcp -j ACCEPT\n"
        "-A INPUT -i wg0 -j ACCEPT\nCOMMIT\n"
    )
    for family in Family:
        report = verified(rules, backend, family)
        assert report.holds, report.divergences
        assert report.chains[0].shadow.matched > 120
        assert report.chains[0].hit == 2


@BOTH
def test_rules_for_icmp_errors_behind_the_accepting_state_rule_are_reached(
    backend: Backend,
) -> None:
    """No ICMP error is NEW: as UNTRACKED or INVALID ones they still come to such rules."""
    rules = (
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
        "-A INPUT -p icmp -m icmp --icmp-type 3 -j ACCEPT\n"
        "-A INPUT -p tcp -m tcp --tcp-flags SYN,RST SYN,RST -j DROP\n"
    )
    report = verified(rules, backend)
    assert report.holds, report.divergences
    assert report.chains[0].hit == report.chains[0].rules


@BOTH
def test_link_local_destinations_reach_input(backend: Backend) -> None:
    """IPv6 looks them up by the device that they came in by."""
    rules = (
        "-A INPUT -d fe80::/10 -p udp -m udp --dport 546 -j ACCEPT\n"
        "-A INPUT -d fe80::/64 -i eth0 -j ACCEPT\n"
    )
    report = verified(rules, backend, Family.IPV6)
    assert report.holds, report.divergences
    assert report.chains[0].hit == 2
