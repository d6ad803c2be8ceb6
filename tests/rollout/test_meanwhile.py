"""Between an edit and its plan: the program goes round what was edited, exactly, or stops."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import UDP

from bpfilter.kernel.config import Reason
from bpfilter.kernel.xdp import XdpMode
from bpfilter.rollout import stages
from bpfilter.rollout.ending import Ending
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.prepare import Prepared
from bpfilter.rollout.stages import Rollout
from bpfilter.rollout.trouble import Cause
from bpfilter.ruleset.model import Backend
from tests.rollout.early_host import Host, eventually, ruleset
from tests.rollout.network import PEER4, Iptables, Net, entered
from tests.rollout.serving import REQUEST, reached, served, until
from tests.rollout.test_service import ENFORCE, kinds
from tests.rollout.test_stages import BACKENDS, FATES, load, outcome, shape

pytestmark = pytest.mark.kernel


@contextmanager
def enforcing(net: Net, journal: Journal) -> Iterator[Rollout]:
    with entered(net.fw), Rollout(REQUEST, journal, print) as rollout:
        rollout.follows = True
        rollout.shadow()
        rollout.enforce()
        yield rollout


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "state") as opened:
        yield opened


def edit(tables: Iptables, *lines: str) -> None:
    tables.restore("\n".join(["*filter", *lines, "COMMIT", ""]), "--noflush")


def decided(rollout: Rollout) -> tuple[int, int]:
    """Packets that the program decided, and that it left to edited rules."""
    return rollout.decided(), rollout.punted().get(Reason.CHANGED, 0)


@BACKENDS
def test_only_packets_of_the_edited_rule_take_the_original_rules(
    net: Net, backend: Backend, journal: Journal
) -> None:
    tables = load(net, backend)
    with enforcing(net, journal) as rollout:
        edit(tables, "-I SERVICES -p udp -m udp --dport 4004 -j ACCEPT")
        assert rollout.tick() is None
        assert rollout.behind is not None and len(rollout.behind.hulls) == 1
        before = decided(rollout)
        assert outcome(net, tables) == ([3, 3, 0, 3], 3), "three of twelve saw the original rules"
        assert [a - b for a, b in zip(decided(rollout), before, strict=True)] == [9, 3]
        assert rollout.tick() is None
        rollout.swap()
        assert rollout.behind is None
        assert outcome(net, tables) == ([3, 3, 0, 3], 0)


@BACKENDS
def test_edits_add_up_and_what_is_undone_is_forgotten(
    net: Net, backend: Backend, journal: Journal
) -> None:
    tables = load(net, backend)
    with enforcing(net, journal) as rollout:
        edit(tables, "-A SERVICES -p udp -m udp --dport 4010 -j DROP")
        assert rollout.tick() is None
        edit(tables, "-I SERVICES -p udp -m udp --dport 4001 -j DROP")
        assert rollout.tick() is None
        assert rollout.behind is not None and len(rollout.behind.hulls) == 2
        assert outcome(net, tables) == ([0, 3, 0, 0], 3)
        edit(tables, "-D SERVICES 1")
        assert rollout.tick() is None
        assert outcome(net, tables) == (FATES, 0)
        edit(tables, "-D SERVICES -p udp -m udp --dport 4010 -j DROP")
        assert rollout.tick() is None
        assert rollout.behind is None, "the rules are those that were translated"


@BACKENDS
def test_a_rule_above_our_jump_is_gone_round_as_well(
    net: Net, backend: Backend, journal: Journal
) -> None:
    """fail2ban puts its jump on top of INPUT, above ours."""
    tables = load(net, backend)
    with enforcing(net, journal) as rollout:
        edit(
            tables,
            ":f2b - [0:0]",
            f"-A f2b -s {PEER4}/32 -j DROP",
            "-A f2b -j RETURN",
            "-I INPUT 1 -p udp -m udp --dport 4002 -j f2b",
        )
        assert rollout.tick() is None
        assert outcome(net, tables) == ([3, 0, 0, 0], 0)
        edit(tables, f"-D f2b -s {PEER4}/32 -j DROP")
        assert rollout.tick() is None
        assert outcome(net, tables) == (FATES, 3)


@BACKENDS
def test_comments_may_hold_what_looks_like_lines(
    net: Net, backend: Backend, journal: Journal
) -> None:
    tables = load(net, backend)
    odd = '-I SERVICES -p udp -m udp --dport 4004 -m comment --comment "a\x0b*nat\x0b#b" -j {}'
    edit(tables, odd.format("DROP"))
    before = shape(tables)
    with enforcing(net, journal) as rollout:
        assert outcome(net, tables) == (FATES, 0)
        edit(tables, "-D SERVICES 1", odd.format("ACCEPT"))
        assert rollout.tick() is None and rollout.behind is not None
        assert outcome(net, tables) == ([3, 3, 0, 3], 3)
        edit(tables, "-D SERVICES 1", odd.format("DROP"))
        assert rollout.tick() is None and rollout.behind is None
    assert shape(tables) == before


STOPS = {
    "a policy": (":INPUT ACCEPT [0:0]",),
    "a rule for all": ("-I INPUT -j ACCEPT",),
    "an old rule above our jump": (
        "-D INPUT -p udp -j SERVICES",
        "-I INPUT 1 -p udp -j SERVICES",
        "-D SERVICES -p udp -m udp --dport 4003 -j RETURN",
        "-A SERVICES -p udp -m udp --dport 4003 -j RETURN",
        "-D INPUT -p udp -j SERVICES",
        "-A INPUT -p udp -j SERVICES",
        "-D INPUT -p icmp -j ACCEPT",
        "-I INPUT 1 -p icmp -j ACCEPT",
        "-I INPUT 1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ),
    "a rule that reads our bits": (
        "-I SERVICES -p udp -m udp --dport 4009 -m mark --mark 0x1 -j DROP",
    ),
}


@BACKENDS
@pytest.mark.parametrize("name", STOPS)
def test_where_that_cannot_be_told_iptables_decides_alone(
    net: Net, backend: Backend, name: str, journal: Journal
) -> None:
    tables = load(net, backend)
    with enforcing(net, journal) as rollout:
        edit(tables, *STOPS[name])
        trouble = rollout.tick()
        assert trouble is not None and trouble.cause in (Cause.RULESET, Cause.MARKS)
        assert rollout.lease is not None and not rollout.lease.held


@BACKENDS
def test_the_first_rule_that_asks_conntrack_needs_a_new_plan(
    net: Net, backend: Backend, journal: Journal
) -> None:
    tables = net.iptables(backend)
    tables.restore(ruleset("-A INPUT -p udp --dport 99 -j ACCEPT"))
    with enforcing(net, journal) as rollout:
        edit(tables, "-A INPUT -p udp --dport 98 -m conntrack --ctstate NEW -j ACCEPT")
        trouble = rollout.tick()
        assert trouble is not None and "asks conntrack" in trouble
        rollout.swap()
        edit(tables, "-A INPUT -p udp --dport 97 -m conntrack --ctstate NEW -j ACCEPT")
        assert rollout.tick() is None


@BACKENDS
def test_our_chains_edited_with_the_rules_stop_it(
    net: Net, backend: Backend, journal: Journal
) -> None:
    tables = load(net, backend)
    with enforcing(net, journal) as rollout:
        entry = next(
            line for line in tables.save().splitlines() if line.startswith("-A BPF-INPUT ")
        )
        edit(
            tables,
            "-I SERVICES -p udp -m udp --dport 4004 -j ACCEPT",
            entry.replace("-A ", "-D ", 1),
        )
        trouble = rollout.tick()
        assert trouble is not None and "our chains were edited" in trouble


@BACKENDS
def test_who_does_not_follow_does_not_go_round(
    net: Net, backend: Backend, journal: Journal
) -> None:
    tables = load(net, backend)
    with enforcing(net, journal) as rollout:
        rollout.follows = False
        edit(tables, "-I SERVICES -p udp -m udp --dport 4004 -j ACCEPT")
        trouble = rollout.tick()
        assert trouble is not None and trouble.cause is Cause.RULESET


@BACKENDS
def test_what_was_edited_while_it_was_translated_is_gone_round_by_the_new_plan(
    net: Net, backend: Backend, journal: Journal
) -> None:
    tables = load(net, backend)
    with enforcing(net, journal) as rollout:
        edit(tables, "-I SERVICES -p udp -m udp --dport 4004 -j ACCEPT")
        assert rollout.tick() is None
        plan = rollout.preparation()()
        edit(tables, "-I SERVICES -p udp -m udp --dport 4001 -j DROP")
        rollout.swap(plan)
        assert rollout.behind is not None and len(rollout.behind.hulls) == 1
        assert outcome(net, tables) == ([0, 3, 0, 3], 3)


def die_behind(net: Net, tables: Iptables, state: Path) -> None:
    """A daemon that goes round an edit is killed before the edit is translated."""

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        edit(tables, "-I SERVICES -p udp -m udp --dport 4004 -j ACCEPT")
        yield from until(lambda: (journal.document("status") or {})["edited"] is not None)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        prepare, calls = stages.prepare, itertools.count()

        def slow(*words: Any, **more: Any) -> Prepared:
            if next(calls):
                time.sleep(60)
            return prepare(*words, **more)

        stages.prepare = slow
        try:
            served(net, state, ENFORCE, script)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@BACKENDS
def test_killed_behind_an_edit_it_stands_and_is_taken_over(
    net: Net, backend: Backend, tmp_path: Path
) -> None:
    tables = load(net, backend)
    die_behind(net, tables, tmp_path)
    assert outcome(net, tables) == ([3, 3, 0, 3], 3), "as long as its lease lasts"

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        yield
        assert outcome(net, tables) == ([3, 3, 0, 3], 0)

    assert served(net, tmp_path, ENFORCE, script)[0] is Ending.STOPPED
    assert "adopted" in kinds(tmp_path)


@BACKENDS
def test_killed_behind_an_edit_and_edited_again_it_is_undone(
    net: Net, backend: Backend, tmp_path: Path
) -> None:
    tables = load(net, backend)
    die_behind(net, tables, tmp_path)
    edit(tables, "-I SERVICES -p udp -m udp --dport 4001 -j DROP")
    assert outcome(net, tables) == ([0, 3, 0, 3], 12)

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        assert outcome(net, tables) == ([0, 3, 0, 3], 0)

    assert served(net, tmp_path, ENFORCE, script)[0] is Ending.STOPPED
    assert "adopted" not in kinds(tmp_path)


@BACKENDS
def test_the_daemon_renews_answers_and_follows_edits_while_it_plans(
    net: Net, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of rules take seconds; here the planner waits until the test lets it go."""
    tables, go, prepare = load(net, backend), threading.Event(), stages.prepare
    go.set()

    def slow(*words: Any, **more: Any) -> Prepared:
        assert go.wait(60)
        return prepare(*words, **more)

    monkeypatch.setattr(stages, "prepare", slow)

    def script(journal: Journal) -> Iterator[None]:
        def edited() -> object:
            return (journal.document("status") or {}).get("edited")

        yield from reached(journal, Stage.ENFORCE)
        go.clear()
        edit(tables, "-I SERVICES -p udp -m udp --dport 4004 -j ACCEPT")
        yield from until(lambda: edited() == "one rule of ipv4 filter")
        assert outcome(net, tables) == ([3, 3, 0, 3], 3)
        edit(tables, "-I SERVICES -p udp -m udp --dport 4001 -j DROP")
        yield from until(lambda: edited() == "2 rules of ipv4 filter")
        assert outcome(net, tables) == ([0, 3, 0, 3], 6)
        assert "followed" not in kinds(tmp_path)
        go.set()
        yield from until(lambda: "followed" in kinds(tmp_path))
        assert outcome(net, tables) == ([0, 3, 0, 3], 0)
        assert edited() is None

    assert served(net, tmp_path, ENFORCE, script)[0] is Ending.STOPPED


@pytest.mark.parametrize("mode", [None, XdpMode.NATIVE])
@BACKENDS
def test_early_drops_go_round_edited_rules_too(backend: Backend, mode: XdpMode | None) -> None:
    with Host(backend) as host:
        host.tables.restore(ruleset("-A INPUT -p udp --dport 99 -j DROP", ports=(99,)))
        with host.dropping(mode) as early:
            rollout = host.rollout
            assert rollout is not None
            rollout.follows = True
            edit(host.tables, "-I INPUT -p udp --dport 99 -j ACCEPT")
            with entered(host.fw):
                assert rollout.tick() is None and early.trouble is None
            flood = [host.ip() / UDP(sport=n, dport=98) / b"x" for n in range(1000, 1020)]
            host.emit(*flood, *[host.ip() / UDP(sport=7, dport=99) / b"x"] * 5)
            assert early.dropped() == 20
            eventually(lambda: host.tables.packets("--dport 99$") == 5)
