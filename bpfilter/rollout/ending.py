"""How serving a goal ends."""

from __future__ import annotations

from enum import StrEnum

from bpfilter.errors import RolloutError
from bpfilter.rollout.trouble import Trouble


class Ending(StrEnum):
    """Why serving ended without an error."""

    STOPPED = "stopped"
    CANCELLED = "cancelled"


class Unconfirmed(RolloutError):
    """Nobody confirmed the stage in time; it was rolled back."""

    def __init__(self) -> None:
        super().__init__(
            "the stage was not confirmed in time and was rolled back",
            hint="deploy again and run `bpfilter confirm ID` before the time is over",
        )


class GuardTripped(RolloutError):
    """A guard ended the stage; `cause` says which."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(
            f"rolled back: {trouble}",
            hint="`bpfilter status` has the events; deploy when it is mended",
        )
        self.cause = trouble.cause
