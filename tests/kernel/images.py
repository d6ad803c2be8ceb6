"""Images of hand-made and random chains, and the answer that plain Python gives."""

from __future__ import annotations

import random
from collections.abc import Iterable

from bpfilter.compiler.axes import axis_size
from bpfilter.compiler.ir import Entry, FlatChain, Function, Item, ItemKind, OpKind, Space
from bpfilter.compiler.layout import AXES, Outcome
from bpfilter.compiler.plan import ChainPlan, Code, Image, Slot
from bpfilter.compiler.tables import build_tables
from bpfilter.compiler.transitions import build_transitions, outcome_of
from bpfilter.compiler.walk import Packet, function_of, walk
from bpfilter.ruleset.fields import ALL_STATES, Family, Field, Intervals, MaskedValue
from bpfilter.ruleset.model import RuleRef


def slot_of(flat: FlatChain, codes: dict[Function, int]) -> Slot:
    plan = ChainPlan(flat.table, flat.chain, {}, flat, build_tables(flat), tuple(codes))
    return Slot(plan, build_transitions(flat, codes))


def image_of(*chains: FlatChain, codes: Iterable[dict[Function, int]] = ()) -> Image:
    """An image of chains with the given codes; without, all walks without items get codes."""
    given = list(codes) or [simple_codes(flat) for flat in chains]
    slots = tuple(slot_of(flat, own) for flat, own in zip(chains, given, strict=True))
    numbers = tuple(
        Code(number, flat.family, flat.table, flat.chain, function)
        for flat, own in zip(chains, given, strict=True)
        for function, number in own.items()
    )
    return Image(slots, numbers)


def simple_codes(flat: FlatChain) -> dict[Function, int]:
    """Codes of the functions that give one verdict in every state."""
    from bpfilter.compiler.ir import Verdict, Walk

    return {
        Function(tuple((mask, Walk((), verdict)) for mask in flat.state_classes())): number
        for number, verdict in ((1, Verdict.ACCEPT), (2, Verdict.DROP))
    }


def chain(
    *entries: tuple[dict[Field, Intervals], OpKind],
    family: Family = Family.IPV4,
    policy: OpKind = OpKind.DROP,
    name: str = "INPUT",
    interfaces: tuple[str, ...] = ("",),
) -> FlatChain:
    """A chain of static entries for all states, then its policy."""
    listed = [
        Entry(box, ALL_STATES, kind, 0, RuleRef("filter", name, number))
        for number, (box, kind) in enumerate(entries, 1)
    ]
    last = Entry({}, ALL_STATES, policy, 0, RuleRef("filter", name, 0))
    return FlatChain("filter", name, Space(family, interfaces), (*listed, last), ())


def expected(flat: FlatChain, packet: Packet) -> tuple[Function, tuple[int, ...]]:
    """The packet's function, and the final entry for each class of states."""
    final = tuple(walk(flat, packet, mask & -mask)[1] for mask in flat.state_classes())
    return function_of(flat, packet), final


class RandomChains:
    """Random chains over every field, their packets, and the packets' functions as codes."""

    def __init__(self, seed: int, family: Family, name: str = "INPUT") -> None:
        self.random = random.Random(seed)
        self.family = family
        self.name = name
        self.space = Space(
            family,
            ("", "eth0", "eth1", "wg+"),
            (
                (Field.SOURCE, MaskedValue(0xFF, 7)),
                (Field.DESTINATION, MaskedValue(0xF000000F, 0x10000001)),
            ),
        )

    def chain(self, count: int) -> FlatChain:
        rng = self.random
        items = tuple(
            Item(
                RuleRef("filter", self.name, number), ItemKind.RULE, number % 3 == 0,
                frozenset({"DROP"}) if number % 3 == 0 else frozenset(), "limit",
            )
            for number in range(1, 5)
        )  # fmt: skip
        fields = rng.sample(AXES, rng.choice((2, 4, 7, len(AXES))))
        pool = {field: [self.values(field) for _ in range(4)] for field in fields}
        entries = []
        for number in range(count):
            kinds = (OpKind.ACCEPT, OpKind.DROP, OpKind.SKIP, OpKind.ITEM, OpKind.PUNT)
            kind = rng.choices(kinds, (4, 4, 2, 1, 1))[0]
            argument = 0
            if kind is OpKind.SKIP:
                argument = rng.choice((rng.randrange(number + 1, count + 1), number + 1))
            elif kind is OpKind.ITEM:
                argument = rng.randrange(len(items))
            box = {
                field: rng.choice(pool[field]) if rng.random() < 0.8 else self.values(field)
                for field in rng.sample(fields, min(rng.choice((1, 2, 2, 3)), len(fields)))
            }
            states = rng.choice((ALL_STATES, ALL_STATES, ALL_STATES, 6, 1, 9))
            ref = RuleRef("filter", self.name, number + 1)
            entries.append(Entry(box, states, kind, argument, ref))
        policy = rng.choice((OpKind.ACCEPT, OpKind.DROP))
        last = Entry({}, ALL_STATES, policy, 0, RuleRef("filter", self.name, 0))
        return FlatChain("filter", self.name, self.space, (*entries, last), items)

    def values(self, field: Field) -> Intervals:
        rng, size = self.random, axis_size(field, self.space)
        if field is Field.PROTOCOL and rng.random() < 0.8:
            return Intervals.single(rng.choice((1, 6, 17, 58, 132)))
        if field is Field.MAC_SOURCE:
            return Intervals.single(rng.choice((0x020000000001, 0x020000000002)))
        value = rng.randrange(min(size, 3000) if field is Field.LENGTH else size)
        if rng.random() < 0.5:
            return Intervals.single(value)
        if rng.random() < 0.3:
            return Intervals.single(value).complement(size.bit_length() - 1)
        width = rng.randrange(size.bit_length())
        return Intervals.single(value >> width << width, min(value | (1 << width) - 1, size - 1))

    def packet(self, flat: FlatChain) -> dict[Field, int]:
        rng = self.random
        packet = {field: rng.randrange(axis_size(field, flat.space)) for field in AXES}
        packet[Field.FRAGMENT] = 0
        packet[Field.PROTOCOL] = rng.choice(
            (1, 6, 17, 58, 132, 33, 136, 47, packet[Field.PROTOCOL])
        )
        packet[Field.MAC_SOURCE] = rng.choice((0x020000000001, 0x020000000002, 0x020000000003))
        for entry in rng.sample(flat.entries, min(4, len(flat.entries))):
            for field, values in entry.box.items():
                bound = rng.choice(rng.choice(values.ranges)) + rng.choice((-1, 0, 0, 0, 1))
                packet[field] = min(max(bound, 0), axis_size(field, flat.space) - 1)
        return packet


def outcome_names(functions: Iterable[Function]) -> set[Outcome]:
    return {outcome_of(function) for function in functions}
