"""`verify` agrees where bpfilter is right, and says what differs where it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bpfilter.cli.main import run
from bpfilter.errors import LabError
from bpfilter.lab.report import Report
from bpfilter.lab.verify import Request, verify
from bpfilter.rollout.marking import cutover
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text

pytestmark = pytest.mark.kernel

V4 = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:web - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -p tcp -m multiport --dports 80,443 -j web
-A INPUT -p icmp -m icmp --icmp-type 8 -m limit --limit 5/sec -j ACCEPT
-A INPUT -m addrtype --dst-type BROADCAST -j DROP
-A INPUT -p udp -m udp --dport 53 -j REJECT --reject-with icmp-port-unreachable
-A FORWARD -i eth0 -o eth1 -p tcp -m tcp --dport 80 -j ACCEPT
-A FORWARD -o eth2 -m state --state ESTABLISHED -j ACCEPT
-A web -s 192.0.2.0/24 -j RETURN
-A web -j ACCEPT
COMMIT
"""
V6 = """*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type echo-request -j ACCEPT
-A INPUT -s fe80::/10 -p udp -m udp --dport 546 -j ACCEPT
-A INPUT ! -s 2001:db8::/32 -p tcp -m tcp --dport 22 -j LOG --log-prefix ssh
-A INPUT -s 2001:db8::/32 -p tcp -m tcp --dport 22 -j ACCEPT
-A FORWARD -i wg+ -m hl --hl-lt 5 -j DROP
COMMIT
"""


def verified(rules: str, family: Family, backend: Backend, **changes: object) -> Report:
    ruleset = read_text(rules, family=family)
    request = Request(ruleset, backend, packets=300, text=rules.encode(), cutover=cutover)
    return verify(replace(request, **changes))


@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize(("family", "text"), [(Family.IPV4, V4), (Family.IPV6, V6)])
def test_a_ruleset_is_verified_in_shadow_and_in_cutover(
    family: Family, text: str, backend: Backend
) -> None:
    report = verified(text, family, backend)
    assert report.holds, report.divergences
    assert [chain.chain for chain in report.chains] == ["filter INPUT", "filter FORWARD"]
    for chain in report.chains:
        assert chain.cutover is not None
        assert chain.shadow.matched > 200
        assert chain.cutover.matched > 200
        assert chain.hit == chain.rules
        assert set(chain.states) >= {"NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"}
    json.dumps(report.as_json())


@pytest.mark.parametrize("backend", list(Backend))
def test_a_wrong_translation_is_shown_as_a_packet_and_both_rule_paths(backend: Backend) -> None:
    loaded = V4.replace("--dport 22 -j ACCEPT", "--dport 22 -j DROP")
    report = verified(V4, Family.IPV4, backend, text=loaded.encode())
    assert not report.holds
    shown = [d for d in report.divergences if d.run == "shadow"]
    assert any(
        divergence.packet["destination-port"] == "22"
        and divergence.program_path[-1] == "filter/INPUT/4 ACCEPT"
        and divergence.kernel_path[-1] == "filter/INPUT/4"
        for divergence in shown
    )


def test_a_packet_that_another_rule_accepts_shows_in_the_counters() -> None:
    rules = """*filter
:INPUT DROP [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -p tcp -j ACCEPT
COMMIT
"""
    loaded = rules.replace("--dport 22", "--dport 23").encode()
    report = verified(rules, Family.IPV4, Backend.LEGACY, text=loaded, cutover=None)
    assert report.chains[0].shadow.mismatched == 0
    assert {d.program_path for d in report.divergences} == {
        ("filter/INPUT/1",),
        ("filter/INPUT/2",),
    }
    assert not report.holds


def test_a_wrong_dispatch_is_found_in_cutover() -> None:
    def broken(plan, interfaces):
        marking = cutover(plan, interfaces)
        return replace(marking, restore=marking.restore.replace("-j DROP", "-j ACCEPT"))

    report = verified(V4, Family.IPV4, Backend.LEGACY, cutover=broken)
    assert all(chain.shadow.mismatched == 0 for chain in report.chains)
    assert {divergence.run for divergence in report.divergences} == {"cutover"}


def test_rules_that_were_not_reached_are_listed_with_the_reason() -> None:
    text = V4.replace("COMMIT", "-A web -p tcp -j DROP\n-A INPUT -i eth0:1 -j DROP\nCOMMIT")
    report = verified(text, Family.IPV4, Backend.LEGACY, cutover=None)
    missed = {m.rule: m.reason for m in report.chains[0].missed}
    assert "shadowed" in missed["filter/web/3"]
    assert "eth0:1" in missed["filter/INPUT/9"]
    assert report.chains[0].cutover_note == "not asked for"


def test_a_rule_that_only_counts_says_so_when_no_packet_came_to_it() -> None:
    text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -s 10.1.2.3\nCOMMIT\n"
    report = verified(text, Family.IPV4, Backend.LEGACY, cutover=None, packets=20)
    (missed,) = report.chains[-1].missed
    assert missed.reason == "it only counts, so no packet was made for it"


def test_a_ruleset_that_does_not_load_is_an_error_with_the_tool_s_words() -> None:
    with pytest.raises(LabError, match="iptables-legacy-restore"):
        verified(V4, Family.IPV4, Backend.LEGACY, text=b"*filter\n-A NOSUCH -j ACCEPT\nCOMMIT\n")


def test_the_command_reports_in_both_forms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rules"
    path.write_text(V4)
    arguments = ["verify", "--ruleset", str(path), "--backend", "legacy", "--packets", "100"]
    assert run(arguments) == 0
    assert "no divergence" in capsys.readouterr().out
    assert run([*arguments, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["holds"] is True
    assert document["chains"][0]["rules"] == 10
    path.write_text("*filter\n-A INPUT --nonsense\nCOMMIT\n")
    assert run(arguments) == 2
