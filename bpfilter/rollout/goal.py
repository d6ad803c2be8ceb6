"""What an operator wants: a stage, how far it reaches, and what must hold on the way. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from bpfilter.rollout.gates import Gates, parse_gates
from bpfilter.rollout.journal import Stage
from bpfilter.rollout.management import Connection, parse_connection
from bpfilter.rollout.scope import Scope
from bpfilter.rollout.waivers import Waiver, parse_waiver


class Policy(StrEnum):
    """What to do when the rules that were translated change."""

    FOLLOW = "follow"  # translate and prove the new ones, then go on in the same stage
    HOLD = "hold"  # go back to off and stay there until told otherwise


@dataclass(frozen=True, slots=True)
class Goal:
    """The stage to reach and keep. `scope`: of the canary stage.

    `confirm_within`: seconds in which `confirm_id` must be confirmed. `accept_reset`: our edits of
    legacy tables may reset limits and quotas that decide verdicts. `operator`: connections that the
    plan must not drop, unless `accept_lockout`. `document`: the JSON values that it was made of.
    """

    stage: Stage
    confirm_within: float | None = None
    confirm_id: str = ""
    scope: Scope = field(default_factory=Scope)
    gates: Gates = field(default_factory=Gates)
    waivers: tuple[Waiver, ...] = ()
    policy: Policy = Policy.FOLLOW
    accept_reset: bool = False
    operator: tuple[Connection, ...] = ()
    accept_lockout: bool = False
    document: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Goal:
        """From JSON values, gates and waivers as words; UsageError if they make no sense."""
        scope = document.get("scope")
        return cls(
            Stage(document["stage"]),
            document.get("confirm_within"),
            document.get("confirm_id", ""),
            Scope() if scope is None else Scope.of(scope),
            parse_gates(document.get("gates", ())),
            tuple(parse_waiver(text) for text in document.get("waivers", ())),
            Policy(document.get("policy", Policy.FOLLOW)),
            document.get("accept_reset", False),
            tuple(parse_connection(text) for text in document.get("operator", ())),
            document.get("accept_lockout", False),
            document,
        )


class Report(Protocol):
    """Told in sentences what happens; `kind` is given with events of the journal."""

    def __call__(self, sentence: str, /, *, kind: str = ...) -> object: ...


Settled = Callable[[Goal], None]
"""Told of a goal as soon as it is reached, and confirmed if that was asked for."""


def nobody(_goal: Goal) -> None:
    """For who keeps no goals."""
