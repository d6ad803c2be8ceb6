"""Shadow, cutover and every way back, on real tables with real packets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfilter.errors import RolloutError
from bpfilter.rollout import pins
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.stages import Request, Rollout
from bpfilter.rollout.teardown import remains, teardown
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend
from tests.rollout.network import Iptables, Net, call, entered

pytestmark = pytest.mark.kernel
BACKENDS = pytest.mark.parametrize("backend", list(Backend), ids=str)

RULES = """*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:SERVICES - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT {icmp}
-A INPUT -p udp -j SERVICES
-A SERVICES -p udp -m udp --dport 4001 -j ACCEPT
-A SERVICES -p udp -m udp --dport 4002 -m recent --set --name guests -j ACCEPT
-A SERVICES -p udp -m udp --dport 4003 -j RETURN
-A SERVICES -m limit --limit 5/min -j LOG --log-prefix refused
COMMIT
*security
:INPUT ACCEPT [0:0]
-A INPUT -p udp -m udp --dport 4001
-A INPUT -p udp -m udp --dport 4002
-A INPUT -p udp -m udp --dport 4004
COMMIT
"""
REQUEST = Request(("v1",), lease_seconds=30.0)
"""Longer than a test takes on a busy machine."""
PORTS = (4001, 4002, 4003, 4004)
FATES = [3, 3, 0, 0]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "state") as opened:
        yield opened


def load(net: Net, backend: Backend, extra: str = "") -> Iptables:
    for family, icmp in (
        (Family.IPV4, "-p icmp -j ACCEPT"),
        (Family.IPV6, "-p ipv6-icmp -j ACCEPT"),
    ):
        net.iptables(backend, family).restore(RULES.format(icmp=icmp) + extra)
    return net.iptables(backend)


def outcome(net: Net, tables: Iptables) -> tuple[list[int], int]:
    """Three packets to each port: how many survived filter, and how many the original rules saw."""
    patterns = [rf"^-A INPUT -p udp -m udp --dport {port}$" for port in PORTS]
    before = [tables.packets(pattern) for pattern in patterns], tables.packets(ORIGINAL)
    for port in PORTS:
        net.send(port, 3)
    survived = [tables.packets(p) - b for p, b in zip(patterns, before[0], strict=True)]
    return survived, tables.packets(ORIGINAL) - before[1]


ORIGINAL = "^-A INPUT -p udp -j SERVICES"


@BACKENDS
def test_shadow_decides_nothing_and_its_counters_agree(
    net: Net, backend: Backend, journal: Journal
) -> None:
    tables = load(net, backend)
    before = shape(tables)
    with entered(net.fw), Rollout(REQUEST, journal, print) as rollout:
        rollout.shadow()
        assert outcome(net, tables) == (FATES, 12)
        assert shape(tables) == before
        reports = rollout.compare()
        assert [report.mismatches for report in reports] == [(), ()]
        assert rollout.decided() >= 12
        assert reports[0].compared >= 3
        assert rollout.tick() is None
    with entered(net.fw):
        assert remains() == ()


@BACKENDS
def test_enforced_packets_get_the_same_verdicts_without_the_original_rules(
    net: Net, backend: Backend, journal: Journal
) -> None:
    tables = load(net, backend)
    before = shape(tables)
    with entered(net.fw), Rollout(REQUEST, journal, print) as rollout:
        rollout.shadow()
        rollout.enforce()
        assert journal.stage is Stage.ENFORCE
        assert outcome(net, tables) == (FATES, 0)
        assert rollout.tick() is None
        assert outcome(net, tables) == (FATES, 0)
        rollout.rollback()
        assert journal.stage is Stage.OFF
        assert remains() == ()
    assert shape(tables) == before
    assert outcome(net, tables) == (FATES, 12)


@BACKENDS
def test_a_foreign_edit_punts_from_the_next_packet_on(
    net: Net, backend: Backend, journal: Journal
) -> None:
    tables = load(net, backend)
    with entered(net.fw), Rollout(REQUEST, journal, print) as rollout:
        rollout.shadow()
        rollout.enforce()
        call(
            tables.prefix,
            "-I",
            "SERVICES",
            "-p",
            "udp",
            "-m",
            "udp",
            "--dport",
            "4004",
            "-j",
            "ACCEPT",
        )
        assert outcome(net, tables) == ([3, 3, 0, 3], 12)
        reason = rollout.tick()
        assert reason is not None
        assert "ruleset changed" in reason


@BACKENDS
def test_an_unconfirmed_stage_ends_in_the_kernel_without_any_help(
    net: Net, backend: Backend, journal: Journal
) -> None:
    tables = load(net, backend)
    with entered(net.fw), Rollout(REQUEST, journal, print) as rollout:
        rollout.shadow()
        rollout.enforce(3.0)
        assert rollout.tick() is None
        assert outcome(net, tables) == (FATES, 0)
        time.sleep(3.1)
        assert outcome(net, tables) == (FATES, 12)
        assert rollout.tick() == "the stage was not confirmed in time"


def test_a_confirmed_stage_stays(net: Net, journal: Journal) -> None:
    tables = load(net, Backend.NFT)
    with entered(net.fw), Rollout(REQUEST, journal, print) as rollout:
        rollout.shadow()
        rollout.enforce(1.0)
        rollout.confirm()
        time.sleep(1.2)
        assert rollout.tick() is None
        assert outcome(net, tables) == (FATES, 0)


def test_a_lease_that_nobody_renews_ends(net: Net, journal: Journal) -> None:
    tables = load(net, Backend.NFT)
    short = Request(("v1",), lease_seconds=3.0)
    with entered(net.fw), Rollout(short, journal, print) as rollout:
        rollout.shadow()
        rollout.enforce()
        assert outcome(net, tables) == (FATES, 0)
        time.sleep(3.1)
        assert outcome(net, tables) == (FATES, 12)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (
            "ip link set v1 down && ip link set v1 name v9 && ip link set v9 up",
            "gone or was renamed",
        ),
        ("iptables-nft -P FORWARD DROP", "ruleset changed"),
        ("iptables-nft -F BPF-INPUT", "dispatch changed"),
        ("iptables-nft -I INPUT -s 10.1.1.1 -j DROP", "ruleset changed"),
    ],
)
def test_the_lease_is_revoked_when_something_changes(
    net: Net, journal: Journal, command: str, reason: str
) -> None:
    load(net, Backend.NFT)
    with entered(net.fw), Rollout(REQUEST, journal, print) as rollout:
        rollout.shadow()
        rollout.enforce()
        call("sh", "-c", command)
        assert reason in (rollout.tick() or "nothing")


def test_nothing_is_enforced_on_a_host_that_may_alter_packets_unseen(
    net: Net, journal: Journal
) -> None:
    load(net, Backend.NFT)
    chain = "{ type filter hook prerouting priority -200; }"
    with entered(net.fw), Rollout(REQUEST, journal, print) as rollout:
        call("nft", f"add table inet shop; add chain inet shop pre {chain};"
             "add rule inet shop pre ip ttl set 3")  # fmt: skip
        rollout.shadow()
        with pytest.raises(RolloutError, match="inet shop may alter packets"):
            rollout.enforce()
        assert rollout.stage is Stage.OFF
        assert remains() == ()


def test_nothing_is_enforced_where_the_whole_mark_is_used(net: Net, journal: Journal) -> None:
    mangle = "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j CONNMARK --save-mark\nCOMMIT\n"
    load(net, Backend.NFT, mangle)
    with entered(net.fw), Rollout(REQUEST, journal, print) as rollout:
        rollout.shadow()
        with pytest.raises(RolloutError, match="CONNMARK"):
            rollout.enforce()


def test_rules_in_both_backends_are_refused(net: Net, journal: Journal) -> None:
    load(net, Backend.NFT)
    load(net, Backend.LEGACY)
    with (
        entered(net.fw),
        Rollout(REQUEST, journal, print) as rollout,
        pytest.raises(Exception, match="both"),
    ):
        rollout.shadow()


@BACKENDS
def test_teardown_needs_neither_journal_nor_daemon(
    net: Net, backend: Backend, journal: Journal
) -> None:
    tables = load(net, backend)
    before = shape(tables)
    with entered(net.fw):
        rollout = Rollout(REQUEST, journal, print)
        rollout.shadow()
        rollout.enforce()
        assert len(remains()) > 3
        assert any("link-v1" in line for line in teardown())
        # Tests beside this one leave dead pins for a moment, which anybody may remove.
        assert [line for line in remains() if "that is gone" not in line] == []
        assert [line for line in teardown() if "that is gone" not in line] == []
        assert shape(tables) == before
        assert outcome(net, tables) == (FATES, 12)
        rollout.rollback()


def shape(tables: Iptables) -> list[str]:
    lines = tables.save().splitlines()
    return [line.split(" [")[0] for line in lines if not line.startswith("#")]


def test_a_new_local_address_is_decided_too_after_the_next_check(
    net: Net, journal: Journal
) -> None:
    tables = load(net, Backend.NFT)
    with entered(net.fw), Rollout(REQUEST, journal, print) as rollout:
        call("ip", "-n", net.peer, "route", "add", "10.99.7.7/32", "dev", "p1")
        rollout.shadow()
        rollout.enforce()
        call("ip", "addr", "add", "10.99.7.7/32", "dev", "v1")
        seen = []
        for _ in range(2):
            before = tables.packets(ORIGINAL)
            with net.udp(net.peer) as sock, net.arriving(4001):
                sock.sendto(b"x", ("10.99.7.7", 4001))
            seen.append(tables.packets(ORIGINAL) - before)
            assert rollout.tick() is None
        assert seen == [1, 0]


def test_an_edit_that_leaves_the_rules_as_they_were_is_followed(net: Net, journal: Journal) -> None:
    tables = load(net, Backend.NFT)
    with entered(net.fw), Rollout(REQUEST, journal, print) as rollout:
        rollout.shadow()
        rollout.enforce()
        call("nft", "add table inet shop")
        assert outcome(net, tables) == (FATES, 12), "punted from the next packet on"
        assert rollout.tick() is None
        assert outcome(net, tables) == (FATES, 0)
        call("iptables-legacy", "-A", "INPUT", "-s", "10.1.1.1", "-j", "DROP")
        assert "iptables-legacy ruleset changed" in (rollout.tick() or "nothing")


def test_a_routing_rule_on_our_bits_revokes_the_lease(net: Net, journal: Journal) -> None:
    load(net, Backend.NFT)
    with entered(net.fw), Rollout(REQUEST, journal, print) as rollout:
        rollout.shadow()
        rollout.enforce()
        assert rollout.tick() is None
        call("ip", "rule", "add", "fwmark", "0x1000000/0x1000000", "lookup", "7")
        reasons = [rollout.tick() for _ in range(5)]
        assert any(reason and "uses our bits" in reason for reason in reasons)


def test_pins_of_a_namespace_that_is_gone_are_removed_by_the_next_teardown(
    net: Net, journal: Journal
) -> None:
    with Net() as lost:
        load(lost, Backend.NFT)
        with entered(lost.fw):
            Rollout(REQUEST, journal, print).shadow()
            place = pins.directory()
            assert [path.name for path in place.iterdir()] == ["link-v1"]
        call("ip", "-n", lost.fw, "link", "del", "v1")
        with entered(net.fw):
            assert any(str(place) in line for line in teardown())
        assert not place.exists()
