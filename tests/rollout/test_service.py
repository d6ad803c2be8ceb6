"""The daemon's work: gates, canary, confirmation, guards, management, following, holding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from bpfilter.errors import RolloutError
from bpfilter.rollout.ending import Ending, GuardTripped, Unconfirmed
from bpfilter.rollout.gates import Gates
from bpfilter.rollout.goal import Goal, Policy
from bpfilter.rollout.guards import Guards, ProbeCommand
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.management import Connection
from bpfilter.rollout.scope import Scope
from bpfilter.rollout.teardown import remains
from bpfilter.rollout.trouble import Cause
from bpfilter.ruleset.model import Backend
from tests.rollout.network import FW4, PEER4, Net, call, entered
from tests.rollout.serving import AT_ONCE, REQUEST, asked, reached, served, until
from tests.rollout.test_stages import BACKENDS, FATES, load, outcome, shape

pytestmark = pytest.mark.kernel
ENFORCE = Goal(Stage.ENFORCE, gates=AT_ONCE)
LATER = "-I SERVICES -p udp -m udp --dport 4004 -j ACCEPT"


def kinds(state: Path) -> list[str]:
    with Journal(state, create=False) as journal:
        return [event.kind for event in journal.events()]


@BACKENDS
def test_a_canary_decides_in_its_scope_alone_and_is_led_on_to_enforce(
    net: Net, backend: Backend, tmp_path: Path
) -> None:
    tables = load(net, backend)
    before = shape(tables)
    far = Scope(sources=(ip_network("192.0.2.0/24"),))
    near = {"sources": [f"{PEER4}/32"], "interfaces": ["v1"], "share": 1.0, "chains": []}

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.CANARY)
        assert outcome(net, tables) == (FATES, 12)
        refused = yield from asked(journal, "goal", stage="shadow")
        assert not refused.done
        answer = yield from asked(journal, "goal", stage="enforce", gates=["seconds=0"])
        assert answer.done
        yield from reached(journal, Stage.ENFORCE)
        assert outcome(net, tables) == (FATES, 0)
        answer = yield from asked(journal, "rollback")

    goal = replace(ENFORCE, stage=Stage.CANARY, scope=far)
    ending, _ = served(net, tmp_path / "far", goal, script)
    assert ending is Ending.CANCELLED
    assert kinds(tmp_path / "far") == ["stage", "stage", Cause.CANCELLED]

    def inside(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.CANARY)
        assert outcome(net, tables) == (FATES, 0)

    goal = replace(ENFORCE, stage=Stage.CANARY, scope=Scope.of(near))
    assert served(net, tmp_path / "near", goal, inside)[0] is Ending.STOPPED
    with entered(net.fw):
        assert remains() == ()
    assert shape(tables) == before


def test_nothing_goes_on_before_its_gates_are_open(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    goal = replace(ENFORCE, gates=Gates(seconds=0.0, packets=12))

    def script(journal: Journal) -> Iterator[None]:
        def gates() -> dict[str, bool]:
            status = journal.document("status") or {}
            return {gate["name"]: gate["passed"] for gate in status.get("gates", ())}

        yield from until(lambda: gates().get("packets") is False)
        assert journal.stage is Stage.SHADOW
        assert outcome(net, tables) == (FATES, 12)
        yield from reached(journal, Stage.ENFORCE)

    assert served(net, tmp_path, goal, script)[0] is Ending.STOPPED


def test_a_stage_is_confirmed_by_its_id_and_stays(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    goal = replace(ENFORCE, confirm_within=20.0, confirm_id="friday")

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        wrong = yield from asked(journal, "confirm", id="monday")
        assert not wrong.done
        for _ in range(2):
            right = yield from asked(journal, "confirm", id="friday")
            assert right.done
        assert (journal.document("standing") or {})["deadline"] is None
        tables.restore(f"*filter\n{LATER}\nCOMMIT\n", "--noflush")
        yield from until(lambda: "followed" in kinds(tmp_path))
        assert (journal.document("standing") or {})["deadline"] is None
        assert outcome(net, tables) == ([3, 3, 0, 3], 0)

    assert served(net, tmp_path, goal, script)[0] is Ending.STOPPED


def test_an_unconfirmed_stage_is_rolled_back_loudly(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    before = shape(tables)
    goal = replace(ENFORCE, confirm_within=1.0, confirm_id="friday")

    def script(journal: Journal) -> Iterator[None]:
        while True:
            yield

    with pytest.raises(Unconfirmed):
        served(net, tmp_path, goal, script)
    assert kinds(tmp_path)[:2] == ["stage", Cause.UNCONFIRMED]
    assert shape(tables) == before
    with pytest.raises(Unconfirmed):
        served(net, tmp_path, goal, script)
    assert "stage" not in kinds(tmp_path)[3:], "a restarted daemon does not try again by itself"


@pytest.mark.parametrize(
    "argv", [("false",), ("sleep", "60"), ("/nowhere/at/all",)], ids=["fails", "hangs", "missing"]
)
def test_a_probe_that_fails_ends_the_stage(net: Net, tmp_path: Path, argv: tuple[str, ...]) -> None:
    tables = load(net, Backend.NFT)
    before = shape(tables)
    request = replace(REQUEST, guards=Guards(probe=ProbeCommand(argv, 0.1, 0.5)))

    def script(journal: Journal) -> Iterator[None]:
        while True:
            yield

    with pytest.raises(GuardTripped, match="probe") as caught:
        served(net, tmp_path, ENFORCE, script, request)
    assert caught.value.cause is Cause.PROBE
    assert kinds(tmp_path)[:2] == ["stage", Cause.PROBE]
    assert shape(tables) == before


def test_a_probe_that_succeeds_is_run_again_and_again(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    once = ProbeCommand(("mktemp", "-p", str(tmp_path), "probe.XXXXXX"), 0.0, 5.0)

    def script(journal: Journal) -> Iterator[None]:
        yield from until(lambda: len(list(tmp_path.glob("probe.*"))) > 2)

    request = replace(REQUEST, guards=Guards(probe=once))
    assert served(net, tmp_path / "state", ENFORCE, script, request)[0] is Ending.STOPPED


def test_what_would_lock_the_operator_out_is_refused(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    before = shape(tables)
    ssh = Connection(ip_address(PEER4), 50022, ip_address(FW4), 22)
    goal = replace(ENFORCE, operator=(ssh,))
    with pytest.raises(RolloutError, match=r"lock you out: NEW packets .* by filter/INPUT/0"):
        served(net, tmp_path, goal, lambda _journal: iter(()))
    assert shape(tables) == before

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)

    forced = replace(goal, accept_lockout=True)
    assert served(net, tmp_path, forced, script)[0] is Ending.STOPPED
    call("ip", "netns", "exec", net.fw, "iptables-nft", "-I", "INPUT", "-p", "tcp", "--dport", "22",
         "-j", "ACCEPT")  # fmt: skip
    assert served(net, tmp_path, goal, script)[0] is Ending.STOPPED


def test_policy_hold_stays_off_after_a_change_until_told(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        tables.restore(f"*filter\n{LATER}\nCOMMIT\n", "--noflush")
        yield from reached(journal, Stage.OFF)
        for _ in range(20):
            yield
        assert journal.stage is Stage.OFF
        assert outcome(net, tables) == ([3, 3, 0, 3], 12)
        answer = yield from asked(journal, "goal", stage="enforce", gates=["seconds=0"])
        assert answer.done
        yield from reached(journal, Stage.ENFORCE)

    goal = replace(ENFORCE, policy=Policy.HOLD)
    assert served(net, tmp_path, goal, script)[0] is Ending.STOPPED


@BACKENDS
def test_a_change_is_followed_in_the_same_stage(net: Net, backend: Backend, tmp_path: Path) -> None:
    tables = load(net, backend)

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        tables.restore(f"*filter\n{LATER}\nCOMMIT\n", "--noflush")
        assert outcome(net, tables) == ([3, 3, 0, 3], 12), "punted from the next packet on"
        yield from until(lambda: "followed" in kinds(tmp_path))
        assert journal.stage is Stage.ENFORCE
        assert outcome(net, tables) == ([3, 3, 0, 3], 0)

    ending, said = served(net, tmp_path, ENFORCE, script)
    assert ending is Ending.STOPPED
    assert "stage off" not in said[:-1]


def test_a_tool_that_keeps_purging_our_chains_is_not_fought(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)

    def followed(times: int) -> Iterator[None]:
        yield from until(lambda: kinds(tmp_path).count("followed") == times)

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)
        for times in (1, 2):
            call("ip", "netns", "exec", net.fw, "iptables-nft", "-D", "INPUT", "1")
            assert outcome(net, tables) == (FATES, 12)
            yield from followed(times)

    assert served(net, tmp_path, ENFORCE, script)[0] is Ending.STOPPED
    with Journal(tmp_path, create=False) as journal:
        pauses = [e.sentence.split()[-2] for e in journal.events() if e.kind == Cause.DISPATCH]
    assert pauses == ["1", "2"]


def test_an_expired_stage_without_an_id_does_not_stand_in_the_way_of_a_later_deployment(
    net: Net, tmp_path: Path
) -> None:
    """A daemon that is started again by its supervisor gives up again; one that asks for no
    confirmation does not."""
    load(net, Backend.NFT)
    goal = replace(ENFORCE, confirm_within=1.0)

    def waiting(journal: Journal) -> Iterator[None]:
        while True:
            yield

    for _ in range(2):
        with pytest.raises(Unconfirmed):
            served(net, tmp_path, goal, waiting)

    def script(journal: Journal) -> Iterator[None]:
        yield from reached(journal, Stage.ENFORCE)

    assert served(net, tmp_path, ENFORCE, script)[0] is Ending.STOPPED
