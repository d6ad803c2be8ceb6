"""What happens to the firewall and to bpfilter while the traffic flows.

Each act says what it will do, does it, and leaves the firewall with all its rules and its
interfaces up. None of them looks at packets: that is the book's business.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bpfilter.rollout.journal import Stage, running
from bpfilter.rollout.teardown import remains, teardown
from tests.chaos.namespaces import entered
from tests.chaos.traffic import Traffic
from tests.chaos.world import FIREWALL, World
from tests.rollout.network import call

ROOT = Path(__file__).resolve().parents[2]
LEASE_SECONDS = 2.0
_REACH_SECONDS = 25.0
Say = Callable[[str], None]


class Failed(AssertionError):
    """bpfilter did not do what it says, though no packet need have suffered."""


class Conductor:
    """One world's bpfilterd and everything that is done to it. Used by one thread."""

    def __init__(self, world: World, traffic: Traffic, rng: random.Random, directory: Path,
                 say: Say) -> None:  # fmt: skip
        self.world, self.traffic, self.rng, self._say = world, traffic, rng, say
        self.state = directory / "state"
        self._log = directory / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.decided = 0
        self.edits = 0
        self.points: list[int] = []
        self.failures: list[str] = []
        self.acts: dict[str, int] = {}

    # The daemon.

    def start(self, stage: Stage, *options: str, how: str = "plain") -> None:
        """Start the daemon; nothing may be running."""
        words = [sys.executable, "-m", "tests.chaos.daemons", how, "--stage", str(stage),
                 "--state", str(self.state), "--lease-seconds", str(LEASE_SECONDS),
                 "--shadow-seconds", "0.2", *options]  # fmt: skip
        for name in self.world.interfaces:
            words += ["--interface", name]
        with entered(self.world.fw), self._log.open("ab") as log:
            self._process = subprocess.Popen(
                words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def reaches(self, stage: Stage, seconds: float = _REACH_SECONDS) -> bool:
        """Wait for a stage; false if the daemon ended or takes too long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._process is None or self._process.poll() is not None:
                return False
            if running(self.state) == (self._process.pid, stage):
                return True
            time.sleep(0.05)
        return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int | None:
        """End the daemon; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            self.count()
            process.send_signal(how)
        return process.wait(30)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The daemon that was started last."""
        assert self._process is not None
        return self._process

    def count(self) -> None:
        self.decided += self.world.decided()

    def said(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def clean(self) -> None:
        """End the daemon, remove everything of ours, and be sure of it."""
        self.stop()
        with entered(self.world.fw):
            teardown(self.state)
            left = remains()
        if left:
            raise Failed(f"teardown left {', '.join(left)}")
        shutil.rmtree(self.state, ignore_errors=True)

    def enforcing(self) -> None:
        """Bring the daemon to enforcing, with a new process if the old one takes its time."""
        if self._process is not None and self.reaches(Stage.ENFORCE, 6):
            return
        for _ in range(2):
            self.stop()
            self.start(Stage.ENFORCE)
            if self.reaches(Stage.ENFORCE):
                return
        raise Failed(f"bpfilterd does not come to enforce:\n{self.said()}")

    # Acts.

    def act(self, name: str, doing: Callable[[], None]) -> None:
        self.world.book.act = name
        self.acts[name] = self.acts.get(name, 0) + 1
        self._say(name)
        try:
            doing()
        except Failed as error:
            self.failures.append(f"{name}: {error}")
            self._say(f"failed: {name}")
            self.clean()

    def some_edits(self) -> None:
        for _ in range(self.rng.randrange(1, 5)):
            self.world.edit(self.rng)
            self.edits += 1
            time.sleep(self.rng.random() * 0.3)

    def flush(self) -> None:
        self.traffic.hush()
        self.world.flush()
        time.sleep(self.rng.random())
        self.world.restore()
        self.traffic.resume()

    def wipe(self) -> None:
        self.traffic.hush()
        self.world.wipe()
        time.sleep(self.rng.random())
        self.world.restore()
        self.traffic.resume()

    def restore(self) -> None:
        self.world.restore()

    def purge(self) -> None:
        """A configuration manager removes the rules it does not know."""
        family = self.rng.choice((4, 6))
        for line in self._jumps(family):
            try:
                with self.world.changing():
                    self.world.iptables(family, "-D", *line.split()[1:])
            except AssertionError:
                # The daemon saw the first one go, and took the others away itself.
                if line in self._jumps(family):
                    raise

    def _jumps(self, family: int) -> list[str]:
        saved = self.world.iptables(family, "-S", "INPUT")
        return [line for line in saved.splitlines() if "BPF-" in line]

    def flap(self) -> None:
        self.traffic.pause()
        for device in self.rng.sample(self.world.interfaces, 1):
            call("ip", "-n", self.world.fw, "link", "set", device, "down")
            time.sleep(self.rng.random() * 0.5)
            call("ip", "-n", self.world.fw, "link", "set", device, "up")
        self.world.reach()
        self.traffic.resume()

    def rename(self) -> None:
        for names in (("v1", "wan9"), ("wan9", "v1")):
            call("ip", "-n", self.world.fw, "link", "set", names[0], "name", names[1])
            time.sleep(self.rng.random() * 1.5)

    def address(self) -> None:
        extra = FIREWALL[4][:-1] + "77/24"
        for verb in ("add", "del"):
            call("ip", "-n", self.world.fw, "addr", verb, extra, "dev", "v1")
            time.sleep(self.rng.random())

    def kill(self) -> None:
        self.stop(signal.SIGKILL)
        time.sleep(self.rng.choice((0.0, LEASE_SECONDS + 0.3)))

    def freeze(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            time.sleep(LEASE_SECONDS + self.rng.random())
            self.world.edit(self.rng)
            time.sleep(0.3)
            self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        self.stop()

    def tear_down(self) -> None:
        self.clean()

    def shadow(self) -> None:
        self.stop()
        self.start(Stage.SHADOW)
        if not self.reaches(Stage.SHADOW):
            raise Failed(f"bpfilterd does not come to shadow:\n{self.said()}")
        time.sleep(1)
        self.stop()

    def canary(self) -> None:
        """Half of the flows, and an edit meanwhile; then it ends, or is killed."""
        self.stop()
        scope = {"interfaces": [], "sources": [], "share": 0.5, "chains": []}
        goal = {"stage": "canary", "scope": scope, "gates": ["seconds=0.2"]}
        self.start(Stage.CANARY, "--goal", json.dumps(goal))
        if not self.reaches(Stage.CANARY):
            raise Failed(f"bpfilterd does not come to canary:\n{self.said()}")
        time.sleep(0.7)
        self.world.edit(self.rng)
        self.edits += 1
        time.sleep(0.7)
        self.stop(self.rng.choice((signal.SIGTERM, signal.SIGKILL)))

    def expire(self) -> None:
        """Nobody confirms."""
        self.stop()
        request = f"request {self.acts['nobody confirms']}"
        self.start(Stage.ENFORCE, "--confirm-within", "1", "--confirm-id", request)
        if self.reaches(Stage.ENFORCE):
            time.sleep(2.5)
        if self.stop() == 0:
            raise Failed(f"an unconfirmed stage ended as if it had been:\n{self.said()}")

    def killed_at(self, point: int) -> bool:
        """Let a daemon die at one of its points; false if it has fewer."""
        self.stop()
        self.start(Stage.ENFORCE, how=f"die:{point}")
        if self.reaches(Stage.ENFORCE):
            time.sleep(0.2)
        status = self.stop()
        if status not in (0, -signal.SIGKILL):
            self.failures.append(f"bpfilterd ended with {status}, not at point {point}:")
            self.failures += self.said().splitlines()[-3:]
            return True
        if status == 0:
            return False
        self.points.append(point)
        if self.rng.random() < 0.5:
            time.sleep(LEASE_SECONDS + 0.2)
        return True

    def choices(self) -> dict[str, Callable[[], None]]:
        """The acts that suit this world, by what they are called."""
        acts = {
            "rules are edited": self.some_edits,
            "iptables -F, then restored": self.flush,
            "iptables-restore of everything": self.restore,
            "our jumps are purged": self.purge,
            "an interface goes down and up": self.flap,
            "an interface is renamed and back": self.rename,
            "an address comes and goes": self.address,
            "SIGKILL": self.kill,
            "SIGSTOP beyond the lease": self.freeze,
            "restart": self.restart,
            "teardown": self.tear_down,
            "back to shadow": self.shadow,
            "a canary of half the flows": self.canary,
            "nobody confirms": self.expire,
        }
        if self.world.backend == "nft":
            acts["nft flush ruleset, then restored"] = self.wipe
        return acts
