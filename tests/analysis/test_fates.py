"""One fate per rule, the first that applies, and every rule accounted for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from bpfilter.analysis.equivalence import Proof, prove
from bpfilter.analysis.fates import STATE, Fate, FateKind, fates
from bpfilter.analysis.unconditional import certainly_unreachable
from bpfilter.compiler.compile import CHAINS, compile_ruleset
from bpfilter.compiler.plan import Plan
from bpfilter.errors import RulesetRefused
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import RuleRef
from bpfilter.ruleset.read import read_file, read_text

HOST = """
    *raw
    :PREROUTING ACCEPT [0:0]
    :OUTPUT ACCEPT [0:0]
    :SHARED - [0:0]
    :LOCAL - [0:0]
    -A PREROUTING -s 192.0.2.0/24 -j DROP
    -A PREROUTING -p tcp -m tcp --dport 9 -j SHARED
    -A OUTPUT -j SHARED
    -A OUTPUT -j LOCAL
    -A SHARED -p tcp -j ACCEPT
    -A LOCAL -p udp -j ACCEPT
    COMMIT
    *nat
    :PREROUTING ACCEPT [0:0]
    :OUTPUT ACCEPT [0:0]
    :POSTROUTING ACCEPT [0:0]
    -A POSTROUTING -o eth0 -j MASQUERADE
    COMMIT
    *filter
    :INPUT DROP [0:0]
    :FORWARD DROP [0:0]
    :OUTPUT ACCEPT [0:0]
    :BOTH - [0:0]
    :NOBODY - [0:0]
    -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A INPUT -i lo -j ACCEPT
    -A INPUT -p tcp -m tcp --dport 22 -m limit --limit 3/min -j ACCEPT
    -A INPUT -p udp -j LOG
    -A INPUT -j BOTH
    -A INPUT -p tcp -m tcp --dport 80 -j ACCEPT
    -A INPUT -p udp -m udp --dport 53 -j DROP
    -A FORWARD -p udp -j DROP
    -A FORWARD -j BOTH
    -A BOTH -p tcp -m tcp --dport 80:90 -j DROP
    -A BOTH -p udp -m udp --dport 53 -j ACCEPT
    -A NOBODY -j ACCEPT
    COMMIT
"""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_ruleset(read_text(dedent(HOST)))


@pytest.fixture(scope="module")
def proofs(plan: Plan) -> dict[tuple[str, str], Proof]:
    return {hook: prove(plan.ruleset, chain) for hook, chain in plan.chains.items()}


@pytest.fixture(scope="module")
def judged(plan: Plan, proofs: dict[tuple[str, str], Proof]) -> dict[RuleRef, Fate]:
    return dict(fates(plan, proofs))


def of(judged: dict[RuleRef, Fate], chain: str, number: int, table: str = "filter") -> Fate:
    return judged[RuleRef(table, chain, number)]


def test_every_rule_has_one_fate(plan: Plan, judged: dict[RuleRef, Fate]) -> None:
    assert list(judged) == [rule.ref for rule in plan.ruleset.rules()]


def test_a_rule_that_only_tests_the_connection_state_is_residual_by_state(
    judged: dict[RuleRef, Fate],
) -> None:
    fate = of(judged, "INPUT", 1)
    assert (fate.kind, fate.reason) == (FateKind.RESIDUAL, STATE)


def test_static_rules_and_jumps_are_native(judged: dict[RuleRef, Fate]) -> None:
    assert of(judged, "INPUT", 2).kind is FateKind.NATIVE
    assert of(judged, "INPUT", 5).kind is FateKind.NATIVE


def test_a_rate_limited_verdict_is_punted_and_says_why(judged: dict[RuleRef, Fate]) -> None:
    fate = of(judged, "INPUT", 3)
    assert fate.kind is FateKind.PUNT
    assert "limit" in fate.reason


def test_a_log_rule_is_residual_by_its_target(judged: dict[RuleRef, Fate]) -> None:
    fate = of(judged, "INPUT", 4)
    assert (fate.kind, fate.reason) == (FateKind.RESIDUAL, "target LOG")


def test_a_rule_behind_a_chain_that_takes_its_packets_is_unreachable(
    judged: dict[RuleRef, Fate],
) -> None:
    for number in (6, 7):
        fate = of(judged, "INPUT", number)
        assert fate.kind is FateKind.UNREACHABLE
        assert fate.shadowed_by == (RuleRef("filter", "INPUT", 5),)
        assert "filter/INPUT/5" in fate.reason


def test_a_rule_that_one_context_reaches_is_not_unreachable(judged: dict[RuleRef, Fate]) -> None:
    fate = of(judged, "BOTH", 2)
    assert fate.kind is FateKind.NATIVE
    assert fate.contexts[("filter", "FORWARD")].kind is FateKind.UNREACHABLE
    assert fate.contexts[("filter", "INPUT")].kind is FateKind.NATIVE


def test_a_chain_that_nothing_jumps_to_is_unreachable(judged: dict[RuleRef, Fate]) -> None:
    fate = of(judged, "NOBODY", 1)
    assert fate.kind is FateKind.UNREACHABLE
    assert "nothing jumps" in fate.reason


def test_tables_and_chains_that_are_not_taken_over_are_kept(judged: dict[RuleRef, Fate]) -> None:
    assert of(judged, "POSTROUTING", 1, "nat").kind is FateKind.KEPT
    assert of(judged, "OUTPUT", 1, "raw").kind is FateKind.KEPT
    assert of(judged, "LOCAL", 1, "raw").kind is FateKind.KEPT
    assert of(judged, "SHARED", 1, "raw").kind is FateKind.NATIVE


def test_rules_of_a_chain_left_out_of_the_plan_are_kept() -> None:
    plan = compile_ruleset(read_text(dedent(HOST)), [("filter", "INPUT")])
    judged = dict(fates(plan, {}))
    assert of(judged, "FORWARD", 1).kind is FateKind.KEPT
    assert of(judged, "INPUT", 2).kind is FateKind.NATIVE


def test_without_a_proof_only_what_is_plain_is_unreachable(
    plan: Plan, proofs: dict[tuple[str, str], Proof], judged: dict[RuleRef, Fate]
) -> None:
    cut = {hook: replace(proof, listed=False, unreachable={}) for hook, proof in proofs.items()}
    for without in (fates(plan, cut), fates(plan, {})):
        found = {ref for ref, fate in without.items() if fate.kind is FateKind.UNREACHABLE}
        assert found == {RuleRef("filter", "NOBODY", 1)}


def test_the_fallback_finds_what_stands_behind_an_unconditional_end() -> None:
    text = """
        *filter
        :INPUT DROP [0:0]
        :A - [0:0]
        :B - [0:0]
        -A INPUT -j A
        -A INPUT -m comment --comment "all of them" -j DROP
        -A INPUT -j B
        -A A -g B
        -A A -j ACCEPT
        -A B -p tcp -j RETURN
        COMMIT
    """
    found = certainly_unreachable(read_text(dedent(text)), ("filter", "INPUT"))
    assert {str(ref): [str(end) for end in ends] for ref, ends in found.items()} == {
        "filter/INPUT/3": ["filter/INPUT/2"],
        "filter/A/2": ["filter/A/1"],
    }


def test_a_fragment_may_reach_what_port_matches_seem_to_shadow() -> None:
    text = """
        *filter
        :INPUT ACCEPT [0:0]
        -A INPUT -p tcp -m tcp --dport 0:65535 -j DROP
        -A INPUT -p tcp -j ACCEPT
        -A INPUT -f -j DROP
        -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
        COMMIT
    """
    plan = compile_ruleset(read_text(dedent(text)), [("filter", "INPUT")])
    proof = prove(plan.ruleset, plan.chains[("filter", "INPUT")])
    assert proof.holds
    assert proof.unreachable == {RuleRef("filter", "INPUT", 4): (RuleRef("filter", "INPUT", 1),)}


def test_a_contradictory_rule_is_unreachable_and_nothing_shadows_it() -> None:
    text = """
        *filter
        :INPUT ACCEPT [0:0]
        -A INPUT -s 10.0.0.0/8 -m iprange --src-range 11.0.0.0-11.0.0.9 -j DROP
        COMMIT
    """
    plan = compile_ruleset(read_text(dedent(text)), [("filter", "INPUT")])
    proof = prove(plan.ruleset, plan.chains[("filter", "INPUT")])
    fate = fates(plan, {("filter", "INPUT"): proof})[RuleRef("filter", "INPUT", 1)]
    assert (fate.kind, fate.shadowed_by) == (FateKind.UNREACHABLE, ())


@pytest.mark.long
def test_public_rulesets_are_proven_and_their_fates_add_up(shared_rulesets: list[Path]) -> None:
    for path in shared_rulesets:
        try:
            ruleset = read_file(str(path))
        except RulesetRefused:
            continue
        if sum(1 for _ in ruleset.rules()) > 300:
            continue
        plan = compile_ruleset(ruleset, CHAINS, budget=200)
        proofs = {hook: prove(ruleset, chain) for hook, chain in plan.chains.items()}
        assert all(proof.complete and proof.holds for proof in proofs.values()), path.name
        counts = Counter(fate.kind for fate in fates(plan, proofs).values())
        assert counts.total() == sum(1 for _ in ruleset.rules()), path.name


@pytest.mark.parametrize("odd", ["", "-A INPUT -s ::1/::ffff -j ACCEPT\n"], ids=["", "odd mask"])
def test_a_rule_that_no_packet_can_match_is_not_called_shadowed(odd: str) -> None:
    text = f"*filter\n:INPUT DROP [0:0]\n{odd}-A INPUT ! -s ::/0 -j DROP\n-A INPUT ! -i + -j DROP\n"
    plan = compile_ruleset(read_text(f"{text}COMMIT\n", family=Family.IPV6))
    proofs = {key: prove(plan.ruleset, chain) for key, chain in plan.chains.items()}
    never = [fate for ref, fate in fates(plan, proofs).items() if ref.number > bool(odd)]
    assert [fate.shadowed_by for fate in never] == [(), ()]
    assert all("exclude each other" in fate.reason for fate in never)


def test_a_jump_to_an_undeclared_chain_says_so() -> None:
    text = """*filter
:INPUT DROP [0:0]
-A INPUT -p tcp -m tcp --dport 1 -j NOWHERE
-A INPUT -p udp -g NOWHERE
COMMIT
"""
    plan = compile_ruleset(read_text(text, family=Family.IPV4, lenient=True))
    jump, goto = fates(plan, {}).values()
    assert jump.kind is goto.kind is FateKind.PUNT
    assert jump.reason.startswith("NOWHERE is neither a chain that its table declares")
    assert goto.reason == "goto to chain NOWHERE, which its table does not declare"
