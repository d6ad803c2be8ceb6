"""The stages of one network namespace: off → shadow → canary → enforce, and from anywhere to off.

Guarantees: the original rules are never edited; iptables decides whenever we do not; no step
leaves a packet without a judge. Every change of what is loaded goes the same way: the lease is
revoked, so that iptables decides alone; maps and programs are loaded; the dispatch chains are put
in place (nothing is marked meanwhile); the links change to the new program; a new lease lets it
decide. Rolling back: the reverse. A stage that nobody confirms ends in the kernel by its lease.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from bpfilter.compiler.mark import MarkField
from bpfilter.errors import BpfilterError, RolloutError
from bpfilter.kernel.attach import Attachment
from bpfilter.kernel.config import Reason
from bpfilter.rollout import checks, host, interfaces, record
from bpfilter.rollout.caretaker import taking_care
from bpfilter.rollout.comparison import Comparison
from bpfilter.rollout.drift import Fingerprint
from bpfilter.rollout.early import EarlyDrops
from bpfilter.rollout.early import Report as Report
from bpfilter.rollout.install import install
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.lease import Lease
from bpfilter.rollout.mark import choose, ruleset_uses
from bpfilter.rollout.meanwhile import Meanwhile
from bpfilter.rollout.prepare import Known, Prepared, prepare
from bpfilter.rollout.program import Program
from bpfilter.rollout.record import Record
from bpfilter.rollout.request import Request as Request
from bpfilter.rollout.scope import Scope
from bpfilter.rollout.shadow import Bounds, ShadowReport, compare
from bpfilter.rollout.tables import Standing, Tables
from bpfilter.rollout.totals import AllTotals, RuleName
from bpfilter.rollout.trouble import Cause, Trouble
from bpfilter.rollout.vouching import Vouching
from bpfilter.rollout.waivers import Waiver
from bpfilter.rollout.watch import Event
from bpfilter.rollout.watching import by_counters
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset

_GRACE_SECONDS = 0.05
"""Marked packets that are between TC and filter when marking stops get through in this time."""


class Rollout:
    """One namespace's rollout, used by one thread; leaving the context rolls back to off."""

    def __init__(self, request: Request, journal: Journal, report: Report) -> None:
        self.request = request
        self.stage = Stage.OFF
        self.scope = Scope()
        self.waivers: tuple[Waiver, ...] = ()
        self.watched = False
        """Whether somebody calls `noticed` and `look_again` with all that a `Watcher` sees."""
        self.follows = False
        """Whether somebody calls `swap` soon when rules are `behind`."""
        self.prepared: Prepared | None = None
        self.mark: MarkField | None = None
        self.lease: Lease | None = None
        self._journal = journal
        self._report = report
        self._program: Program | None = None
        self.links: Mapping[str, int] = {}
        self._expected: Mapping[Tables, Fingerprint] = {}
        self._vouching: Vouching | None = None
        self._made: Mapping[Tables, Standing] = {}
        self._counted_from: Mapping[Family, Ruleset] = {}
        self.since = 0.0
        self._revoked = 0.0
        self._totals = AllTotals()
        self._known = Known()

    def __enter__(self) -> Rollout:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.rollback()

    def shadow(self) -> Prepared:
        """Translate, load and attach without deciding anything. RolloutError leaves it off."""
        self.rollback()
        with self._all_or_nothing():
            prepared = self._prepare()
            self._counted_from = prepared.count()
            self._replace(prepared, Stage.SHADOW, Scope(), None, None)
        return prepared

    def canary(self, scope: Scope, confirm_within: float | None = None) -> None:
        """Let the programs decide within a scope; otherwise as `enforce`."""
        self._cut_over(Stage.CANARY, scope, confirm_within)

    def enforce(self, confirm_within: float | None = None) -> None:
        """Let the programs decide, for at most `confirm_within` seconds unless confirmed.

        RolloutError, with everything rolled back, if the host does not allow it or the ruleset
        changed since it was translated.
        """
        self._cut_over(Stage.ENFORCE, Scope(), confirm_within)

    def swap(self, prepared: Prepared | None = None) -> Prepared:
        """Stay in the stage with what the rules are now: iptables decides alone meanwhile.

        `prepared`: they were translated already, by `preparation`. A deadline that nobody met goes
        on. RolloutError leaves it off; ProofFailed as well.
        """
        stage, scope = self.stage, self.scope
        deadline = None if self.lease is None else self.lease.deadline
        if stage is Stage.OFF or self.prepared is None:
            raise RolloutError("nothing is deployed", hint="start with the shadow stage")
        self._revoke()
        with self._all_or_nothing():
            prepared = prepared or self._prepare()
            if prepared.backend is not self.prepared.backend:
                raise RolloutError(
                    f"the rules moved to iptables-{prepared.backend}", hint="deploy again"
                )
            if stage is Stage.SHADOW:
                self._counted_from = prepared.count()
            mark = self._choose_mark(prepared) if stage.decides else None
            self._replace(prepared, stage, scope, mark, deadline)
        return prepared

    @property
    def behind(self) -> Meanwhile | None:
        """What was edited since it was translated, if the program goes round that: swap soon."""
        return None if self._vouching is None else self._vouching.behind

    def preparation(self) -> Callable[[], Prepared]:
        """Translates the rules as they are when it is called; in a thread of this namespace too."""
        asked = self.request
        return partial(
            prepare, asked.backend, chains=asked.chains, force=asked.force, known=self._known
        )

    def adopt(self) -> bool:
        """Take over what a daemon that ended left standing, if it is whole and still the rules'.

        False, with nothing changed, if there is no such thing; an error leaves it off.
        """
        found = Record.read(self._journal)
        if found is None:
            return False
        held = Program.pinned()
        try:
            links = interfaces.within(self.request.interfaces, found.scope)
            seconds = self.request.lease_seconds
            with taking_care(found, held, links, seconds, self._report) as care:
                prepared = self._prepare()
                narrowed = prepared.narrowed(found.scope, found.mark)
                same = found.describes(prepared, narrowed, held)
                same = same and tuple(links) == found.interfaces
                same = same and not checks.obstacles(found.mark)
                if same:
                    care.keep()
        except BpfilterError:
            same = False
        if not same:
            for attachment in held.values():
                attachment.close()
            return False
        with self._all_or_nothing():
            self.prepared, self.links = narrowed, links
            self._expected = prepared.fingerprints
            self._made = {t: Standing.of(t.save()) for t in narrowed.tables.values()}
            self.mark, self.scope = found.mark, found.scope
            program = self._load(narrowed, self.links, found.mark, found.scope)
            self._switch(program, held)
            self._begin(found.stage, found.deadline)
        return True

    def confirm(self) -> None:
        """The operator confirmed the stage: it stays."""
        if self.lease is not None:
            self.lease.confirm()
            self._write_record()
            self._report("confirmed")

    def tick(self) -> Trouble | None:
        """Check everything, then renew the lease. Otherwise revoke it and say why."""
        before = self.behind
        reason = self._trouble()
        if self.lease is None or self._program is None:
            return reason
        if reason is None:
            for sentence in self._program.refresh():
                self._report(sentence)
                self._write_record()
            if self.behind is not before:
                self._write_record()
            self._program.vouch_early()
            self.lease.renew()
        else:
            self._revoke(reason)
        return reason

    def look_again(self) -> None:
        """Something on the host changed: the next tick looks at everything that marks rest on."""
        if self._vouching is not None:
            self._vouching.look_again()

    def noticed(self, events: Sequence[Event]) -> Trouble | None:
        """Revoke the lease at once if these events mean that the program may not go on."""
        if not events or self._program is None:
            return None
        if reason := checks.noticed(events, self.links, self.mark, self._program.foreign):
            self._revoke(reason)
        return reason

    def edited(self) -> bool:
        """Whether the kernel's rules are of another generation than the program's; quick."""
        program = self._program
        return program is not None and program.observe() != program.generation

    def compare(self) -> Sequence[ShadowReport]:
        """Compare counters since the shadow stage began, one report per chain."""
        if self.stage is not Stage.SHADOW or self.prepared is None or self._program is None:
            raise RolloutError("counters are compared in the shadow stage only")
        counted = [self._program.counted(chain) for _, chain in self.prepared.chains()]
        after = self.prepared.count()
        return [
            compare(self._counted_from[plan.family], after[plan.family], chain, numbers)
            for (plan, chain), numbers in zip(self.prepared.chains(), counted, strict=True)
        ]

    def comparison(self, *, counters: bool = True) -> Comparison | None:
        """Packet by packet in shadow, and of sampled packets when deciding; else by counters.

        Counters are compared in shadow only. None if nothing is compared now.
        """
        program = self._program
        if program is None or self.prepared is None:
            return None
        seen = program.comparison()
        if seen is not None or self.stage is not Stage.SHADOW or not counters:
            return seen
        reports = zip(self.prepared.chains(), self.compare(), strict=True)
        found = [(plan.family, chain, report) for (plan, chain), report in reports]
        return by_counters(found, program.punted(), self.since)

    @property
    def early(self) -> EarlyDrops | None:
        """The programs that drop before netfilter, where there are any."""
        return None if self._program is None else self._program.early

    def decided(self) -> int:
        """Packets that the loaded program decided, or in shadow would have decided."""
        return 0 if self._program is None else self._program.decided()

    def punted(self) -> Mapping[Reason, int]:
        """Packets that the loaded program left to the original rules, by reason."""
        return {} if self._program is None else self._program.punted()

    def totals(self, *, decided: bool = False) -> Mapping[RuleName, Bounds]:
        """Packets per rule of all generations; `decided`: only of stages that decide."""
        counts = ({}, {}) if self._program is None else self._program.all_counts()
        return self._totals.now(self.prepared, counts, self.stage.decides, decided)

    def rollback(self) -> None:
        """Back to off from any stage; does nothing where there is nothing."""
        self._revoke()
        with self._journal.undoing():
            record.forget(self._journal)
            try:
                self.step_aside()
            finally:
                self._stop()
                self.mark = None
                if self.stage is not Stage.OFF:
                    self._enter(Stage.OFF)

    def step_aside(self) -> None:
        """Take our rules away; programs stay loaded. To be called without a lease."""
        if self.mark is not None and self.prepared is not None:
            self._settle()
            with self._journal.step("remove dispatch"):
                for tables in self.prepared.tables.values():
                    tables.clear()

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.rollback()
            raise

    def _prepare(self) -> Prepared:
        with self._journal.step("plan"):
            return self.preparation()()

    def _cut_over(self, stage: Stage, scope: Scope, confirm_within: float | None) -> None:
        prepared = self.prepared
        if not self.stage.before(stage) or self.stage is Stage.OFF or prepared is None:
            raise RolloutError(
                f"from {self.stage} nothing goes to {stage}", hint="start with the shadow stage"
            )
        with self._all_or_nothing():
            if self.stage.decides:
                # A canary may have been of fewer chains than there are.
                prepared = self._prepare()
            mark = self._choose_mark(prepared)
            self._replace(prepared, stage, scope, mark, None, confirm_within)

    def _replace(
        self,
        prepared: Prepared,
        stage: Stage,
        scope: Scope,
        mark: MarkField | None,
        deadline: int | None,
        confirm_within: float | None = None,
    ) -> None:
        """Put a new generation in the place of the present one, if there is one."""
        self._revoke()
        record.forget(self._journal)
        narrowed = prepared if mark is None else prepared.narrowed(scope, mark)
        links = interfaces.within(self.request.interfaces, scope)
        program = self._load(narrowed, links, mark, scope)
        try:
            self._keep_totals()
            self._expected = prepared.fingerprints
            if mark is not None:
                self._settle()
                # From here on chains of ours may stand, which a rollback has to remove.
                self.prepared, self.mark = narrowed, mark
                with self._journal.step("dispatch"):
                    self._expected, self._made = install(narrowed, mark, tuple(links), self._made)
        except BaseException:
            program.close()
            raise
        self.prepared, self.links, self.scope = narrowed, links, scope
        self._switch(program, {} if self._program is None else self._program.release())
        self._begin(stage, deadline, confirm_within)

    def _load(
        self, prepared: Prepared, links: Mapping[str, int], mark: MarkField | None, scope: Scope
    ) -> Program:
        share = self.request.shadow_share if mark is None else self.request.verify_share
        early = None if mark is None or scope.chains else self.request.early
        with self._journal.step("load"):
            program = Program.load(
                prepared.image,
                links,
                mark,
                scope,
                output=prepared.output,
                share=share,
                early=early,
                sure=not self.waivers,
                legacy=prepared.backend is Backend.LEGACY,
            )
        for sentence in program.remarks():
            self._report(sentence)
        return program

    def _switch(self, program: Program, held: Mapping[str, Attachment]) -> None:
        old, self._program = self._program, program
        with self._journal.step("attach"):
            program.attach(held)
        early = {} if old is None else old.release_early()
        if old is not None:
            old.close()
        if self.prepared is not None:
            program.drop_early(self.prepared.rulesets, self._report, early)

    def _begin(
        self, stage: Stage, deadline: int | None, confirm_within: float | None = None
    ) -> None:
        """Start the lease, if what was translated is still what is there."""
        program = self._program
        if program is None or self.prepared is None:
            raise RolloutError("nothing is loaded", hint="try again")
        self.lease = Lease(program, self.request.lease_seconds, deadline)
        held = self.prepared, self.links, self.scope, self.mark
        made = self._expected, self._made
        self._vouching = Vouching(program, *held, *made, self.request, self._report, self._journal)
        program.accept(program.observe())  # of our own edits; what follows sees any other
        if (trouble := self._trouble(thorough=True)) is not None:
            raise RolloutError(f"{trouble} during the stage change", hint="try again")
        if confirm_within is not None:
            self.lease.confirm_within(confirm_within)
        program.refresh()
        program.vouch_early()
        with self._journal.step("lease"):
            self._enter(stage)
            self._write_record()
            self.lease.renew()

    def _write_record(self) -> None:
        program, vouching = self._program, self._vouching
        if self.mark is None or self.prepared is None or self.lease is None or program is None:
            return
        if vouching is None:
            return
        generation = self.prepared, self.stage, self.scope, self.mark, vouching.expected
        Record.of(*generation, program, self.lease.deadline).write(self._journal)

    def _enter(self, stage: Stage) -> None:
        if stage is not self.stage:
            self.since = time.time()
        self.stage = stage
        self._journal.set("stage", stage)
        self._report(f"stage {stage}")

    def _choose_mark(self, prepared: Prepared) -> MarkField:
        if found := host.host_obstacles():
            raise RolloutError(f"cannot enforce: {found[0].what}", hint=found[0].hint)
        return choose((*ruleset_uses(prepared.rulesets.values()), *host.mark_uses()))

    def _revoke(self, why: Trouble | None = None) -> None:
        if self.lease is not None and self.lease.held:
            self.lease.revoke()
            self._revoked = time.monotonic()
            if why is not None:
                self._report(f"lease revoked: {why}")

    def _settle(self) -> None:
        """Wait until packets that were marked before the lease was revoked are through."""
        time.sleep(max(self._revoked + _GRACE_SECONDS - time.monotonic(), 0))

    def _keep_totals(self) -> None:
        if self._program is not None and self.prepared is not None:
            self._totals.keep(self.prepared, self._program.all_counts(), self.stage.decides)

    def _stop(self) -> None:
        self.lease = self._vouching = None
        if self._program is not None:
            self._keep_totals()
            with self._journal.step("detach"):
                self._program.close()
            self._program = None

    def _trouble(self, *, thorough: bool = False) -> Trouble | None:
        """Why the program may not go on; `thorough`: also read what the kernel calls unedited."""
        if self.lease is None or self._vouching is None:
            return Trouble("nothing is loaded", Cause.HOST)
        if self.lease.seconds_left == 0:
            return Trouble("the stage was not confirmed in time", Cause.UNCONFIRMED)
        return self._vouching.trouble(
            self.waivers, everything=not self.watched, thorough=thorough, goes_on=self.follows
        )
