"""Measuring packets in the lab: which chain, which packets, over how many rules. Never how fast."""

from __future__ import annotations

import pytest

from bpfilter.compiler.compile import compile_ruleset
from bpfilter.errors import LabError
from bpfilter.lab import cost
from bpfilter.lab.cost import Costs, measure
from bpfilter.rollout.marking import cutover
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text

pytestmark = pytest.mark.kernel
HEAD = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n"
STATE = "-A {0} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_SECONDS", 0.005)
    monkeypatch.setattr(cost, "_ROUNDS", 1)
    monkeypatch.setattr(cost, "_RUNS", 2)
    monkeypatch.setattr(cost, "_PACKETS", 64)


def rules(chain: str, count: int, extra: str = "", counted: int = 0) -> str:
    lines = [
        f"[{counted}:{counted * 60}] -A {chain} -i eth{number % 3} -p tcp -m tcp"
        f" --dport {number + 1} -j {'ACCEPT' if number % 2 else 'REJECT'}\n"
        for number in range(count)
    ]
    state = STATE.format(chain)
    return f"{HEAD}[{9 * counted}:0] {state}{''.join(lines)}{extra}COMMIT\n"


def measured(text: str, backend: Backend = Backend.NFT) -> Costs:
    ruleset = read_text(text)
    chains = [("filter", "INPUT"), ("filter", "FORWARD")]
    return measure(compile_ruleset(ruleset, chains), backend, cutover)


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_a_long_chain_gives_a_curve_and_counters_the_own_traffic(backend: Backend) -> None:
    found = measured(rules("INPUT", 120, counted=50), backend)
    assert (found.chain, found.backend) == ("INPUT", backend)
    assert list(found.curve) == [30, 121]
    assert found.own is not None and found.counted == 50 * 129
    for each in (*found.curve.values(), found.own):
        assert min(each.iptables, each.program, each.classify) > 0
    assert found.floor > 0


def test_the_chain_with_more_traffic_is_measured_and_few_packets_say_nothing() -> None:
    forward = rules("FORWARD", 10, extra="-A INPUT -p udp -j ACCEPT\n", counted=1)
    found = measured(forward)
    assert found.chain == "FORWARD"
    assert list(found.curve) == [11] and found.own is None and found.counted == 19


def test_a_program_without_a_lease_is_not_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "_vouch", lambda _host, _classifier: None)
    with pytest.raises(LabError, match="no right to decide"):
        measured(rules("INPUT", 10))


def test_ipv6_is_measured_too() -> None:
    text = rules("INPUT", 10).replace("COMMIT", "-A INPUT -s 2001:db8::/32 -j ACCEPT\nCOMMIT")
    assert list(measured(text).curve) == [12]


def test_what_cannot_be_cut_over_is_not_measured() -> None:
    taken = "-A INPUT -m mark --mark 0x1 -j ACCEPT\n"
    with pytest.raises(LabError, match="packets cannot be measured: no bits of the packet mark"):
        measured(rules("INPUT", 5, extra=taken))
    with pytest.raises(LabError, match="no INPUT and no FORWARD"):
        ruleset = read_text("*raw\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n")
        measure(compile_ruleset(ruleset), Backend.NFT, cutover)
