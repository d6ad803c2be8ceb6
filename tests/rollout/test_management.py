"""Where an operator comes from is found, and a plan is asked whether it would drop that."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from bpfilter.compiler.compile import compile_ruleset
from bpfilter.errors import UsageError
from bpfilter.rollout.management import (
    Connection,
    judging,
    losses,
    own_connections,
    parse_connection,
    protected,
)
from bpfilter.rollout.prepare import prepare
from bpfilter.ruleset.fields import State
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text
from tests.rollout.network import FW4, FW6, PEER4, PEER6, Net, entered

pytestmark = pytest.mark.kernel
SSH = Connection(ip_address(PEER4), 50022, ip_address(FW4), 22)
ACCEPTS = """
import socket, sys
listening = socket.create_server((sys.argv[1], 22), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
held = listening.accept()
print("accepted", flush=True)
sys.stdin.read()
"""


def rules(*lines: str, policy: str = "DROP") -> str:
    return "\n".join(["*filter", f":INPUT {policy} [0:0]", *lines, "COMMIT", ""])


def test_the_connection_is_that_of_the_caller_or_of_an_ancestor() -> None:
    child = subprocess.Popen(
        ["sh", "-c", "unset SSH_CONNECTION; sleep 60 & echo $!; wait"],
        env={**os.environ, "SSH_CONNECTION": SSH.words},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert own_connections(child.pid) == (SSH,)
        assert own_connections(grandchild) == (SSH,)
    finally:
        os.killpg(child.pid, 9)
        child.wait()


@pytest.fixture
def fake_sshd(net: Net, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process called sshd that listens on port 22 of every address of the firewall."""
    name = tmp_path / "sshd"
    name.symlink_to(os.path.realpath(sys.executable))
    with entered(net.fw):
        process = subprocess.Popen(
            [name, "-c", ACCEPTS, "::"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(("peer", "local"), [(PEER4, FW4), (PEER6, FW6)], ids=["ipv4", "ipv6"])
def test_without_a_word_in_the_environment_the_peers_of_sshd_are_found(
    net: Net, fake_sshd: subprocess.Popen[str], peer: str, local: str
) -> None:
    with entered(net.peer):
        sock = socket.create_connection((local, 22), timeout=10)
    with sock, entered(net.fw):
        assert fake_sshd.stdout is not None
        assert fake_sshd.stdout.readline() == "accepted\n"
        port = sock.getsockname()[1]
        # A process without ancestors of interest: pid 0 has none.
        assert own_connections(0) == (Connection(ip_address(peer), port, ip_address(local), 22),)


def test_who_must_be_let_in_is_named_by_address_and_port(net: Net) -> None:
    with entered(net.fw):
        assert protected(f"{PEER4}:22") == Connection(ip_address(PEER4), 0, ip_address(FW4), 22)
        assert protected(f"[{PEER6}]:22").local == ip_address(FW6)
        for text in ("10.0.0.1", "host:22", "203.0.113.9:22"):
            with pytest.raises(UsageError):
                protected(text)


def test_the_words_of_a_connection_read_back() -> None:
    assert parse_connection(SSH.words) == SSH
    assert parse_connection("::ffff:192.0.2.7 1 ::ffff:192.0.2.1 22").peer.version == 4
    with pytest.raises(UsageError):
        parse_connection("192.0.2.7 22")


@pytest.mark.parametrize(
    ("lines", "policy", "lost"),
    [
        ((), "DROP", {(State.NEW, 0), (State.ESTABLISHED, 0)}),
        ((), "ACCEPT", set()),
        (("-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",), "DROP", {(State.NEW, 0)}),
        (("-A INPUT -p tcp --dport 22 -j ACCEPT",), "DROP", set()),
        (("-A INPUT -i v2 -p tcp --dport 22 -j ACCEPT",), "DROP",
         {(State.NEW, 0), (State.ESTABLISHED, 0)}),
        (("-A INPUT -s 10.99.1.0/24 -j REJECT",), "ACCEPT",
         {(State.NEW, 1), (State.ESTABLISHED, 1)}),
        (("-A INPUT -p tcp -m recent --rcheck --name knocked -j ACCEPT",), "DROP", set()),
        (("-A INPUT -p tcp -m limit --limit 1/s -j ACCEPT",), "DROP", set()),
    ],
)  # fmt: skip
def test_only_what_is_dropped_for_certain_is_a_loss(
    net: Net, lines: tuple[str, ...], policy: str, lost: set[tuple[State, int]]
) -> None:
    net.iptables(Backend.NFT).restore(rules(*lines, policy=policy))
    with entered(net.fw):
        found = losses(judging(prepare()), [SSH], ("v1",)) if lines or policy == "DROP" else ()
    assert {(loss.state, loss.rule.number) for loss in found} == lost


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("-A OUTPUT -o v1 -p tcp -m tcp --sport 22 -j DROP", "ESTABLISHED answers to"),
        (f"-A OUTPUT -d {PEER4}/32 -m conntrack --ctstate ESTABLISHED -j REJECT",
         "ESTABLISHED answers to"),
        ("-A OUTPUT -p tcp -m conntrack --ctstate NEW -j DROP", None),
        ("-A OUTPUT -p tcp -m tcp --dport 22 -j DROP", None),
        ("-A OUTPUT -o v2 -j DROP", None),
    ],
)  # fmt: skip
def test_answers_that_output_drops_are_a_loss_too(net: Net, line: str, what: str | None) -> None:
    net.iptables(Backend.NFT).restore(f"*filter\n:OUTPUT ACCEPT [0:0]\n{line}\nCOMMIT\n")
    with entered(net.fw):
        found = losses(judging(prepare()), [SSH], ("v1",))
    expected = [] if what is None else [f"{what} {SSH} are dropped by filter/OUTPUT/1"]
    assert [str(loss) for loss in found] == expected


def test_a_connection_that_raw_drops_is_a_loss(net: Net) -> None:
    """Of a plan that has the chain: the one that `bpfilter plan` shows."""
    rule = "-A PREROUTING -i v1 -p tcp -m tcp --dport 22 -j DROP"
    plan = compile_ruleset(read_text(f"*raw\n:PREROUTING ACCEPT [0:0]\n{rule}\nCOMMIT\n"))
    with entered(net.fw):
        found = losses([plan], [SSH], ("v1",))
    assert [(loss.state, str(loss.rule), loss.answers) for loss in found] == [
        (State.NEW, "raw/PREROUTING/1", False),
        (State.ESTABLISHED, "raw/PREROUTING/1", False),
    ]
