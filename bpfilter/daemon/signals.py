"""Signals as values, waited for together with descriptors."""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from collections.abc import Collection, Sequence


class Signals:
    """From now on these signals do nothing but come out of `wait`; made in the main thread.

    They are not blocked, so that processes which we start are not deaf to them.
    """

    def __init__(self, numbers: Collection[signal.Signals]) -> None:
        self._came: deque[int] = deque()
        self._reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda number, _frame: self._came.append(number))

    def wait(self, seconds: float, files: Sequence[int] = ()) -> int | None:
        """Wait until a signal came (its number), a descriptor can be read, or the time is over."""
        if not self._came:
            poll = select.poll()
            for descriptor in (self._reading, *files):
                poll.register(descriptor, select.POLLIN)
            poll.poll(max(seconds, 0.0) * 1000)
            self._drain()
        return self._came.popleft() if self._came else None

    def _drain(self) -> None:
        try:
            while os.read(self._reading, 64):
                pass
        except BlockingIOError:
            return
