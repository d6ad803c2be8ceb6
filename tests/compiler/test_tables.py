"""Tables answer as the definition of the walk does, for every kind of field and chain."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfilter.compiler.batch import packet_rows as packet_rows_of_many
from bpfilter.compiler.classes import Vectors, distinct_blocks, exact_classes, stripe_count
from bpfilter.compiler.fold import fold
from bpfilter.compiler.intervals import partition
from bpfilter.compiler.ir import Entry, OpKind, Space
from bpfilter.compiler.layout import MAX_ENTRIES, MAX_GROUPS, AxisKind
from bpfilter.compiler.rows import pack_rows
from bpfilter.compiler.simulate import classify, matching_entries, packet_rows
from bpfilter.compiler.tables import build_tables
from bpfilter.compiler.tries import Trie4, trie4
from bpfilter.compiler.walk import walk
from bpfilter.errors import CompileError
from bpfilter.ruleset.fields import ALL_STATES, Family, Field, Intervals
from tests.compiler.flat_chains import POLICY, chain_of, random_chain, random_packet, space_of


def assert_agree(flat, packets) -> None:
    tables = build_tables(flat)
    for packet in packets:
        walks = classify(tables, packet)
        for mask in tables.state_classes:
            state = mask & -mask
            assert walks[mask] == walk(flat, packet, state)[0], (packet, mask)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("seed", range(12))
def test_random_chains_give_the_walk_of_the_definition(family: Family, seed: int) -> None:
    flat = random_chain(seed, (3, 20, 70, 150)[seed % 4], family)
    rng = random.Random(seed)
    assert_agree(flat, [random_packet(rng, flat) for _ in range(150)])


@pytest.mark.parametrize("family", list(Family))
def test_chains_of_several_stripes_give_the_walk_of_the_definition(family: Family) -> None:
    flat = random_chain(99, 1500, family)
    rng = random.Random(5)
    assert_agree(flat, [random_packet(rng, flat) for _ in range(60)])


@pytest.mark.parametrize("family", list(Family))
def test_paired_rows_give_the_walk_of_the_definition(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpfilter.compiler.tables.UNPAIRED_WORDS", 0)
    flat = random_chain(98, 1500, family)
    assert build_tables(flat).paired
    rng = random.Random(6)
    assert_agree(flat, [random_packet(rng, flat) for _ in range(60)])


@pytest.mark.parametrize("seed", range(6))
def test_lists_in_tries_give_the_walk_of_the_definition(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpfilter.compiler.tries.TABLES_ALONE", -1)
    flat = random_chain(seed, (20, 700)[seed % 2], Family.IPV4)
    assert any(axis.lists_base < axis.size for axis in build_tables(flat).axes if axis.lists_base)
    rng = random.Random(seed)
    packets = [random_packet(rng, flat) for _ in range(100)]
    assert_agree(flat, packets)
    tables = build_tables(flat)
    found = packet_rows_of_many(tables, packets)
    for number, packet in enumerate(packets):
        assert [int(rows[number]) for rows in found] == packet_rows(tables, packet)


@pytest.mark.parametrize("bits", [0, 3, 8, 11, 16, 20, 32])
def test_a_trie_gives_every_address_its_class(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense and sparse prefixes, next to each other; with lists and without."""
    rng = np.random.default_rng(bits)
    first = rng.integers(0, 1 << bits, 900) + (int(rng.integers(0, 1 << 32)) >> bits << bits)
    spread = rng.integers(0, 1 << 32, 300)
    first = np.unique(np.concatenate([[0], first & 0xFFFFFFFF, spread])).astype(np.int64)
    classes = np.arange(len(first)) % 7
    starts = np.stack([np.zeros(len(first), np.int64), first], axis=1).astype(np.uint64)
    wanted = np.concatenate([first, first[1:] - 1, rng.integers(0, 1 << 32, 2000)])
    right = classes[np.searchsorted(first, wanted, side="right") - 1]
    for most in (-1, 1 << 30):
        monkeypatch.setattr("bpfilter.compiler.tries.TABLES_ALONE", most)
        assert (trie_classes(trie4(starts, classes), wanted) == right).all()


def trie_classes(trie: Trie4, addresses) -> list[int]:
    """As layout.py describes it."""
    result = []
    ids = trie.ids.tolist()
    for address in addresses.tolist():
        found, left = ids[address >> 16], address & 0xFFFF
        for shift in (8, 0):
            if found >> 30 != 2:
                break
            found = ids[65536 + (found & 0x3FFFFFFF) * 256 + (left >> shift)]
            left &= (1 << shift) - 1
        if found >> 30 == 3:
            first = trie.lists_base + (found & 0x3FFFFFFF) * 16
            found = ids[first + 8 + sum(start <= left for start in ids[first + 1 : first + 8])]
        result.append(found)
    return result


def test_the_bits_of_a_packet_are_exactly_the_entries_that_hold_it() -> None:
    flat = random_chain(3, 700, Family.IPV4)
    tables = build_tables(flat)
    rng = random.Random(1)
    for _ in range(40):
        packet = random_packet(rng, flat)
        rows = packet_rows(tables, packet)
        for number, mask in enumerate(tables.state_classes):
            found = list(matching_entries(tables, [*rows, tables.state_row_base + number]))
            assert found == [
                index
                for index, entry in enumerate(flat.entries)
                if entry.states & mask
                and all(packet[field] in values for field, values in entry.box.items())
            ]


def test_a_chain_of_only_a_policy_has_no_axes() -> None:
    tables = build_tables(chain_of([]))
    assert tables.axes == ()
    assert tables.ids.size == 0
    (mask,) = tables.state_classes
    assert mask == ALL_STATES
    assert classify(tables, {})[mask].verdict == "DROP"


def test_fields_that_no_entry_constrains_are_left_out() -> None:
    box = {Field.SOURCE: Intervals.single(10), Field.PROTOCOL: Intervals.single(6)}
    flat = chain_of([Entry(box, ALL_STATES, OpKind.ACCEPT, 0, POLICY)])
    assert [axis.field for axis in build_tables(flat).axes] == [Field.SOURCE, Field.PROTOCOL]


def test_an_entry_that_wants_a_fragment_applies_to_no_packet() -> None:
    wanted = {Field.FRAGMENT: Intervals.single(1)}
    head = {Field.FRAGMENT: Intervals.single(0)}
    flat = chain_of(
        [
            Entry(wanted, ALL_STATES, OpKind.PUNT, 0, POLICY),
            Entry(head, ALL_STATES, OpKind.ACCEPT, 0, POLICY),
        ]
    )
    assert_agree(flat, [{Field.FRAGMENT: 0}])


def test_block_zero_is_zero_and_blocks_are_distinct() -> None:
    tables = build_tables(random_chain(8, 1200, Family.IPV6))
    assert not tables.blocks[0].any()
    assert len(np.unique(tables.blocks, axis=0)) == len(tables.blocks)


def test_the_summary_marks_exactly_the_leaf_words_that_are_not_zero() -> None:
    tables = build_tables(random_chain(8, 1200, Family.IPV4))
    references = np.ascontiguousarray(tables.parts[:, 1:]).view("<u4")
    words = (tables.blocks[references] != 0).reshape(len(tables.parts), -1)
    summary = tables.parts[:, :1].copy().view(np.uint8)
    assert (np.unpackbits(summary, axis=1, bitorder="little").astype(bool) == words).all()


def test_the_top_marks_exactly_the_parts_that_are_not_zero() -> None:
    tables = build_tables(blocklist(9000))
    named = np.ascontiguousarray(tables.rows[:, 1:]).view("<u4")
    assert named.shape[1] >= tables.summary_words == 3
    top = np.unpackbits(tables.rows[:, :1].copy().view(np.uint8), axis=1, bitorder="little")
    filled = (tables.parts[:, 0] != 0)[named[:, :3]]
    assert (top[:, :3].astype(bool) == filled).all()
    assert not top[:, 3:].any()


def test_an_address_of_a_blocklist_costs_one_short_row() -> None:
    tables = build_tables(blocklist(9000))
    assert len(tables.rows) > 9000
    assert tables.rows.shape[1] == 3
    assert len(tables.parts) < 2 * 4096 + 5
    assert len(np.unique(tables.parts, axis=0)) == len(tables.parts)
    assert not tables.parts[0].any()


@pytest.mark.parametrize("paired", [False, True])
def test_chains_of_several_parts_give_the_walk_of_the_definition(paired: bool) -> None:
    flat = blocklist(9000, paired)
    assert build_tables(flat).paired is paired
    first, last = 11 << 24, (11 << 24) + 3 * 8999
    packets = [
        dict.fromkeys(Field, 0) | {Field.SOURCE: source, Field.DESTINATION: destination}
        for source in (0, first, first + 1, first + 3 * 4095, first + 3 * 4096, last, last + 1)
        for destination in (0, first, first + 3 * 4096, first + 3 * 8000, last)
    ]
    assert_agree(flat, packets)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_rows_hold_the_bits_of_their_classes(data: st.DataObject) -> None:
    entries = data.draw(st.sampled_from([1, 64, 512, 513, 4096, 4097, 9000]))
    classes = data.draw(st.integers(2, 9))
    held = data.draw(
        st.lists(st.frozensets(st.integers(0, entries - 1)), min_size=classes, max_size=classes)
    )
    stripes = stripe_count(entries)
    bits = np.zeros((classes, stripes * 512), np.uint8)
    for number, some in enumerate(held):
        bits[number, list(some)] = 1
    blocks = np.packbits(bits, axis=1, bitorder="little").view("<u8").reshape(-1, 8)
    refs = np.arange(len(blocks), dtype=np.uint32).reshape(classes, stripes).T
    split = data.draw(st.integers(1, classes - 1))
    groups = [Vectors(refs[:, part].copy(), blocks) for part in (slice(split), slice(split, None))]
    rows = pack_rows(groups, entries, np.zeros(0, np.uint8))
    assert rows.bases == (0, split)
    named = np.ascontiguousarray(rows.rows[:, 1:]).view("<u4")[:, : rows.summary_words]
    references = np.ascontiguousarray(rows.parts[named, 1:]).view("<u4").reshape(classes, -1)
    found = np.ascontiguousarray(rows.blocks[references].reshape(classes, -1))
    read = np.unpackbits(found.view(np.uint8), axis=1, bitorder="little")
    for number, some in enumerate(held):
        assert set(np.flatnonzero(read[number]).tolist()) == some


def blocklist(count: int, paired: bool = False):
    """Addresses, three apart; of a paired one every third entry asks for another address."""
    boxes = []
    for number in range(count):
        address = (11 << 24) + 3 * number
        one = Intervals.of([(address, address)])
        both = {Field.SOURCE: one, Field.DESTINATION: one}
        alone = {Field.SOURCE: one} if number % 3 else {Field.DESTINATION: one}
        boxes.append((both if number % 3 == 2 else alone) if paired else {Field.SOURCE: one})
    return chain_of([Entry(box, ALL_STATES, OpKind.DROP, 0, POLICY) for box in boxes])


def test_equal_chains_give_equal_tables() -> None:
    first = build_tables(random_chain(4, 600, Family.IPV4))
    second = build_tables(random_chain(4, 600, Family.IPV4))
    assert first.axes == second.axes
    for name in ("ids", "bounds", "rows", "parts", "blocks", "ops"):
        assert (getattr(first, name) == getattr(second, name)).all()


def test_classes_whose_hashes_collide_are_split_by_their_vectors() -> None:
    refs = np.array([[1, 1, 2, 2, 1], [7, 7, 7, 8, 7]], np.int64)
    classes, columns = exact_classes(np.zeros(5, np.int64), 2, lambda stripe: refs[stripe])
    assert (columns[:, classes] == refs).all()
    assert columns.shape == (2, 3)


def test_blocks_whose_hashes_collide_stay_apart() -> None:
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 3, (400, 8), np.uint64)
    distinct, inverse = distinct_blocks(blocks)
    assert (distinct[inverse] == blocks).all()
    assert len(np.unique(distinct, axis=0)) == len(distinct)


def test_folding_gives_the_conjunction_of_both_vectors() -> None:
    rng = np.random.default_rng(2)
    left = Vectors(
        rng.integers(0, 9, (3, 20)).astype(np.uint32), rng.integers(0, 9, (9, 8), np.uint64)
    )
    right = Vectors(
        rng.integers(0, 5, (3, 11)).astype(np.uint32), rng.integers(0, 9, (5, 8), np.uint64)
    )
    table, folded = fold(left, right)
    for a in range(20):
        for b in range(11):
            both = left.blocks[left.refs[:, a]] & right.blocks[right.refs[:, b]]
            assert (folded.blocks[folded.refs[:, table[a * 11 + b]]] == both).all()


def test_elementary_intervals_keep_all_128_bits() -> None:
    top = (1 << 128) - 1
    cut = partition([((5, 1 << 64), (top, top)), (((1 << 64) + 1, top - 1),)], 1 << 128)
    starts = [int(high) << 64 | int(low) for high, low in cut.starts]
    assert starts == [0, 5, (1 << 64) + 1, top]


def test_values_beyond_the_fields_size_are_ignored() -> None:
    flat = chain_of(
        [
            Entry(
                {Field.IN_INTERFACE: Intervals.single(1).complement(12)},
                ALL_STATES,
                OpKind.ACCEPT,
                0,
                POLICY,
            )
        ],
        space=space_of(Family.IPV4),
    )
    tables = build_tables(flat)
    assert tables.axes[0].size == 4
    assert_agree(flat, [{Field.IN_INTERFACE: value} for value in range(4)])


def test_addresses_use_tries_or_bounds_by_family() -> None:
    for family, kind in ((Family.IPV4, AxisKind.TRIE4), (Family.IPV6, AxisKind.BOUNDS6)):
        box = {Field.DESTINATION: Intervals.single(1, 99)}
        flat = chain_of([Entry(box, ALL_STATES, OpKind.ACCEPT, 0, POLICY)], space=Space(family))
        (axis,) = build_tables(flat).axes
        assert axis.kind is kind
        assert_agree(flat, [{Field.DESTINATION: value} for value in (0, 1, 99, 100, 1 << 31)])


def test_only_named_mac_addresses_are_in_the_map() -> None:
    named = Intervals.single(0x020000000001)
    flat = chain_of(
        [
            Entry({Field.MAC_SOURCE: named}, ALL_STATES, OpKind.ACCEPT, 0, POLICY),
            Entry({Field.MAC_SOURCE: named.complement(48)}, 1, OpKind.PUNT, 0, POLICY),
        ]
    )
    assert list(build_tables(flat).macs) == [0x020000000001]
    assert_agree(flat, [{Field.MAC_SOURCE: 0x020000000000 + value} for value in range(3)])


def test_too_many_mac_addresses_are_an_error_that_says_what_to_do() -> None:
    box = {Field.MAC_SOURCE: Intervals.single(0, 1 << 20)}
    flat = chain_of([Entry(box, ALL_STATES, OpKind.ACCEPT, 0, POLICY)])
    with pytest.raises(CompileError, match="ipset"):
        build_tables(flat)


def test_too_many_entries_are_an_error_that_says_what_to_do() -> None:
    flat = chain_of([])
    long = replace(flat, entries=flat.entries * (MAX_ENTRIES + 1))
    with pytest.raises(CompileError, match="merge rules"):
        build_tables(long)


def test_too_many_groups_of_fields_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = random_chain(1, 80, Family.IPV4)
    assert len({field for entry in flat.entries for field in entry.box}) > MAX_GROUPS
    monkeypatch.setattr("bpfilter.compiler.tables.MAX_PAIRS", 1)
    with pytest.raises(CompileError, match="combinations"):
        build_tables(flat)


def test_axes_stay_apart_when_their_rows_would_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = random_chain(2, 60, Family.IPV4, fields=2)
    monkeypatch.setattr("bpfilter.compiler.tables.MAX_FOLDED_BYTES", 1 << 12)
    tables = build_tables(flat)
    assert sum(axis.ends_group for axis in tables.axes) > 3
    rng = random.Random(4)
    for _ in range(50):
        packet = random_packet(rng, flat)
        walks = classify(tables, packet)
        assert all(walks[mask] == walk(flat, packet, mask & -mask)[0] for mask in walks)
