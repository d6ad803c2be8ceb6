"""The service outlives its deployments, itself and the machine, and says the truth about them."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bpfilter.rollout.journal import Stage, running
from bpfilter.rollout.teardown import remains
from bpfilter.ruleset.model import Backend
from tests.daemon.service import AT_ONCE, Service, cleaned, configure, service
from tests.rollout.network import PEER4, Net, call, entered
from tests.rollout.test_daemon import verb
from tests.rollout.test_service import kinds
from tests.rollout.test_stages import FATES, load, outcome, shape

pytestmark = pytest.mark.kernel
ENFORCE = f'stage = "enforce"\ninterfaces = ["v1"]\nverify_share = 0.0\n{AT_ONCE}'


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with Net() as built, cleaned(built, tmp_path):
        yield built


def asked(net: Net, *words: str) -> str:
    with entered(net.fw):
        done = verb(words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def deploy(net: Net, running: Service, *options: str) -> str:
    return asked(net, "deploy", "-i", "v1", "--verify-share", "0", "--gate", "seconds=0.2",
                 "--state", str(running.state), "--stage", *options)  # fmt: skip


def test_it_waits_serves_and_waits_again(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    before = shape(tables)
    configure(tmp_path)
    with service(net, tmp_path) as found:
        found.ready()
        assert "INPUT" in asked(net, "counters", "--all", "--state", str(found.state))
        for _ in range(2):
            deploy(net, found, "enforce")
            assert outcome(net, tables) == (FATES, 0)
            asked(net, "rollback", "--state", str(found.state))
            found.reaches(Stage.OFF)
            assert shape(tables) == before
        deploy(net, found, "shadow")
        assert "stays" in asked(net, "teardown", "--state", str(found.state))
        with entered(net.fw):
            assert remains() == ()
        assert running(found.state) == (found.process.pid, Stage.OFF)
        found.stop()


def test_what_was_reached_comes_back_after_a_stop_and_a_reboot(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    before = shape(tables)
    configure(tmp_path)
    with service(net, tmp_path) as found:
        found.ready()
        deploy(net, found, "enforce")
        found.stop()
    with entered(net.fw):
        assert remains() == ()
    assert shape(tables) == before
    shutil.rmtree(tmp_path / "run")  # as a reboot does
    with service(net, tmp_path) as found:
        found.reaches(Stage.ENFORCE)
        assert outcome(net, tables) == (FATES, 0)
        asked(net, "rollback", "--state", str(found.state))
        found.reaches(Stage.OFF)
        found.stop()
    with service(net, tmp_path) as found:
        found.ready()
        time.sleep(0.5)
        assert running(found.state) == (found.process.pid, Stage.OFF), "a rollback holds"


def test_what_nobody_confirmed_does_not_come_back(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    configure(tmp_path)
    with service(net, tmp_path) as found:
        found.ready()
        deploy(net, found, "enforce", "--confirm-within", "60", "--confirm-id", "friday")
        found.stop()
    shutil.rmtree(tmp_path / "run")
    with service(net, tmp_path) as found:
        found.ready()
        time.sleep(0.5)
        assert running(found.state) == (found.process.pid, Stage.OFF)
        deploy(net, found, "enforce", "--confirm-within", "60", "--confirm-id", "monday")
        asked(net, "confirm", "monday", "--state", str(found.state))
        found.stop()
    shutil.rmtree(tmp_path / "run")
    with service(net, tmp_path) as found:
        found.reaches(Stage.ENFORCE)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_daemon_takes_over_what_one_handed_over_or_died_with(
    net: Net, tmp_path: Path, how: signal.Signals
) -> None:
    tables = load(net, Backend.NFT)
    configure(tmp_path, ENFORCE, 'on_stop = "hand-over"')
    with service(net, tmp_path) as found:
        found.reaches(Stage.ENFORCE)
        assert outcome(net, tables) == (FATES, 0)
        found.process.send_signal(how)
        found.process.wait(30)
        assert outcome(net, tables) == (FATES, 0), "decided without a daemon"
    with service(net, tmp_path) as found:
        found.until(lambda: "adopted" in kinds(found.state))
        assert outcome(net, tables) == (FATES, 0)


def test_the_api_is_there_again_and_goes_with_its_daemon(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    configure(tmp_path)
    with service(net, tmp_path) as found:
        found.ready()
        transport = httpx.HTTPTransport(uds=str(found.api))
        with httpx.Client(transport=transport, base_url="http://bpfilterd") as client:
            assert client.get("/v1/deployment").json()["running"] is True
        call("pkill", "-KILL", "-P", str(found.process.pid))
        found.until(lambda: found.notified().count("READY=1") == 2)
        assert "the API ended with status -9" in found.said()
        found.process.kill()
        found.process.wait()
        end = time.monotonic() + 20
        while found.api.exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert not found.api.exists()


def test_a_refused_deployment_is_said_and_leaves_the_service_waiting(
    net: Net, tmp_path: Path
) -> None:
    load(net, Backend.NFT)
    configure(tmp_path)
    with service(net, tmp_path) as found, entered(net.fw):
        found.ready()
        refused = verb(["deploy", "-i", "v1", "--stage", "enforce", "--gate", "seconds=0.2",
                        "--state", str(found.state), "--protect", f"{PEER4}:22"])  # fmt: skip
        assert refused.returncode == 1
        assert "was not reached" in refused.stderr
        status = json.loads(
            verb(["status", "--format", "json", "--state", str(found.state)]).stdout
        )
        assert status["stage"] == "off" and status["problem"]
        assert remains() == ()
        found.stop()


def test_a_start_from_the_configuration_is_tried_until_it_works(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    configure(tmp_path, ENFORCE.replace('"v1"', '"later0"'))
    with service(net, tmp_path) as found:
        found.until(lambda: "next try in" in found.said())
        with entered(net.fw):
            call("ip", "link", "add", "later0", "type", "veth", "peer", "name", "later1")
            call("ip", "link", "set", "later0", "up")
        found.reaches(Stage.ENFORCE)
        assert outcome(net, tables) == (FATES, 12), "v1 is none of its interfaces"
        found.stop()


def test_a_hangup_reads_the_configuration_again(net: Net, tmp_path: Path) -> None:
    tables = load(net, Backend.NFT)
    configure(tmp_path)
    with service(net, tmp_path) as found:
        found.ready()
        configure(tmp_path, ENFORCE)
        found.process.send_signal(signal.SIGHUP)
        found.reaches(Stage.ENFORCE)
        assert outcome(net, tables) == (FATES, 0)
        configure(tmp_path, 'stage = "everything"')
        found.process.send_signal(signal.SIGHUP)
        found.until(lambda: "the configuration stays as it was" in found.said())
        assert "deployment.stage" in found.said()
        assert outcome(net, tables) == (FATES, 0)
        configure(tmp_path, ENFORCE.replace("enforce", "shadow"))
        found.process.send_signal(signal.SIGHUP)
        found.reaches(Stage.SHADOW)
        assert outcome(net, tables) == (FATES, 12)
        found.stop()


def test_systemd_hears_how_it_is(net: Net, tmp_path: Path) -> None:
    load(net, Backend.NFT)
    configure(tmp_path, ENFORCE)
    with service(net, tmp_path) as found:
        found.reaches(Stage.ENFORCE)
        found.until(lambda: "STATUS=stage enforce" in found.notified())
        found.ready()  # when the API answers, which may be later
        beats = found.notified().count("WATCHDOG=1")
        found.until(lambda: found.notified().count("WATCHDOG=1") > beats + 1)
        found.process.send_signal(signal.SIGHUP)
        found.until(lambda: "RELOADING=1" in found.notified())
        found.until(lambda: found.notified().count("READY=1") > 1)
        found.stop()
        assert found.notified()[-1] == "STOPPING=1"
