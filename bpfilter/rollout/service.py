"""The daemon's work: reach the wanted stage, vouch for it every second, follow changes.

What a killed daemon left is taken over if it is whole, else undone. Drift is followed by swapping
generations: the program goes round an edit of few rules meanwhile, else iptables decides alone.
Requests of the command line come by the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bpfilter.errors import BpfilterError, RolloutError
from bpfilter.rollout import detail, enforced, wishes
from bpfilter.rollout.comparison import unjudged
from bpfilter.rollout.ending import Ending, GuardTripped, Unconfirmed
from bpfilter.rollout.gates import Gate, judge
from bpfilter.rollout.goal import Goal, Policy, Report, Settled, nobody
from bpfilter.rollout.guards import Probe
from bpfilter.rollout.interfaces import follows
from bpfilter.rollout.journal import Answer, Asked, Journal, Stage
from bpfilter.rollout.lease import RENEW_SECONDS, SECOND
from bpfilter.rollout.management import refuse_losses
from bpfilter.rollout.meanwhile import Meanwhile
from bpfilter.rollout.notices import refuse_resets
from bpfilter.rollout.pace import FIRST, Pace
from bpfilter.rollout.planner import Planner
from bpfilter.rollout.prepare import Prepared
from bpfilter.rollout.record import boot_id
from bpfilter.rollout.rest import rest
from bpfilter.rollout.stages import Request, Rollout
from bpfilter.rollout.status import STATUS, Situation, document
from bpfilter.rollout.teardown import teardown
from bpfilter.rollout.trouble import Cause, Trouble
from bpfilter.rollout.waivers import still_meant
from bpfilter.rollout.watch import Event, Kind, Watcher

POLL_SECONDS = 0.1
"""How often requests and the kernel's own generation of the rules are looked at."""

NOTICE_SECONDS = 0.25
"""Between two full looks at everything that events of the kernel cause."""

CONFIRMED, PENDING = "confirmed", "pending"
_ENDS = (Cause.MISMATCH, Cause.LOST, Cause.PROBE)

Wait = Callable[[float, Sequence[int]], bool]
"""Waits so many seconds, or until a descriptor can be read; true if the process is to stop."""


def serve(
    request: Request,
    goal: Goal,
    journal: Journal,
    report: Report,
    wait: Wait,
    settled: Settled = nobody,
) -> Ending:
    """Keep the goal until `wait` says stop or a rollback is asked for; then roll back and return.

    Raises what prevents the first start, Unconfirmed and GuardTripped, all rolled back; later
    troubles are reported and retried. Every ending is an event of the journal.
    """
    with Watcher() as watcher, Rollout(request, journal, report) as rollout:
        service = Service(rollout, goal, journal, report, watcher, settled)
        try:
            service.begin()
            while True:
                if (ending := service.step()) is not None:
                    return ending
                if wait(POLL_SECONDS, [*watcher.files, service.planner.file]):
                    journal.event(Cause.STOPPED, "bpfilterd was told to stop")
                    return Ending.STOPPED
        except BpfilterError as error:
            journal.event("failed", error.message)
            raise
        finally:
            service.close()


class Service:
    """One rollout and its goal; `step` is to be called a few times a second."""

    def __init__(
        self,
        rollout: Rollout,
        goal: Goal,
        journal: Journal,
        report: Report,
        watcher: Watcher,
        settled: Settled,
    ) -> None:
        self.rollout = rollout
        rollout.watched = True
        self._settled = settled
        self.goal = goal
        self._journal = journal
        self._say = report
        self._watcher = watcher
        self._pace = Pace()
        command = rollout.request.guards.probe
        self._probe = None if command is None else Probe(command)
        self._gates: tuple[Gate, ...] = ()
        self._suspended: Trouble | None = None
        self._deadline: int | None = None
        self._started = self._held = self._is_confirmed = False
        self._next_tick = self._not_before = self._ticked = 0.0
        self._detail = detail.Publisher()
        self._follows = follows(rollout.request.interfaces)
        self._waivers = goal.waivers
        self.planner = Planner()
        self._planned: Meanwhile | None = None
        self._plan_at: float | None = None

    def begin(self) -> None:
        """Own the journal; take over what stands here, or undo it. Raises Unconfirmed."""
        journal = self._journal
        journal.own()
        pending = journal.document(PENDING)
        if pending is not None and pending["boot"] != boot_id():
            pending = None
        # Journals outlive kills and reasons to end only; the latter forget the confirmation.
        self._is_confirmed = journal.get(CONFIRMED) == self.goal.confirm_id
        if self._adopted():
            found = self.rollout
            self._started = True
            lease = found.lease
            self._deadline = None if lease is None else lease.deadline
            if pending is not None and journal.get(CONFIRMED) == pending["id"]:
                self._confirmed()
            self._event("adopted", f"took over stage {found.stage} of a daemon that ended")
            scope = self.goal.scope if found.stage is Stage.CANARY else found.scope
            if self.goal.stage.before(found.stage) or scope != found.scope:
                found.rollback()
            return
        for line in teardown():
            self._event("undone", f"left over from before, removed: {line}")
        journal.set("stage", Stage.OFF)
        late = pending is not None and time.monotonic_ns() >= pending["deadline"]
        asked_again = self.goal.confirm_within is not None
        if pending is not None and late and asked_again and pending["id"] == self.goal.confirm_id:
            raise Unconfirmed
        journal.put(PENDING, None)
        if not self._is_confirmed:
            journal.put(CONFIRMED, None)

    def _adopted(self) -> bool:
        try:
            return self.rollout.adopt()
        except BpfilterError as error:
            self._event("failed", f"not taken over: {error.message}")
            return False

    def close(self) -> None:
        """End what runs beside the loop; whoever deploys next has to confirm again."""
        with self._journal.undoing():
            self._journal.put(CONFIRMED, None)
        self.planner.close()
        if self._probe is not None:
            self._probe.close()

    def step(self) -> Ending | None:
        """Do what is due; the ending if it is time to go."""
        for asked in self._journal.asked():
            if (ending := self._answer(asked)) is not None:
                return ending
        now = time.monotonic()
        if self.rollout.stage is Stage.OFF and self._overdue():
            raise Unconfirmed
        self._watcher.watch(self.rollout.links.values())
        events = self._watcher.drain()
        self._react(events, now)
        self.rollout.follows = self.goal.policy is Policy.FOLLOW
        if now < self._not_before or self._held:
            return None
        try:
            if self.rollout.stage is Stage.OFF:
                self._climb()
            elif self._suspended is not None:
                self._follow()
            elif (trouble := self.rollout.noticed(events)) is not None:
                self._handle(trouble)
                self._publish()
            elif now >= self._next_tick or self.rollout.edited():
                self._next_tick, self._ticked = now + RENEW_SECONDS, now
                self._tick()
            self._catch_up()
        except (Unconfirmed, GuardTripped):
            raise
        except BpfilterError as error:
            self.rollout.rollback()
            if not self._started:
                raise
            self._pause(None, f"still off: {error.message}")
        return None

    def _react(self, events: Sequence[Event], now: float) -> None:
        """Bring forward what these events make worth a look."""
        rollout = self.rollout
        kinds = {event.kind for event in events}
        near = any(event.concerns(rollout.links.values()) for event in events)
        if kinds and (near or self._follows):
            rollout.look_again()
            self._next_tick = min(self._next_tick, self._ticked + NOTICE_SECONDS)
        suspended = self._suspended is not None and self._suspended.cause is Cause.HOST
        if Kind.LINK in kinds and (suspended or rollout.stage is Stage.OFF):
            self._not_before = min(self._not_before, now + FIRST)

    def _overdue(self) -> bool:
        return self._deadline is not None and time.monotonic_ns() >= self._deadline

    def _event(self, kind: str, sentence: str) -> None:
        self._journal.event(kind, sentence)
        self._say(sentence, kind=kind)

    def _pause(self, cause: Cause | None, sentence: str) -> None:
        pause = self._pace.after(cause, time.monotonic())
        self._not_before = time.monotonic() + pause
        if pause:
            sentence += f"; iptables decides alone, next try in {pause:.0f} s"
        self._event(cause or "failed", sentence)
        self._publish()

    def _climb(self) -> None:
        prepared = self.rollout.shadow()
        self._suspended = None
        self.rollout.waivers = self._waivers
        if self.goal.stage.decides:
            self._check_goal(self.goal, prepared)
        self._next_tick = 0.0
        if self.goal.stage is Stage.SHADOW:
            self._started = True
            self._settled(self.goal)
        self._publish()
        rest()

    def _check_goal(self, goal: Goal, prepared: Prepared) -> None:
        for sentence in prepared.notices():
            self._say(f"notice: {sentence}")
        if not goal.accept_reset:
            refuse_resets(prepared.backend, prepared.rulesets.values())
        if not goal.accept_lockout:
            refuse_losses(prepared, goal.operator, tuple(self.rollout.links))

    def _tick(self) -> None:
        deciding = self.rollout.stage.decides
        trouble = self._probe.check() if self._probe is not None and deciding else None
        before = self.rollout.behind
        trouble = trouble or self.rollout.tick()
        if trouble is not None:
            self._handle(trouble)
        elif self.rollout.stage.before(self.goal.stage):
            self._advance()
        if trouble is None and self.rollout.behind not in (None, before):
            self._event(Cause.RULESET, str(self.rollout.behind))
        self._publish()

    def _handle(self, trouble: Trouble) -> None:
        if trouble.cause is Cause.UNCONFIRMED or trouble.cause in _ENDS:
            self._publish()  # what was found goes with the programs
            self.rollout.rollback()
            self._event(trouble.cause, f"{trouble}: rolled back to off")
            if trouble.cause is Cause.UNCONFIRMED:
                raise Unconfirmed
            raise GuardTripped(trouble)
        if trouble.cause in (Cause.MARKS, Cause.HOST):
            # Whoever writes our bits after the program did could forge what the dispatch obeys.
            self.rollout.step_aside()
        if trouble.cause in (Cause.RULESET, Cause.MARKS) and self.goal.policy is Policy.HOLD:
            self.rollout.rollback()
            self._held = True
            self._event(trouble.cause, f"{trouble}: off, and held there until `bpfilter deploy`")
            return
        self._suspended = trouble
        self._pause(trouble.cause, f"suspended: {trouble}")

    def _catch_up(self) -> None:
        """Plan beside the loop what the program goes round, then go over to that plan."""
        edited, now = self.rollout.behind, time.monotonic()
        if edited is None or self._suspended is not None:
            self.planner.drop()
            self._plan_at = None
            return
        if self.planner.idle:
            if self._plan_at is None:
                self._plan_at = now + self._pace.after(Cause.RULESET, now)
            if now >= self._plan_at:
                self._planned, self._plan_at = edited, None
                self.planner.start(self.rollout.preparation())
        try:
            plan = self.planner.take()
        except BpfilterError:
            if edited is self._planned:
                raise
            return  # it was edited again while it was read
        if plan is not None:
            self._follow(plan)

    def _follow(self, plan: Prepared | None = None) -> None:
        """A new generation in the same stage, of the rules as they are now."""
        began, before = time.monotonic(), self.rollout.prepared
        self.planner.drop()
        after = self.rollout.swap(plan)
        self._suspended = None
        if before is not None:
            kept = still_meant(self._waivers, before.rulesets, after.rulesets)
            if len(kept) < len(self._waivers):
                self._event("waivers", "waivers ended: other rules stand in their places now")
            self._waivers = self.rollout.waivers = kept
        self._next_tick = time.monotonic() + RENEW_SECONDS
        self._event("followed", f"in force again after {time.monotonic() - began:.2f} s")
        self._publish()
        rest()

    def _advance(self) -> None:
        """Look at the gates, and go on to the goal when all are open."""
        goal, rollout = self.goal, self.rollout
        now = time.time()
        gates, comparison = goal.gates, None
        if now - rollout.since >= gates.seconds:
            comparison = rollout.comparison()
        if comparison is None:
            # Before its time; or a canary that compares nothing: rules were exercised in shadow.
            gates = replace(gates, exercised=0.0, rules=(), unseen=1.0)
            comparison = unjudged(rollout.since, rollout.decided(), rollout.punted())
        deciding = () if rollout.prepared is None else rollout.prepared.deciding()
        self._gates = tuple(judge(gates, comparison, deciding, self._waivers, now))
        for gate in self._gates:
            if gate.hopeless:
                raise RolloutError(
                    f"gate {gate.name}: {gate.sentence}",
                    hint="stay in the shadow stage and report this, or waive it with --waive",
                )
        if all(gate.passed for gate in self._gates):
            self._say(f"all gates are open: {'; '.join(g.sentence for g in self._gates)}")
            self._cut_over()

    def _cut_over(self) -> None:
        goal, within = self.goal, self.goal.confirm_within
        if self._is_confirmed:
            within = None
        elif self._deadline is not None:
            within = max((self._deadline - time.monotonic_ns()) / SECOND, 0.0)
        if within is not None:
            # Before the stage begins: whoever comes after a kill must know of it.
            self._put_pending(time.monotonic_ns() + int(within * SECOND))
        try:
            if goal.stage is Stage.CANARY:
                self.rollout.canary(goal.scope, within)
            else:
                self.rollout.enforce(within)
        except BpfilterError:
            self._journal.put(PENDING, None)
            raise
        self._started = True
        lease = self.rollout.lease
        self._deadline = None if lease is None else lease.deadline
        if self._deadline is not None:
            self._put_pending(self._deadline)
        else:
            self._settled(goal)
        self._gates = ()
        self._event("stage", f"stage {goal.stage}" + self._until())
        rest()

    def _put_pending(self, deadline: int) -> None:
        document = {"id": self.goal.confirm_id, "deadline": deadline, "boot": boot_id()}
        self._journal.put(PENDING, document)

    def _until(self) -> str:
        if self._deadline is None:
            return ""
        left = (self._deadline - time.monotonic_ns()) / SECOND
        return f", to be confirmed within {left:.0f} s as {self.goal.confirm_id or '(no id)'}"

    def _confirmed(self) -> None:
        self._deadline, self._is_confirmed = None, True
        self._journal.put(PENDING, None)
        self.rollout.confirm()
        self._settled(self.goal)

    def _answer(self, asked: Asked) -> Ending | None:
        if asked.verb == "confirm":
            answer = self._confirm(str(asked.argument["id"]))
        elif asked.verb == detail.VERB:
            self._detail.publish(self.rollout, self._journal)
            answer = Answer(True, "counted")
        elif asked.verb == "goal":
            answer = self._new_goal(asked)
        elif asked.verb == "rollback":
            self.rollout.rollback()
            self._event(Cause.CANCELLED, "rolled back to off, as asked")
            self._publish()
            self._journal.answer(asked.number, Answer(True, "off: iptables decides alone"))
            return Ending.CANCELLED
        else:
            answer = Answer(False, f"this daemon does not know {asked.verb}")
        self._journal.answer(asked.number, answer)
        return None

    def _confirm(self, number: str) -> Answer:
        pending = self._journal.document(PENDING)
        if pending is None or self._deadline is None or pending["id"] != number:
            if number and self._journal.get(CONFIRMED) == number:
                return Answer(True, "it was confirmed already")
            return Answer(False, "nothing waits for a confirmation with this id")
        if self._overdue():
            return Answer(False, "too late: the stage was not confirmed in time")
        self._journal.set(CONFIRMED, number)
        self._confirmed()
        self._event("confirmed", f"confirmed as {number or '(no id)'}: the stage stays")
        self._publish()
        return Answer(True, "confirmed: the stage stays")

    def _new_goal(self, asked: Asked) -> Answer:
        try:
            wishes.refuse_late(self._journal, asked.argument)
            wish = {k: v for k, v in wishes.plain(asked.argument).items() if k != "request"}
            goal = Goal.of(wish)
            prepared = self.rollout.prepared
            if goal.stage.before(self.rollout.stage):
                raise RolloutError(f"stage {self.rollout.stage} is reached already")
            if prepared is not None and goal.stage.decides:
                self._check_goal(goal, prepared)
        except BpfilterError as error:
            return Answer(False, error.message)
        wishes.note(self._journal)
        self.goal, self._waivers, self._deadline = goal, goal.waivers, None
        self.rollout.waivers = goal.waivers
        self._held = self._is_confirmed = False
        self._not_before = 0.0
        if goal.stage is self.rollout.stage:
            self._settled(goal)
        self._publish()
        return Answer(True, f"on the way to stage {goal.stage}")

    def _publish(self) -> None:
        situation = Situation(
            self.goal, self._gates, self._suspended, self._held, self._deadline, self._not_before
        )
        self._journal.put(STATUS, document(self.rollout, situation))
        enforced.keep(self._journal, self.rollout)
