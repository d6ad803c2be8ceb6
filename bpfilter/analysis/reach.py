"""Which rules can no packet reach, and which rules shadow them?

About the rules as iptables runs them: a match that is not static may hold or not, so only what is
certain takes packets away, and fragments, which the tables never see, count as packets here. A
rule is never called unreachable if some packet can reach it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from bpfilter.analysis.conditions import Scene, certain, static_part, terms_of
from bpfilter.analysis.diagrams import Diagrams, Packets
from bpfilter.analysis.hulls import Hulls
from bpfilter.analysis.meaning import Conditions
from bpfilter.compiler.ir import Treatment
from bpfilter.ruleset.fields import Field, Intervals
from bpfilter.ruleset.model import Chain, Rule, RuleRef, Ruleset, TargetKind

Unreachable = Mapping[RuleRef, tuple[RuleRef, ...]]


def unreachable_rules(
    ruleset: Ruleset,
    treatments: Mapping[RuleRef, Treatment],
    scene: Scene,
    conditions: Conditions,
    diagrams: Diagrams,
) -> Unreachable:
    """Rules in reach of a built-in chain that no packet reaches, with what shadows each."""
    table, chain = scene.hook
    fragments = Conditions(treatments, replace(scene, fragments=True), diagrams)
    held = _Held(conditions, fragments, diagrams.values(Field.FRAGMENT, Intervals.single(0)))
    return _Reach(scene, ruleset.tables[table].chains, treatments, held, diagrams).run(chain)


_MAX_PRUNED = 16
_LAYER_4 = frozenset({"tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmp6", "multiport"})
"""Matches that no second or further fragment satisfies (`par->fragoff != 0` in xt_tcpudp.c,
xt_sctp.c, xt_dccp.c, xt_multiport.c, ip_tables.c)."""


class _Held:
    """The packets, fragments among them, that the static part of a rule matches."""

    def __init__(self, conditions: Conditions, fragments: Conditions, whole: Packets) -> None:
        self._conditions = conditions
        self._fragments = fragments
        self._whole = whole
        self._rules: dict[RuleRef, Packets] = {}

    def of(self, rule: Rule) -> Packets:
        found = self._rules.get(rule.ref)
        if found is None:
            found = self._rule(rule)
            self._rules[rule.ref] = found
        return found

    def _rule(self, rule: Rule) -> Packets:
        if any(match.name in _LAYER_4 for match in rule.matches):
            return self._whole & self._conditions.of(rule)
        if tests_fragments(rule):
            return self._fragments.of(rule)
        return self._conditions.of(rule)


def tests_fragments(rule: Rule) -> bool:
    parts = tuple(match.alternatives or () for match in rule.matches)
    return any(term.field is Field.FRAGMENT for term in terms_of(parts))


@dataclass(slots=True)
class _Reach:
    scene: Scene
    chains: Mapping[str, Chain]
    treatments: Mapping[RuleRef, Treatment]
    held: _Held
    diagrams: Diagrams
    returning: dict[str, Packets] = field(default_factory=dict)
    arriving: dict[str, Packets] = field(default_factory=dict)
    callers: dict[str, list[Rule]] = field(default_factory=dict)
    taken: dict[RuleRef, Packets] = field(default_factory=dict)
    hulls: dict[str, tuple[Hulls, npt.NDArray[np.bool_]]] = field(default_factory=dict)

    def run(self, root: str) -> Unreachable:
        order = list(self._order(root, set()))
        for name in order[:-1]:
            self.returning[name] = self._returning(self.chains[name])
        self.arriving = dict.fromkeys(order, self.diagrams.false)
        self.arriving[root] = self.diagrams.valid
        missed: list[Rule] = []
        for name in reversed(order):
            missed += self._pass(self.chains[name])
        return {rule.ref: self._shadows(rule) for rule in missed}

    def _order(self, name: str, seen: set[str]) -> Iterator[str]:
        """Callees before callers."""
        seen.add(name)
        for rule in self.chains[name].rules:
            if _jumps(rule):
                self.callers.setdefault(rule.target.name, []).append(rule)
                if rule.target.name not in seen:
                    yield from self._order(rule.target.name, seen)
        yield name

    def _takes(self, rule: Rule) -> Packets:
        """Packets that certainly do not go on behind a rule within its chain."""
        found = self.taken.get(rule.ref)
        if found is None:
            found = self._certain_end(rule)
            self.taken[rule.ref] = found
        return found

    def _certain_end(self, rule: Rule) -> Packets:
        target = rule.target
        if not certain(rule, self.treatments[rule.ref]):
            return self.diagrams.false
        held = self.held.of(rule)
        if target.kind is TargetKind.JUMP:
            return self.returning[target.name].imp_strict(held)
        if target.kind in (TargetKind.VERDICT, TargetKind.GOTO) or target.terminal:
            return held
        return self.diagrams.false

    def _returning(self, chain: Chain) -> Packets:
        """Packets that may come back from a chain, if they all enter it."""
        live, returned = self.diagrams.true, []
        for rule in chain.rules:
            self.diagrams.check_time()
            target = rule.target
            if target.kind is TargetKind.VERDICT and target.name == "RETURN":
                returned.append(live & self.held.of(rule))
            elif target.kind is TargetKind.GOTO:
                back = self.returning[target.name]
                returned.append(live & self.held.of(rule) & back)
            live = self._takes(rule).imp_strict(live)
        return self.diagrams.union([live, *returned])

    def _pass(self, chain: Chain) -> list[Rule]:
        """Carry the packets that arrive at a chain through it; the rules that none reaches."""
        missed = []
        live = self.arriving[chain.name]
        for rule in chain.rules:
            self.diagrams.check_time()
            takes = self._takes(rule)
            behind = takes.imp_strict(live)
            jumps = _jumps(rule)
            if behind == live or jumps:
                held = live & self.held.of(rule)
                if not held.satisfiable():
                    missed.append(rule)
                elif jumps:
                    self.arriving[rule.target.name] |= held
            live = behind
        return missed

    def _shadows(self, rule: Rule) -> tuple[RuleRef, ...]:
        packets = self.held.of(rule) & self.diagrams.valid
        found: dict[RuleRef, None] = {}
        self._shadow(rule, packets, found)
        needed = self._needed(list(found), packets)
        return tuple(sorted(needed, key=lambda ref: (ref.chain != rule.chain, ref)))

    def _shadow(self, place: Rule, packets: Packets, found: dict[RuleRef, None]) -> None:
        """Add the rules that keep `packets` from a place, in its chain and before jumps to it."""
        rules = self.chains[place.chain].rules
        hulls, taking = self._hulls(place.chain)
        earlier = hulls.earlier(place.number - 1, taking)
        for index in hulls.enclosing(place.number - 1, earlier).tolist():
            if not self._takes(rules[index]).imp_strict(packets).satisfiable():
                found[rules[index].ref] = None
                return
        for index in earlier.tolist():
            if not packets.satisfiable():
                return
            rest = self._takes(rules[index]).imp_strict(packets)
            if rest != packets:
                found[rules[index].ref] = None
                packets = rest
        for caller in self.callers.get(place.chain, ()):
            held = packets & self.held.of(caller)
            if held.satisfiable():
                self._shadow(caller, held, found)

    def _hulls(self, name: str) -> tuple[Hulls, npt.NDArray[np.bool_]]:
        """The hulls of a chain's rules, and which of them take packets for certain."""
        known = self.hulls.get(name)
        if known is None:
            rules = self.chains[name].rules
            parts = [static_part(r, self.treatments[r.ref], self.scene.space) for r in rules]
            taking = [self._takes(rule).satisfiable() for rule in rules]
            known = Hulls(parts, self.scene.space.family), np.array(taking, dtype=np.bool_)
            self.hulls[name] = known
        return known

    def _needed(self, found: list[RuleRef], packets: Packets) -> list[RuleRef]:
        """Leave out rules without which the others still take all the packets."""
        if not 1 < len(found) <= _MAX_PRUNED:
            return found
        takes = {ref: self.taken[ref] & packets for ref in found}
        whole = self.diagrams.union(list(takes.values()))
        for ref in found:
            others = self.diagrams.union([part for other, part in takes.items() if other != ref])
            if others == whole:
                del takes[ref]
        return list(takes)


def _jumps(rule: Rule) -> bool:
    return rule.target.kind in (TargetKind.JUMP, TargetKind.GOTO)
