"""The proof agrees with the definition, and catches every way of breaking a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.generate import Style, generate
from bpfilter.analysis import reach
from bpfilter.analysis.equivalence import Proof, prove
from bpfilter.analysis.interpret import Path, interpret
from bpfilter.compiler.ir import Action, OpKind
from bpfilter.compiler.layout import AxisKind, ChainTables
from bpfilter.compiler.plan import ChainPlan
from bpfilter.ruleset.fields import STATES, Family, Field
from bpfilter.ruleset.model import RuleRef, Ruleset
from bpfilter.ruleset.read import read_text
from tests.analysis.built import (
    ACCEPT,
    DROP,
    LOG,
    REJECT,
    RETURN,
    chain,
    dynamic,
    goto,
    interface,
    jump,
    masked,
    port,
    prefix,
    protocol,
    ruleset,
    state,
)
from tests.analysis.compiled import compiled
from tests.analysis.random_rulesets import packets, rulesets

SLOW = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TEN = 10 << 24


def office(family: Family = Family.IPV4) -> Ruleset:
    """A ruleset with every kind of axis and operation."""
    bits = 32 if family is Family.IPV4 else 128
    shift = bits - 32
    return ruleset(
        chain(
            "INPUT",
            [
                ([state(1, 2)], ACCEPT),
                ([interface("lo")], ACCEPT),
                ([protocol(6), port(22)], jump("ssh")),
                ([protocol(17), port(53)], ACCEPT),
                ([protocol(17), dynamic()], ACCEPT),
                ([protocol(17)], LOG),
                ([protocol(17)], REJECT),
                ([prefix(Field.SOURCE, 12 << 24 << shift, 8, bits)], DROP),
                ([prefix(Field.SOURCE, 13 << 24 << shift, 20, bits)], ACCEPT),
                ([prefix(Field.SOURCE, TEN << shift, 16, bits)], ACCEPT),
            ],
            "DROP",
        ),
        chain(
            "ssh",
            [
                ([prefix(Field.SOURCE, TEN << shift, 8, bits)], RETURN),
                ([masked(Field.SOURCE, 0x00FF00FF, 0x00010001)], goto("odd")),
                ([prefix(Field.SOURCE, (11 << 24) + 5 << shift, 32, bits)], DROP),
            ],
        ),
        chain("odd", [([state(0)], ACCEPT)]),
        family=family,
    )


@pytest.mark.parametrize("family", Family)
def test_compiled_rules_are_proven(family: Family) -> None:
    source = office(family)
    proof = prove(source, compiled(source))
    assert proof.complete
    assert proof.holds
    assert proof.counterexample is None


@pytest.mark.parametrize("builtin", ["INPUT", "FORWARD", "OUTPUT"])
@SLOW
@given(data=st.data())
def test_random_rulesets_are_proven_and_their_functions_are_those_of_sampled_packets(
    builtin: str, data: st.DataObject
) -> None:
    source = data.draw(rulesets(builtin))
    plan = compiled(source, builtin)
    proof = prove(source, plan, part=data.draw(st.sampled_from((1, 2, 128))))
    assert proof.holds, proof.counterexample
    assert proof.complete
    assert proof.listed
    sampled(data, source, plan, proof)


def sampled(data: st.DataObject, source: Ruleset, plan: ChainPlan, proof: Proof) -> None:
    """Packets go by the definition where the proof says that they can."""
    hook = (plan.table, plan.chain)
    items = plan.flat.items
    known = {
        tuple((mask, tuple(items[i] for i in walk.items), walk.verdict) for mask, walk in f.walks)
        for f in proof.functions
    }
    for packet in data.draw(
        st.lists(packets(source.family, len(plan.flat.space.interfaces)), max_size=12)
    ):
        paths = {
            bit: interpret(source, plan.treatments, hook, plan.flat.space, packet, bit)
            for bit in STATES
        }
        for path in paths.values():
            assert not set(certainly_met(path, plan)) & set(proof.unreachable)
        met = tuple(
            (mask, *next(path.trace for bit, path in paths.items() if bit & mask))
            for mask in plan.tables.state_classes
        )
        assert met in known


def certainly_met(path: Path, plan: ChainPlan) -> Iterator[RuleRef]:
    """The rules up to the first dynamic one: behind it a path says what may be, not what is."""
    for ref in path.matched:
        if ref.number and plan.treatments[ref].action is Action.ITEM:
            return
        yield ref


def test_the_raw_table_sees_every_packet_in_the_invalid_state() -> None:
    lines = [([state(3), port(1)], DROP), ([port(1)], ACCEPT), ([state(0)], DROP)]
    source = ruleset(chain("PREROUTING", lines, "ACCEPT", "raw"), table="raw")
    plan = compiled(source, "PREROUTING", "raw")
    proof = prove(source, plan)
    assert proof.holds
    hook, packet = ("raw", "PREROUTING"), {Field.DESTINATION_PORT: 1}
    path = interpret(source, plan.treatments, hook, plan.flat.space, packet, 1)
    assert path.rule.number == 1


def test_a_state_in_raw_makes_no_rule_unreachable() -> None:
    lines = [([state(0, 3), port(1)], DROP), ([port(1)], ACCEPT), ([state(4)], DROP)]
    source = ruleset(chain("PREROUTING", lines, "ACCEPT", "raw"), table="raw")
    assert not prove(source, compiled(source, "PREROUTING", "raw")).unreachable


Breaking = Callable[[ChainTables], ChainTables]


def flipped_bit(tables: ChainTables) -> ChainTables:
    blocks = tables.blocks.copy()
    policy = len(tables.ops) - 1
    first = int(tables.rows[tables.axes[0].row_base, tables.summary_span]) & 0xFFFFFFFF
    blocks[first, policy // 64] ^= np.uint64(1 << policy % 64)
    return replace(tables, blocks=blocks)


def hidden_leaf(tables: ChainTables) -> ChainTables:
    rows = tables.rows.copy()
    rows[:, 0] = 0
    return replace(tables, rows=rows)


def swapped_operations(tables: ChainTables) -> ChainTables:
    ops = tables.ops.copy()
    accept = int(np.flatnonzero(ops >> 28 == OpKind.ACCEPT)[-1])
    ops[accept] = OpKind.DROP << 28
    return replace(tables, ops=ops)


def other_item(tables: ChainTables) -> ChainTables:
    ops = tables.ops.copy()
    first, second = np.flatnonzero(ops >> 28 == OpKind.ITEM)[:2]
    ops[[first, second]] = ops[[second, first]]
    return replace(tables, ops=ops)


def longer_skip(tables: ChainTables) -> ChainTables:
    ops = tables.ops.copy()
    skip = int(np.flatnonzero(ops >> 28 == OpKind.SKIP)[0])
    ops[skip] = OpKind.SKIP << 28 | len(ops) - 1
    return replace(tables, ops=ops)


def wrong_class(tables: ChainTables) -> ChainTables:
    axis = tables.axes[0]
    ids = tables.ids.copy()
    at = axis.base + (13 << 8 if axis.field is Field.SOURCE else 0)
    ids[at] = (ids[at] + 1) % axis.classes if ids[at] < axis.classes else 0
    return replace(tables, ids=ids)


def pointer_outside(tables: ChainTables) -> ChainTables:
    ids = tables.ids.copy()
    ids[tables.axes[0].base + (10 << 8)] = 0x8FFFFFFF
    return replace(tables, ids=ids)


def wrong_fold(tables: ChainTables) -> ChainTables:
    folded = [axis for axis in tables.axes if axis.combine]
    ids = tables.ids.copy()
    ids[folded[0].combine_base : folded[0].combine_base + folded[0].classes * 2] = 0
    return replace(tables, ids=ids)


def lost_states(tables: ChainTables) -> ChainTables:
    return replace(tables, state_classes=tables.state_classes[::-1])


def swapped_rows(tables: ChainTables) -> ChainTables:
    rows = tables.rows.copy()
    base = tables.axes[0].row_base
    assert not np.array_equal(rows[base], rows[base + 1])
    rows[[base, base + 1]] = rows[[base + 1, base]]
    return replace(tables, rows=rows)


def boundary_off_by_one(tables: ChainTables) -> ChainTables:
    """13.0.16.0/24, the first behind 13.0.0.0/20, gets its class."""
    axis = tables.axes[0]
    assert axis.kind is AxisKind.TRIE4
    ids = tables.ids.copy()
    below = axis.base + (1 << 16) + (int(ids[axis.base + (13 << 8)]) & 0x7FFFFFFF) * 256
    assert ids[below + 15] != ids[below + 16]
    ids[below + 16] = ids[below + 15]
    return replace(tables, ids=ids)


def added_bit(tables: ChainTables) -> ChainTables:
    """One more class is in the box of the entry before the policy's."""
    blocks = tables.blocks.copy()
    entry = len(tables.ops) - 2
    axis = tables.axes[0]
    first = int(tables.rows[axis.row_base, tables.summary_span]) & 0xFFFFFFFF
    assert not int(blocks[first, entry // 64]) >> entry % 64 & 1
    blocks[first, entry // 64] |= np.uint64(1 << entry % 64)
    return replace(tables, blocks=blocks)


def next_state_class(tables: ChainTables) -> ChainTables:
    return replace(tables, state_row_base=tables.state_row_base - 1)


def item_lost(tables: ChainTables) -> ChainTables:
    ops = tables.ops.copy()
    item = int(np.flatnonzero(ops >> 28 == OpKind.ITEM)[0])
    ops[item] = OpKind.SKIP << 28 | item + 1
    return replace(tables, ops=ops)


def item_unknown(tables: ChainTables) -> ChainTables:
    ops = tables.ops.copy()
    ops[int(np.flatnonzero(ops >> 28 == OpKind.ITEM)[-1])] |= 0x0FFFFFFF
    return replace(tables, ops=ops)


def unknown_kind(tables: ChainTables) -> ChainTables:
    ops = tables.ops.copy()
    ops[int(np.flatnonzero(ops >> 28 == OpKind.DROP)[0])] = 9 << 28
    return replace(tables, ops=ops)


BREAKINGS = (
    swapped_rows,
    boundary_off_by_one,
    added_bit,
    next_state_class,
    item_lost,
    item_unknown,
    unknown_kind,
    flipped_bit,
    hidden_leaf,
    swapped_operations,
    other_item,
    longer_skip,
    wrong_class,
    pointer_outside,
    wrong_fold,
    lost_states,
)


@pytest.mark.parametrize("part", [1, 128])
@pytest.mark.parametrize("breaking", BREAKINGS)
def test_a_broken_table_is_caught_with_an_example_packet(breaking: Breaking, part: int) -> None:
    source = office()
    plan = compiled(source)
    proof = prove(source, replace(plan, tables=breaking(plan.tables)), part=part)
    assert proof.complete
    assert not proof.holds
    example = proof.counterexample
    assert example is not None
    assert example.rules != example.tables
    hook = ("filter", "INPUT")
    space = plan.flat.space
    path = interpret(source, plan.treatments, hook, space, example.packet, example.state)
    assert path.trace == example.rules


@pytest.mark.parametrize("breaking", [None, flipped_bit, hidden_leaf])
def test_paired_tables_are_proven_or_caught(
    breaking: Breaking | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpfilter.compiler.tables.UNPAIRED_WORDS", 0)
    source = read_text(generate(Style.FW, 60, 1))
    plan = compiled(source)
    assert plan.tables.paired
    tables = breaking(plan.tables) if breaking else plan.tables
    proof = prove(source, replace(plan, tables=tables))
    assert proof.complete
    assert proof.holds == (breaking is None)


def test_unsorted_bounds_are_caught() -> None:
    source = office(Family.IPV6)
    plan = compiled(source)
    bounds = plan.tables.bounds.copy()
    bounds[[1, 2]] = bounds[[2, 1]]
    proof = prove(source, replace(plan, tables=replace(plan.tables, bounds=bounds)))
    assert not proof.holds


@SLOW
@given(data=st.data())
def test_a_random_broken_operation_is_caught_with_a_packet_that_the_definition_judges_so(
    data: st.DataObject,
) -> None:
    source = data.draw(rulesets("INPUT"))
    plan = compiled(source)
    ops = plan.tables.ops.copy()
    index = data.draw(st.integers(0, len(ops) - 1))
    kind = data.draw(st.sampled_from((OpKind.ACCEPT, OpKind.DROP, OpKind.PUNT)))
    ops[index] = kind << 28
    tables = replace(plan.tables, ops=ops)
    proof = prove(source, replace(plan, tables=tables), part=data.draw(st.sampled_from((1, 128))))
    assert proof.complete
    if not proof.holds:
        example = proof.counterexample
        assert example is not None
        path = interpret(
            source,
            plan.treatments,
            ("filter", "INPUT"),
            plan.flat.space,
            example.packet,
            example.state,
        )
        assert path.trace == example.rules != example.tables


def test_a_proof_without_time_is_incomplete_and_says_so() -> None:
    source = office()
    proof = prove(source, compiled(source), seconds=0.0)
    assert not proof.complete
    assert proof.holds
    assert "time" in proof.covered


def test_a_proof_without_memory_is_incomplete_and_says_so() -> None:
    source = office()
    proof = prove(source, compiled(source), memory=1 << 12)
    assert not proof.complete
    assert "memory" in proof.covered


@SLOW
@given(data=st.data())
def test_reachability_of_long_chains_never_says_more_than_the_exact_one(
    data: st.DataObject,
) -> None:
    source = data.draw(rulesets("INPUT"))
    plan = compiled(source)
    exact = prove(source, plan).unreachable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reach, "_MAX_NODES", -1)
        found = prove(source, plan).unreachable
    assert found.keys() <= exact.keys()
