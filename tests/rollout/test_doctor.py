"""The doctor finds what is in the way, says what to do, and changes nothing."""

from __future__ import annotations

import json
import socket
import sys

import pytest

from bpfilter.compiler.compile import assemble, compile_ruleset
from bpfilter.kernel.config import Mode
from bpfilter.kernel.program import Classifier, Options
from bpfilter.rollout.doctor import Finding, Level, examine
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text
from tests.rollout.network import Net, call, entered, run

pytestmark = pytest.mark.kernel

RULES = "*filter\n:INPUT DROP\n-A INPUT -p udp -j ACCEPT\nCOMMIT\n"


def problems(net: Net) -> dict[str, Finding]:
    with entered(net.fw):
        found = examine()
    assert all(finding.hint for finding in found if finding.level is Level.PROBLEM)
    return {finding.subject: finding for finding in found if finding.level is Level.PROBLEM}


def test_a_plain_host_with_rules_has_no_problem(net: Net) -> None:
    net.iptables(Backend.NFT).restore(RULES)
    assert problems(net) == {}


def test_a_host_without_rules_is_told_so(net: Net) -> None:
    assert "no iptables rules" in problems(net)["rules"].what


def test_rules_in_both_backends_are_a_problem(net: Net) -> None:
    net.iptables(Backend.NFT).restore(RULES)
    net.iptables(Backend.LEGACY).restore(RULES)
    assert "rules" in problems(net)


def test_a_foreign_program_at_ingress_is_named_with_its_interface(net: Net) -> None:
    """A link that nobody pinned where our pins are is not a daemon's of ours."""
    net.iptables(Backend.NFT).restore(RULES)
    image = assemble([compile_ruleset(read_text(RULES), [("filter", "INPUT")])])
    with entered(net.fw), Classifier.load(image, Options(mode=Mode.FORCED)) as classifier:
        classifier.attach(socket.if_nametoindex("v1"))
        assert "forge marks" in problems(net)["interface v1"].what


def test_a_mark_that_is_taken_whole_is_a_problem(net: Net) -> None:
    net.iptables(Backend.NFT).restore(RULES)
    with entered(net.fw):
        call("ip", "rule", "add", "fwmark", "5", "lookup", "9")
    assert "ip rule" in problems(net)["rules"].what


def test_what_a_killed_daemon_left_is_found_and_left_alone(net: Net) -> None:
    iptables = net.iptables(Backend.NFT)
    iptables.restore(
        "*filter\n:INPUT DROP\n:BPF-INPUT - [0:0]\n:BPF-FORWARD - [0:0]\n"
        "-A BPF-INPUT -j MARK --set-xmark 0x0/0xff000000\n"
        "-A BPF-FORWARD -j MARK --set-xmark 0x0/0xff000000\n"
        "-A INPUT -i v1 -m mark ! --mark 0x0/0xff000000 -j BPF-INPUT\n"
        "-A INPUT -p udp -j ACCEPT\nCOMMIT\n"
    )
    before = iptables.save()
    assert "bpfilter teardown" in problems(net)["leftovers"].hint
    lines = [line for line in iptables.save().splitlines() if not line.startswith("#")]
    assert lines == [line for line in before.splitlines() if not line.startswith("#")]


def test_the_command_exits_1_with_problems_and_gives_json(net: Net) -> None:
    program = "import sys; from bpfilter.cli.main import main; main()"
    with entered(net.fw):
        done = run(sys.executable, "-c", program, "doctor", "--format", "json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["problems"] == 1
    assert {finding["level"] for finding in document["findings"]} >= {"good", "problem"}
