"""What the API computes itself: plans, diffs, and the goal that a deployment request means."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bpfilter.analysis.explain import Question, explain
from bpfilter.api.differences import differences
from bpfilter.api.keeper import Keeper
from bpfilter.api.packets import at_this_host, kept_packet
from bpfilter.api.schemas import DeploymentRequest, DiffRequest, ExplainRequest, PlanRequest
from bpfilter.api.sources import Asked, Kept, Known, Side, read_sides
from bpfilter.errors import RolloutError
from bpfilter.report.asked import asked_packet, frame_packet
from bpfilter.report.explain import explanation_document
from bpfilter.report.making import make_document
from bpfilter.report.mismatches import iptables_paths
from bpfilter.report.shadow import shadow_document
from bpfilter.rollout.live import read_operators
from bpfilter.rollout.management import own_connections, protected
from bpfilter.rollout.outlook import outlook
from bpfilter.ruleset.fields import ALL_STATES, Family, State
from bpfilter.ruleset.model import Backend, Ruleset

Say = Callable[[str], None]


def live_ruleset(family: Family, backend: Backend | None = None) -> Ruleset:
    """The live rules of one family; LiveReadError if they cannot be read whole."""
    return read_operators(family, backend)


def planned(
    wanted: PlanRequest, known: Known, keep: Callable[[Kept], None], say: Say
) -> dict[str, Any]:
    """The plan report of a ruleset, which is given to `keep`.

    Of the live one with what it would meet on this host.
    """
    say("reading the ruleset")
    began = time.perf_counter()
    source = Asked(wanted.ruleset, wanted.plan, wanted.family, wanted.backend).read(known)
    keep(Kept.of(source))
    read = time.perf_counter() - began
    look = partial(outlook, operator=own_connections(os.getpid()))
    host = look if wanted.ruleset is None and wanted.plan is None else None
    return make_document(source, read, wanted.proof_seconds, say, host=host)


def compared(wanted: DiffRequest, known: Known, directory: Path, say: Say) -> dict[str, Any]:
    """The semantic diff of two rulesets, and what it would have touched where that is known."""
    say("reading the rulesets")
    before = Side(wanted.old, wanted.old_plan, wanted.old_state, "old")
    after = Side(wanted.new, wanted.new_plan, wanted.new_state, "new")
    old, new = read_sides(before, after, wanted.family, wanted.backend, known, directory)
    return differences(old, new, directory if before.of_host else None, wanted.seconds, say)


def explained(wanted: ExplainRequest, known: Known, directory: Path, say: Say) -> dict[str, Any]:
    """A packet's way through the rules and through the program."""
    question = _question(wanted, directory)
    notes: Sequence[str] = ()
    say("reading the ruleset")
    if wanted.ruleset is None and wanted.plan is None:
        question, notes = at_this_host(question, wanted.chain)
    family = wanted.family or question.family
    source = Asked(wanted.ruleset, wanted.plan, family, wanted.backend).read(known)
    say("explaining")
    document = explanation_document(explain(source, question))
    document["notes"] += notes
    return document


def _question(wanted: ExplainRequest, directory: Path) -> Question:
    states = sum(State[name] for name in set(wanted.states)) or ALL_STATES
    where: dict[str, Any] = {
        "chain": wanted.chain,
        "in_interface": wanted.in_interface or "",
        "out_interface": wanted.out_interface or "",
        "states": states,
    }
    if wanted.mismatch is not None:
        return kept_packet(directory, wanted.mismatch)
    if wanted.frame is not None:
        return frame_packet(bytes.fromhex(wanted.frame), **where)
    return asked_packet(
        wanted.protocol or "",
        wanted.source or "",
        wanted.destination or "",
        flags=wanted.flags,
        icmp=wanted.icmp_type,
        length=wanted.length,
        ttl=wanted.ttl,
        tos=wanted.tos,
        mac=wanted.mac,
        **where,
    )


def shadowed(keeper: Keeper) -> dict[str, Any]:
    """The shadow report of the running daemon; RolloutError where none runs."""
    detail = keeper.detail()
    status = keeper.deployment().document
    return shadow_document(status, detail, iptables_paths(detail, live_ruleset))


def still_live(plan: Mapping[str, Any]) -> None:
    """RolloutError if the live rules are no longer those that a plan was made of."""
    found = live_ruleset(Family(plan["family"]))
    if found.digest != plan["digest"]:
        raise RolloutError(
            "the live rules are not those of the plan", hint="make a new plan, look, and try again"
        )


def goal_of(wanted: DeploymentRequest) -> dict[str, Any]:
    """The daemon's goal document; UsageError where a word in it makes no sense."""
    canary = wanted.canary
    commit = wanted.commit
    return {
        "stage": str(wanted.stage),
        "confirm_within": None if commit is None else commit.seconds,
        "confirm_id": "" if commit is None else commit.id,
        "scope": None
        if canary is None
        else {
            "interfaces": list(canary.interfaces),
            "sources": [str(network) for network in canary.sources],
            "share": canary.share,
            "chains": [],
        },
        "gates": list(wanted.gates),
        "waivers": list(wanted.waivers),
        "policy": str(wanted.policy),
        "accept_reset": wanted.accept_state_reset,
        "operator": [protected(text).words for text in wanted.protect],
        "accept_lockout": wanted.accept_lockout,
    }
