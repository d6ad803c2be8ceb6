"""Random flat chains and packets for the tests of the compiler's later passes."""

from __future__ import annotations

import random

from bpfilter.compiler.axes import axis_size
from bpfilter.compiler.ir import (
    Entry,
    FlatChain,
    Item,
    ItemKind,
    OpKind,
    Space,
)
from bpfilter.compiler.layout import AXES
from bpfilter.ruleset.fields import ALL_STATES, Family, Field, Intervals, MaskedValue
from bpfilter.ruleset.model import RuleRef

POLICY = RuleRef("filter", "INPUT", 0)
MACS = 1 << 48


def space_of(family: Family) -> Space:
    return Space(
        family,
        interfaces=("", "eth0", "eth1", "wg+"),
        masks=((Field.SOURCE, MaskedValue(0xFF, 7)), (Field.DESTINATION, MaskedValue(0x101, 1))),
    )


def item(number: int, terminal: bool = False) -> Item:
    return Item(
        RuleRef("filter", "INPUT", number),
        ItemKind.RULE,
        terminal,
        frozenset({"DROP"}) if terminal else frozenset(),
        "limit",
    )


def chain_of(
    entries: list[Entry],
    items: tuple[Item, ...] = (),
    space: Space | None = None,
    policy: OpKind = OpKind.DROP,
) -> FlatChain:
    """A filter INPUT chain that ends in its policy."""
    last = Entry({}, ALL_STATES, policy, 0, POLICY)
    return FlatChain("filter", "INPUT", space or Space(Family.IPV4), (*entries, last), items)


def random_values(rng: random.Random, size: int) -> Intervals:
    """A set of values in a field of that size: a prefix, a value, ranges, or a complement."""
    kind = rng.choice((0, 2)) if size == MACS else rng.randrange(6)
    bits = size.bit_length() - 1
    if kind == 0:
        return Intervals.single(rng.randrange(size))
    if kind == 1:
        host = rng.randrange(bits + 1)
        low = rng.randrange(size) >> host << host
        return Intervals.single(low, low | (1 << host) - 1)
    if kind == 2:
        return Intervals.single(rng.randrange(size)).complement(bits)
    low, high = sorted((rng.randrange(size), rng.randrange(size)))
    if kind == 3:
        return Intervals.single(low, high)
    if kind == 4:
        return Intervals.single(0, high) if rng.random() < 0.5 else Intervals.single(low, size - 1)
    return Intervals.of((v, v + 2) for v in (low, high, (low + high) // 2))


def random_box(rng: random.Random, space: Space, pool: dict, fields: int) -> dict:
    box = {}
    for field in rng.sample(AXES, fields):
        size = axis_size(field, space)
        values = rng.choice(pool[field]) if rng.random() < 0.7 else random_values(rng, size)
        clipped = values.intersect(Intervals.single(0, size - 1))
        if clipped:
            box[field] = clipped
    return box


def random_chain(seed: int, count: int, family: Family, fields: int = 5) -> FlatChain:
    """A chain of that many entries of every kind, with states, skips and terminal items."""
    rng = random.Random(seed)
    space = space_of(family)
    pool = {
        field: [random_values(rng, axis_size(field, space)) for _ in range(5)] for field in AXES
    }
    items = tuple(item(number, terminal=number % 3 == 0) for number in range(1, 7))
    entries = []
    for number in range(count):
        kind = rng.choice((OpKind.ACCEPT, OpKind.DROP, OpKind.SKIP, OpKind.ITEM, OpKind.PUNT))
        argument = 0
        if kind is OpKind.SKIP:
            argument = rng.randrange(number + 1, count + 1)
        elif kind is OpKind.ITEM:
            argument = rng.randrange(len(items))
        states = rng.choice((ALL_STATES, ALL_STATES, 6, 1, 9))
        box = random_box(rng, space, pool, rng.randrange(min(fields, 4) + 1))
        entries.append(Entry(box, states, kind, argument, RuleRef("filter", "INPUT", number + 1)))
    return chain_of(entries, items, space)


def random_packet(rng: random.Random, flat: FlatChain) -> dict[Field, int]:
    """A packet near the bounds of the chain's entries; its fields need not be coherent."""
    packet = {field: rng.randrange(axis_size(field, flat.space)) for field in AXES}
    packet[Field.FRAGMENT] = 0
    for entry in rng.sample(flat.entries, min(3, len(flat.entries))):
        for field, values in entry.box.items():
            size = axis_size(field, flat.space)
            bound = rng.choice(rng.choice(values.ranges)) + rng.choice((-1, 0, 0, 1))
            packet[field] = min(max(bound, 0), size - 1)
    return packet
