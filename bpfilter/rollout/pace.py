"""How soon to try again: at once after an operator's edit, ever later after what keeps failing.

A tool that keeps removing our chains is never fought (DESIGN §3.5): each round doubles the pause.
"""

from __future__ import annotations

from collections import deque

from bpfilter.rollout.trouble import Cause

FIRST, LONGEST = 1.0, 60.0
STEADY_SECONDS = 60.0
"""After so long without trouble all is forgotten."""

_AT_ONCE, _WINDOW_SECONDS = 20, 30.0
"""So many edits of the rules within the window are followed at once each."""


class Pace:
    """Pauses in seconds; times are of one monotonic clock."""

    def __init__(self) -> None:
        self._pause = 0.0
        self._last = float("-inf")
        self._edits: deque[float] = deque(maxlen=_AT_ONCE)

    def after(self, cause: Cause | None, now: float) -> float:
        """How long to wait after this trouble; None stands for a try that failed."""
        if cause in (Cause.RULESET, Cause.MARKS, Cause.LINKS):
            crowded = len(self._edits) == _AT_ONCE and now - self._edits[0] < _WINDOW_SECONDS
            self._edits.append(now)
            if not crowded:
                return 0.0
        if now - self._last > STEADY_SECONDS + self._pause:
            self._pause = 0.0
        self._last = now
        self._pause = min(max(2 * self._pause, FIRST), LONGEST)
        return self._pause
