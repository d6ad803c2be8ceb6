"""Translating edited rules beside the loop that renews the lease."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from bpfilter.rollout.prepare import Prepared


class Planner:
    """One plan at a time, made in a thread of the network namespace of whoever starts it.

    A process that ends does not wait for it: it reads rules, and changes nothing.
    """

    def __init__(self) -> None:
        self._future: Future[Prepared] | None = None
        self.file = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Can be read when there may be something to take."""

    @property
    def idle(self) -> bool:
        """Whether nothing was started that was not taken or dropped."""
        return self._future is None

    def start(self, work: Callable[[], Prepared]) -> None:
        """Begin, in the place of what was begun before."""
        future: Future[Prepared] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)
            os.eventfd_write(file, 1)
            os.close(file)

        # A descriptor of its own: the number of a closed one may mean something else.
        self._future, file = future, os.dup(self.file)
        threading.Thread(target=run, name="planner", daemon=True).start()

    def take(self) -> Prepared | None:
        """The plan, once; None as long as it is not there. Raises what prevented it."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.file)
        if self._future is None or not self._future.done():
            return None
        future, self._future = self._future, None
        return future.result()

    def drop(self) -> None:
        """Forget what was started."""
        self._future = None

    def close(self) -> None:
        """Let go of the file; what was started is forgotten."""
        self.drop()
        os.close(self.file)
