"""Which rules can no packet reach, and which rules shadow them?

About the rules as iptables runs them: a match that is not static may hold or not, so only what is
certain takes packets away, and fragments, which the tables never see, count as packets here. A
rule is never called unreachable if some packet can reach it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from bpfilter.analysis.conditions import Scene, certain, terms_of
from bpfilter.analysis.diagrams import Diagrams, Packets
from bpfilter.analysis.meaning import Conditions, RulePackets
from bpfilter.analysis.shadows import Shadows
from bpfilter.compiler.ir import Treatment
from bpfilter.ruleset.fields import ALL_STATES, Field, Intervals
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
    # In raw a rule before may make a packet untracked, or give it a template: any state may come.
    wide = replace(scene, fragments=True, states=ALL_STATES)
    held = Held(conditions, Conditions(treatments, wide, diagrams), diagrams, table == "raw")
    return Reach(scene, ruleset.tables[table].chains, treatments, held, diagrams).run(chain)


_MAX_NODES = 20_000
"""Nodes of the packets under way, up to which what reaches a rule is followed exactly."""
_CHECKED_EVERY = 64
_LAYER_4 = frozenset({"tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmp6", "multiport"})
"""Matches that no second or further fragment satisfies (`par->fragoff != 0` in xt_tcpudp.c,
xt_sctp.c, xt_dccp.c, xt_multiport.c, ip_tables.c)."""


class Held(RulePackets):
    """The packets, fragments among them, that the static part of a rule matches."""

    def __init__(
        self, conditions: Conditions, wide: Conditions, diagrams: Diagrams, raw: bool
    ) -> None:
        super().__init__()
        self._conditions = conditions
        self._wide = wide
        self._diagrams = diagrams
        self._whole = diagrams.values(Field.FRAGMENT, Intervals.single(0))
        self._raw = raw

    def unsure(self, rule: Rule) -> bool:
        """Whether a rule need not match all the packets that it may match."""
        return self._raw and _tests(rule, Field.STATE)

    def _rule(self, rule: Rule) -> Packets:
        if self.unsure(rule):
            return self._wide.of(rule).exists(self._diagrams.state_variables)
        if any(match.name in _LAYER_4 for match in rule.matches):
            return self._whole & self._conditions.of(rule)
        return (self._wide if _tests(rule, Field.FRAGMENT) else self._conditions).of(rule)


def _tests(rule: Rule, name: Field) -> bool:
    parts = tuple(match.alternatives or () for match in rule.matches)
    return any(term.field is name for term in terms_of(parts))


@dataclass(slots=True)
class Reach:
    scene: Scene
    chains: Mapping[str, Chain]
    treatments: Mapping[RuleRef, Treatment]
    held: Held
    diagrams: Diagrams
    returning: dict[str, Packets] = field(default_factory=dict)
    arriving: dict[str, Packets] = field(default_factory=dict)
    callers: dict[str, list[Rule]] = field(default_factory=dict)
    taken: dict[RuleRef, Packets] = field(default_factory=dict)

    def run(self, root: str) -> Unreachable:
        order = list(self._order(root, set()))
        for name in order[:-1]:
            self.returning[name] = self._returning(self.chains[name])
        self.arriving = dict.fromkeys(order, self.diagrams.false)
        self.arriving[root] = self.diagrams.valid
        shadows = Shadows(self)
        missed: list[Rule] = []
        for name in reversed(order):
            missed += self._pass(self.chains[name], shadows)
        return {rule.ref: shadows.of(rule) for rule in missed}

    def _order(self, name: str, seen: set[str]) -> Iterator[str]:
        """Callees before callers."""
        seen.add(name)
        for rule in self.chains[name].rules:
            if is_jump(rule):
                self.callers.setdefault(rule.target.name, []).append(rule)
                if rule.target.name not in seen:
                    yield from self._order(rule.target.name, seen)
        yield name

    def takes(self, rule: Rule) -> Packets:
        """Packets that certainly do not go on behind a rule within its chain."""
        found = self.taken.get(rule.ref)
        if found is None:
            found = self._certain_end(rule)
            self.taken[rule.ref] = found
        return found

    def _certain_end(self, rule: Rule) -> Packets:
        target = rule.target
        if not certain(rule, self.treatments[rule.ref]) or self.held.unsure(rule):
            return self.diagrams.false
        held = self.held.of(rule)
        if target.kind is TargetKind.JUMP:
            return self.returning[target.name].imp_strict(held)
        if target.kind in (TargetKind.VERDICT, TargetKind.GOTO) or target.terminal:
            return held
        return self.diagrams.false

    def _returning(self, chain: Chain) -> Packets:
        """Packets that may come back from a chain, if they all enter it."""
        live, returned = _Live(self.diagrams.true), []
        for rule in chain.rules:
            self.diagrams.check_time()
            target = rule.target
            if target.kind is TargetKind.VERDICT and target.name == "RETURN":
                returned.append(live.packets & self.held.of(rule))
            elif target.kind is TargetKind.GOTO:
                back = self.returning[target.name]
                returned.append(live.packets & self.held.of(rule) & back)
            live.subtract(self.takes(rule))
        return self.diagrams.union([live.packets, *returned])

    def _pass(self, chain: Chain, shadows: Shadows) -> list[Rule]:
        """Carry the packets that arrive at a chain through it; the rules that none reaches."""
        missed = []
        live = _Live(self.arriving[chain.name])
        for rule in chain.rules:
            self.diagrams.check_time()
            before = live.packets
            known = live.subtract(self.takes(rule))
            jumps = is_jump(rule)
            if known and live.packets != before and not jumps:
                continue
            held = self.held.of(rule) & (before if known or jumps else self.diagrams.valid)
            if not held.satisfiable() or (not known and shadows.cover(rule, held)):
                missed.append(rule)
            elif jumps:
                self.arriving[rule.target.name] |= held
        return missed


class _Live:
    """The packets that are still under way in a chain, or more once they grow too complicated."""

    def __init__(self, packets: Packets) -> None:
        self.packets = packets
        self._count = 0
        self._exact = True

    def subtract(self, packets: Packets) -> bool:
        """Take packets away; false if that was left out, now or before."""
        if self._exact and self._count % _CHECKED_EVERY == 0:
            self._exact = self.packets.node_count() <= _MAX_NODES
        self._count += 1
        if self._exact:
            self.packets = packets.imp_strict(self.packets)
        return self._exact


def is_jump(rule: Rule) -> bool:
    return rule.target.kind in (TargetKind.JUMP, TargetKind.GOTO)
