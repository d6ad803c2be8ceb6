"""What a built-in chain's hook sees: the chains in reach, and what other rules do to packets first.

Sources: the hook order of include/uapi/linux/netfilter_ipv4.h (raw, conntrack, mangle, nat,
filter), net/ipv4/netfilter/ip_tables.c for interface names a hook does not have.
"""

from __future__ import annotations

from collections.abc import Iterator

from bpfilter.compiler.ir import Space
from bpfilter.errors import CompileError
from bpfilter.ruleset.fields import Field, MaskedValue, NamePattern, Term
from bpfilter.ruleset.model import Chain, Match, Rule, Ruleset, Table, TargetKind

MAX_MASKS = 8
"""How many masks that are not prefixes a chain may test; further ones are left to residuals."""

EARLIER: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("filter", "INPUT"): (("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "INPUT")),
    ("filter", "FORWARD"): (("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "FORWARD")),
    ("filter", "OUTPUT"): (("raw", "OUTPUT"), ("mangle", "OUTPUT")),
    ("raw", "PREROUTING"): (),
    ("mangle", "PREROUTING"): (("raw", "PREROUTING"),),
    ("mangle", "INPUT"): (("raw", "PREROUTING"), ("mangle", "PREROUTING")),
    ("mangle", "FORWARD"): (("raw", "PREROUTING"), ("mangle", "PREROUTING")),
}
"""Chains that a packet traverses between the BPF hook and the chain we take over."""

TRANSLATING: dict[tuple[str, str], tuple[str, str] | None] = {
    ("filter", "INPUT"): ("nat", "PREROUTING"),
    ("filter", "FORWARD"): ("nat", "PREROUTING"),
    ("filter", "OUTPUT"): ("nat", "OUTPUT"),
    ("raw", "PREROUTING"): None,
    ("mangle", "PREROUTING"): None,
    ("mangle", "INPUT"): ("nat", "PREROUTING"),
    ("mangle", "FORWARD"): ("nat", "PREROUTING"),
}
"""The nat chain whose translation the filter hook already sees."""

ABSENT_INTERFACE: dict[str, Field] = {
    "INPUT": Field.OUT_INTERFACE,
    "PREROUTING": Field.OUT_INTERFACE,
    "OUTPUT": Field.IN_INTERFACE,
}
"""The interface that a hook does not have; iptables compares against an empty name there."""

_ALTERED: dict[str, frozenset[Field]] = {
    "ttl": frozenset({Field.TTL}),
    "tos": frozenset({Field.TOS}),
    "length": frozenset({Field.LENGTH}),
    "all": frozenset(Field) - {Field.STATE},
}


def closure(table: Table, chain: str) -> tuple[Chain, ...]:
    """The chain and every user chain that it can reach, each once, in order of first mention."""
    seen: dict[str, Chain] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise CompileError(
                f"chain {name} jumps back to itself ({' → '.join((*path, name))})",
                hint="iptables refuses such a loop when the rules are loaded: break it",
            )
        if name in seen or name not in table.chains:
            return
        seen[name] = table.chains[name]
        for rule in table.chains[name].rules:
            if rule.target.kind in (TargetKind.JUMP, TargetKind.GOTO):
                visit(rule.target.name, (*path, name))

    visit(chain, ())
    return tuple(seen.values())


def closure_rules(ruleset: Ruleset, table: str, chain: str) -> Iterator[Rule]:
    """All rules that packets of a built-in chain may meet; none if the chain does not exist."""
    if table in ruleset.tables and chain in ruleset.tables[table].chains:
        for reached in closure(ruleset.tables[table], chain):
            yield from reached.rules


def altered_fields(ruleset: Ruleset, table: str, chain: str) -> frozenset[Field]:
    """Fields whose value at the filter hook need not be the one that the BPF program saw."""
    altered: set[Field] = set()
    for hook in (*EARLIER[(table, chain)], (table, chain)):
        for rule in closure_rules(ruleset, *hook):
            for what in rule.target.alters:
                altered |= _ALTERED.get(what, frozenset())
    return frozenset(altered)


def terms(rules: Iterator[Rule]) -> Iterator[Term]:
    for rule in rules:
        for match in rule.matches:
            for conjunction in match.alternatives or ():
                yield from conjunction


def space_of(ruleset: Ruleset, hooks: tuple[tuple[str, str], ...]) -> Space:
    """The interface name classes and masks that the rules of these chains can tell apart."""
    names: dict[str, None] = {"": None}
    masks: dict[tuple[Field, MaskedValue], None] = {}
    for hook in hooks:
        for term in terms(closure_rules(ruleset, *hook)):
            if isinstance(term.values, NamePattern) and term.values.text != "+":
                names[term.values.text] = None
            elif isinstance(term.values, MaskedValue) and len(masks) < MAX_MASKS:
                masks[(term.field, term.values)] = None
    return Space(ruleset.family, tuple(names), tuple(masks))


def pattern_matches(pattern: NamePattern, representative: str) -> bool:
    """Whether all names of a class match; representatives are those of `Space.interfaces`."""
    if pattern.text.endswith("+"):
        return representative.removesuffix("+").startswith(pattern.text[:-1])
    return pattern.text == representative


def unresolved(match: Match, space: Space) -> bool:
    """Whether a static match uses a mask for which the space has no bit left."""
    return any(
        isinstance(term.values, MaskedValue) and (term.field, term.values) not in space.masks
        for conjunction in match.alternatives or ()
        for term in conjunction
    )
