"""What the compiler inlines, leaves to residuals, and punts."""

from __future__ import annotations

from textwrap import dedent

import pytest

from bpfilter.compiler.classify import Classified, classify
from bpfilter.compiler.flatten import flatten
from bpfilter.compiler.ir import Action, FlatChain, ItemKind, OpKind, Treatment
from bpfilter.errors import CompileError
from bpfilter.ruleset.fields import Field, Intervals, State
from bpfilter.ruleset.model import RuleRef
from bpfilter.ruleset.read import read_text


def classified(text: str, table: str = "filter", chain: str = "INPUT") -> Classified:
    return classify(read_text(dedent(text)), table, chain)


def flat(text: str, table: str = "filter", chain: str = "INPUT") -> FlatChain:
    ruleset = read_text(dedent(text))
    return flatten(ruleset, classify(ruleset, table, chain))


def treatment(text: str, chain: str, number: int) -> Treatment:
    return classified(text).treatments[RuleRef("filter", chain, number)]


def filter_table(*rules: str, chains: tuple[str, ...] = (), policy: str = "DROP") -> str:
    declared = [f":INPUT {policy} [0:0]", *(f":{name} - [0:0]" for name in chains)]
    return "\n".join(["*filter", *declared, *rules, "COMMIT", ""])


def test_a_static_rule_is_inlined_with_its_fields() -> None:
    entry = flat(filter_table("-A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 22 -j ACCEPT")).entries[
        0
    ]
    assert entry.kind is OpKind.ACCEPT
    assert entry.box == {
        Field.SOURCE: Intervals.single(0x0A000000, 0x0AFFFFFF),
        Field.PROTOCOL: Intervals.single(6),
        Field.DESTINATION_PORT: Intervals.single(22),
    }


def test_connection_state_narrows_the_states_and_not_the_box() -> None:
    entry = flat(
        filter_table("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
    ).entries[0]
    assert entry.box == {}
    assert entry.states == State.RELATED | State.ESTABLISHED


def test_a_rate_limit_that_decides_a_verdict_is_punted() -> None:
    rule = treatment(filter_table("-A INPUT -m limit --limit 3/min -j ACCEPT"), "INPUT", 1)
    assert rule.action is Action.PUNT
    assert "limit" in rule.reason


def test_a_rate_limited_log_is_one_shared_rule() -> None:
    rule = treatment(filter_table("-A INPUT -m limit --limit 3/min -j LOG"), "INPUT", 1)
    assert rule.item is not None
    assert rule.item.kind is ItemKind.SHARED


def test_state_shared_by_name_runs_in_a_residual() -> None:
    rule = treatment(
        filter_table("-A INPUT -m recent --update --name x --rsource -j DROP"), "INPUT", 1
    )
    assert rule.item is not None
    assert rule.item.kind is ItemKind.RULE
    assert rule.item.verdicts == {"DROP"}


def test_matches_behind_a_dynamic_one_are_not_static() -> None:
    entry = flat(
        filter_table(
            "-A INPUT -p tcp -m recent --set --name x --rsource -m tcp --dport 22 -j ACCEPT"
        )
    ).entries[0]
    assert entry.kind is OpKind.ITEM
    assert set(entry.box) == {Field.PROTOCOL}


def test_a_dynamic_return_of_a_built_in_chain_is_the_policy() -> None:
    rule = treatment(filter_table("-A INPUT -m mark --mark 1 -j RETURN"), "INPUT", 1)
    assert rule.item is not None
    assert rule.item.verdicts == {"DROP"}


def test_a_chain_with_a_dynamic_return_is_copied_whole() -> None:
    text = filter_table(
        "-A INPUT -p tcp -j web",
        "-A web -m mark --mark 1 -j RETURN",
        "-A web -j ACCEPT",
        chains=("web",),
    )
    rule = treatment(text, "INPUT", 1)
    assert rule.item is not None
    assert (rule.item.kind, rule.item.chain) == (ItemKind.COPY, "web")
    assert treatment(text, "web", 2).action is Action.ITEM


def test_a_limited_return_in_a_deciding_chain_punts_only_what_reaches_it() -> None:
    text = filter_table(
        "-A INPUT -j flood",
        "-A flood -p icmp -j ACCEPT",
        "-A flood -m limit --limit 1/sec -j RETURN",
        "-A flood -j DROP",
        chains=("flood",),
    )
    kinds = [entry.kind for entry in flat(text).entries]
    assert kinds == [OpKind.ACCEPT, OpKind.PUNT, OpKind.DROP]


def test_a_ufw_style_log_only_chain_is_shared_not_punted() -> None:
    text = filter_table(
        "-A INPUT -m limit --limit 3/min -j logging",
        "-A INPUT -m conntrack --ctstate INVALID -j logging",
        "-A logging -m conntrack --ctstate INVALID -m limit --limit 3/min -j RETURN",
        '-A logging -m limit --limit 3/min -j LOG --log-prefix "[UFW BLOCK] "',
        chains=("logging",),
    )
    limited, plain = (treatment(text, "INPUT", n).item for n in (1, 2))
    assert limited is not None
    assert plain is not None
    assert (limited.kind, limited.chain) == (ItemKind.SHARED, "logging")
    assert (plain.kind, plain.chain) == (ItemKind.COPY, "logging")


def test_an_empty_chain_costs_nothing() -> None:
    text = filter_table("-A INPUT -j nothing", chains=("nothing",))
    assert len(flat(text).entries) == 1


def test_return_skips_to_the_end_of_its_chain() -> None:
    text = filter_table(
        "-A INPUT -p tcp -j user",
        "-A INPUT -p udp -j ACCEPT",
        "-A user -s 10.0.0.1 -j RETURN",
        "-A user -j ACCEPT",
        chains=("user",),
    )
    entries = flat(text).entries
    assert [entry.kind for entry in entries] == [
        OpKind.SKIP,
        OpKind.ACCEPT,
        OpKind.ACCEPT,
        OpKind.DROP,
    ]
    assert entries[0].argument == 2


def test_goto_ends_in_the_policy_of_a_built_in_chain() -> None:
    text = filter_table(
        "-A INPUT -p tcp -g user",
        "-A INPUT -j ACCEPT",
        "-A user -s 10.0.0.1 -j ACCEPT",
        chains=("user",),
    )
    entries = flat(text).entries
    assert [entry.kind for entry in entries[:2]] == [OpKind.ACCEPT, OpKind.SKIP]
    assert entries[entries[1].argument].rule.number == 0


def test_packets_that_nat_may_translate_are_punted_first() -> None:
    text = """\
        *nat
        :PREROUTING ACCEPT [0:0]
        :DOCKER - [0:0]
        -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
        -A DOCKER -i docker0 -j RETURN
        -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
        COMMIT
        *filter
        :INPUT DROP [0:0]
        -A INPUT -p tcp -j ACCEPT
        COMMIT
        """
    entries = flat(text).entries
    assert [entry.kind for entry in entries[:3]] == [OpKind.SKIP, OpKind.PUNT, OpKind.ACCEPT]
    assert entries[1].rule == RuleRef("nat", "DOCKER", 2)


def test_a_field_that_mangle_rewrites_is_dynamic_in_filter() -> None:
    text = """\
        *mangle
        :PREROUTING ACCEPT [0:0]
        -A PREROUTING -j TTL --ttl-set 64
        COMMIT
        *filter
        :INPUT DROP [0:0]
        -A INPUT -m ttl --ttl-eq 64 -j ACCEPT
        COMMIT
        """
    rule = classified(text).treatments[RuleRef("filter", "INPUT", 1)]
    assert rule.action is Action.ITEM


def test_the_out_interface_is_empty_in_input() -> None:
    text = filter_table(
        "-A INPUT -j user",
        "-A user -o eth0 -j DROP",
        "-A user ! -o eth0 -j ACCEPT",
        chains=("user",),
    )
    assert next(entry.kind for entry in flat(text).entries) is OpKind.ACCEPT


def test_fragment_rules_are_punted_with_their_reason() -> None:
    rule = treatment(filter_table("-A INPUT -f -j DROP"), "INPUT", 1)
    assert rule.action is Action.PUNT
    assert "fragment" in rule.reason


def test_state_in_raw_prerouting_is_invalid() -> None:
    text = """\
        *raw
        :PREROUTING ACCEPT [0:0]
        -A PREROUTING -m conntrack --ctstate NEW -j DROP
        -A PREROUTING -m conntrack --ctstate INVALID -p udp -j DROP
        COMMIT
        """
    entries = flat(text, "raw", "PREROUTING").entries
    assert [entry.rule.number for entry in entries] == [2, 0]


def test_a_loop_of_chains_is_an_error_that_shows_it() -> None:
    text = filter_table("-A INPUT -j a", "-A a -j b", "-A b -j a", chains=("a", "b"))
    with pytest.raises(CompileError, match="a → b → a"):
        classified(text)


def test_nat_is_asked_only_for_packets_that_begin_a_connection() -> None:
    text = """\
        *nat
        :PREROUTING ACCEPT [0:0]
        -A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080
        COMMIT
        *filter
        :INPUT DROP [0:0]
        COMMIT
        """
    first = flat(text).entries[0]
    assert first.kind is OpKind.PUNT
    assert first.states == State.NEW | State.RELATED


def test_state_in_raw_behind_notrack_is_dynamic() -> None:
    text = """\
        *raw
        :PREROUTING ACCEPT [0:0]
        -A PREROUTING -p udp -j CT --notrack
        -A PREROUTING -m conntrack --ctstate UNTRACKED -j DROP
        COMMIT
        """
    rule = classified(text, "raw", "PREROUTING").treatments[RuleRef("raw", "PREROUTING", 2)]
    assert rule.action is Action.ITEM
