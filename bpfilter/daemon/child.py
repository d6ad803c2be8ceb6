"""The API's process beside the daemon: started, watched, started again, ended with it.

It is a process of its own so that no client can delay the renewal of a lease, and so that its end
changes nothing that is deployed. Its standard input is a pipe from here: when we are gone, however,
it reads the end of it and goes too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

READY = b"ready\n"
"""What the child writes on its standard output once it answers."""

_FIRST_PAUSE, _LONGEST_PAUSE, _STEADY_SECONDS = 1.0, 30.0, 60.0
_STOP_SECONDS = 5.0
_LOOK_SECONDS = 0.5


class Child:
    """One supervised process; all methods but `ready` are called by one thread."""

    def __init__(self, words: Sequence[str], descriptors: Sequence[int] = ()) -> None:
        """`words`: of `bpfilter`; `descriptors`: files that it inherits under their numbers."""
        self._words = tuple(words)
        self._descriptors = tuple(descriptors)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._looked = 0.0
        self._not_before = 0.0
        self._pause = _FIRST_PAUSE
        self._on_ready: Callable[[], None] | None = None

    def start(self, on_ready: Callable[[], None]) -> None:
        """Start it; `on_ready` is called from another thread whenever it has come up."""
        self._on_ready = on_ready
        self._spawn()

    def look(self) -> str | None:
        """Start it again if it ended and its pause is over; a sentence if it just ended."""
        now = time.monotonic()
        if self._on_ready is None or now - self._looked < _LOOK_SECONDS:
            return None
        self._looked = now
        if self._process is None:
            if now >= self._not_before:
                self._spawn()
            return None
        status = self._process.poll()
        if status is None:
            return None
        self._forget()
        self._pause = (
            _FIRST_PAUSE
            if now - self._started > _STEADY_SECONDS
            else min(2 * self._pause, _LONGEST_PAUSE)
        )
        self._not_before = now + self._pause
        return f"the API ended with status {status}; it is started again in {self._pause:.0f} s"

    def restart(self) -> None:
        """End it, and start it at once with what the configuration says now."""
        on_ready = self._on_ready
        self.stop()
        if on_ready is not None:
            self.start(on_ready)

    def stop(self) -> None:
        """End it, by force if it does not go."""
        self._on_ready = None
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._forget()

    def _forget(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        self._process = None

    def _spawn(self) -> None:
        self._started = time.monotonic()
        environment = {k: v for k, v in os.environ.items() if k not in _SYSTEMDS}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bpfilter.cli.main", *self._words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=self._descriptors,
            env=environment,
        )
        thread = threading.Thread(target=self._await, args=(self._process,), daemon=True)
        thread.start()

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                if line == READY and self._on_ready is not None:
                    self._on_ready()


_SYSTEMDS = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS"}
)
"""They are meant for the daemon's own process."""


def api_words(config: Path, state: Path, descriptors: Sequence[int]) -> Sequence[str]:
    """`bpfilter serve` as this child."""
    passed = [word for number in descriptors for word in ("--passed", str(number))]
    return ["serve", "--supervised", "--config", str(config), "--state", str(state), *passed]
