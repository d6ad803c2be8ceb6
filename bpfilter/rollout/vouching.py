"""All that a loaded generation rests on, looked at before each renewal of its lease.

An edit of few rules does not end it: the packets that those rules can match are left to iptables,
and it decides on for all others until the edited rules are translated (`meanwhile`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bpfilter.compiler.mark import MarkField
from bpfilter.errors import TooMuchEdited
from bpfilter.kernel.generation import Generation
from bpfilter.rollout import checks
from bpfilter.rollout.drift import Fingerprint
from bpfilter.rollout.journal import Journal
from bpfilter.rollout.meanwhile import Meanwhile, meanwhile
from bpfilter.rollout.prepare import Prepared
from bpfilter.rollout.program import Program
from bpfilter.rollout.request import Request
from bpfilter.rollout.scope import Scope
from bpfilter.rollout.tables import Standing, Tables
from bpfilter.rollout.trouble import Cause, Trouble
from bpfilter.rollout.waivers import Waiver

_HOST_TICKS = 5
_READINGS = 10
"""Of rules that somebody edits faster than they are read."""


@dataclass(slots=True)
class Vouching:
    """For one program, of one plan. `made`: our chains as they were left.

    `expected`: what all tables are found to be. `behind`: what was edited since they were planned.
    """

    program: Program
    prepared: Prepared
    links: Mapping[str, int]
    scope: Scope
    mark: MarkField | None
    expected: Mapping[Tables, Fingerprint]
    made: Mapping[Tables, Standing]
    request: Request
    say: Callable[[str], object]
    journal: Journal
    behind: Meanwhile | None = None
    _texts: Mapping[Tables, str] = field(default_factory=dict)
    _ticks: int = 0

    def look_again(self) -> None:
        """Something on the host changed: the next look is at everything that marks rest on."""
        self._ticks = _HOST_TICKS - 1

    def trouble(
        self, waivers: Sequence[Waiver], *, everything: bool, thorough: bool, goes_on: bool
    ) -> Trouble | None:
        """Why the program may not go on; None also accepts the generation of the rules.

        `everything`: look at the host although it is not the time for that. `thorough`: read what
        the kernel calls unedited. `goes_on`: an edit of few rules is no trouble.
        """
        self._ticks += 1
        host = everything or self._ticks % _HOST_TICKS == 0
        if host:
            found = checks.links(self.request.interfaces, self.scope, self.links)
            if found := found or checks.programs(self.program, self.mark is not None):
                return found
        self.program.poll()
        if self.mark is not None and (found := self.program.inspect(self.request.guards, waivers)):
            return found
        for _ in range(_READINGS):
            generation = self.program.observe()
            found = self._drift(generation, thorough, goes_on)
            edited = generation != self.program.generation
            if found is None and self.mark is not None and (edited or host):
                found = checks.obstacles(self.mark)
            if found is not None or not edited:
                return found
            if self.program.observe() == generation:
                self.program.accept(generation)
                return None
        return Trouble("the kernel's rules are being changed", Cause.RULESET)

    def _drift(self, generation: Generation, thorough: bool, goes_on: bool) -> Trouble | None:
        unedited = () if thorough else self.program.unedited(generation)
        texts = checks.read(self.expected, unedited)
        drifted = checks.drifted(self.expected, texts)
        if drifted is None and generation != self.program.generation:
            self.say("the kernel's rules were edited, ours and those we know are the same")
        if drifted is None or drifted.cause is not Cause.RULESET or not goes_on:
            return drifted
        return drifted if self.mark is None else self._go_round(drifted, texts, self.mark)

    def _go_round(
        self, drifted: Trouble, texts: Mapping[Tables, str], mark: MarkField
    ) -> Trouble | None:
        texts = {**self._texts, **texts}
        try:
            found = meanwhile(self.prepared, texts, mark, self.made)
        except TooMuchEdited as why:
            return Trouble(f"{drifted}: {why}", Cause.RULESET)
        now = {tables: Fingerprint.of(text) for tables, text in texts.items()}
        with self.journal.step("go round"):
            self.program.punt(found.hulls)
        self._texts, self.expected = texts, {**self.expected, **now}
        self.behind = found if found.sentence else None
        return None
