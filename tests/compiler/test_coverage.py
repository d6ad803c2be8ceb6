"""Packets that reach an entry: found for those that can be reached, and for no others."""

from __future__ import annotations

import numpy as np

from bpfilter.compiler.coverage import reaching_packets
from bpfilter.compiler.ir import Entry, OpKind
from bpfilter.compiler.tables import build_tables
from bpfilter.compiler.walk import walk
from bpfilter.ruleset.fields import ALL_STATES, Family, Field, Intervals
from tests.compiler.flat_chains import POLICY, chain_of, random_chain


def entry(low: int, high: int, kind: OpKind = OpKind.ACCEPT, argument: int = 0) -> Entry:
    box = {Field.SOURCE: Intervals.single(low, high)}
    return Entry(box, ALL_STATES, kind, argument, POLICY)


def test_an_entry_mostly_shadowed_is_still_reached() -> None:
    flat = chain_of([entry(1, 900), entry(1, 1000), entry(5, 6)])
    reached = reaching_packets(build_tables(flat), np.random.default_rng(1))
    assert set(reached) == {0, 1, 3}
    assert 901 <= reached[1][Field.SOURCE] <= 1000


def test_an_entry_that_a_skip_passes_by_is_not_reached() -> None:
    flat = chain_of([entry(1, 9, OpKind.SKIP, 2), entry(3, 4), entry(3, 4)])
    reached = reaching_packets(build_tables(flat), np.random.default_rng(1))
    assert set(reached) == {0, 2, 3}


def test_the_packet_of_a_final_entry_ends_there_in_some_state() -> None:
    flat = random_chain(5, 60, Family.IPV4)
    final = {OpKind.ACCEPT, OpKind.DROP, OpKind.PUNT}
    reached = reaching_packets(build_tables(flat), np.random.default_rng(1))
    for index, packet in reached.items():
        if flat.entries[index].kind in final:
            assert index in [walk(flat, packet, mask & -mask)[1] for mask in flat.state_classes()]
