"""A proof that rests on an earlier one proves what a proof of everything proves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.generate import Style, generate
from bpfilter.analysis.equivalence import prove
from bpfilter.analysis.kept import Proven, kept
from bpfilter.analysis.segments import Segment
from bpfilter.compiler.plan import ChainPlan
from bpfilter.ruleset.fields import Family, Field
from bpfilter.ruleset.model import Rule, RuleRef, Ruleset, Table
from bpfilter.ruleset.read import read_text
from tests.analysis.breakings import BREAKINGS, Breaking, hidden_leaf, office
from tests.analysis.built import ACCEPT, DROP, chain, port, prefix, ruleset
from tests.analysis.compiled import compiled
from tests.analysis.random_rulesets import rulesets

SLOW = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
BANNED = chain("INPUT", [([prefix(Field.SOURCE, 14 << 24, 9)], DROP)]).rules[0]


def with_rules(source: Ruleset, name: str, rules: list[Rule]) -> Ruleset:
    """The ruleset with these rules in one of its filter chains, numbered anew."""
    chains = source.tables["filter"].chains
    numbered = tuple(
        replace(rule, chain=name, number=number) for number, rule in enumerate(rules, 1)
    )
    edited = Table("filter", {**chains, name: replace(chains[name], rules=numbered)})
    return replace(source, tables={**source.tables, "filter": edited})


def inserted(source: Ruleset, name: str, place: int, rule: Rule = BANNED) -> Ruleset:
    rules = list(source.tables["filter"].chains[name].rules)
    return with_rules(source, name, [*rules[:place], rule, *rules[place:]])


def proven(source: Ruleset, part: int = 1, builtin: str = "INPUT") -> Proven:
    plan = compiled(source, builtin)
    return Proven(source, plan, prove(source, plan, part=part).parts)


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("place", [0, 3, 8, 10])
def test_all_parts_but_the_one_around_an_inserted_rule_and_the_policys_stand(
    family: Family, place: int
) -> None:
    source = office(family)
    before = proven(source)
    bits = 32 if family is Family.IPV4 else 128
    rule = chain("INPUT", [([prefix(Field.SOURCE, 14 << bits - 8, 9, bits)], DROP)]).rules[0]
    edited = inserted(source, "INPUT", place, rule)
    plan = compiled(edited)
    found = kept(before, edited, plan)
    rules = len(source.tables["filter"].chains["INPUT"].rules)
    assert [(part.first, part.behind, part.via) for part in found] == [
        shifted(part, place)
        for part in before.segments[:-1]
        # What returns from the last rule's part met the policy there, and meets the new rule now.
        if part.via or part.behind < rules or place < rules
    ]
    proof = prove(edited, plan, before=before, part=1)
    assert proof.complete
    assert proof.holds
    assert set(found) < set(proof.parts)


def shifted(part: Segment, place: int) -> tuple[int, int, tuple[RuleRef, ...]]:
    """Rules and jumps of a part behind a rule that was inserted into INPUT."""
    if part.via:
        first, *others = part.via
        moved = first._replace(number=first.number + (first.number > place))
        return part.first, part.behind, (moved, *others)
    by = part.first >= place
    return part.first + by, part.behind + by, ()


def test_an_edit_of_a_user_chain_leaves_the_rules_that_do_not_lead_there() -> None:
    source = office()
    before = proven(source)
    edited = inserted(source, "odd", 0)
    found = kept(before, edited, compiled(edited))
    # Rule 3 jumps to `ssh`, whose rule 2 goes to `odd`; the last part is the policy's.
    expected = [part for part in before.segments[:-1] if not (part.via and part.first == 1)]
    moved = [(part.via, part.first, part.behind) for part in expected]
    assert [(part.via, part.first, part.behind) for part in found] == moved
    assert any(part.via for part in expected)


def test_nothing_stands_under_another_policy() -> None:
    source = office()
    before = proven(source)
    chains = source.tables["filter"].chains
    accepting = {**chains, "INPUT": replace(chains["INPUT"], policy="ACCEPT")}
    edited = replace(source, tables={"filter": Table("filter", accepting)})
    assert kept(before, edited, compiled(edited)) == ()
    assert prove(edited, compiled(edited), before=before).holds


def test_nothing_stands_where_rules_can_tell_other_interfaces_apart() -> None:
    source = office()
    name = source.tables["filter"].chains["INPUT"].rules[1]
    other = replace(name, matches=(replace(name.matches[0], words=("-i", "eth7")),))
    edited = inserted(source, "INPUT", 0, other)
    plan = compiled(edited)
    space = replace(plan.flat.space, interfaces=(*plan.flat.space.interfaces, "eth7"))
    assert kept(proven(source), edited, replace(plan, flat=replace(plan.flat, space=space))) == ()


@pytest.mark.parametrize("place", [0, 5, 9])
@pytest.mark.parametrize("breaking", BREAKINGS)
def test_a_broken_table_is_caught_by_a_proof_that_rests_on_an_earlier_one(
    breaking: Breaking, place: int
) -> None:
    source = office()
    edited = inserted(source, "INPUT", place)
    plan = compiled(edited)
    broken = replace(plan, tables=breaking(plan.tables))
    proof = prove(edited, broken, before=proven(source), part=1)
    assert proof.complete
    assert not proof.holds
    assert proof.counterexample is not None


def test_tables_of_the_rules_before_an_edit_are_caught() -> None:
    source = office()
    before = proven(source)
    edited = inserted(source, "INPUT", 0)
    stale = replace(compiled(edited), flat=before.chain.flat, tables=before.chain.tables)
    assert not prove(edited, stale, before=before).holds


@pytest.mark.parametrize("builtin", ["INPUT", "FORWARD", "OUTPUT"])
@SLOW
@given(data=st.data())
def test_both_proofs_say_the_same_of_right_and_of_broken_tables(
    builtin: str, data: st.DataObject
) -> None:
    source = data.draw(rulesets(builtin))
    before = proven(source, data.draw(st.sampled_from((1, 2, 128))), builtin)
    edited = data.draw(edits(source))
    plan = compiled(edited, builtin)
    proof = prove(edited, plan, before=before)
    assert proof.holds, proof.counterexample
    assert proof.complete
    assert proof.functions == prove(edited, plan).functions
    broken = data.draw(changed(plan))
    assert prove(edited, broken, before=before).holds == prove(edited, broken).holds


@st.composite
def edits(draw: st.DrawFn, source: Ruleset) -> Ruleset:
    """One rule less, one more, or one in another place, in one or two chains."""
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(source.tables["filter"].chains)))
        rules = list(source.tables["filter"].chains[name].rules)
        if rules and draw(st.booleans()):
            taken = rules.pop(draw(st.integers(0, len(rules) - 1)))
        else:
            taken = BANNED
        if taken is BANNED or draw(st.booleans()):
            rules.insert(draw(st.integers(0, len(rules))), taken)
        source = with_rules(source, name, rules)
    return source


@st.composite
def changed(draw: st.DrawFn, plan: ChainPlan) -> ChainPlan:
    """One number of one array is another."""
    arrays = ("ids", "rows", "blocks", "ops")
    name = draw(st.sampled_from([name for name in arrays if getattr(plan.tables, name).size]))
    array = getattr(plan.tables, name).copy()
    flat = array.reshape(-1)
    place = draw(st.integers(0, len(flat) - 1))
    flat[place] ^= flat.dtype.type(1 << draw(st.integers(0, 8 * flat.itemsize - 1)))
    return replace(plan, tables=replace(plan.tables, **{name: array}))


@pytest.mark.parametrize("breaking", [None, hidden_leaf])
def test_paired_tables_stand_or_are_caught(
    breaking: Breaking | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpfilter.compiler.tables.UNPAIRED_WORDS", 0)
    text = generate(Style.FW, 700, 1)
    source = read_text(text)
    plan = compiled(source)
    before = Proven(source, plan, prove(source, plan).parts)
    edited = read_text(text.replace("-A INPUT", "-A INPUT -s 10.77.0.0/17 -j DROP\n-A INPUT", 1))
    now = compiled(edited)
    assert now.tables.paired
    assert kept(before, edited, now)
    tables = breaking(now.tables) if breaking else now.tables
    assert prove(edited, replace(now, tables=tables), before=before).holds == (breaking is None)


def test_long_chains_are_compared_across_words_and_blocks() -> None:
    lines = [([port(number)], ACCEPT if number % 3 else DROP) for number in range(1, 1400)]
    source = ruleset(chain("INPUT", lines, "DROP"))
    other = chain("INPUT", [([port(1500, 1600)], ACCEPT)]).rules[0]
    before = proven(source, part=24)
    for place in (0, 63, 64, 511, 1000, 1399):
        edited = inserted(source, "INPUT", place, other)
        plan = compiled(edited)
        assert len(kept(before, edited, plan)) >= len(before.segments) - 2
        blocks = plan.tables.blocks.copy()
        at = np.unravel_index(np.flatnonzero(blocks)[place % 7 + 20], blocks.shape)
        lowest = int(blocks[at]) & -int(blocks[at])
        blocks[at] ^= np.uint64(lowest)
        broken = replace(plan, tables=replace(plan.tables, blocks=blocks))
        assert not prove(edited, broken, before=before).holds
