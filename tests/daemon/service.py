"""`bpfilterd` as systemd would run it, in a namespace of the test: its words, its notifications."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bpfilter.rollout.journal import Stage, running
from bpfilter.rollout.teardown import teardown
from tests.rollout.network import Net, entered

_SECONDS = 60.0


@dataclass
class Service:
    """One daemon's process and places; a directory may have several daemons, one after another."""

    process: subprocess.Popen[str]
    root: Path
    listener: socket.socket
    told: list[str] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.root / "run"

    @property
    def api(self) -> Path:
        return self.root / "api.sock"

    def said(self) -> str:
        return (self.root / "log").read_text()

    def notified(self) -> list[str]:
        """All lines that were sent to systemd so far."""
        with suppress(BlockingIOError):
            while True:
                self.told += self.listener.recv(4096, socket.MSG_DONTWAIT).decode().splitlines()
        return self.told

    def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + _SECONDS
        while not holds():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)

    def reaches(self, stage: Stage) -> None:
        self.until(lambda: running(self.state) == (self.process.pid, stage))

    def ready(self) -> None:
        self.until(lambda: "READY=1" in self.notified())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.said()


def configure(root: Path, deployment: str = 'stage = "off"', daemon: str = "") -> Path:
    """A configuration file whose places all lie below `root`."""
    config = root / "bpfilter.toml"
    config.write_text(
        f'[daemon]\nstate_directory = "{root}/state"\n{daemon}\n'
        f'[api]\nsocket = "{root}/api.sock"\n'
        f"[deployment]\nlease_seconds = 4.0\n{deployment}\n"
    )
    return config


AT_ONCE = "[deployment.gates]\npackets = 0\nseconds = 0.2\npunted = 1.0\nunseen = 1.0\n"


@contextmanager
def service(net: Net, root: Path, prefix: Sequence[str] = ()) -> Iterator[Service]:
    """A daemon with the configuration of `configure`, killed at the end at the latest."""
    command = [*prefix, sys.executable, "-m", "bpfilter.cli.daemon",
               "--config", str(root / "bpfilter.toml"), "--state", str(root / "run")]  # fmt: skip
    place = root / "notify.sock"
    place.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(place))
        environment = {**os.environ, "NOTIFY_SOCKET": str(place), "WATCHDOG_USEC": "4000000"}
        with entered(net.fw), (root / "log").open("a") as log:
            process = subprocess.Popen(
                command, stderr=log, stdout=log, text=True, env=environment, cwd=Path.cwd()
            )
        try:
            yield Service(process, root, listener)
        finally:
            process.kill()
            process.wait()


@contextmanager
def cleaned(net: Net, root: Path) -> Iterator[None]:
    """Whatever happens within, nothing stays in the namespace."""
    try:
        yield
    finally:
        with entered(net.fw):
            teardown(root / "run")
