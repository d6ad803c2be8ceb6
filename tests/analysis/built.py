"""Rulesets built as values, for tests that should not depend on the reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bpfilter.ruleset.fields import Family, Field, Intervals, MaskedValue, NamePattern, Term
from bpfilter.ruleset.model import (
    Alternatives,
    Chain,
    Match,
    Rule,
    Ruleset,
    StateEffect,
    Table,
    Target,
    TargetKind,
)

TCP, UDP = 6, 17


def term(field: Field, low: int, high: int | None = None) -> Term:
    return Term(field, Intervals.single(low, high))


def match(*terms: Term, name: str = "header") -> Match:
    return Match(name, (name,), (terms,), header=name == "header")


def either(*alternatives: Sequence[Term]) -> Match:
    return Match("either", ("either",), tuple(tuple(terms) for terms in alternatives))


def prefix(field: Field, address: int, length: int, bits: int = 32) -> Match:
    low = address >> (bits - length) << (bits - length)
    return match(term(field, low, low | ((1 << (bits - length)) - 1)))


def masked(field: Field, mask: int, value: int, negated: bool = False) -> Match:
    return Match("mask", ("mask",), ((Term(field, MaskedValue(mask, value), negated),),))


def interface(name: str, field: Field = Field.IN_INTERFACE, negated: bool = False) -> Match:
    return Match("in", ("-i", name), ((Term(field, NamePattern(name), negated),),), header=True)


def protocol(number: int) -> Match:
    return match(term(Field.PROTOCOL, number))


def port(low: int, high: int | None = None, field: Field = Field.DESTINATION_PORT) -> Match:
    return match(term(field, low, high), name="tcp")


def state(*bits: int) -> Match:
    values = Intervals.of((bit, bit) for bit in bits)
    return match(Term(Field.STATE, values), name="conntrack")


def dynamic(effect: StateEffect = StateEffect.NONE, name: str = "string") -> Match:
    return Match(name, (name,), None, effect=effect)


def verdict(name: str) -> Target:
    return Target(TargetKind.VERDICT, name, ("-j", name))


def jump(chain: str) -> Target:
    return Target(TargetKind.JUMP, chain, ("-j", chain))


def goto(chain: str) -> Target:
    return Target(TargetKind.GOTO, chain, ("-g", chain))


ACCEPT, DROP, RETURN = verdict("ACCEPT"), verdict("DROP"), verdict("RETURN")
LOG = Target(TargetKind.EXTENSION, "LOG", ("-j", "LOG"))
REJECT = Target(
    TargetKind.EXTENSION, "REJECT", ("-j", "REJECT"), terminal=True, verdicts=frozenset({"DROP"})
)
COUNT = Target(TargetKind.NONE, "", ())

Line = tuple[Sequence[Match], Target]


def chain(
    name: str, lines: Iterable[Line], policy: str | None = None, table: str = "filter"
) -> Chain:
    rules = tuple(
        Rule(table, name, number, number, tuple(matches), target)
        for number, (matches, target) in enumerate(lines, 1)
    )
    return Chain(name, policy, rules)


def ruleset(
    *chains: Chain,
    family: Family = Family.IPV4,
    nat: Sequence[Chain] = (),
    table: str = "filter",
) -> Ruleset:
    tables = {table: Table(table, {c.name: c for c in chains})}
    if nat:
        tables["nat"] = Table("nat", {c.name: c for c in nat})
    return Ruleset(family, None, tables)


ALWAYS: Alternatives = ((),)
