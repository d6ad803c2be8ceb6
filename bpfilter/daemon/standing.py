"""The service's loop: keep what is desired, wait for the next wish, and say so to systemd.

One thread does everything that touches the datapath; it also feeds systemd's watchdog, so that a
loop that hangs is noticed. The API is a process beside it (`child`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bpfilter.daemon.child import Child, api_words
from bpfilter.daemon.desired import NOTHING, Desired, Store, of_settings, pack, unpack
from bpfilter.daemon.signals import Signals
from bpfilter.errors import BpfilterError
from bpfilter.rollout import wishes
from bpfilter.rollout.detail import VERB
from bpfilter.rollout.ending import Ending, GuardTripped, Unconfirmed
from bpfilter.rollout.goal import Goal
from bpfilter.rollout.journal import SERVICE, Answer, Asked, Journal, Stage
from bpfilter.rollout.pace import Pace
from bpfilter.rollout.request import Request
from bpfilter.rollout.service import serve
from bpfilter.rollout.status import STATUS, off_document
from bpfilter.rollout.teardown import teardown
from bpfilter.sd_notify import notify, watchdog_seconds
from bpfilter.settings import Settings

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1})
_IDLE_SECONDS = 0.1
_STATUS_SECONDS = 1.0
_WANTED = "wanted"
"""In the journal, which a reboot forgets: what is being deployed now, confirmed or not."""


class Standing:
    """The daemon of one network namespace, which outlives deployments; `run` is its life."""

    def __init__(
        self,
        load: Callable[[], Settings],
        config: Path,
        journal: Journal,
        log: Any,
        descriptors: tuple[int, ...] = (),
    ) -> None:
        """SettingsError if the configuration cannot be used. `descriptors`: sockets of the API."""
        self._load = load
        self._settings = load()
        self._journal = journal
        self._log = log
        self._store = Store(self._settings.daemon.state_directory)
        words = api_words(config, journal.path.parent, descriptors)
        self._child = Child(words, descriptors)
        self._pace = Pace()
        self._signals = Signals(_SIGNALS)
        self._stopping = False
        self._next: Desired | None = None
        self._wanted = NOTHING
        self._problem: str | None = None
        watchdog = watchdog_seconds()
        self._beat_seconds = _STATUS_SECONDS if watchdog is None else min(watchdog, _STATUS_SECONDS)
        self._beaten = 0.0

    def run(self) -> None:
        """Until SIGTERM or SIGINT; SIGHUP reads the configuration again, SIGUSR1 hands over."""
        journal = self._journal
        interrupted = journal.document(_WANTED) if journal.daemon() is None else None
        journal.own()
        journal.set(SERVICE, "1")
        self._wanted = self._at_start(interrupted)
        if self._settings.api.enabled:
            self._child.start(_ready)
        else:
            _ready()
        try:
            while not self._stopping:
                if self._wanted.stage is Stage.OFF:
                    self._idle()
                else:
                    self._deploy(self._wanted)
        finally:
            notify(STOPPING=1)
            self._child.stop()
            journal.set(SERVICE, "")

    def _at_start(self, interrupted: Any) -> Desired:
        # A daemon ended in the middle of it: whether it was confirmed is in the same journal.
        section = self._settings.deployment
        return unpack(interrupted, section) or self._store.desired(section)

    def _idle(self) -> None:
        """Nothing is deployed: remove what a dead daemon left, then wait for a wish."""
        for line in teardown():
            self._event("undone", f"left over from before, removed: {line}")
        self._journal.set("stage", Stage.OFF)
        self._journal.put(STATUS, off_document(self._problem))
        while not self._stopping and self._next is None:
            for asked in self._journal.asked():
                self._journal.answer(asked.number, self._answer(asked))
            self._wait(_IDLE_SECONDS)
        self._take_next()

    def _answer(self, asked: Asked) -> Answer:
        if asked.verb == "rollback":
            return Answer(True, "off: nothing is deployed")
        if asked.verb == "confirm":
            return Answer(False, "nothing waits for a confirmation with this id")
        if asked.verb == VERB:
            return Answer(False, "nothing is deployed")
        if asked.verb != "goal":
            return Answer(False, f"this daemon does not know {asked.verb}")
        wish = wishes.plain(asked.argument)
        asked_for = {k: v for k, v in wish.pop("request", {}).items() if v is not None}
        try:
            wishes.refuse_late(self._journal, asked.argument)
            configured = of_settings(self._settings.deployment).request
            desired = Desired(wish, {**configured, **asked_for})
            Goal.of(desired.goal), Request.of(desired.request)
        except BpfilterError as error:
            return Answer(False, error.message)
        self._next = desired
        wishes.note(self._journal)
        return Answer(True, f"on the way to stage {desired.stage}")

    def _deploy(self, desired: Desired) -> None:
        """Serve it until it ends; what comes after is in `_wanted`."""
        self._problem, started = None, False
        section = self._settings.deployment
        self._journal.put(_WANTED, pack(desired, section))

        def settled(goal: Goal) -> None:
            nonlocal started
            started = True
            reached = replace(desired, goal=goal.document)
            self._store.keep(reached, section)
            self._journal.put(_WANTED, pack(reached, section))

        try:
            goal, request = Goal.of(desired.goal), Request.of(desired.request)
            ending = serve(request, goal, self._journal, self._log.info, self._wait, settled)
        except (Unconfirmed, GuardTripped) as error:
            self._end(error.message)
        except BpfilterError as error:
            if desired.unattended and not started:
                self._retry(error)
            else:
                self._end(error.message)
        else:
            if ending is Ending.CANCELLED:
                self._end(None)
        self._take_next()

    def _end(self, problem: str | None) -> None:
        """Off, and off it stays after a restart too."""
        if problem is not None:
            self._log.error(problem, kind="failed")
        self._problem = problem
        self._wanted = NOTHING
        self._journal.put(_WANTED, None)
        self._store.keep(NOTHING, self._settings.deployment)

    def _retry(self, error: BpfilterError) -> None:
        pause = self._pace.after(None, time.monotonic())
        self._log.error(f"{error.message}; next try in {pause:.0f} s", kind="failed")
        end = time.monotonic() + pause
        self._journal.put(STATUS, off_document(error.message, pause))
        while not self._stopping and self._next is None and time.monotonic() < end:
            for asked in self._journal.asked():
                self._journal.answer(asked.number, self._answer(asked))
                if asked.verb == "rollback":
                    self._end(None)
                    return
            self._wait(_IDLE_SECONDS)

    def _take_next(self) -> None:
        if self._next is not None:
            self._wanted, self._next = self._next, None

    def _event(self, kind: str, sentence: str) -> None:
        self._journal.event(kind, sentence)
        self._log.info(sentence, kind=kind)

    def _wait(self, seconds: float, files: Sequence[int] = ()) -> bool:
        """Wait for signals, or descriptors; true if what is deployed now shall end."""
        self._beat()
        if (number := self._signals.wait(seconds, files)) is not None:
            self._told(number)
        return self._stopping or self._next is not None

    def _told(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload()
        elif self._hands_over(number) and self._journal.stage.decides:
            self._hand_over()
        else:
            self._stopping = True

    def _hands_over(self, number: int) -> bool:
        return number == signal.SIGUSR1 or self._settings.daemon.on_stop == "hand-over"

    def _hand_over(self) -> None:
        """End as if killed: programs decide on until their lease is over or the next takes over."""
        notify(STOPPING=1)
        self._log.info(
            "ended; programs decide until the next daemon takes over, or their lease ends"
        )
        self._child.stop()
        os._exit(0)

    def _reload(self) -> None:
        notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        try:
            settings = self._load()
            desired = Store(settings.daemon.state_directory).desired(settings.deployment)
        except BpfilterError as error:
            self._log.error(f"the configuration stays as it was: {error.message}", kind="failed")
        else:
            if settings.deployment != self._settings.deployment:
                self._log.info("the configuration asks for another deployment")
                self._next = desired
            self._settings = settings
            self._child.restart()
        _ready()

    def _beat(self) -> None:
        """Feed the watchdog, and look after the API, about once a second."""
        now = time.monotonic()
        if now - self._beaten < self._beat_seconds:
            return
        self._beaten = now
        if (sentence := self._child.look()) is not None:
            self._log.error(sentence, kind="failed")
        notify(WATCHDOG=1, STATUS=f"stage {self._journal.stage}")


def _ready() -> None:
    notify(READY=1)
