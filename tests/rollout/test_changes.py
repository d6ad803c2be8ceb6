"""The kernel's notices wake the daemon, so that it need not wait for its next look at the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfilter.rollout import service
from bpfilter.rollout.changes import Changes
from bpfilter.rollout.goal import Goal
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.trouble import Cause
from bpfilter.ruleset.model import Backend
from tests.rollout.network import Net, call, entered
from tests.rollout.serving import AT_ONCE, reached, served, until
from tests.rollout.test_stages import load

pytestmark = pytest.mark.kernel

ENFORCE = Goal(Stage.ENFORCE, gates=AT_ONCE)


@pytest.mark.parametrize(
    "command",
    [
        "ip addr add 10.99.1.9/24 dev v1",
        "ip addr add fd99::9/64 dev v1 nodad",
        "ip link set v1 alias uplink",
        "ip link add b1 type bridge",
        "ip rule add fwmark 5 lookup 9",
        "ip -6 rule add fwmark 5 lookup 9",
    ],
)
def test_what_marks_rest_on_is_noticed(net: Net, command: str) -> None:
    with entered(net.fw), Changes() as changes:
        assert not changes.noticed()
        call(*command.split())
        assert changes.noticed()
        assert not changes.noticed()


def test_routes_and_rules_of_iptables_make_no_notice(net: Net) -> None:
    """The program asks the kernel's own routes; an edit of the rules is its generation's matter."""
    with entered(net.fw), Changes() as changes:
        call("ip", "route", "add", "192.0.2.0/24", "dev", "v1")
        call("iptables-nft", "-A", "INPUT", "-j", "ACCEPT")
        assert not changes.noticed()


def test_a_flood_of_notices_is_one_notice(net: Net) -> None:
    with entered(net.fw), Changes() as changes:
        lines = "\n".join(f"addr add 10.77.{n >> 8}.{n & 255}/32 dev v1" for n in range(2000))
        call("ip", "-batch", "-", data=lines)
        assert changes.noticed()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("ip rule add fwmark 0xff000000 lookup 9", "uses our bits of the mark"),
        ("ip link add m1 link v1 type macvlan", "m1 (macvlan) is stacked on v1"),
        ("ip link set v1 name wan9", "is gone or was renamed"),
    ],
)
def test_the_daemon_looks_at_once_and_not_at_its_next_tick(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, said: str
) -> None:
    """Its regular ticks are an hour apart here."""
    monkeypatch.setattr(service, "RENEW_SECONDS", 3600.0)
    load(net, Backend.NFT)

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        yield
        call(*command.split())
        yield from until(lambda: bool(suspended(journal)))
        assert said in suspended(journal)[0]

    served(net, tmp_path, ENFORCE, script)


def suspended(journal: Journal) -> list[str]:
    return [event.sentence for event in journal.events() if event.kind == Cause.HOST]
