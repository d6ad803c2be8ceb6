"""A packet for every entry that some packet's walk passes: for tests, the lab and explanations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from bpfilter.compiler.batch import matching_bits, state_bits
from bpfilter.compiler.ir import Box, FlatChain, OpKind
from bpfilter.compiler.layout import ChainTables
from bpfilter.compiler.sample import Sampler
from bpfilter.compiler.walk import Packet


def passed_entries(flat: FlatChain, bits: int) -> Iterator[int]:
    """The entries that a walk acts on, in order, among those whose bits are set."""
    while bits:
        lowest = bits & -bits
        index = lowest.bit_length() - 1
        entry = flat.entries[index]
        yield index
        if entry.kind is OpKind.SKIP:
            bits = bits >> entry.argument << entry.argument
        elif entry.kind is OpKind.ITEM and not flat.items[entry.argument].terminal:
            bits ^= lowest
        else:
            return


def reaching_packets(
    tables: ChainTables, rng: np.random.Generator, tries: int = 12
) -> Mapping[int, Packet]:
    """For entries that are reached in some state: a packet whose walk passes them.

    Entries that are missing were not reached by `tries` packets of their box, nor by the packets
    of others: they are shadowed, or nearly so.
    """
    sampler = Sampler.of(tables.flat, rng)
    reached: dict[int, Packet] = {}
    missing: Iterable[int] = range(len(tables.flat.entries))
    for _ in range(tries):
        missing = [index for index in missing if index not in reached]
        if not missing:
            break
        _visit(tables, sampler, [tables.flat.entries[index].box for index in missing], reached)
    return reached


def _visit(
    tables: ChainTables, sampler: Sampler, boxes: list[Box], reached: dict[int, Packet]
) -> None:
    packets = [packet for box in boxes if (packet := sampler.packet(box)) is not None]
    states = state_bits(tables)
    for packet, bits in zip(packets, matching_bits(tables, packets), strict=True):
        for state in states:
            for index in passed_entries(tables.flat, bits & state):
                reached.setdefault(index, packet)
