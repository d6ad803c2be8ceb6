"""The API's side of the conversation with `bpfilterd`: its journal, and nothing else.

The daemon that vouches for the programs runs in a process of its own, so that no client of the API,
slow or many, can delay the renewal of a lease. It publishes its status in the journal and answers
what is asked there.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from bpfilter.api.problems import ApiError
from bpfilter.errors import RolloutError
from bpfilter.report.safe import harmless
from bpfilter.rollout import wishes
from bpfilter.rollout.asking import ANSWER_SECONDS, ask, start_daemon
from bpfilter.rollout.counters import counters
from bpfilter.rollout.detail import ask_detail
from bpfilter.rollout.goal import Goal
from bpfilter.rollout.journal import GONE, Answer, Event, Journal, Stage, Step, running
from bpfilter.rollout.listing import listed
from bpfilter.rollout.status import STATUS
from bpfilter.ruleset.fields import Family

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is deployed. `revision` changes with every wish, and with the stage that is reached."""

    document: Document
    revision: str
    wish: str = "0"
    """The last that anybody had, by whatever way."""


class Keeper:
    """One network namespace's daemon, there or not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._wish = secrets.token_hex(8)

    def deployment(self) -> Deployment:
        """The present deployment; stage off where no daemon runs."""
        found = running(self.directory)
        wish = self._last_wish()  # first: a later one may then seem unseen, never the reverse
        document = dict(self._document(STATUS)) if found is not None else {}
        document = {"stage": str(Stage.OFF), "goal": str(Stage.OFF), **document}
        document["running"] = found is not None
        stable = {name: document.get(name) for name in _REVISED}
        stable["wish"] = (self._wish, wish)
        digest = hashlib.sha256(json.dumps(stable, sort_keys=True, default=str).encode())
        return Deployment(document, digest.hexdigest()[:16], wish)

    def check(self, goal: Mapping[str, Any], interfaces: Sequence[str]) -> None:
        """What `deploy` checks first; UsageError or ApiError. Changes nothing."""
        found = Goal.of(goal)
        if found.stage is Stage.OFF or interfaces or running(self.directory) is not None:
            return
        raise ApiError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "validation",
            "interfaces: no daemon runs yet, so it must be told where to attach",
            hint="name the interfaces",
        )

    def deploy(
        self, goal: Mapping[str, Any], interfaces: Sequence[str], seen: str | None = None
    ) -> Answer:
        """Start the daemon with a goal, or give the running one a new goal; does not wait.

        Stage off is a rollback. ChangedMeanwhile if `seen` is not the last wish any more.
        """
        self.check(goal, interfaces)
        if Goal.of(goal).stage is Stage.OFF:
            return self.rollback()
        wish = {**goal, "request": {"interfaces": list(interfaces) or None}}
        if running(self.directory) is not None:
            asked = wish if seen is None else wishes.based_on(wish, seen)
            answer = ask(self.directory, "goal", asked)
        else:
            words = [word for name in interfaces for word in ("--interface", name)]
            start_daemon(self.directory, [*words, "--goal", json.dumps(goal)])
            answer = Answer(True, "bpfilterd was started")
        self._wish = hashlib.sha256(json.dumps(wish, sort_keys=True).encode()).hexdigest()
        return answer

    def detail(self, seconds: float = ANSWER_SECONDS) -> Document:
        """What the daemon knows rule by rule; RolloutError where none runs or answers in time."""
        return dict(ask_detail(self.directory, seconds))

    def pending(self, number: str) -> None:
        """RolloutError unless a commit of that id waits for its confirmation."""
        found = self.deployment().document.get("confirm")
        if found is None or found["id"] != number:
            raise RolloutError(
                f"nothing waits to be confirmed as {number}",
                hint="GET /v1/deployment shows under `confirm` what waits",
            )

    def cancel(self, number: str) -> Answer:
        """Take a commit back before its time is over; RolloutError as `pending`."""
        self.pending(number)
        return self.rollback()

    def confirm(self, number: str) -> Answer:
        """Confirm a commit by its id; RolloutError if it is too late or unknown."""
        return ask(self.directory, "confirm", {"id": number})

    def rollback(self) -> Answer:
        """Back to off; done at once where nothing is deployed."""
        self._wish = "off"
        if running(self.directory) is None:
            return Answer(True, "off: nothing is deployed")
        return ask(self.directory, "rollback", {})

    def events(self, after: int = 0) -> Sequence[tuple[int, Event]]:
        """Events with their numbers, those behind `after`."""
        try:
            with Journal(self.directory, create=False) as journal:
                return [(e.number, e) for e in journal.events() if e.number > after]
        except GONE:
            return []

    def steps(self) -> Sequence[Step]:
        """What the journal says was done; nothing where there is no journal."""
        try:
            with Journal(self.directory, create=False) as journal:
                return journal.steps()
        except GONE:
            return ()

    def counters(self, family: Family | None) -> Document:
        """The rules' counters with what programs decided; errors as `rollout.counters`."""
        return counters(self.directory, tuple(Family) if family is None else (family,))

    def listing(self, family: Family, table: str) -> str:
        """`iptables -nvxL` with those counters."""
        found = counters(self.directory, (family,))
        return "".join(f"{harmless(line)}\n" for line in listed(found, family, table))

    def _last_wish(self) -> str:
        try:
            with Journal(self.directory, create=False) as journal:
                return wishes.last(journal)
        except GONE:
            return "0"

    def _document(self, name: str) -> Mapping[str, Any]:
        try:
            with Journal(self.directory, create=False) as journal:
                return journal.document(name) or {}
        except GONE:
            return {}


_REVISED = ("stage", "goal", "policy", "scope", "interfaces", "held", "running")
