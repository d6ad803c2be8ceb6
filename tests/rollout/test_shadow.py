"""Counters of rules against the program's: agreement is bounded, disagreement is found."""

from __future__ import annotations

from bpfilter.compiler.compile import compile_chain
from bpfilter.rollout.shadow import Bounds, Counted, ShadowReport, compare
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import RuleRef
from bpfilter.ruleset.read import read_text

RULES = """*filter
:INPUT DROP [{policy}:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:BOTH - [0:0]
[{web}:0] -A INPUT -p tcp -m tcp --dport 80 -j ACCEPT
[{limited}:0] -A INPUT -p tcp -m hashlimit --hashlimit-upto 5/sec --hashlimit-name x -j ACCEPT
[0:0] -A INPUT -j BOTH
[0:0] -A OUTPUT -j BOTH
[{both}:0] -A BOTH -p udp -j ACCEPT
COMMIT
"""
WEB, POLICY = RuleRef("filter", "INPUT", 1), RuleRef("filter", "INPUT", 0)


def report(
    *, web: int, policy: int, limited: int = 0, both: int = 0, program: dict[RuleRef, Bounds]
) -> ShadowReport:
    before = read_text(RULES.format(web=0, policy=0, limited=0, both=0), family=Family.IPV4)
    after = read_text(
        RULES.format(web=web, policy=policy, limited=limited, both=both), family=Family.IPV4
    )
    chain = compile_chain(before, "filter", "INPUT")
    left = dict(program)
    entries = [left.pop(entry.rule, Bounds(0, 0)) for entry in chain.flat.entries]
    decided = sum(bounds.certain for bounds in program.values())
    return compare(before, after, chain, Counted(entries, decided, decided))


def test_equal_counts_agree() -> None:
    result = report(web=7, policy=3, program={WEB: Bounds(7, 7), POLICY: Bounds(3, 3)})
    assert result.mismatches == ()
    assert result.compared == 2
    assert "by counters" in str(result)


def test_a_rule_that_decided_more_or_less_than_predicted_is_named() -> None:
    result = report(web=6, policy=4, program={WEB: Bounds(7, 7), POLICY: Bounds(3, 3)})
    assert [count.rule for count in result.mismatches] == [WEB, POLICY]


def test_packets_that_the_program_did_not_see_widen_the_bounds_upwards_only() -> None:
    program = {WEB: Bounds(7, 7), POLICY: Bounds(3, 3)}
    assert report(web=9, policy=3, program=program).mismatches == ()
    assert WEB in {count.rule for count in report(web=6, policy=6, program=program).mismatches}


def test_packets_that_a_dynamic_rule_ended_are_missing_further_on() -> None:
    result = report(web=7, policy=1, limited=2, program={WEB: Bounds(7, 7), POLICY: Bounds(3, 3)})
    assert result.mismatches == ()
    assert result.diverted == 2


def test_rules_that_other_chains_reach_too_are_left_out() -> None:
    result = report(web=0, policy=0, both=50, program={})
    assert RuleRef("filter", "BOTH", 1) not in {count.rule for count in result.rules}
    assert result.left_out == 2


def test_decisions_at_shared_rules_do_not_stand_for_packets_that_the_program_left_alone() -> None:
    shared = RuleRef("filter", "BOTH", 1)
    program = {shared: Bounds(20, 20), POLICY: Bounds(3, 3)}
    result = report(web=0, policy=9, both=20, program=program)
    assert result.mismatches == ()
    assert result.unseen == 6
