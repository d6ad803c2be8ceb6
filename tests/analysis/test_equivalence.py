"""The proof agrees with the definition, and catches every way of breaking a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.generate import Style, generate
from bpfilter.analysis import reach
from bpfilter.analysis.equivalence import Proof, prove
from bpfilter.analysis.interpret import Path, interpret
from bpfilter.compiler.ir import Action, OpKind
from bpfilter.compiler.plan import ChainPlan
from bpfilter.ruleset.fields import STATES, Family, Field
from bpfilter.ruleset.model import RuleRef, Ruleset
from bpfilter.ruleset.read import read_text
from tests.analysis.breakings import BREAKINGS, Breaking, flipped_bit, hidden_leaf, office
from tests.analysis.built import (
    ACCEPT,
    DROP,
    chain,
    port,
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
