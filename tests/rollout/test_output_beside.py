"""filter OUTPUT in company: native nft at its hook, other interfaces, packets without a socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfilter.kernel.config import Reason
from bpfilter.rollout.comparison import Comparison, Incomparable, RuleKey
from bpfilter.rollout.journal import Journal
from bpfilter.rollout.request import Request
from bpfilter.rollout.stages import Rollout
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, RuleRef
from tests.rollout.network import FW4, PEER4, Net, call, entered

pytestmark = pytest.mark.kernel

RULES = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp -m tcp --dport 5101 -j REJECT --reject-with tcp-reset
-A OUTPUT -p udp -m udp --dport 5001 -j DROP
-A OUTPUT -p tcp -m tcp --tcp-flags RST RST -j DROP
COMMIT
"""


@pytest.fixture
def rollout(net: Net, tmp_path: Path) -> Iterator[Rollout]:
    net.iptables(Backend.NFT).restore(RULES)
    with (
        entered(net.fw),
        Journal(tmp_path / "state") as journal,
        Rollout(Request(("v1",), lease_seconds=30.0), journal, lambda _: None) as found,
    ):
        yield found


@contextmanager
def native(hook_priority: int, rule: str) -> Iterator[None]:
    """A base chain of native nft on the firewall's output hook."""
    chain = f"type filter hook output priority {hook_priority};"
    call("nft", "-f", "-", data=f"table ip beside {{\n chain out {{\n {chain}\n {rule}\n }}\n}}\n")
    try:
        yield
    finally:
        call("nft", "delete", "table", "ip", "beside")


def refused(net: Net, port: int, address: str = PEER4) -> bool:
    with net.udp(net.fw) as sock:
        try:
            sock.sendto(b"x", (address, port))
        except PermissionError:
            return True
    return False


def compared(rollout: Rollout) -> Comparison:
    found = rollout.comparison()
    assert found is not None
    return found


def by_iptables(net: Net) -> int:
    return net.iptables(Backend.NFT).packets("^-A OUTPUT -p udp .*--dport 5001 -j DROP")


@pytest.mark.parametrize("priority", [-2, -1, 0])
def test_a_native_chain_before_filter_sees_what_filter_drops(
    net: Net, rollout: Rollout, priority: int
) -> None:
    rollout.shadow()
    rollout.enforce()
    assert refused(net, 5001)
    assert by_iptables(net) == 0, "dropped before iptables"
    with native(priority, "udp dport 5001 counter"):
        for count in (1, 2):
            assert refused(net, 5001)
            assert by_iptables(net) == count
            assert f"packets {count} " in call("nft", "list", "table", "ip", "beside")
            assert rollout.tick() is None
    assert rollout.tick() is None
    assert refused(net, 5001)
    assert by_iptables(net) == 2, "alone again, it is dropped before iptables again"


def test_a_native_chain_that_stood_there_first_is_respected_too(net: Net, rollout: Rollout) -> None:
    with native(-1, "udp dport 5001 counter"):
        rollout.shadow()
        rollout.enforce()
        assert refused(net, 5001)
        assert by_iptables(net) == 1


def test_drops_of_a_native_chain_beside_filter_are_no_mismatches(
    net: Net, rollout: Rollout
) -> None:
    with native(0, "udp dport 5002 drop"):
        rollout.shadow()
        for _ in range(5):
            assert refused(net, 5002)
        seen = compared(rollout)
    assert seen.mismatches == 0
    assert seen.incomparable[Incomparable.FOREIGN] == 5


def test_packets_of_other_interfaces_are_not_looked_at(net: Net, rollout: Rollout) -> None:
    rollout.shadow()
    for _ in range(20):
        assert not refused(net, 5003, "127.0.0.1")
        assert not refused(net, 5003)
    seen = compared(rollout)
    assert seen.punted.get(Reason.INTERFACE, 0) == 0


def test_what_the_kernel_sends_without_a_socket_is_compared(net: Net, rollout: Rollout) -> None:
    """The RST of REJECT belongs to no socket, and has no device yet where OUTPUT drops it."""
    rollout.shadow()
    with entered(net.peer):
        sock = socket.socket()
    with sock:
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.connect((FW4, 5101))
    seen = compared(rollout)
    pairs = seen.rules[RuleKey(Family.IPV4, RuleRef("filter", "OUTPUT", 2))]
    assert pairs.matches >= 1
    assert seen.incomparable[Incomparable.EDITED] == 0
