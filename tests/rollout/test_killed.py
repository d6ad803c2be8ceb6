"""A daemon killed at every step of its way: packets get iptables' verdicts, the next one recovers.

The way: off → shadow → enforce → a rule is added and followed → off. A step that was done but not
marked so is the harder case; what lies before a step is what lies behind the one before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bpfilter.rollout.ending import Ending, Unconfirmed
from bpfilter.rollout.goal import Goal
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.teardown import remains
from bpfilter.ruleset.model import Backend
from tests.rollout.killing import serve_and_die
from tests.rollout.network import Iptables, Net, entered
from tests.rollout.serving import AT_ONCE, reached, served, until
from tests.rollout.test_stages import FATES, load, outcome, shape

pytestmark = pytest.mark.kernel
ENFORCE = Goal(Stage.ENFORCE, gates=AT_ONCE)
LATER = "-A SERVICES -p udp -m udp --dport 4004 -j ACCEPT"
WAY = (
    *("plan", "load", "attach", "lease"),
    *("load", "dispatch", "attach", "lease"),
    *("go round", "load", "dispatch", "attach", "lease"),
    *("remove dispatch", "detach"),
)
STEPS = [pytest.param(n, id=f"{n}-{name}") for n, name in enumerate(WAY, 1)]


def fates(tables: Iptables) -> list[int]:
    """What the rules that are loaded now do with the test's packets."""
    return [3, 3, 0, 3] if LATER in tables.save() else FATES


def whole_way(tables: Iptables, state: Path, journal: Journal) -> Iterator[None]:
    yield from reached(journal, Stage.ENFORCE)
    tables.restore(f"*filter\n{LATER.replace('-A', '-I', 1)}\nCOMMIT\n", "--noflush")
    yield from until(lambda: any(event.kind == "followed" for event in journal.events()))


def recovers(net: Net, tables: Iptables, state: Path) -> list[str]:
    """The next daemon enforces again, and leaves nothing when it is told to stop."""

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        yield
        assert outcome(net, tables) == (fates(tables), 0)

    assert served(net, state, ENFORCE, script)[0] is Ending.STOPPED
    with entered(net.fw):
        assert remains() == ()
    with Journal(state, create=False) as journal:
        return [event.kind for event in journal.events()]


@pytest.mark.parametrize("number", STEPS)
def test_a_daemon_killed_at_any_step_is_recovered_from(
    net: Net, tmp_path: Path, number: int
) -> None:
    # The backends take turns: all steps on both are in the chaos run.
    tables = load(net, list(Backend)[number % 2])
    assert serve_and_die(
        net, tmp_path, ENFORCE, lambda journal: whole_way(tables, tmp_path, journal), number
    )
    assert outcome(net, tables)[0] == fates(tables)
    with Journal(tmp_path, create=False) as journal:
        open_steps = [step.name for step in journal.steps() if not step.done]
        assert open_steps == [WAY[number - 1]]
    kinds = recovers(net, tables, tmp_path)
    standing = WAY[number - 1] == "lease" and number > 4
    assert ("adopted" in kinds) == standing
    assert ("undone" in kinds) != standing or number <= 2 or number == len(WAY)
    clean = [line for line in shape(tables) if "BPF-" in line]
    assert clean == []


def test_what_was_changed_while_nobody_looked_is_undone_not_adopted(
    net: Net, tmp_path: Path
) -> None:
    tables = load(net, Backend.NFT)
    last_of_enforce = 8
    assert serve_and_die(
        net, tmp_path, ENFORCE, lambda journal: whole_way(tables, tmp_path, journal),
        last_of_enforce,
    )  # fmt: skip
    tables.restore(f"*filter\n{LATER.replace('-A', '-I', 1)}\nCOMMIT\n", "--noflush")
    assert outcome(net, tables) == ([3, 3, 0, 3], 12)
    assert "adopted" not in recovers(net, tables, tmp_path)


def test_an_unconfirmed_stage_of_a_dead_daemon_ends_in_the_kernel_and_is_not_adopted(
    net: Net, tmp_path: Path
) -> None:
    tables = load(net, Backend.NFT)
    goal = replace(ENFORCE, confirm_within=2.0, confirm_id="friday")
    last_of_enforce = 8
    assert serve_and_die(
        net, tmp_path, goal, lambda journal: whole_way(tables, tmp_path, journal), last_of_enforce
    )
    time.sleep(2.1)
    assert outcome(net, tables) == (FATES, 12)
    with pytest.raises(Unconfirmed):
        served(net, tmp_path, goal, lambda _journal: iter(()))
    with entered(net.fw):
        assert remains() == ()
    assert outcome(net, tables) == (FATES, 12)
