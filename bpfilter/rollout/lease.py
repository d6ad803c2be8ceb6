"""The lease: until when the programs may decide, on the kernel's own monotonic clock.

A program compares it for every packet and punts everything once it is over, so a daemon that
died, hangs or was never confirmed cannot keep its decisions alive. Times are CLOCK_MONOTONIC
nanoseconds of the host's time namespace (`host.host_obstacles` refuses any other).
"""

from __future__ import annotations

import time
from typing import Protocol

SECOND = 1_000_000_000
LEASE_SECONDS = 5.0
RENEW_SECONDS = 1.0


class Leased(Protocol):
    """A loaded program that takes a lease."""

    def set_lease(self, valid_until: int) -> None: ...


class Lease:
    """Renews a program's lease, never past the deadline of an unconfirmed stage.

    `deadline`: CLOCK_MONOTONIC ns; None once the stage is confirmed, or needs no confirmation.
    """

    def __init__(
        self, program: Leased, seconds: float = LEASE_SECONDS, deadline: int | None = None
    ) -> None:
        self._program = program
        self._length = int(seconds * SECOND)
        self.deadline = deadline
        self.held = False

    def confirm_within(self, seconds: float) -> None:
        """From now on the lease ends after so many seconds unless `confirm` is called."""
        self.deadline = time.monotonic_ns() + int(seconds * SECOND)

    def confirm(self) -> None:
        """The stage was confirmed: there is no deadline any more."""
        self.deadline = None

    @property
    def seconds_left(self) -> float | None:
        """Until the deadline; None without one, 0 when it passed."""
        if self.deadline is None:
            return None
        return max(self.deadline - time.monotonic_ns(), 0) / SECOND

    def renew(self) -> None:
        """Extend the lease from now, up to the deadline."""
        until = time.monotonic_ns() + self._length
        self._program.set_lease(until if self.deadline is None else min(until, self.deadline))
        self.held = True

    def revoke(self) -> None:
        """From the next packet on everything takes the original rules."""
        self._program.set_lease(0)
        self.held = False
