"""What the service costs: its start, its share of a processor, its memory; with no traffic.

`python -m bench.service [RULES]` prints one JSON line per backend: seconds from exec to READY; the
same behind a daemon that was killed, until what it left is vouched for, and until its rules are
translated again; shares of one core in `off` and in `enforce` (the daemon with the tools it runs,
and its API process), resident MiB. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bench.generate import Style, generate
from bench.network import FILTERING, Network
from bpfilter.demo.network import inside
from bpfilter.errors import LabError
from bpfilter.rollout.asking import ask
from bpfilter.rollout.journal import Journal, Stage, running
from bpfilter.rollout.teardown import teardown
from bpfilter.ruleset.model import Backend

_SETTLE_SECONDS, _WATCHED_SECONDS = 8.0, 20.0
_LIMIT_SECONDS = 90.0
_CONFIG = """[daemon]
state_directory = "{root}/kept"
[api]
socket = "{root}/api.sock"
[deployment]
interfaces = ["{interface}"]
"""
_WISH = {
    "stage": "enforce",
    "gates": ["seconds=0", "packets=0", "punted=1", "unseen=1"],
    "accept_lockout": True,
    "accept_reset": True,
}


class _Service:
    """One daemon's process in the filtering namespace."""

    def __init__(self, network: Network, root: Path) -> None:
        self.state = root / "run"
        self._place = root / "notify.sock"
        self._place.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listener.bind(str(self._place))
        self._told: list[str] = []
        self._log = root / "log"
        command = [sys.executable, "-m", "bpfilter.cli.daemon", "--config", str(root / "config")]
        environment = {**os.environ, "NOTIFY_SOCKET": str(self._place)}
        self.began = time.monotonic()
        with inside(network.filter), self._log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--state", str(self.state)], stdout=log, stderr=log, env=environment
            )

    def is_ready(self) -> bool:
        with suppress(BlockingIOError):
            while True:
                data = self._listener.recv(4096, socket.MSG_DONTWAIT)
                self._told += data.decode().splitlines()
        return "READY=1" in self._told

    def has(self, stage: Stage) -> bool:
        return running(self.state) == (self.process.pid, stage)

    def decides_on(self) -> bool:
        """Whether it vouches for what stands, before it has translated the rules again."""
        return "decides on" in self._log.read_text()

    def adopted(self) -> bool:
        with Journal(self.state, create=False) as journal:
            found = [event for event in journal.events() if event.kind == "adopted"]
        return bool(found) and self.has(Stage.ENFORCE)

    def until(self, holds: Callable[[], bool]) -> float:
        """Seconds since the start when it held first; LabError if it never does."""
        while not holds():
            if self.process.poll() is not None or self.age > _LIMIT_SECONDS:
                tail = self._log.read_text()[-1000:]
                raise LabError(f"the service did not get there: {tail}", hint="run it again")
            time.sleep(0.01)
        return self.age

    @property
    def age(self) -> float:
        return time.monotonic() - self.began

    def shares(self) -> tuple[float, float]:
        """Of one core: the daemon with the tools that it runs, and its API process."""
        time.sleep(_SETTLE_SECONDS)
        api = self._api()
        before = _ticks(self.process.pid, tools=True), _ticks(api)
        time.sleep(_WATCHED_SECONDS)
        after = _ticks(self.process.pid, tools=True), _ticks(api)
        spent = [(b - a) / os.sysconf("SC_CLK_TCK") for a, b in zip(before, after, strict=True)]
        return round(spent[0] / _WATCHED_SECONDS, 4), round(spent[1] / _WATCHED_SECONDS, 4)

    def memory(self) -> tuple[float, float]:
        """Resident MiB of the daemon and of its API process."""
        return _resident(self.process.pid), _resident(self._api())

    def _api(self) -> int:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(path.read_text().split()[0])

    def kill(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(30)
        self._listener.close()


def measure(backend: Backend, rules: int) -> dict[str, object]:
    """One backend's figures."""
    with Network() as network, tempfile.TemporaryDirectory(prefix="bpfilter-bench-") as place:
        root = Path(place)
        network.restore(backend, generate(Style.ACL, rules, 1))
        (root / "config").write_text(_CONFIG.format(root=root, interface=FILTERING))
        service = _Service(network, root)
        try:
            ready = service.until(service.is_ready)
            off = service.shares()
            ask(service.state, "goal", _WISH)
            service.until(lambda: service.has(Stage.ENFORCE))
            enforce, memory = service.shares(), service.memory()
            service.kill(signal.SIGKILL)
            service = _Service(network, root)
            again = service.until(service.is_ready)
            vouched = service.until(service.decides_on)
            adopted = service.until(service.adopted)
        finally:
            service.kill(signal.SIGTERM)
            with inside(network.filter):
                teardown(root / "run")
    return {
        "backend": backend,
        "rules": rules,
        "ready_s": round(ready, 2),
        "ready_after_kill_s": round(again, 2),
        "vouched_after_kill_s": round(vouched, 2),
        "planned_after_kill_s": round(adopted, 2),
        "off": off[0],
        "off_api": off[1],
        "enforce": enforce[0],
        "enforce_api": enforce[1],
        "daemon_mib": memory[0],
        "api_mib": memory[1],
    }


def _ticks(pid: int, *, tools: bool = False) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(value) for value in fields[11 : 15 if tools else 13])


def _resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return round(kib / 1024, 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.service", description=__doc__)
    parser.add_argument("rules", nargs="?", type=int, default=10_000)
    rules = parser.parse_args().rules
    for backend in Backend:
        print(json.dumps(measure(backend, rules)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
