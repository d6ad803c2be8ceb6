"""The static part of a rule, taken straight from its parsed matches.

Shared by the interpreter, the equivalence proof and reachability. Nothing here uses the compiler's
guards: of a `Treatment` only its action, target, item and number of static matches are believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bpfilter.compiler.ir import Space, Treatment
from bpfilter.errors import ProofFailed
from bpfilter.ruleset.fields import (
    ALL_STATES,
    Field,
    Intervals,
    MaskedValue,
    NamePattern,
    State,
    Term,
)
from bpfilter.ruleset.model import Alternatives, Rule, RuleRef, Ruleset, Table

Hook = tuple[str, str]
"""A built-in chain: (table, chain)."""

NAT_BEFORE: Mapping[Hook, Hook] = {
    ("filter", "INPUT"): ("nat", "PREROUTING"),
    ("filter", "FORWARD"): ("nat", "PREROUTING"),
    ("filter", "OUTPUT"): ("nat", "OUTPUT"),
}
"""The nat chain that has translated packets already when the hook sees them."""

NAT_STATES = int(State.NEW | State.RELATED)
"""States in which the nat table's rules are consulted (nf_nat_inet_fn, nf_nat_core.c)."""

_MISSING = {
    "INPUT": Field.OUT_INTERFACE,
    "PREROUTING": Field.OUT_INTERFACE,
    "OUTPUT": Field.IN_INTERFACE,
}
_OTHER = "\x01"
"""Stands for the rest of a name that no pattern spells out."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What terms mean in one built-in chain.

    `names`: a concrete interface name for every index of `Space.interfaces`. `missing`: the
    interface that the hook does not have (iptables compares with an empty name). `states`: the
    connection states that exist there: raw runs before conntrack, where `-m conntrack` sees
    INVALID (net/netfilter/xt_conntrack.c). `fragments`: second and further fragments count as
    packets (the tables never see them).
    """

    hook: Hook
    space: Space
    names: tuple[str, ...]
    missing: Field | None
    states: int
    fragments: bool = False

    @classmethod
    def of(cls, hook: Hook, space: Space) -> Scene:
        names = tuple(
            text[:-1] + _OTHER if text.endswith("+") else text or _OTHER
            for text in space.interfaces
        )
        states = int(State.INVALID) if hook[0] == "raw" else ALL_STATES
        return cls(hook, space, names, _MISSING.get(hook[1]), states)

    def constant(self, term: Term) -> bool | None:
        """The truth of a term that is the same for all packets of this chain, else None."""
        if term.field is Field.FRAGMENT and not self.fragments:
            assert isinstance(term.values, Intervals)
            return 0 in term.values
        if term.field is self.missing:
            assert isinstance(term.values, NamePattern)
            return term.values.matches("") != term.negated
        if term.field is Field.STATE and self.states != ALL_STATES:
            return bool(state_mask(term) & self.states)
        return None

    def interface_indices(self, term: Term) -> Intervals:
        """The indices of interface names for which a term on an interface holds.

        Raises ProofFailed for a pattern that the space does not know: its names are not told apart.
        """
        assert isinstance(term.values, NamePattern)
        pattern = term.values
        if pattern.text not in (*self.space.interfaces, "+"):
            raise ProofFailed(
                f"the compiled tables do not tell names like {pattern.text} apart",
                hint="this is a defect of bpfilter: please report it with the ruleset",
            )
        chosen = (i for i, name in enumerate(self.names) if pattern.matches(name) != term.negated)
        return Intervals.of((i, i) for i in chosen)

    def holds(self, term: Term, packet: Mapping[Field, int], state: int) -> bool:
        """Whether a term holds for a packet (absent fields are 0) in a state (one bit)."""
        constant = self.constant(term)
        if constant is not None:
            return constant
        if term.field is Field.STATE:
            return bool(state_mask(term) & state)
        value = packet.get(term.field, 0)
        if isinstance(term.values, MaskedValue):
            return (value & term.values.mask == term.values.value) != term.negated
        if isinstance(term.values, NamePattern):
            return value in self.interface_indices(term)
        return value in term.values


def state_mask(term: Term) -> int:
    """The bits of `State` that a STATE term allows; its values are bit numbers."""
    assert isinstance(term.values, Intervals)
    return sum(1 << bit for bit in range(5) if bit in term.values)


def static_part(rule: Rule, treatment: Treatment, space: Space) -> tuple[Alternatives, ...]:
    """The conjunction of alternatives that decides whether a rule's static part matches.

    For rules of the nat table: all static matches (of which a mask that the space cannot express
    is none), to be read as "in some connection state": the predicate "may be translated" must
    hold for every state and never rely on a dynamic match.
    """
    if rule.table == "nat":
        parts = (match.alternatives for match in rule.matches)
        return tuple(part for part in parts if part is not None and _expressible(part, space))
    matches = rule.matches[: treatment.static_matches]
    return tuple(m.alternatives if m.alternatives is not None else () for m in matches)


def _expressible(part: Alternatives, space: Space) -> bool:
    return all(
        not isinstance(term.values, MaskedValue) or (term.field, term.values) in space.masks
        for term in terms_of((part,))
    )


def certain(rule: Rule, treatment: Treatment) -> bool:
    """Whether the static part is all there is to the rule's matches."""
    return treatment.static_matches == len(rule.matches)


def terms_of(parts: tuple[Alternatives, ...]) -> Iterator[Term]:
    for alternatives in parts:
        for terms in alternatives:
            yield from terms


def table_of(ruleset: Ruleset, hook: Hook) -> Table:
    return ruleset.tables[hook[0]]


def nat_before(
    ruleset: Ruleset, hook: Hook, treatments: Mapping[RuleRef, Treatment]
) -> Hook | None:
    """The nat chain with rules that may have translated this hook's packets, if there is one."""
    nat = NAT_BEFORE.get(hook)
    if nat is None or nat[0] not in ruleset.tables or nat[1] not in ruleset.tables[nat[0]].chains:
        return None
    rules = ruleset.tables[nat[0]].chains[nat[1]].rules
    return nat if any(rule.ref in treatments for rule in rules) else None
