"""bpfilterd as a process: told to stop, killed, frozen, never confirmed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfilter.rollout.journal import Stage, running
from bpfilter.rollout.teardown import remains, teardown
from bpfilter.ruleset.model import Backend
from tests.rollout.network import Iptables, Net, entered, loaded_objects, still_loaded
from tests.rollout.test_service import kinds
from tests.rollout.test_stages import FATES, load, outcome, shape

pytestmark = pytest.mark.kernel
LEASE = 4.0
OPEN = "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"


@contextmanager
def daemon(
    net: Net, state: Path, *options: str, prefix: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """bpfilterd in the firewall's namespace, killed at the end at the latest."""
    command = [*prefix, sys.executable, "-m", "bpfilter.cli.daemon", "--interface", "v1",
               "--state", str(state), "--lease-seconds", str(LEASE),
               "--shadow-seconds", "0.2", *options]  # fmt: skip
    with entered(net.fw), state.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        with entered(net.fw):
            teardown(state)


def said(state: Path) -> str:
    return state.with_suffix(".log").read_text()


def verb(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """`bpfilter` in this thread's namespace."""
    code = "import sys; from bpfilter.cli.main import run; sys.exit(run(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60
    )


def reach(process: subprocess.Popen[str], state: Path, stage: Stage) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(said(state))
        if running(state) == (process.pid, stage):
            return
        time.sleep(0.1)
    raise AssertionError(f"stage {stage} was not reached")


def falls_back(net: Net, tables: Iptables) -> None:
    """Wait for the lease to end; then every packet takes the original rules."""
    time.sleep(LEASE + 0.2)
    assert outcome(net, tables) == (FATES, 12)


def test_a_daemon_told_to_stop_leaves_nothing(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    before, state = shape(tables), tmp_path / "state"
    with daemon(net, state, "--stage", "enforce") as process:
        reach(process, state, Stage.ENFORCE)
        assert outcome(net, tables) == (FATES, 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        with entered(net.fw):
            assert remains() == ()
        assert shape(tables) == before
        assert not state.exists()


@pytest.mark.parametrize(
    ("how", "backend"),
    [
        (signal.SIGKILL, Backend.NFT),
        (signal.SIGKILL, Backend.LEGACY),
        (signal.SIGSTOP, Backend.NFT),
    ],
)
def test_a_dead_or_hanging_daemon_leaves_plain_iptables_after_the_lease(
    net: Net, tmp_path: Path, how: signal.Signals, backend: Backend
) -> None:
    tables = load(net, backend)
    before, state = shape(tables), tmp_path / "state"
    with daemon(net, state, "--stage", "enforce") as process:
        reach(process, state, Stage.ENFORCE)
        assert outcome(net, tables) == (FATES, 0)
        objects = loaded_objects(net)
        assert len(objects) > 5
        process.send_signal(how)
        falls_back(net, tables)
        assert still_loaded(objects[:1]), "the pin keeps the program, the lease is over"
        process.kill()
        process.wait()
        with entered(net.fw):
            torn = verb(["teardown", "--state", str(state)])
            assert torn.returncode == 0, torn.stderr
            assert remains() == ()
        assert still_loaded(objects) == []
        assert shape(tables) == before
        assert outcome(net, tables) == (FATES, 12)


def test_a_new_daemon_takes_over_from_a_killed_one(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    state = tmp_path / "state"
    with daemon(net, state, "--stage", "enforce") as first:
        reach(first, state, Stage.ENFORCE)
        first.kill()
        first.wait()
        with daemon(net, state, "--stage", "enforce") as second:
            reach(second, state, Stage.ENFORCE)
            end = time.monotonic() + 20
            while "adopted" not in kinds(state) and time.monotonic() < end:
                time.sleep(0.05)
            assert outcome(net, tables) == (FATES, 0)


def test_the_daemon_follows_a_change_of_the_rules(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    state = tmp_path / "state"
    with daemon(net, state, "--stage", "enforce") as process:
        reach(process, state, Stage.ENFORCE)
        tables.restore("*filter\n-I SERVICES -p udp -m udp --dport 4004 -j ACCEPT\nCOMMIT\n",
                       "--noflush")  # fmt: skip
        assert outcome(net, tables)[0] == [3, 3, 0, 3], "from the next packet on"
        end = time.monotonic() + 60
        while outcome(net, tables) != ([3, 3, 0, 3], 0):
            assert time.monotonic() < end, said(state)
            assert process.poll() is None, said(state)
        assert running(state) == (process.pid, Stage.ENFORCE)


def test_a_stage_is_confirmed_or_rolled_back(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    before, state = shape(tables), tmp_path / "state"
    options = ("--stage", "enforce", "--confirm-within", "10", "--confirm-id", "friday")
    with daemon(net, state, *options) as process:
        reach(process, state, Stage.ENFORCE)
        with entered(net.fw):
            assert verb(["confirm", "monday", "--state", str(state)]).returncode == 1
            for _ in range(2):
                confirmed = verb(["confirm", "friday", "--state", str(state)])
                assert confirmed.returncode == 0, confirmed.stderr
        time.sleep(10.2)
        assert process.poll() is None
        assert outcome(net, tables) == (FATES, 0)
    with daemon(net, state, "--stage", "enforce", "--confirm-within", "1") as process:
        assert process.wait(30) == 1
        assert "not confirmed in time" in said(state)
        assert shape(tables) == before
        assert outcome(net, tables) == (FATES, 12)


def test_a_second_daemon_and_a_missing_interface_are_refused(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    state = tmp_path / "state"
    with daemon(net, state) as process:
        reach(process, state, Stage.SHADOW)
        with daemon(net, state) as second:
            assert second.wait(30) == 64
    with daemon(net, state, "--interface", "nowhere") as process:
        assert process.wait(30) == 1
        assert "no interface nowhere" in said(state)


def test_a_dry_run_says_what_would_change_and_changes_nothing(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.LEGACY)
    before = shape(tables)
    with entered(net.fw):
        seen = verb(["deploy", "-i", "v1", "--stage", "enforce", "--dry-run",
                     "--state", str(tmp_path / "state")])  # fmt: skip
        assert seen.returncode == 2, seen.stderr
        assert "mark field 0xff000000" in seen.stdout
        assert remains() == ()
    assert shape(tables) == before


def test_deploy_starts_a_daemon_and_teardown_ends_it(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    before, state = shape(tables), tmp_path / "state"
    with entered(net.fw):
        try:
            words = ["--state", str(state), "--verify-share", "0"]
            started = verb(["deploy", "-i", "v1", *words, "--stage", "canary",
                            "--canary-source", "192.0.2.0/24"])  # fmt: skip
            assert started.returncode == 0, started.stderr
            assert outcome(net, tables) == (FATES, 12)
            promoted = verb(["deploy", "--stage", "enforce", *words, "--confirm-within", "60"])
            assert promoted.returncode == 0, promoted.stderr
            assert outcome(net, tables) == (FATES, 0)
            number = promoted.stdout.split()[-1]
            assert verb(["confirm", number, "--state", str(state)]).returncode == 0
            told = verb(["status", "--format", "json", "--state", str(state)])
            assert json.loads(told.stdout)["stage"] == "enforce"
        finally:
            ended = verb(["teardown", "--state", str(state)])
        assert ended.returncode == 0, ended.stderr
        assert ") stopped" in ended.stdout
        assert remains() == ()
    assert shape(tables) == before


def test_limits_that_decide_verdicts_are_reset_on_legacy_only_with_consent(
    net: Net, tmp_path: Path
) -> None:
    rule = "*filter\n-I INPUT -p icmp -m limit --limit 1/sec -j ACCEPT\nCOMMIT\n"
    load(net, Backend.LEGACY).restore(rule, "--noflush")
    state = tmp_path / "state"
    with daemon(net, state, "--stage", "enforce") as process:
        assert process.wait(30) == 1
        assert "filter/INPUT/1" in said(state)
    with daemon(net, state, "--stage", "enforce", "--accept-state-reset") as process:
        reach(process, state, Stage.ENFORCE)
