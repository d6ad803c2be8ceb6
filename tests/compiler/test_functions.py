"""Residual functions: how packets are drawn, which functions they meet, and the trie of codes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bpfilter.compiler.batch import functions_of
from bpfilter.compiler.functions import enumerate_functions
from bpfilter.compiler.ir import PUNTED, Entry, FlatChain, Function, OpKind, Verdict, Walk
from bpfilter.compiler.layout import Outcome, Transitions
from bpfilter.compiler.sample import PORT_PROTOCOLS, sample_packets
from bpfilter.compiler.tables import build_tables
from bpfilter.compiler.transitions import build_transitions
from bpfilter.compiler.walk import function_of, holds
from bpfilter.ruleset.fields import ALL_STATES, Family, Field, Intervals
from tests.compiler.flat_chains import POLICY, chain_of, item, random_chain, random_packet

TCP = {Field.PROTOCOL: Intervals.single(6)}
ACCEPT = Walk((), Verdict.ACCEPT)
DROP = Walk((), Verdict.DROP)


def port(low: int, high: int | None = None) -> dict[Field, Intervals]:
    return {**TCP, Field.DESTINATION_PORT: Intervals.single(low, high)}


def log(box, number: int = 0) -> Entry:
    return Entry(box, ALL_STATES, OpKind.ITEM, number, POLICY)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("count", [5, 60, 900])
def test_many_packets_at_once_get_the_functions_of_the_definition(
    family: Family, count: int
) -> None:
    flat = random_chain(count, count, family)
    rng = random.Random(count)
    packets = [random_packet(rng, flat) for _ in range(100)]
    found = functions_of(build_tables(flat), packets)
    assert found == [function_of(flat, packet) for packet in packets]


@pytest.mark.parametrize("family", list(Family))
def test_sampled_packets_are_coherent(family: Family) -> None:
    flat = random_chain(11, 80, family)
    icmp = 1 if family is Family.IPV4 else 58
    packets = sample_packets(flat, np.random.default_rng(3), 500)
    assert len(packets) == 500
    for packet in packets:
        protocol = packet[Field.PROTOCOL]
        assert packet[Field.FRAGMENT] == 0
        assert protocol in PORT_PROTOCOLS or not packet[Field.SOURCE_PORT]
        assert protocol in PORT_PROTOCOLS or not packet[Field.DESTINATION_PORT]
        assert protocol == 6 or not packet[Field.TCP_FLAGS]
        assert protocol == icmp or not packet[Field.ICMP_TYPE]
        for bit, (field, masked) in enumerate(flat.space.masks):
            assert packet[Field.MASKS] >> bit & 1 == (packet[field] & masked.mask == masked.value)


def test_every_entry_that_a_packet_can_be_in_is_hit() -> None:
    flat = chain_of([log(port(22)), log({Field.TTL: Intervals.single(0)}), log(port(80, 90))])
    packets = sample_packets(flat, np.random.default_rng(3), 40)
    for entry in flat.entries:
        assert any(holds(entry, packet) for packet in packets)


def test_near_misses_stand_beside_both_bounds() -> None:
    flat = chain_of([Entry(port(80, 90), ALL_STATES, OpKind.ACCEPT, 0, POLICY)])
    packets = sample_packets(flat, np.random.default_rng(3), 40)
    ports = {p[Field.DESTINATION_PORT] for p in packets if p[Field.PROTOCOL] == 6}
    assert {79, 80, 90, 91} <= ports


def test_sampling_is_repeatable() -> None:
    flat = random_chain(2, 50, Family.IPV4)
    draws = [sample_packets(flat, np.random.default_rng(9), 100) for _ in range(2)]
    assert draws[0] == draws[1]


def test_combinations_of_overlapping_items_are_found() -> None:
    items = tuple(item(number) for number in range(1, 4))
    flat = chain_of(
        [
            log(port(10, 40), 0),
            log({**port(30, 60), Field.TTL: Intervals.single(1, 64)}, 1),
            log({**TCP, Field.TOS: Intervals.single(8)}, 2),
            Entry(port(35), 1, OpKind.ACCEPT, 0, POLICY),
        ],
        items,
    )
    found = {function for function, _ in enumerate_functions(flat, np.random.default_rng(1), 4000)}
    new, other = flat.state_classes()
    for passed in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        walk = Walk(passed, Verdict.DROP)
        assert Function(((new, walk), (other, walk))) in found
    for passed in ((0,), (0, 1), (0, 2), (0, 1, 2)):
        accept, drop = Walk(passed, Verdict.ACCEPT), Walk(passed, Verdict.DROP)
        assert Function(((new, accept), (other, drop))) in found


def test_functions_that_are_found_are_met_by_some_packet_of_the_chain() -> None:
    flat = random_chain(21, 40, Family.IPV4)
    for function, count in enumerate_functions(flat, np.random.default_rng(1), 800):
        assert count > 0
        assert [mask for mask, _ in function.walks] == list(flat.state_classes())


def test_a_static_chain_with_one_class_of_states_has_only_its_verdicts() -> None:
    flat = chain_of([Entry(port(22), ALL_STATES, OpKind.ACCEPT, 0, POLICY)])
    found = {function.uniform for function, _ in enumerate_functions(flat, RNG, 100)}
    assert found == {ACCEPT, DROP}


RNG = np.random.default_rng(1)


def follow(transitions: Transitions, flat: FlatChain, function: Function) -> tuple[int, int]:
    """The node and value at which the program ends for a function."""
    node = 1
    for _, walk in function.walks:
        began = node
        for number in walk.items:
            node = transitions.edges.get((node, number), 0)
        if walk.verdict is Verdict.PUNT:
            node = int(transitions.nodes[began][2])
        elif walk.verdict is not None:
            node = int(transitions.nodes[node][int(walk.verdict is Verdict.DROP)])
    return node, int(transitions.nodes[node][3])


def test_every_coded_function_ends_at_its_code_and_outcome() -> None:
    flat = random_chain(7, 60, Family.IPV4)
    found = [function for function, _ in enumerate_functions(flat, RNG, 2000)]
    punt = Function(tuple((mask, PUNTED) for mask in flat.state_classes()))
    coded = {f: code for code, f in enumerate(found[:200], 1) if f != punt}
    transitions = build_transitions(flat, coded)
    for function, code in coded.items():
        node, value = follow(transitions, flat, function)
        assert value & 255 == code
        assert transitions.functions[node] == function
        assert value >> 8 in (Outcome.ACCEPT, Outcome.DROP, Outcome.RESIDUAL)
    node, value = follow(transitions, flat, punt)
    assert node != 0 and value == 0
    assert not transitions.nodes[0].any()


def test_functions_without_a_code_are_punted() -> None:
    items = (item(1),)
    flat = chain_of([log(TCP)], items)
    (mask,) = flat.state_classes()
    plain = Function(((mask, DROP),))
    transitions = build_transitions(flat, {plain: 5})
    assert follow(transitions, flat, plain)[1] == 5 | Outcome.DROP << 8
    uncoded = Function(((mask, Walk((0,), Verdict.DROP)),))
    assert follow(transitions, flat, uncoded) == (0, 0)


def test_uniform_verdicts_without_items_have_their_own_outcomes() -> None:
    flat = chain_of([Entry({}, 1, OpKind.ACCEPT, 0, POLICY)])
    new, other = flat.state_classes()
    accept = Function(((new, ACCEPT), (other, ACCEPT)))
    split = Function(((new, ACCEPT), (other, DROP)))
    transitions = build_transitions(flat, {accept: 1, split: 2})
    assert follow(transitions, flat, accept)[1] == 1 | Outcome.ACCEPT << 8
    assert follow(transitions, flat, split)[1] == 2 | Outcome.RESIDUAL << 8
