"""Guards: what ends a stage by itself. Mismatches, lost events, a probe command that fails."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from bpfilter.errors import UsageError
from bpfilter.rollout.comparison import Comparison, Unseen
from bpfilter.rollout.evidence import describe
from bpfilter.rollout.trouble import Cause, Trouble
from bpfilter.rollout.waivers import Waiver, unexplained

DEFAULT_LOST = 10_000


@dataclass(frozen=True, slots=True)
class ProbeCommand:
    """A command that must exit with status 0, run every `interval` seconds, never by a shell.

    Longer than `timeout` seconds counts as failed.
    """

    argv: tuple[str, ...]
    interval: float = 5.0
    timeout: float = 3.0


def probe_of(command: str, interval: float = 5.0, timeout: float = 3.0) -> ProbeCommand:
    """From words as a shell takes them; UsageError if there are none, or quotes do not match."""
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise UsageError(f"--probe {command!r}: {error}", hint="quote it as in a shell") from None
    if not words:
        raise UsageError("--probe is empty", hint="name the command to run")
    return ProbeCommand(words, interval, timeout)


@dataclass(frozen=True, slots=True)
class Guards:
    """What is tolerated. `lost`: packets that found no room to be remembered."""

    lost: int = DEFAULT_LOST
    probe: ProbeCommand | None = None


def inspect(
    guards: Guards, comparison: Comparison, waivers: Iterable[Waiver], now: float
) -> Trouble | None:
    """What a comparison shows that must not go on; `now`: wall-clock seconds."""
    found = unexplained(comparison, waivers, now)
    if found:
        (key, said, was), count = max(found.items(), key=lambda pair: pair[1])
        example = next((sample for sample in comparison.samples if sample.key == key), None)
        return Trouble(
            f"{count} packets at {key.family} {key.rule} were predicted {said} and were {was}"
            + (f" ({describe(example)})" if example is not None else ""),
            Cause.MISMATCH,
        )
    lost = comparison.unseen.get(Unseen.LOST, 0)
    if lost > guards.lost:
        return Trouble(f"{lost} predictions were lost, {guards.lost} are allowed", Cause.LOST)
    return None


@dataclass(slots=True)
class Probe:
    """Runs a probe command beside the daemon's loop; `check` never waits for it."""

    command: ProbeCommand
    _running: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _started: float = field(default=float("-inf"), init=False)

    def check(self) -> Trouble | None:
        """Start it when it is due, and say whether it failed since the last call."""
        now = time.monotonic()
        if self._running is None:
            return self._start(now) if now - self._started >= self.command.interval else None
        status = self._running.poll()
        if status is None and now - self._started <= self.command.timeout:
            return None
        self.close()
        if status is None:
            return self._failed(f"took longer than {self.command.timeout:.0f} s")
        return self._failed(f"ended with status {status}") if status else None

    def _start(self, now: float) -> Trouble | None:
        self._started = now
        try:
            self._running = subprocess.Popen(
                self.command.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            return self._failed(f"cannot be started: {error.strerror}")
        return None

    def _failed(self, what: str) -> Trouble:
        return Trouble(f"probe {self.command.argv[0]} {what}", Cause.PROBE)

    def close(self) -> None:
        """End the command, and whatever it started, if it still runs."""
        if self._running is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)
            self._running.wait()
            self._running = None
