"""What the dashboard's buttons mean: deployment requests like any client's. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from bpfilter.api.problems import ApiError
from bpfilter.api.schemas import DeploymentRequest
from bpfilter.kernel.config import Reason
from bpfilter.rollout.comparison import Unseen, unjudged
from bpfilter.rollout.gates import Gate, judge, parse_gates
from bpfilter.rollout.journal import Stage

_NEXT: Mapping[str, Sequence[str]] = {
    Stage.OFF: (Stage.SHADOW,),
    Stage.SHADOW: (Stage.CANARY, Stage.ENFORCE),
    Stage.CANARY: (Stage.ENFORCE,),
    Stage.ENFORCE: (),
}

CONFIRM_WITHIN = 120.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a promotion asks for where its form does not say: from the configuration.

    `confirm_within`: seconds, as the form proposes.
    """

    gates: tuple[str, ...] = ()
    confirm_within: float = CONFIRM_WITHIN
    share: float = 1.0
    interfaces: tuple[str, ...] = ("auto",)
    accept_state_reset: bool = False
    protect: tuple[str, ...] = ()


def next_stages(status: Mapping[str, Any]) -> Sequence[str]:
    """Where a promotion may go from here: nowhere while one is on its way or unconfirmed."""
    stage = status["stage"]
    if status.get("confirm") or (stage != status["goal"] and status["running"]):
        return ()
    return [str(each) for each in _NEXT[Stage(stage)]]


def promotion(
    form: Mapping[str, str], status: Mapping[str, Any], defaults: Wishes
) -> DeploymentRequest:
    """The request for the stage that the form names; ApiError 422 if it makes no sense.

    A stage that decides must be confirmed in time. Policy and waivers stay as they are.
    """
    stage = form.get("stage", "")
    wanted: dict[str, Any] = {
        "stage": stage,
        "gates": defaults.gates,
        "accept_state_reset": defaults.accept_state_reset,
        "protect": defaults.protect,
        "waivers": [_waiver_words(each) for each in status.get("waivers", ())],
    }
    if status.get("policy"):
        wanted["policy"] = status["policy"]
    if stage == Stage.SHADOW:
        words = form.get("interfaces", "").replace(",", " ").split()
        wanted["interfaces"] = words or list(defaults.interfaces)
    else:
        identity = f"dashboard-{secrets.token_hex(4)}"
        wanted["commit"] = {"id": identity, "seconds": form.get("seconds", "")}
    if stage == Stage.CANARY:
        wanted["canary"] = {"share": _share(form.get("share", ""))}
    try:
        return DeploymentRequest.model_validate(wanted)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _unusable(f"{place}: {first['msg']}") from None


def _share(percent: str) -> float:
    try:
        return float(percent) / 100
    except ValueError:
        raise _unusable(f"{percent!r} is no share of the flows in percent") from None


def _unusable(detail: str) -> ApiError:
    return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "validation", detail, hint="go back, correct")


def _waiver_words(waiver: Mapping[str, Any]) -> str:
    """As `parse_waiver` takes it."""
    until = datetime.fromtimestamp(waiver["expires"], UTC).isoformat()
    rule, said, was = waiver["rule"], waiver["predicted"], waiver["actual"]
    return f"{rule},{said},{was},{until},{waiver['reason']}"


def outlook(status: Mapping[str, Any], gates: Sequence[str], now: float) -> Sequence[Gate]:
    """How the gates would be judged if the next stage were asked for now; rule by rule gates and
    waivers are judged only when it is.
    """
    wanted = replace(parse_gates(gates), rules=())
    compared = status.get("comparison")
    punted = {Reason[name.upper()]: count for name, count in status.get("punted", {}).items()}
    seen = unjudged(status["since"], status.get("decided") or 0, punted)
    if compared is None:
        return judge(replace(wanted, exercised=0.0, unseen=1.0), seen, (), (), now)
    causes = {Unseen[name.upper()]: count for name, count in compared["unseen"].items()}
    seen = replace(
        seen, predicted=compared["predicted"], unseen=causes, remembered=compared["compared"]
    )
    share = compared["exercised"] / compared["rules"] if compared["rules"] else 1.0
    return [
        _compared(gate, compared["mismatches"], share, wanted.exercised)
        for gate in judge(wanted, seen, (), (), now)
    ]


def refused(gates: Sequence[Gate | Mapping[str, Any]], status: Mapping[str, Any]) -> bool:
    """Whether asking for the next stage is in vain; with waivers the daemon alone can say so."""
    answers = [gate if isinstance(gate, Gate) else Gate(**gate) for gate in gates]
    closed = any(gate.hopeless and not gate.passed for gate in answers)
    return closed and not status.get("waivers")


def _compared(gate: Gate, mismatches: int, share: float, needed: float) -> Gate:
    if gate.name == "mismatches":
        said = f"{mismatches} mismatches"
        hopeless = bool(mismatches)
        return replace(
            gate, passed=not mismatches, have=mismatches, sentence=said, hopeless=hopeless
        )
    if gate.name == "exercised":
        said = f"{share:.1%} of the rules decided, {needed:.1%} needed"
        return replace(gate, passed=share >= needed, have=share, sentence=said)
    return gate
