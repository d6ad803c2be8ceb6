"""The definition of a packet's walk through a flat chain, in plain Python.

What the tables and the BPF program do is correct when it agrees with this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from bpfilter.compiler.ir import PUNTED, Entry, FlatChain, Function, OpKind, Verdict, Walk
from bpfilter.ruleset.fields import Field

Packet = Mapping[Field, int]
"""The value of every field but STATE."""

_VERDICTS = {OpKind.ACCEPT: Verdict.ACCEPT, OpKind.DROP: Verdict.DROP}


def holds(entry: Entry, packet: Packet) -> bool:
    """Whether the entry's box holds the packet."""
    return all(packet[field] in values for field, values in entry.box.items())


def walk(flat: FlatChain, packet: Packet, state: int) -> tuple[Walk, int]:
    """Where the packet ends in one connection state (a bit of `State`), and the last entry."""
    entries = (
        index
        for index, entry in enumerate(flat.entries)
        if entry.states & state and holds(entry, packet)
    )
    return follow(flat, entries)


def follow(flat: FlatChain, matching: Iterable[int]) -> tuple[Walk, int]:
    """The walk over the entries that hold a packet in one state, given in ascending order."""
    items: list[int] = []
    position = 0
    for index in matching:
        if index < position:
            continue
        entry = flat.entries[index]
        if entry.kind is OpKind.SKIP:
            position = entry.argument
        elif entry.kind is OpKind.ITEM:
            items.append(entry.argument)
            if flat.items[entry.argument].terminal:
                return Walk(tuple(items), None), index
        elif entry.kind is OpKind.PUNT:
            return PUNTED, index
        else:
            return Walk(tuple(items), _VERDICTS[entry.kind]), index
    raise AssertionError("the last entry of a flat chain holds every packet")


def function_of(flat: FlatChain, packet: Packet) -> Function:
    """The packet's residual as a function of the connection state."""
    matching = [(i, e.states) for i, e in enumerate(flat.entries) if holds(e, packet)]
    return function_of_matching(flat, matching, flat.state_classes())


def function_of_matching(
    flat: FlatChain, matching: Sequence[tuple[int, int]], classes: Sequence[int]
) -> Function:
    """As `function_of`, given the entries (index, states) whose boxes hold the packet."""

    def applying(mask: int) -> Iterator[int]:
        return (index for index, states in matching if states & mask)

    return Function(tuple((mask, follow(flat, applying(mask))[0]) for mask in classes))


def visited(flat: FlatChain, matching: Iterable[int]) -> Iterator[int]:
    """The entries at which the walk stops, in order; `matching` as in `follow`."""
    position = 0
    for index in matching:
        if index < position:
            continue
        yield index
        entry = flat.entries[index]
        if entry.kind is OpKind.SKIP:
            position = entry.argument
        elif entry.kind is not OpKind.ITEM or flat.items[entry.argument].terminal:
            return
