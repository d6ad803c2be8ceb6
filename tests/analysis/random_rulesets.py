"""Hypothesis strategies for small rulesets over all static fields, and packets at their edges."""

from __future__ import annotations

from hypothesis import strategies as st

from bpfilter.ruleset.fields import (
    Family,
    Field,
    Intervals,
    MaskedValue,
    NamePattern,
    Term,
    field_bits,
)
from bpfilter.ruleset.model import (
    BUILTIN_CHAINS,
    Chain,
    Match,
    Rule,
    Ruleset,
    StateEffect,
    Table,
    Target,
    TargetKind,
)

NUMERIC = (
    Field.SOURCE,
    Field.DESTINATION,
    Field.PROTOCOL,
    Field.SOURCE_PORT,
    Field.DESTINATION_PORT,
    Field.TCP_FLAGS,
    Field.ICMP_TYPE,
    Field.LENGTH,
    Field.TTL,
    Field.TOS,
    Field.MAC_SOURCE,
    Field.PACKET_TYPE,
    Field.DESTINATION_TYPE,
)
NAMES = ("eth0", "eth1", "eth+", "e+", "lo", "+")
USER = ("one", "two", "three")
TYPES = 12
"""Address types are 0 … 11."""


def values(field: Field, family: Family) -> st.SearchStrategy[Intervals]:
    """Few ranges with few distinct edges, so that sets of different rules meet."""
    top = TYPES - 1 if field is Field.DESTINATION_TYPE else (1 << field_bits(field, family)) - 1
    edge = st.integers(0, 6).map(lambda step: step * top // 6)
    if field is Field.MAC_SOURCE:
        return st.tuples(edge, st.booleans()).map(_one_or_all_others)
    pair = st.tuples(edge, edge).map(sorted)
    return st.lists(pair, min_size=1, max_size=3).map(
        lambda pairs: Intervals.of((low, high) for low, high in pairs)
    )


def _one_or_all_others(choice: tuple[int, bool]) -> Intervals:
    """MAC addresses are tested one by one, as `--mac-source` does."""
    single = Intervals.single(choice[0])
    return single.complement(48) if choice[1] else single


@st.composite
def terms(draw: st.DrawFn, family: Family) -> Term:
    kind = draw(st.sampled_from(("number", "number", "number", "state", "name", "mask")))
    if kind == "state":
        bits = draw(st.sets(st.integers(0, 4), min_size=1, max_size=4))
        return Term(Field.STATE, Intervals.of((bit, bit) for bit in bits))
    if kind == "name":
        field = draw(st.sampled_from((Field.IN_INTERFACE, Field.OUT_INTERFACE)))
        return Term(field, NamePattern(draw(st.sampled_from(NAMES))), draw(st.booleans()))
    if kind == "mask":
        mask = draw(st.sampled_from((0x0F0000F0, 0x00FF00FF)))
        value = draw(st.sampled_from((0, 0x00000010, 0x000F0001))) & mask
        field = draw(st.sampled_from((Field.SOURCE, Field.DESTINATION)))
        return Term(field, MaskedValue(mask, value), draw(st.booleans()))
    field = draw(st.sampled_from(NUMERIC))
    return Term(field, draw(values(field, family)))


@st.composite
def matches(draw: st.DrawFn, family: Family) -> Match:
    if draw(st.integers(0, 9)) == 0:
        effect = draw(st.sampled_from(list(StateEffect)))
        return Match("string", ("string",), None, effect=effect)
    first = draw(st.lists(terms(family), min_size=1, max_size=2))
    if draw(st.integers(0, 4)) or first[0].negated or not isinstance(first[0].values, Intervals):
        return Match("plain", ("plain",), (tuple(first),))
    return Match("either", ("either",), (tuple(first), (_outside(first[0], family),)))


def _outside(term: Term, family: Family) -> Term:
    """A term that excludes the given one: alternatives of a match exclude each other."""
    assert isinstance(term.values, Intervals)
    bits = field_bits(term.field, family)
    return Term(term.field, term.values.complement(bits))


def targets(callees: tuple[str, ...]) -> st.SearchStrategy[Target]:
    plain = [
        Target(TargetKind.VERDICT, name, ("-j", name)) for name in ("ACCEPT", "DROP", "RETURN")
    ]
    log = Target(TargetKind.EXTENSION, "LOG", ("-j", "LOG"))
    reject = Target(
        TargetKind.EXTENSION,
        "REJECT",
        ("-j", "REJECT"),
        terminal=True,
        verdicts=frozenset({"DROP"}),
    )
    jumps = [Target(TargetKind.JUMP, name, ("-j", name)) for name in callees]
    gotos = [Target(TargetKind.GOTO, name, ("-g", name)) for name in callees]
    none = Target(TargetKind.NONE, "", ())
    return st.sampled_from([*plain, *plain, *jumps, *jumps, *gotos, log, reject, none])


@st.composite
def chains(
    draw: st.DrawFn, table: str, name: str, callees: tuple[str, ...], family: Family
) -> Chain:
    size = draw(st.integers(0, 5))
    rules = [
        Rule(
            table,
            name,
            number,
            number,
            tuple(draw(st.lists(matches(family), max_size=2))),
            draw(targets(callees)),
        )
        for number in range(1, size + 1)
    ]
    builtin = any(name in names for names in BUILTIN_CHAINS.values())
    policy = draw(st.sampled_from(("ACCEPT", "DROP"))) if builtin else None
    return Chain(name, policy, tuple(rules))


@st.composite
def rulesets(draw: st.DrawFn, builtin: str, table: str = "filter") -> Ruleset:
    """A ruleset with one built-in chain, three user chains, and sometimes a nat chain."""
    family = draw(st.sampled_from(list(Family)))
    made = [draw(chains(table, builtin, USER, family))]
    made += [draw(chains(table, name, USER[i + 1 :], family)) for i, name in enumerate(USER)]
    tables = {table: Table(table, {chain.name: chain for chain in made})}
    if draw(st.integers(0, 3)) == 0:
        before = "OUTPUT" if builtin == "OUTPUT" else "PREROUTING"
        nat = draw(nat_chains(before, family))
        tables["nat"] = Table("nat", {nat.name: nat})
    return Ruleset(family, None, tables)


@st.composite
def nat_chains(draw: st.DrawFn, name: str, family: Family) -> Chain:
    dnat = Target(
        TargetKind.EXTENSION, "DNAT", ("-j", "DNAT"), terminal=True, alters=frozenset({"address"})
    )
    accept = Target(TargetKind.VERDICT, "ACCEPT", ("-j", "ACCEPT"))
    rules = [
        Rule(
            "nat",
            name,
            number,
            number,
            tuple(draw(st.lists(matches(family), max_size=2))),
            draw(st.sampled_from((dnat, accept))),
        )
        for number in range(1, draw(st.integers(1, 3)) + 1)
    ]
    return Chain(name, "ACCEPT", tuple(rules))


@st.composite
def packets(draw: st.DrawFn, family: Family, interfaces: int) -> dict[Field, int]:
    """A packet whose values lie on or next to the edges that `values` uses."""
    packet = {}
    for field in NUMERIC:
        types = field is Field.DESTINATION_TYPE
        top = TYPES - 1 if types else (1 << field_bits(field, family)) - 1
        step, off = draw(st.integers(0, 6)), draw(st.integers(-1, 1))
        packet[field] = min(max(step * top // 6 + off, 0), top)
    packet[Field.IN_INTERFACE] = draw(st.integers(0, interfaces - 1))
    packet[Field.OUT_INTERFACE] = draw(st.integers(0, interfaces - 1))
    return packet
