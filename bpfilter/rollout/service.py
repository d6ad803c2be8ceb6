"""The daemon's loop: reach the wanted stage, vouch for it every second, follow changes.

Follows drift by starting over: back to off, read, translate, prove, shadow, enforce. Backs off
when that fails or repeats, so a tool that keeps changing the rules is never fought.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from bpfilter.errors import BpfilterError, RolloutError
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.lease import RENEW_SECONDS
from bpfilter.rollout.notices import notices, refilled
from bpfilter.rollout.prepare import Prepared
from bpfilter.rollout.stages import Report, Request, Rollout
from bpfilter.ruleset.model import Backend

_FIRST_BACKOFF, _LONGEST_BACKOFF = 1.0, 60.0
_STEADY_SECONDS = 60.0
CONFIRMED = "confirmed"

Wait = Callable[[float], bool]
"""Waits so many seconds; true as soon as the process is told to stop."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The stage to reach and keep; `shadow_seconds` of comparison come before enforcing.

    `accept_reset`: our edits of legacy tables may reset limits and quotas that decide verdicts.
    """

    stage: Stage
    confirm_within: float | None = None
    shadow_seconds: float = 3.0
    accept_reset: bool = False


class Unconfirmed(RolloutError):
    """Nobody confirmed the stage in time; it was rolled back."""


def serve(request: Request, goal: Goal, journal: Journal, report: Report, wait: Wait) -> None:
    """Keep the goal until `wait` says stop; then roll back and return.

    Raises what prevents the first start, and Unconfirmed; later troubles are reported and retried.
    """
    journal.own()
    journal.set(CONFIRMED, "")
    deadline = None
    backoff, started = _FIRST_BACKOFF, False
    while True:
        began = time.monotonic()
        try:
            with Rollout(request, journal, report) as rollout:
                if _reach(rollout, goal, deadline, report, wait):
                    return
                if goal.confirm_within is not None and not journal.get(CONFIRMED):
                    deadline = deadline or time.monotonic() + goal.confirm_within
                started = True
                if _keep(rollout, journal, wait):
                    return
        except Unconfirmed:
            raise
        except BpfilterError as error:
            if not started:
                raise
            report(f"still off: {error.message}")
        steady = time.monotonic() - began > _STEADY_SECONDS
        backoff = _FIRST_BACKOFF if steady else min(backoff * 2, _LONGEST_BACKOFF)
        report(f"iptables decides alone; next try in {backoff:.0f} s")
        if wait(backoff):
            return


def _reach(
    rollout: Rollout, goal: Goal, deadline: float | None, report: Report, wait: Wait
) -> bool:
    """Go to the goal's stage; true if told to stop meanwhile."""
    prepared = rollout.shadow()
    if goal.stage is not Stage.ENFORCE:
        return False
    for sentence in notices(prepared.rulesets.values(), prepared.backend):
        report(f"notice: {sentence}")
    if not goal.accept_reset:
        _refuse_resets(prepared)
    end = time.monotonic() + goal.shadow_seconds
    while (left := end - time.monotonic()) > 0:
        if wait(min(left, RENEW_SECONDS)):
            return True
        rollout.tick()
    for result in rollout.compare():
        report(str(result))
        if result.mismatches:
            worst = result.mismatches[0]
            raise RolloutError(
                f"shadow counters of rule {worst.rule} disagree: iptables counted {worst.iptables},"
                f" the program between {worst.bounds.certain} and {worst.bounds.possible}",
                hint="stay in the shadow stage and report this",
            )
    within = goal.confirm_within
    if deadline is not None:
        within = max(deadline - time.monotonic(), 0.0)
    rollout.enforce(within)
    return False


def _refuse_resets(prepared: Prepared) -> None:
    if prepared.backend is not Backend.LEGACY:
        return
    for ruleset in prepared.rulesets.values():
        if refs := refilled(ruleset):
            raise RolloutError(
                f"an edit of the legacy table starts the state of {', '.join(map(str, refs))} anew,"
                " and that state decides verdicts",
                hint="--accept-state-reset if that is acceptable; iptables-nft keeps such state",
            )


def _keep(rollout: Rollout, journal: Journal, wait: Wait) -> bool:
    """Renew until told to stop (true) or until something changed (false)."""
    while not wait(RENEW_SECONDS):
        if journal.get(CONFIRMED) and rollout.lease is not None and rollout.lease.seconds_left:
            rollout.confirm()
        unconfirmed = rollout.lease is not None and rollout.lease.seconds_left == 0
        reason = rollout.tick()
        if unconfirmed:
            raise Unconfirmed(
                "the stage was not confirmed in time and was rolled back",
                hint="confirm with `bpfilter deploy --confirm` before the time is over",
            )
        if reason is not None:
            return False
    return True
