"""Rules that could go: without them the semantic diff finds that nothing changes."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import replace

import pytest

from bench.generate import Style, rules, ruleset_text
from bpfilter.analysis.difference import HOOKS, compare
from bpfilter.analysis.redundant import redundant
from bpfilter.compiler.compile import compile_ruleset
from bpfilter.errors import RulesetRefused
from bpfilter.lab.generate import random_ruleset
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import RuleRef, Ruleset
from bpfilter.ruleset.read import read_text


def found(text: str) -> Mapping[str, str]:
    named = redundant(compile_ruleset(read_text(text)))
    return {str(ref): str(by) for ref, by in named.items()}


def chain(*lines: str, policy: str = "DROP") -> str:
    return ruleset_text(lines, policy=policy)


def without(ruleset: Ruleset, refs: Collection[RuleRef]) -> Ruleset:
    table = ruleset.tables["filter"]
    chains = {
        name: replace(chain, rules=tuple(rule for rule in chain.rules if rule.ref not in refs))
        for name, chain in table.chains.items()
    }
    tables = {**ruleset.tables, "filter": replace(table, chains=chains)}
    return replace(ruleset, tables=tables)


def test_what_a_later_rule_or_the_policy_decides_alike_is_redundant() -> None:
    text = chain(
        "-s 10.1.0.0/16 -p tcp --dport 22 -j ACCEPT",
        "-s 192.0.2.0/24 -j DROP",
        "-s 10.0.0.0/8 -j ACCEPT",
        "-p udp -j DROP",
    )
    assert found(text) == {
        "filter/INPUT/1": "filter/INPUT/3",
        "filter/INPUT/2": "filter/INPUT/0",
        "filter/INPUT/4": "filter/INPUT/0",
    }


@pytest.mark.parametrize(
    "between",
    ["-s 10.1.2.0/24 -j DROP", "-p tcp -j LOG", "-m limit --limit 1/s -j ACCEPT",
     "-m conntrack --ctstate INVALID -j DROP"],
)  # fmt: skip
def test_what_stands_between_keeps_a_rule_if_it_may_hold_its_packets(between: str) -> None:
    first, last = "-s 10.1.0.0/16 -p tcp --dport 22 -j ACCEPT", "-s 10.0.0.0/8 -j ACCEPT"
    assert "filter/INPUT/1" in found(chain(first, last))
    assert "filter/INPUT/1" not in found(chain(first, between, last))


def test_a_rule_of_a_user_chain_goes_only_if_every_caller_can_do_without() -> None:
    text = (
        "*filter\n:INPUT DROP [0:0]\n:FORWARD {} [0:0]\n:OUTPUT ACCEPT [0:0]\n:BAD - [0:0]\n"
        "-A INPUT -j BAD\n-A FORWARD -j BAD\n-A BAD -s 192.0.2.0/24 -j DROP\nCOMMIT\n"
    )
    assert found(text.format("DROP")) == {"filter/BAD/1": "filter/INPUT/0"}
    assert found(text.format("ACCEPT")) == {}


def check(ruleset: Ruleset) -> int:
    named = redundant(compile_ruleset(ruleset))
    rest = without(ruleset, set(named))
    for hook in HOOKS:
        difference = compare(ruleset, rest, hook, seconds=60)
        assert difference is None or difference.same, (named, difference.changes)
    return len(named)


@pytest.mark.parametrize("seed", range(3))
def test_all_redundant_rules_may_go_at_once(seed: int) -> None:
    lines = rules(list(Style)[seed % 3], 60, seed)
    lines.insert(9, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
    assert check(read_text(chain(*lines, policy="ACCEPT"))) > 0


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_random_rulesets_lose_nothing_with_their_redundant_rules(family: Family) -> None:
    count = 0
    for seed in range(40):
        try:
            ruleset = read_text(random_ruleset(random.Random(seed), family), family=family)
        except RulesetRefused:
            continue
        count += check(ruleset)
    assert count > 20
