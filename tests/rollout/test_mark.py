"""Mark bits that someone uses are never taken for codes."""

from __future__ import annotations

import pytest

from bpfilter.compiler.mark import DEFAULT_MARK, MarkField
from bpfilter.errors import RolloutError
from bpfilter.rollout.mark import MarkUse, choose, ruleset_uses
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.read import read_text


def uses(rule: str, table: str = "mangle", chain: str = "PREROUTING") -> tuple[MarkUse, ...]:
    text = f"*{table}\n:{chain} ACCEPT [0:0]\n-A {chain} {rule}\nCOMMIT\n"
    return ruleset_uses([read_text(text, family=Family.IPV4)])


def bits(rule: str, table: str = "mangle", chain: str = "PREROUTING") -> int:
    result = 0
    for use in uses(rule, table, chain):
        result |= use.bits
    return result


def test_the_highest_eight_bits_are_taken_when_nobody_uses_the_mark() -> None:
    assert choose([]) == DEFAULT_MARK


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-m mark --mark 0x4000/0x4000 -j ACCEPT", 0x4000),
        ("-m mark ! --mark 0x1/0xff -j ACCEPT", 0xFF),
        ("-m mark --mark 1 -j ACCEPT", 0xFFFFFFFF),
        ("-j MARK --set-xmark 0x8000/0x8000", 0x8000),
        ("-j MARK --set-xmark 0x3/0x1", 0x3),
        ("-j MARK --set-mark 0x10/0xf0", 0xF0),
        ("-j MARK --set-mark 5", 0xFFFFFFFF),
        ("-j MARK --or-mark 0x100", 0x100),
        ("-j MARK --and-mark 0xffffff00", 0xFF),
        ("-j CONNMARK --save-mark", 0xFFFFFFFF),
        ("-j CONNMARK --restore-mark --nfmask 0xf00 --ctmask 0xff", 0xF00),
        ("-j CONNMARK --save-mark --mask 0xff", 0xFF),
        ("-j CONNMARK --set-xmark 0x1/0xffffffff", 0),
        ("-m connmark --mark 1 -j ACCEPT", 0),
        ("-p tcp -j TPROXY --on-port 80 --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1", 0x1),
        ("-m socket --restore-skmark -j ACCEPT", 0xFFFFFFFF),
        ("-j NFLOG", 0xFFFFFFFF),
        ("-j NFQUEUE --queue-num 1", 0xFFFFFFFF),
        ("-j LOG", 0xFFFFFFFF),
        ("-j TEE --gateway 10.0.0.1", 0xFFFFFFFF),
        ("-j CLASSIFY --set-class 1:2", 0),
        ("-p tcp -j ACCEPT", 0),
    ],
)
def test_what_a_rule_uses_of_the_mark(rule: str, expected: int) -> None:
    assert bits(rule) == expected


def test_logging_in_filter_shows_no_mark_because_the_dispatch_cleared_it() -> None:
    assert bits("-j LOG", "filter", "INPUT") == 0


def test_connection_zones_by_mark_use_all_of_it() -> None:
    assert bits("-j CT --zone-orig mark", "raw") == 0xFFFFFFFF
    assert bits("-j CT --zone 7", "raw") == 0


def test_a_field_moves_out_of_the_way_and_shrinks_where_it_must() -> None:
    assert choose([MarkUse(0xFF000000, "a")]) == MarkField(0x00FF0000, 16)
    assert choose([MarkUse(0x84210842, "a")]) == MarkField(0x78000000, 27)


def test_a_user_of_the_whole_mark_is_named_when_no_bit_is_left() -> None:
    with pytest.raises(RolloutError, match=r"mangle/PREROUTING/1 has target CONNMARK"):
        choose(uses("-j CONNMARK --save-mark"))
