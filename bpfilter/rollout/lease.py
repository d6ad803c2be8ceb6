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
    `longest_gap`: ns between two renewals; `late`: renewals that came after half the lease.
    """

    def __init__(
        self, program: Leased, seconds: float = LEASE_SECONDS, deadline: int | None = None
    ) -> None:
        self._program = program
        self._length = int(seconds * SECOND)
        self.deadline = deadline
        self.held = False
        self.longest_gap, self.late = 0, 0
        self._renewed = 0

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
        now = time.monotonic_ns()
        until = now + self._length
        self._program.set_lease(until if self.deadline is None else min(until, self.deadline))
        if self.held:
            self.longest_gap = max(self.longest_gap, now - self._renewed)
            self.late += 2 * (now - self._renewed) > self._length
        self._renewed, self.held = now, True

    def revoke(self) -> None:
        """From the next packet on everything takes the original rules."""
        self._program.set_lease(0)
        self.held = False
