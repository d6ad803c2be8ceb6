"""`bpfilter explain` against what the kernel does with the same packet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from bpfilter.analysis.explain import explain
from bpfilter.report.asked import asked_packet
from bpfilter.rollout.live import read_operators
from bpfilter.ruleset.fields import Family, State
from bpfilter.ruleset.model import Backend
from tests.cli.calling import bpfilter
from tests.rollout.network import FW4, PEER4, Iptables, Net, call, entered

pytestmark = pytest.mark.kernel
RULES = f"""*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KNOWN - [0:0]
:OPEN - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -p udp -m udp --dport 1000:1999 -j KNOWN
-A INPUT -s {PEER4}/32 -p udp -m udp --dport 1500:2500 -g OPEN
-A INPUT -p udp -m multiport --dports 3000,3002 -j REJECT
-A KNOWN ! -i v1 -j DROP
-A KNOWN -p udp -m udp --dport 1100 -j ACCEPT
-A KNOWN -p udp -m udp --dport 1200 -j RETURN
-A KNOWN -p udp -m udp --sport 7 -j DROP
-A OPEN -p udp -m udp --dport 1700:2000 -m conntrack --ctstate NEW -j ACCEPT
-A OPEN -p udp -m udp --dport 2100 -m ttl --ttl-gt 200 -j ACCEPT
COMMIT
"""
PORTS = (999, 1100, 1200, 1600, 1700, 2000, 2100, 2600, 3000, 3001, 3002)


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        yield built


def counted(tables: Iptables) -> dict[str, int]:
    """Packets per rule, and per policy as CHAIN/0."""
    found: dict[str, int] = {}
    numbers: dict[str, int] = {}
    for line in tables.save("-c").splitlines():
        if policy := re.match(r":(INPUT) \S+ \[(\d+):", line):
            found[f"{policy[1]}/0"] = int(policy[2])
        if rule := re.match(r"\[(\d+):\d+\] -A (\S+)", line):
            numbers[rule[2]] = numbers.get(rule[2], 0) + 1
            found[f"{rule[2]}/{numbers[rule[2]]}"] = int(rule[1])
    return found


def words(port: int) -> tuple[str, str, str]:
    return "udp", f"{PEER4}:40000", f"{FW4}:{port}"


@pytest.mark.parametrize("backend", list(Backend))
def test_the_rules_it_names_are_those_whose_counters_move(net: Net, backend: Backend) -> None:
    tables = net.iptables(backend)
    tables.restore(RULES)
    with entered(net.fw):
        ruleset = read_operators(Family.IPV4, backend)
    for port in PORTS:
        before = counted(tables)
        net.send(port)
        after = counted(tables)
        moved = {name for name, count in after.items() if count > before[name]}
        found = explain(ruleset, asked_packet(*words(port), in_interface="v1", states=State.NEW))
        (path,) = found.paths
        assert {f"{step.rule.chain}/{step.rule.number}" for step in path.steps} == moved, port
        assert path.agree
    tables.empty()


def test_the_loaded_program_says_the_same_and_live_packets_find_their_chain(net: Net) -> None:
    tables = net.iptables(Backend.NFT)
    tables.restore(RULES)
    call("ip", "netns", "exec", net.fw, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    with entered(net.fw):
        here = bpfilter("explain", *words(1100), "--in", "v1", "--kernel", "--format", "json")
        away = ("udp", f"{PEER4}:5", "10.99.1.77:9")
        forwarded = bpfilter("explain", *away, "--in", "v1", "--format", "json")
    found = json.loads(here.stdout)
    assert (found["kernel"]["outcome"], found["chain"]) == ("RESIDUAL", "INPUT")
    assert found["kernel"]["by_state"]["NEW"] == "ACCEPT"
    assert found["kernel"]["by_state"]["INVALID"] == "DROP"
    assert json.loads(forwarded.stdout)["chain"] == "FORWARD"
