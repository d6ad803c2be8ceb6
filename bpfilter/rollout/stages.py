"""The stages of one network namespace: off → shadow → enforce, and back to off from anywhere.

Guarantees: the original rules are never edited; iptables decides whenever we do not; no step
leaves a packet without a judge. Cutting over: the dispatch chains first (nothing is marked yet),
then programs that mark, then the lease that lets them decide. Rolling back: the reverse. A stage
that nobody confirms ends in the kernel, by its lease, even if this process is dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from bpfilter.compiler.codes import CODES
from bpfilter.compiler.mark import MarkField
from bpfilter.errors import RolloutError
from bpfilter.kernel.generation import Generation
from bpfilter.rollout import host
from bpfilter.rollout.comparison import Comparison
from bpfilter.rollout.drift import Fingerprint
from bpfilter.rollout.journal import Journal, Stage
from bpfilter.rollout.lease import LEASE_SECONDS, Lease
from bpfilter.rollout.mark import choose, ruleset_uses
from bpfilter.rollout.prepare import LIVE_CHAINS, Prepared, prepare
from bpfilter.rollout.program import Program
from bpfilter.rollout.shadow import ShadowReport, compare
from bpfilter.rollout.tables import Tables
from bpfilter.rollout.watching import Watch, by_counters
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import Backend, Ruleset

_HOST_TICKS = 5
_GRACE_SECONDS = 0.05
"""Marked packets that are between TC and filter when marking stops get through in this time."""


@dataclass(frozen=True, slots=True)
class Request:
    """What an operator asks for. `force`: also enforce what is proven incompletely.

    `shadow_share`: of the packets that are compared one by one in shadow. `verify_share`: of the
    decided packets that are left to iptables and compared while enforcing.
    """

    interfaces: tuple[str, ...]
    backend: Backend | None = None
    lease_seconds: float = LEASE_SECONDS
    chains: tuple[tuple[str, str], ...] = LIVE_CHAINS
    force: bool = False
    shadow_share: float = 1.0
    verify_share: float = 0.0


Report = Callable[[str], None]


class Rollout:
    """One namespace's rollout, used by one thread; leaving the context rolls back to off."""

    def __init__(self, request: Request, journal: Journal, report: Report) -> None:
        self.request = request
        self.stage = Stage.OFF
        self.prepared: Prepared | None = None
        self.mark: MarkField | None = None
        self.lease: Lease | None = None
        self._journal = journal
        self._report = report
        self._program: Program | None = None
        self._links: Mapping[str, int] = {}
        self._expected: Mapping[Tables, Fingerprint] = {}
        self._counted_from: Mapping[Family, Ruleset] = {}
        self._since = 0.0
        self._ticks = 0

    def __enter__(self) -> Rollout:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.rollback()

    def shadow(self) -> Prepared:
        """Translate, load and attach without deciding anything. RolloutError leaves it off."""
        self.rollback()
        try:
            self._links = self._interfaces()
            with self._journal.step("plan"):
                prepared = self.prepared = prepare(
                    self.request.backend, chains=self.request.chains, force=self.request.force
                )
            with self._journal.step("attach"):
                self._counted_from = prepared.count()
                self._start(prepared, None)
            self._expected = prepared.fingerprints
            self._vouch(None)
            self._enter(Stage.SHADOW)
        except BaseException:
            self.rollback()
            raise
        return prepared

    def enforce(self, confirm_within: float | None = None) -> None:
        """Let the programs decide, for at most `confirm_within` seconds unless confirmed.

        RolloutError, with everything rolled back, if the host does not allow it or the ruleset
        changed since it was translated.
        """
        prepared = self.prepared
        if self.stage is not Stage.SHADOW or prepared is None:
            raise RolloutError(
                "only a shadowed plan is enforced", hint="start with the shadow stage"
            )
        try:
            self._refuse_obstacles()
            self.mark = self._choose_mark(prepared)
            if self.mark.max_code < CODES - 1:
                prepared = self.prepared = prepared.within(self.mark)
            self._stop()
            with self._journal.step("dispatch"):
                self._install(prepared, self.mark)
            with self._journal.step("mark"):
                self._start(prepared, self.mark)
            self._vouch(confirm_within)
            self._enter(Stage.ENFORCE)
        except BaseException:
            self.rollback()
            raise

    def confirm(self) -> None:
        """The operator confirmed the stage: it stays."""
        if self.lease is not None:
            self.lease.confirm()
            self._report("confirmed")

    def tick(self) -> str | None:
        """Check everything, then renew the lease. Otherwise revoke it and say why."""
        reason = self._trouble()
        if self.lease is None or self._program is None:
            return reason
        if reason is None:
            if self._program.refresh_addresses():
                self._report("the host's addresses changed: the program knows them now")
            self.lease.renew()
        else:
            self.lease.revoke()
            self._report(f"lease revoked: {reason}")
        return reason

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

    def comparison(self) -> Comparison | None:
        """Packet by packet in shadow, and of sampled packets in enforce; else by counters.

        Counters are compared in shadow only. None if nothing is compared now.
        """
        program = self._program
        if program is None or self.prepared is None:
            return None
        if program.watch is not None:
            return program.watch.comparison()
        if self.stage is not Stage.SHADOW:
            return None
        chains = self.prepared.chains()
        reports = zip(chains, self.compare(), strict=True)
        found = [(plan.family, chain, report) for (plan, chain), report in reports]
        return by_counters(found, program.punted(), self._since)

    def decided(self) -> int:
        """Packets that the loaded program decided, or in shadow would have decided."""
        return 0 if self._program is None else self._program.decided()

    def rollback(self) -> None:
        """Back to off from any stage; does nothing where there is nothing."""
        if self.lease is not None:
            self.lease.revoke()
        marked = self.mark is not None
        if marked and self.prepared is not None:
            time.sleep(_GRACE_SECONDS)
            with self._journal.step("remove dispatch"):
                for tables in self.prepared.tables.values():
                    tables.clear()
        self._stop()
        self.mark = None
        if self.stage is not Stage.OFF:
            self._enter(Stage.OFF)

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        self._journal.set("stage", stage)
        self._report(f"stage {stage}")

    def _interfaces(self) -> Mapping[str, int]:
        found = {}
        for name in self.request.interfaces:
            for obstacle in host.link_obstacles(name):
                raise RolloutError(obstacle.what, hint=obstacle.hint)
            index = host.link_index(name)
            if index is not None:
                found[name] = index
        return found

    def _refuse_obstacles(self) -> None:
        for obstacle in host.host_obstacles():
            raise RolloutError(f"cannot enforce: {obstacle.what}", hint=obstacle.hint)

    def _choose_mark(self, prepared: Prepared) -> MarkField:
        uses = (*ruleset_uses(prepared.rulesets.values()), *host.mark_uses())
        return choose(uses)

    def _install(self, prepared: Prepared, mark: MarkField) -> None:
        rulesets = prepared.rulesets.values()
        translated = bool(host.native_nft()) or host.may_translate(rulesets)
        for family in prepared.plans:
            prepared.tables[family].install(
                prepared.dispatch(family, mark, self.request.interfaces, translated=translated)
            )
        now = {tables: Fingerprint.of(tables.save()) for tables in prepared.fingerprints}
        for tables, fingerprint in now.items():
            if fingerprint.ruleset != prepared.fingerprints[tables].ruleset:
                raise RolloutError(
                    f"the {tables.family} rules changed while they were translated",
                    hint="try again",
                )
        self._expected = now

    def _start(self, prepared: Prepared, mark: MarkField | None) -> None:
        share = self.request.shadow_share if mark is None else self.request.verify_share
        program = self._program = Program.load(prepared.image, self._links, mark, share=share)
        self._since = time.time()
        if program.unwatched is not None:
            self._report(f"{program.unwatched}; counters are compared instead")
        program.attach()
        self.lease = Lease(program, self.request.lease_seconds)

    def _vouch(self, confirm_within: float | None) -> None:
        """Start the lease, if what was translated is still what is there."""
        trouble = self._trouble()
        if trouble is not None or self.lease is None:
            raise RolloutError(f"{trouble} during the stage change", hint="try again")
        if self._program is not None:
            self._program.refresh_addresses()
        if confirm_within is not None:
            self.lease.confirm_within(confirm_within)
        self.lease.renew()

    def _stop(self) -> None:
        self.lease = None
        if self._program is not None:
            with self._journal.step("detach"):
                self._program.close()
            self._program = None

    def _drift(self) -> str | None:
        for tables, expected in self._expected.items():
            drift = expected.drift(tables.save())
            if drift:
                return f"{tables.family} iptables-{tables.backend} {drift}"
        return None

    def _trouble(self) -> str | None:
        """Why the program may not go on; None if all it rests on is as it was."""
        program = self._program
        if self.lease is None or program is None:
            return "nothing is loaded"
        if self.lease.seconds_left == 0:
            return "the stage was not confirmed in time"
        for name, index in self._links.items():
            if host.link_index(name) != index:
                return f"interface {name} is gone or was renamed"
        if not program.attached():
            return "our program is no longer attached"
        if program.watch is not None:
            program.watch.poll()
            if self.mark is not None and program.watch.mismatches:
                return _mismatch(program.watch)
        if self.mark is not None and (foreign := program.foreign()):
            return f"foreign {foreign[0]} could forge marks"
        generation = program.observe()
        return self._drift() or self._host_trouble(generation) or self._follow(generation)

    def _host_trouble(self, generation: Generation) -> str | None:
        """What only matters to marks, looked at now and then and after any edit of rules."""
        self._ticks += 1
        edited = self._program is not None and generation != self._program.generation
        if self.mark is None or not (edited or self._ticks % _HOST_TICKS == 0):
            return None
        for obstacle in host.host_obstacles():
            return obstacle.what
        for use in host.mark_uses():
            if use.bits & self.mark.mask:
                return f"{use.user} uses our bits of the mark"
        return None

    def _follow(self, generation: Generation) -> str | None:
        """Accept a generation under which the rules were just found unchanged."""
        if self._program is None or generation == self._program.generation:
            return None
        if self._program.observe() != generation:
            return "the kernel's rules are being changed"
        self._program.accept(generation)
        self._report("the kernel's rules were edited, ours and those we translated are the same")
        return None


def _mismatch(watch: Watch) -> str:
    """The evidence that ends a stage, in one sentence."""
    samples = watch.comparison().samples
    if not samples:
        return "a packet's verdict differed from what the program decides"
    first = samples[0]
    return (
        f"iptables gave {first.actual} to a packet for which the program decides"
        f" {first.predicted} by {first.key.family} {first.key.rule}"
    )
