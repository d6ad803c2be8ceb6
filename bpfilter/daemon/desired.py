"""What shall be deployed, and how it outlives the daemon and the machine.

Whoever spoke last is obeyed: the `[deployment]` section of the configuration if it is another one
than when a deployment was kept, else that one. Kept is only what was reached, and confirmed if that
was asked for: a machine that starts anew must not come to a stage that nobody approved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bpfilter.kernel.xdp import XdpMode
from bpfilter.rollout.early import EarlyRequest
from bpfilter.rollout.goal import Goal
from bpfilter.rollout.guards import Guards, ProbeCommand
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.management import protected
from bpfilter.rollout.request import Request
from bpfilter.settings import Deployment, Probe

_KEPT = "deployment"


@dataclass(frozen=True, slots=True)
class Desired:
    """A goal and what it rests on, as the JSON values of `Goal.of` and `Request.of`.

    `unattended`: nobody waits for the answer, so a start that fails is tried again.
    """

    goal: Mapping[str, Any]
    request: Mapping[str, Any]
    unattended: bool = False

    @property
    def stage(self) -> Stage:
        return Stage(self.goal["stage"])


NOTHING = Desired({"stage": Stage.OFF}, {"interfaces": []})


def of_settings(section: Deployment) -> Desired:
    """What the configuration asks for; UsageError if words in it make no sense."""
    asked, gates = section.canary, section.gates
    goal = {
        "stage": section.stage,
        "confirm_within": None,
        "scope": None
        if section.stage != "canary"
        else {
            "interfaces": list(asked.interfaces),
            "sources": [str(network) for network in asked.sources],
            "share": asked.share,
            "chains": [],
        },
        "gates": [
            f"seconds={gates.seconds}",
            f"packets={gates.packets}",
            f"exercised={gates.rules_exercised}",
            f"punted={gates.punted}",
            f"unseen={gates.unseen}",
        ],
        "policy": section.policy,
        "accept_reset": section.accept_state_reset,
        "operator": [protected(text).words for text in section.protect],
    }
    Goal.of(goal)
    return Desired(goal, _request(section).document(), unattended=True)


def _request(section: Deployment) -> Request:
    modes = {name: XdpMode(mode) for name, mode in section.xdp.items()}
    return replace(
        Request.of({"interfaces": section.interfaces, "backend": section.backend}),
        lease_seconds=section.lease_seconds,
        shadow_share=section.shadow_share,
        verify_share=section.verify_share,
        early=EarlyRequest(modes) if section.early_drop else None,
        guards=Guards(probe=None if section.probe is None else _probe(section.probe)),
    )


def _probe(probe: Probe) -> ProbeCommand:
    return ProbeCommand(probe.command, probe.every, probe.timeout)


def pack(desired: Desired, section: Deployment) -> Mapping[str, Any]:
    """As a JSON document that remembers what the configuration asked for meanwhile."""
    digest = hashlib.sha256(section.model_dump_json().encode()).hexdigest()
    return {"goal": desired.goal, "request": desired.request, "section": digest}


def unpack(document: Mapping[str, Any] | None, section: Deployment) -> Desired | None:
    """What was packed; None if nothing was, or the configuration asks for something new."""
    if document is None or document["section"] != pack(NOTHING, section)["section"]:
        return None
    return Desired(document["goal"], document["request"], unattended=True)


class Store:
    """The deployment that is kept in a state directory; the journal's file, with its versions."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def desired(self, section: Deployment) -> Desired:
        """What shall be deployed by a daemon that starts, or reads its configuration again."""
        with Journal(self._directory) as journal:
            return unpack(journal.document(_KEPT), section) or of_settings(section)

    def keep(self, desired: Desired, section: Deployment) -> None:
        """Remember it until the next `keep`, or until the configuration asks for something new.

        Connections of the operator are forgotten: they end with the machine at the latest.
        """
        goal = {**desired.goal, "confirm_within": None, "confirm_id": "", "operator": []}
        with Journal(self._directory) as journal:
            journal.put(_KEPT, pack(replace(desired, goal=goal), section))
