"""From nothing to enforced and back through the command line alone, with real traffic."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfilter.rollout.teardown import remains, stop_daemon, teardown
from bpfilter.ruleset.model import Backend
from tests.cli.calling import bpfilter
from tests.rollout.network import FW4, PEER4, Net, call, entered
from tests.rollout.test_stages import FATES, RULES, load, outcome

pytestmark = pytest.mark.kernel


class Shell:
    """`bpfilter` in the firewall's namespace, with one journal."""

    def __init__(self, net: Net, state: Path) -> None:
        self.net, self.state = net, state

    def __call__(self, *words: str, code: int = 0) -> str:
        with entered(self.net.fw):
            done = bpfilter(*words, "--state", str(self.state))
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--format", "json", code=code))


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as built:
        yield built


@pytest.fixture
def shell(net: Net, tmp_path: Path) -> Iterator[Shell]:
    state = tmp_path / "state"
    yield Shell(net, state)
    with entered(net.fw):
        stop_daemon(state)
        teardown(state)


def listing(text: str) -> dict[str, int]:
    """Packets of an `iptables -nvxL` by chain and what follows the counters, without notes."""
    found: dict[str, int] = {}
    chain = ""
    for line in re.sub(r" /\*.*?\*/", "", text).splitlines():
        if head := re.match(r"Chain (\S+)", line):
            chain = head[1]
        elif rule := re.match(r" *(\d+) +\d+ (.*?) *$", line):
            found[f"{chain} {rule[2]}"] = int(rule[1])
    return found


@pytest.mark.parametrize("backend", list(Backend))
def test_from_nothing_to_enforced_and_back(net: Net, shell: Shell, backend: Backend) -> None:
    tables = load(net, backend)
    assert shell.json("status", code=1)["stage"] == "off"
    shell("deploy", "--interface", "v1", "--stage", "enforce", "--dry-run", code=2)
    shell("shadow", "--interface", "v1")
    shell("shadow", "--interface", "v1", code=64)
    assert outcome(net, tables) == (FATES, 12)
    report = shell.json("report")
    assert report["stage"] == "shadow" and report["promotion"]["allowed"]
    assert report["comparison"]["matches"] >= 9 and not report["comparison"]["mismatches"]
    assert report["coverage"]["exercised"] >= 2
    counted = {rule["number"]: rule for rule in report["counters"]["chains"][0]["rules"]}
    assert counted and all(rule["holds"] for rule in counted.values())
    assert report["coverage"]["over_time"][-1][1] == report["coverage"]["exercised"]
    assert "# Shadow report" in shell("report", "--format", "markdown")
    assert "Nothing stands against the next stage" in shell("report", "--format", "html")
    words = ("--confirm-within", "60", "--confirm-id", "window-7", "--gate", "seconds=0")
    shell("deploy", "--stage", "enforce", *words)
    status = shell.json("status")
    assert (status["stage"], status["confirm"]["id"]) == ("enforce", "window-7")
    assert "to be confirmed within" in shell("watch", "--count", "1")
    shell("confirm", "wrong", code=1)
    shell("confirm", "window-7")
    assert outcome(net, tables) == (FATES, 0)
    assert [event["kind"] for event in shell.json("history")["history"]][-1] == "confirmed"
    assert "confirmed as window-7" in shell("events")
    lines = shell("watch", "--count", "2", "--interval", "0.2", "--format", "json").splitlines()
    assert json.loads(lines[1])["rates"]["decided"] is not None
    shell("rollback")
    assert shell.json("status", code=1)["pid"] is None
    assert outcome(net, tables) == (FATES, 12)
    shell("teardown")
    with entered(net.fw):
        assert remains() == ()


COUNTED = f"""*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:SOME - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -s {PEER4}/32 -p udp -m udp --dport 2000:2999 -j SOME
-A INPUT -p udp -m udp --dport 3000 -m comment --comment "a [b]  c" -j ACCEPT
-A INPUT -p udp -m udp --dport 4000 -j REJECT --reject-with icmp-port-unreachable
-A SOME -p udp -m udp --dport 2001 -j ACCEPT
-A SOME -p udp -m udp --dport 2002 -j DROP
-A SOME -p udp -m udp --dport 2003 -j RETURN
COMMIT
"""
PACKETS = {2001: 3, 2002: 5, 3000: 2, 4000: 4, 5000: 1}


@pytest.mark.parametrize("backend", list(Backend))
def test_merged_counters_are_those_of_a_host_without_us(
    net: Net, shell: Shell, backend: Backend
) -> None:
    tables = net.iptables(backend)

    def sent() -> None:
        for port, count in PACKETS.items():
            net.send(port, count)

    def listed() -> str:
        with entered(net.fw):
            words = [f"iptables-{backend}", "-nvxL"]
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    tables.restore(COUNTED)
    sent()
    plain = listed()
    tables.restore(COUNTED)
    assert not any(listing(listed()).values())
    words = ("--stage", "enforce", "--gate", "seconds=0", "--verify-share", "0")
    shell("deploy", "--interface", "v1", *words)
    sent()
    frozen, merged = listing(listed()), shell("counters", "--iptables", "--family", "ipv4")
    assert sum(count for key, count in frozen.items() if key.startswith("SOME ")) == 0
    wanted = {key: count for key, count in listing(plain).items() if "icmp" not in key}
    assert {key: n for key, n in listing(merged).items() if "icmp" not in key} == wanted
    assert "BPF-" not in merged
    assert FW4 not in merged
    found = shell.json("counters", "--family", "ipv4")["rules"]
    (accepted,) = [rule for rule in found if "--dport 3000" in rule["text"]]
    assert (accepted["packets"], accepted["decided"]["packets"]) == (2, 2)
    assert "a [b]" in shell("counters")


def touched_by_services(found: Any) -> Any:
    """The traffic of the change that closes port 4001."""
    (change,) = [
        change
        for chain in found["chains"]
        for change in chain["changes"]
        if (change["old"]["rule"]["chain"], change["old"]["rule"]["number"]) == ("SERVICES", 1)
    ]
    assert (change["old"]["verdict"], change["new"]["verdict"]) == ("ACCEPT", "DROP")
    return change["traffic"]


def test_a_diff_is_against_what_is_enforced_else_live_with_its_traffic(
    net: Net, shell: Shell, tmp_path: Path
) -> None:
    tables = load(net, Backend.NFT)
    assert outcome(net, tables) == (FATES, 12)
    new = tmp_path / "new.rules"
    closed = RULES.format(icmp="-p icmp -j ACCEPT").replace("--dport 4001 -j ACCEPT", "-j DROP")
    new.write_text(closed)
    found = shell.json("diff", str(new), code=2)
    assert found["old"]["source"] == "iptables-nft-save"
    assert touched_by_services(found) == {"most": 3, "of": 12}
    assert "at most 3 packets of 12 (25.0%) so far" in shell("diff", str(new), code=2)
    shell("diff", "enforced", str(new), code=1)

    words = ("--interface", "v1", "--stage", "enforce", "--policy", "hold", "--gate", "seconds=0")
    shell("deploy", *words)
    assert outcome(net, tables) == (FATES, 0)
    found = shell.json("diff", str(new), code=2)
    assert "enforced since" in found["old"]["source"]
    assert touched_by_services(found) == {"most": 6, "of": None}, "decided packets count too"
    assert "no packet changes verdict" in shell("diff", "enforced", "live")

    with entered(net.fw):
        words = ("-I", "INPUT", "2", "-p", "tcp", "--dport", "23", "-j", "ACCEPT")
        call("iptables-nft", *words)
    assert "tcp to port 23" in shell("diff", "enforced", "live", code=2)
