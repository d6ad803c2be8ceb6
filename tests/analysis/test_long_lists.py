"""The proof of long lists: compared in parts, cut short by bounds, faults found anywhere."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from bpfilter.analysis.diagrams import Diagrams, LimitReached
from bpfilter.analysis.equivalence import prove
from bpfilter.analysis.interpret import interpret
from bpfilter.compiler.ir import OpKind
from bpfilter.compiler.layout import LIST_INTERVALS, AxisKind
from bpfilter.ruleset.fields import Field
from bpfilter.ruleset.model import Ruleset
from tests.analysis.built import ACCEPT, DROP, chain, port, prefix, protocol, ruleset
from tests.analysis.compiled import compiled

TEN = 10 << 24


def access_list(rules: int) -> Ruleset:
    """An access list whose every tenth rule is shadowed by the one before."""
    lines = []
    for number in range(rules):
        source = TEN + (number - (number % 10 == 9) << 8)
        target = ACCEPT if number % 3 else DROP
        lines.append(([prefix(Field.SOURCE, source, 24), protocol(6), port(number % 7)], target))
        if number % 10 == 8:
            lines[-1] = ([prefix(Field.SOURCE, source, 24)], target)
    return ruleset(chain("INPUT", lines, "DROP"))


def test_a_long_list_is_compared_in_parts_and_its_shadows_are_found() -> None:
    source = access_list(2500)
    proof = prove(source, compiled(source))
    assert proof.complete
    assert proof.holds
    assert {ref.number: ends[0].number for ref, ends in proof.unreachable.items()} == {
        number: number - 1 for number in range(10, 2501, 10)
    }


@pytest.mark.parametrize("place", [1, 2, 4, 8, 10, 12, 15])
def test_a_wrong_number_in_a_list_of_a_trie_is_caught(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starts and classes of five intervals, the last of which fills the list up."""
    monkeypatch.setattr("bpfilter.compiler.tries.TABLES_ALONE", -1)
    lines = [([prefix(Field.SOURCE, TEN + 32 * number, 28)], DROP) for number in range(3)]
    source = ruleset(chain("INPUT", lines, "ACCEPT"))
    plan = compiled(source)
    assert prove(source, plan).holds
    axis = next(axis for axis in plan.tables.axes if axis.field is Field.SOURCE)
    ids = plan.tables.ids.copy()
    at = axis.base + axis.lists_base + place
    ids[at] = ids[at] + 1 if place < LIST_INTERVALS else int(ids[at] == 0)
    proof = prove(source, replace(plan, tables=replace(plan.tables, ids=ids)))
    assert proof.complete
    assert not proof.holds


@pytest.mark.parametrize("field", [Field.SOURCE, Field.DESTINATION_PORT])
def test_a_wrong_class_in_a_long_list_is_caught(field: Field) -> None:
    source = access_list(2500)
    plan = compiled(source)
    axis = next(axis for axis in plan.tables.axes if axis.field is field)
    at = axis.base + 3
    if axis.kind is AxisKind.TRIE4:
        inner = axis.base + (1 << 16)
        at = inner + (int(plan.tables.ids[axis.base + (10 << 8)]) & 0x7FFFFFFF) * 256 + 3
    ids = plan.tables.ids.copy()
    ids[at] = ids[at + 1]
    proof = prove(source, replace(plan, tables=replace(plan.tables, ids=ids)))
    assert proof.complete
    assert not proof.holds
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


@pytest.mark.parametrize("position", [0, 1233])
def test_neighbours_of_a_long_list_that_changed_places_are_caught(position: int) -> None:
    source = access_list(2500)
    plan = compiled(source)
    ops = plan.tables.ops.copy()
    assert ops[position] != ops[position + 1]
    ops[[position, position + 1]] = ops[[position + 1, position]]
    proof = prove(source, replace(plan, tables=replace(plan.tables, ops=ops)))
    assert not proof.holds


def test_a_proof_that_is_cut_short_says_which_rules_it_covers() -> None:
    source = access_list(2500)
    with pytest.MonkeyPatch.context() as patch:
        left = iter(range(40))

        def check_time(_: Diagrams) -> None:
            if next(left, None) is None:
                raise LimitReached("time")

        patch.setattr(Diagrams, "check_time", check_time)
        proof = prove(source, compiled(source))
    assert not proof.complete
    covered = re.match(r"rules 1 to (\d+) of 2500 in INPUT \((\d+) of 2501", proof.covered)
    assert covered is not None
    assert 0 < int(covered[1]) == int(covered[2]) < 2500


def test_long_lists_of_verdicts_list_their_functions() -> None:
    source = access_list(2500)
    proof = prove(source, compiled(source))
    assert proof.listed
    assert {str(walk.verdict) for f in proof.functions for _, walk in f.walks} == {"ACCEPT", "DROP"}


@pytest.mark.parametrize("position", [0, 1234, 2499])
def test_a_fault_anywhere_in_a_long_list_is_caught(position: int) -> None:
    source = access_list(2500)
    plan = compiled(source)
    ops = plan.tables.ops.copy()
    ops[position] = OpKind.PUNT << 28
    proof = prove(source, replace(plan, tables=replace(plan.tables, ops=ops)))
    shadowed = position % 10 == 9
    assert proof.holds is shadowed
    if proof.counterexample is not None:
        assert str(proof.counterexample.tables) == "PUNT"
