"""What the daemon publishes of itself in the journal, for `bpfilter status` and other readers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bpfilter.rollout import evidence
from bpfilter.rollout.gates import Gate
from bpfilter.rollout.goal import Goal
from bpfilter.rollout.journal import Stage
from bpfilter.rollout.lease import SECOND
from bpfilter.rollout.stages import Rollout
from bpfilter.rollout.trouble import Trouble
from bpfilter.rollout.waivers import Waiver

STATUS = "status"


@dataclass(frozen=True, slots=True)
class Situation:
    """What the daemon knows beside its rollout; `deadline`: ns, `not_before`: s, both monotonic."""

    goal: Goal
    gates: tuple[Gate, ...]
    suspended: Trouble | None
    held: bool
    deadline: int | None
    not_before: float


def off_document(problem: str | None = None, next_try_in: float = 0.0) -> Mapping[str, Any]:
    """Of a daemon that keeps nothing; `problem`: why what was asked for is not there."""
    return {
        "at": time.time(),
        "stage": Stage.OFF,
        "since": 0.0,
        "in_force": False,
        "lease": None,
        "goal": Stage.OFF,
        "canary": None,
        "interfaces": [],
        "suspended": None,
        "edited": None,
        "held": False,
        "next_try_in": next_try_in,
        "confirm": None,
        "gates": [],
        "waivers": [],
        "decided": 0,
        "comparison": None,
        "punted": {},
        "problem": problem,
    }


def document(rollout: Rollout, situation: Situation) -> Mapping[str, Any]:
    """As JSON values; `in_force`: whether programs may decide, or predict, at this moment."""
    lease = rollout.lease
    goal, left = situation.goal, None
    if situation.deadline is not None:
        left = max(situation.deadline - time.monotonic_ns(), 0) / SECOND
    comparison = rollout.comparison(counters=False)  # counters cost a reading of all rules
    pause = max(situation.not_before - time.monotonic(), 0.0)
    return {
        "at": time.time(),
        "stage": rollout.stage,
        "since": rollout.since,
        "in_force": lease is not None and lease.held,
        "lease": None
        if lease is None
        else {"longest_gap": lease.longest_gap / SECOND, "late_renewals": lease.late},
        "goal": situation.goal.stage,
        "canary": goal.scope.document() if goal.stage is Stage.CANARY else None,
        "policy": situation.goal.policy,
        "scope": str(rollout.scope),
        "interfaces": list(rollout.links or rollout.request.interfaces),
        "suspended": situation.suspended,
        "edited": None if rollout.behind is None else rollout.behind.sentence,
        "held": situation.held,
        "next_try_in": pause,
        "confirm": None if left is None else {"id": situation.goal.confirm_id, "seconds": left},
        "gates": [asdict(gate) for gate in situation.gates],
        "waivers": [_waiver(waiver) for waiver in situation.goal.waivers],
        "decided": rollout.decided(),
        "comparison": None if comparison is None else evidence.summary(comparison),
        "punted": {reason.name.lower(): count for reason, count in rollout.punted().items()},
    }


def _waiver(waiver: Waiver) -> Mapping[str, Any]:
    return {
        "rule": f"{waiver.key.family}:{waiver.key.rule}",
        "predicted": waiver.predicted,
        "actual": waiver.actual,
        "reason": waiver.reason,
        "expires": waiver.expires,
    }
