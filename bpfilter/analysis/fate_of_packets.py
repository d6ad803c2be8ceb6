"""What one ruleset does to a set of packets: which rule decides which of them.

Walks the rules of a built-in chain forwards with the packets that are still under way, so the
cost grows with the packets asked about, not with all that exist. Static matches decide exactly;
a rule with a dynamic match or with a target that only logs or marks is *passed* by the packets
that it may hold, and named, for nobody can say without the kernel what it does to each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bpfilter.analysis.conditions import Scene, static_part
from bpfilter.analysis.diagrams import Diagrams, Packets
from bpfilter.analysis.hulls import Hulls, Known
from bpfilter.analysis.meaning import Conditions
from bpfilter.compiler.ir import Action, Space, Treatment
from bpfilter.ruleset.fields import Field
from bpfilter.ruleset.model import Chain, Rule, RuleRef, Ruleset, Table, TargetKind
from bpfilter.ruleset.writer import rule_words

Passed = tuple[str, ...]
"""The words of dynamic rules that packets met on their way, in order."""

Streams = Mapping[Passed, Packets]

Near = Mapping[str, Sequence[Rule]]
"""Some of a ruleset's rules by chain, in order."""


@dataclass(frozen=True, slots=True)
class Decided:
    """Packets that end at one rule (number 0: the policy) after the same dynamic rules.

    `verdict`: ACCEPT, DROP, or the name of a target that ends the walk, as REJECT.
    """

    packets: Packets
    verdict: str
    passed: Passed
    rule: RuleRef


class PacketFates:
    """One ruleset's side of a comparison; all sides share `space` and `diagrams`."""

    def __init__(
        self, ruleset: Ruleset, hook: tuple[str, str], space: Space, diagrams: Diagrams
    ) -> None:
        self._table: Table = ruleset.tables[hook[0]]
        self._hook = hook
        self._diagrams = diagrams
        treatments = {
            rule.ref: Treatment(Action.CONTINUE, (), _static_matches(rule))
            for chain in self._table.chains.values()
            for rule in chain.rules
        }
        self._scene = Scene.of(hook, space)
        self._treatments = treatments
        self._conditions = Conditions(treatments, self._scene, diagrams)
        self._texts: dict[RuleRef, str] = {}
        self._decided: list[Decided] = []
        self._near: Near | None = None
        self._hulls: Hulls | None = None
        self._own: Sequence[Rule] = ()
        self._rows: dict[int, int] = {}

    def held(self, rule: Rule) -> Packets:
        """Packets that the static part of one of the ruleset's rules matches."""
        return self._conditions.of(rule)

    def near(self, rules: Sequence[Rule], known: Known) -> Near:
        """Which of the ruleset's rules may share packets with these, which need not be its own.

        `known`: as of `Hulls`, of rulesets that are compared.
        """
        own = [rule for chain in self._table.chains.values() for rule in chain.rules]
        parts = [
            tuple(m.alternatives for m in rule.matches[: _static_matches(rule)] if m.alternatives)
            for rule in (*own, *rules)
        ]
        hulls = Hulls(parts, self._diagrams.family, np.ones(len(parts), dtype=np.bool_), known)
        self._hulls, self._own = hulls, own
        self._rows = {id(rule): row for row, rule in enumerate(own)}
        found: set[int] = set()
        for row in range(len(own), len(parts)):
            self._diagrams.check_time()
            found.update(hulls.meeting(row).tolist())
        return self._chosen(sorted(found))

    def near_own(self, rule: Rule) -> Near | None:
        """As `near`, of one of the ruleset's own rules; None unless `near` was asked before."""
        if self._hulls is None:
            return None
        return self._chosen(self._hulls.meeting(self._rows[id(rule)]).tolist())

    def near_packet(self, packet: Mapping[Field, int]) -> Near | None:
        """As `near_own`, of a single packet."""
        return None if self._hulls is None else self._chosen(self._hulls.holding(packet).tolist())

    def first(self, packet: Mapping[Field, int], state: int) -> Rule | None:
        """The static rule of the built-in chain that decides one packet, without diagrams.

        None where that takes more: `near` was not asked before, or a jump or a dynamic rule holds
        the packet, or no rule does.
        """
        for rule in (self.near_packet(packet) or {}).get(self._hook[1], ()):
            parts = static_part(rule, self._treatments[rule.ref], self._scene.space)
            if all(
                any(all(self._scene.holds(term, packet, state) for term in terms) for terms in part)
                for part in parts
            ):
                plain = len(parts) == len(rule.matches) and rule.target.kind is TargetKind.VERDICT
                return rule if plain and rule.target.name != "RETURN" else None
        return None

    def _chosen(self, rows: Iterable[int]) -> Near:
        found: dict[str, list[Rule]] = {}
        for row in rows:
            if row < len(self._own):
                rule = self._own[row]
                found.setdefault(rule.chain, []).append(rule)
        return found

    def decide(self, packets: Packets, near: Near | None = None) -> Sequence[Decided]:
        """Where these packets end. Raises LimitReached when the diagrams' time is spent.

        `near`: only these rules can match any of the packets.
        """
        self._decided, self._near = [], near
        chain = self._table.chains[self._hook[1]]
        left = self._chain(chain, {(): packets})
        policy = chain.policy or "ACCEPT"
        for passed, rest in left.items():
            self._end(rest, policy, passed, RuleRef(self._hook[0], chain.name, 0))
        return self._decided

    def _end(self, packets: Packets, verdict: str, passed: Passed, rule: RuleRef) -> None:
        if packets.satisfiable():
            self._decided.append(Decided(packets, verdict, passed, rule))

    def _chain(self, chain: Chain, streams: Streams) -> Streams:
        """Carry packets through a chain; those that come back from it."""
        back: dict[Passed, Packets] = {}
        for rule in chain.rules if self._near is None else self._near.get(chain.name, ()):
            self._diagrams.check_time()
            if not streams:
                break
            going: dict[Passed, Packets] = {}
            for passed, packets in streams.items():
                hit = self.held(rule) & packets
                if not hit.satisfiable():
                    _add(going, passed, packets)
                    continue
                _add(going, passed, packets & ~hit)
                self._meet(rule, passed, hit, going, back)
            streams = {passed: rest for passed, rest in going.items() if rest.satisfiable()}
        for passed, rest in streams.items():
            _add(back, passed, rest)
        return back

    def _meet(
        self,
        rule: Rule,
        passed: Passed,
        hit: Packets,
        going: dict[Passed, Packets],
        back: dict[Passed, Packets],
    ) -> None:
        """Packets meet a rule whose static part they satisfy."""
        target = rule.target
        known = all(not match.dynamic for match in rule.matches)
        if not known or target.kind is TargetKind.EXTENSION:
            passed = (*passed, self._text(rule))
            if known and target.terminal:
                self._end(hit, target.name, passed, rule.ref)
            else:
                _add(going, passed, hit)
        elif target.kind is TargetKind.VERDICT and target.name == "RETURN":
            _add(back, passed, hit)
        elif target.kind is TargetKind.VERDICT:
            self._end(hit, target.name, passed, rule.ref)
        elif target.kind in (TargetKind.JUMP, TargetKind.GOTO):
            callee = self._table.chains.get(target.name)
            returned = {passed: hit} if callee is None else self._chain(callee, {passed: hit})
            towards = going if target.kind is TargetKind.JUMP else back
            for after, rest in returned.items():
                _add(towards, after, rest)
        else:
            _add(going, passed, hit)

    def _text(self, rule: Rule) -> str:
        """A dynamic rule's words, with those of the chains it may enter."""
        found = self._texts.get(rule.ref)
        if found is None:
            entered: dict[str, None] = {}
            self._entered(rule, entered)
            bodies = [
                f"{name}: {'; '.join(rule_words(r) for r in self._table.chains[name].rules)}"
                for name in entered
            ]
            found = self._texts[rule.ref] = "\n".join([rule_words(rule), *bodies])
        return found

    def _entered(self, rule: Rule, seen: dict[str, None]) -> None:
        name = rule.target.name
        jumps = rule.target.kind in (TargetKind.JUMP, TargetKind.GOTO)
        if jumps and name not in seen and name in self._table.chains:
            seen[name] = None
            for below in self._table.chains[name].rules:
                self._entered(below, seen)


def _static_matches(rule: Rule) -> int:
    """How many leading matches are static: iptables evaluates them in order."""
    count = 0
    for match in rule.matches:
        if match.dynamic:
            break
        count += 1
    return count


def _add(streams: dict[Passed, Packets], passed: Passed, packets: Packets) -> None:
    so_far = streams.get(passed)
    streams[passed] = packets if so_far is None else so_far | packets
