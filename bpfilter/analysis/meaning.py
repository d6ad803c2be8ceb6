"""The rules' side of the proof: a chain's meaning as a function, composed from its last rule up.

A chain is interpreted against its *continuation*, the function that applies to packets that leave
it by its end or by RETURN. Independent of the compiler's flattening.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from bpfilter.analysis.conditions import (
    NAT_STATES,
    Hook,
    Scene,
    nat_before,
    state_mask,
    static_part,
)
from bpfilter.analysis.diagrams import Diagrams, Packets
from bpfilter.analysis.outcomes import (
    ACCEPTED,
    DROPPED,
    PUNTED,
    Line,
    OutcomeMap,
    Outcomes,
    Trace,
    passing,
)
from bpfilter.compiler.ir import Action, Treatment
from bpfilter.ruleset.fields import Field, MaskedValue, NamePattern, Term
from bpfilter.ruleset.model import Alternatives, Rule, RuleRef, Ruleset


class RulePackets(ABC):
    """A set of packets for every rule, built once."""

    def __init__(self) -> None:
        self._rules: dict[RuleRef, Packets] = {}

    def of(self, rule: Rule) -> Packets:
        found = self._rules.get(rule.ref)
        if found is None:
            found = self._rules[rule.ref] = self._rule(rule)
        return found

    @abstractmethod
    def _rule(self, rule: Rule) -> Packets:
        """The packets of a rule that is asked about for the first time."""


class Conditions(RulePackets):
    """The packets that the static part of each rule matches; equal parts are built once."""

    def __init__(
        self, treatments: Mapping[RuleRef, Treatment], scene: Scene, diagrams: Diagrams
    ) -> None:
        super().__init__()
        self._treatments = treatments
        self._scene = scene
        self._diagrams = diagrams
        self._parts: dict[int, tuple[Alternatives, Packets]] = {}

    @property
    def everything(self) -> Packets:
        """All packets in all states."""
        return self._diagrams.true

    def _rule(self, rule: Rule) -> Packets:
        result = self._diagrams.true
        for part in static_part(rule, self._treatments[rule.ref], self._scene.space):
            result = self._part(part) & result
        if rule.table == "nat":
            result = result.exists(self._diagrams.state_variables)
            result = self._diagrams.states(NAT_STATES) & result
        return result

    def _part(self, part: Alternatives) -> Packets:
        # By identity, with the part kept alive: hashing terms costs more than building them.
        found = self._parts.get(id(part))
        if found is None:
            found = (part, self._alternatives(part))
            self._parts[id(part)] = found
        return found[1]

    def _alternatives(self, part: Alternatives) -> Packets:
        result = self._diagrams.false
        for terms in part:
            conjunction = self._diagrams.true
            for term in terms:
                conjunction = self._term(term) & conjunction
            result = result | conjunction
        return result

    def _term(self, term: Term) -> Packets:
        diagrams = self._diagrams
        constant = self._scene.constant(term)
        if constant is not None:
            return diagrams.true if constant else diagrams.false
        if term.field is Field.STATE:
            return diagrams.states(state_mask(term))
        if isinstance(term.values, MaskedValue):
            packets = diagrams.masked(term.field, term.values)
            return ~packets if term.negated else packets
        if isinstance(term.values, NamePattern):
            return diagrams.values(term.field, self._scene.interface_indices(term))
        return diagrams.values(term.field, term.values)


class Meaning:
    """Composes the rules of one built-in chain, and of the nat chain before it."""

    def __init__(
        self,
        ruleset: Ruleset,
        treatments: Mapping[RuleRef, Treatment],
        hook: Hook,
        conditions: Conditions,
        outcomes: Outcomes,
        diagrams: Diagrams,
    ) -> None:
        self._context = ruleset, treatments, conditions, outcomes, diagrams
        self._treatments = treatments
        self._conditions = conditions
        self._hook = hook
        self._composer = _Composer(*self._context)
        self._outcomes = outcomes
        self._chains = ruleset.tables[hook[0]].chains
        chain = self._chains[hook[1]]
        self.policy = outcomes.constant(DROPPED if chain.policy == "DROP" else ACCEPTED)
        self.rules = chain.rules
        self.nat = nat_before(ruleset, hook, treatments)

    def whole(self) -> OutcomeMap:
        """What becomes of every packet in every state."""
        result = self.part(0, len(self.rules), self.policy)
        return result if self.nat is None else self.before(result)

    def part(self, start: int, stop: int, behind: OutcomeMap) -> OutcomeMap:
        """What rules `start` … `stop` - 1 (from 0) do, given what is behind them."""
        return self._composer.rules(self.rules[start:stop], behind, self.policy)

    def part_behind(
        self,
        via: Sequence[RuleRef],
        start: int,
        stop: int,
        behind: OutcomeMap,
        returning: OutcomeMap,
    ) -> OutcomeMap:
        """As `part`, of the chain that the last of some jumps leads to, for who gets there.

        For all others, and behind these rules, `behind`.
        """
        rules = self._rules_behind(via)[start:stop]
        inside = self._composer.rules(rules, behind, returning)
        return self._outcomes.choose(self._getting(via), inside, behind)

    def jumps_to(self, ref: RuleRef) -> int | None:
        """How many rules the chain has that a rule jumps to; None if it does not jump."""
        treatment = self._treatments[ref]
        if treatment.action is not Action.JUMP or treatment.target is None:
            return None
        return len(self._chains[treatment.target].rules)

    def lines(self, start: int, stop: int, via: Sequence[RuleRef] = ()) -> list[Line] | None:
        """Rules `start` … `stop` - 1 that match a packet and act; None if one is not a line.

        Of the chain that the last of the jumps `via` leads to.
        """
        found: list[Line] = []
        getting = self._getting(via)
        for rule in self._rules_behind(via)[start:stop]:
            treatment = self._treatments[rule.ref]
            if treatment.action is Action.CONTINUE:
                continue
            packets = self._conditions.of(rule) & getting
            if not packets.satisfiable():
                continue
            if treatment.action is Action.ITEM and treatment.item is not None:
                trace = passing(treatment.item)
            elif treatment.action in _FINAL:
                trace = _FINAL[treatment.action]
            else:
                return None
            found.append((packets, trace))
        return found

    def _rules_behind(self, via: Sequence[RuleRef]) -> Sequence[Rule]:
        target = self._treatments[via[-1]].target if via else None
        return self.rules if target is None else self._chains[target].rules

    def _getting(self, via: Sequence[RuleRef]) -> Packets:
        """The packets that all of some jumps match."""
        result = self._conditions.everything
        for ref in via:
            rule = self._chains[ref.chain].rules[ref.number - 1]
            result = self._conditions.of(rule) & result
        return result

    def before(self, behind: OutcomeMap) -> OutcomeMap:
        """What the nat chain's predicate does, given what the filter chain does."""
        assert self.nat is not None
        return _Composer(*self._context, accept=behind).chain(*self.nat, behind)


_FINAL = {Action.ACCEPT: ACCEPTED, Action.DROP: DROPPED, Action.PUNT: PUNTED}


class _Composer:
    """`accept` is the function behind an ACCEPT where that is not the verdict (nat)."""

    def __init__(
        self,
        ruleset: Ruleset,
        treatments: Mapping[RuleRef, Treatment],
        conditions: Conditions,
        outcomes: Outcomes,
        diagrams: Diagrams,
        accept: OutcomeMap | None = None,
    ) -> None:
        self._ruleset = ruleset
        self._treatments = treatments
        self._conditions = conditions
        self._outcomes = outcomes
        self._diagrams = diagrams
        self._final = {action: outcomes.constant(trace) for action, trace in _FINAL.items()}
        if accept is not None:
            self._final[Action.ACCEPT] = accept
        self._done: dict[tuple[str, OutcomeMap], OutcomeMap] = {}

    def chain(self, table: str, name: str, continuation: OutcomeMap) -> OutcomeMap:
        """The function of a chain that goes on with `continuation` when it returns."""
        key = (name, continuation)
        found = self._done.get(key)
        if found is None:
            rules = self._ruleset.tables[table].chains[name].rules
            found = self._done[key] = self.rules(rules, continuation, continuation)
        return found

    def rules(
        self, rules: Sequence[Rule], behind: OutcomeMap, continuation: OutcomeMap
    ) -> OutcomeMap:
        """The function of some rules of a chain; RETURN and goto leave it for `continuation`."""
        for rule in reversed(rules):
            self._diagrams.check_time()
            behind = self._rule(rule, behind, continuation)
        return behind

    def _rule(self, rule: Rule, behind: OutcomeMap, continuation: OutcomeMap) -> OutcomeMap:
        treatment = self._treatments[rule.ref]
        action = treatment.action
        if action is Action.CONTINUE:
            return behind
        packets = self._conditions.of(rule)
        if not packets.satisfiable():
            return behind
        choose = self._outcomes.choose
        if action is Action.ITEM:
            assert treatment.item is not None
            if treatment.item.terminal:
                return choose(
                    packets, self._outcomes.constant(Trace((treatment.item,), None)), behind
                )
            return self._outcomes.prepend(treatment.item, packets, behind)
        if action in (Action.JUMP, Action.GOTO):
            assert treatment.target is not None
            then = continuation if action is Action.GOTO else behind
            return choose(packets, self.chain(rule.table, treatment.target, then), behind)
        if action is Action.RETURN:
            return choose(packets, continuation, behind)
        return choose(packets, self._final[action], behind)
