"""Semantic diff: exactly the packets that two rulesets treat differently, in readable boxes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from bench.generate import Style, rules, ruleset_text
from bpfilter.analysis.cutting import Cut
from bpfilter.analysis.difference import Change, HookDifference, compare
from bpfilter.compiler.compile import compile_chain
from bpfilter.compiler.ir import FlatChain
from bpfilter.compiler.sample import sample_packets
from bpfilter.compiler.walk import Packet, walk
from bpfilter.report.difference import difference_document
from bpfilter.report.words import box_words
from bpfilter.ruleset.fields import Field
from bpfilter.ruleset.model import RuleRef
from bpfilter.ruleset.read import read_text

INPUT = ("filter", "INPUT")
STATES = (1, 2, 4, 8, 16)


def differ(old: str, new: str) -> HookDifference:
    found = compare(read_text(old), read_text(new), INPUT, seconds=60)
    assert found is not None and found.complete
    return found


def chain(*lines: str, policy: str = "DROP") -> str:
    return ruleset_text(lines, policy=policy)


def words(found: HookDifference) -> list[tuple[str, str, str]]:
    return [
        (change.old.verdict, change.new.verdict, box_words(box, found.space))
        for change in found.changes
        for box in change.boxes
    ]


def holds(box: Cut, packet: Packet, state: int) -> bool:
    inside = box.states & state and all(
        packet.get(name, 0) in values for name, values in box.fields.items()
    )
    return bool(inside) and not any(holds(hole, packet, state) for hole in box.without)


def edited(lines: Sequence[str], chance: random.Random) -> list[str]:
    """Flip, drop, repeat or move a few rules."""
    result = list(lines)
    for _ in range(chance.randint(1, 3)):
        at, to = chance.randrange(len(result)), chance.randrange(len(result))
        flipped = {"ACCEPT": "DROP", "DROP": "ACCEPT"}
        head, _, target = result[at].rpartition(" ")
        kind = chance.randrange(4)
        if kind == 0:
            result[at] = f"{head} {flipped[target]}"
        elif kind == 1:
            del result[at]
        elif kind == 2:
            result.insert(to, result[at])
        else:
            result.insert(to, result.pop(at))
    return result


@pytest.mark.parametrize("seed", range(12))
def test_it_says_of_every_packet_what_walking_both_rulesets_says(seed: int) -> None:
    chance = random.Random(seed)
    lines = rules(list(Style)[seed % 3], 40, seed)
    lines.insert(5, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
    old, new = chain(*lines), chain(*edited(lines, chance))
    found = differ(old, new)
    left, right = (compile_chain(read_text(text), *INPUT).flat for text in (old, new))
    rng = np.random.default_rng(seed)
    packets = [*sample_packets(left, rng, 300), *sample_packets(right, rng, 300)]
    for packet in packets:
        for state in STATES:
            check(found.changes, left, right, packet, state)


def check(
    changes: Sequence[Change], left: FlatChain, right: FlatChain, packet: Packet, state: int
) -> None:
    (was, at), (now, to) = walk(left, packet, state), walk(right, packet, state)
    pair = (left.entries[at].rule, right.entries[to].rule)
    claimed = [c for c in changes if any(holds(box, packet, state) for box in c.boxes)]
    assert all(c.within is None or holds(c.within, packet, state) for c in claimed)
    if was.verdict is now.verdict:
        assert not claimed
    else:
        same_rules = [c for c in changes if (c.old.rule, c.new.rule) == pair]
        assert same_rules
        assert same_rules[0].more or claimed == same_rules


def test_a_change_reads_as_a_person_would_say_it() -> None:
    old = chain("-s 10.1.0.0/16 -p tcp -m tcp --dport 22 -j DROP")
    new = chain(
        "-s 10.1.0.0/16 -p tcp -m tcp --dport 22 -j DROP",
        "-d 10.0.0.0/8 -p tcp -m tcp --dport 22 -j ACCEPT",
    )
    assert words(differ(old, new)) == [
        ("DROP", "ACCEPT", "tcp from anywhere except 10.1.0.0/16 to 10.0.0.0/8 port 22")
    ]


def test_rules_that_trade_places_without_effect_change_nothing() -> None:
    one, other = "-s 10.0.0.0/8 -j ACCEPT", "-s 192.168.0.0/16 -j DROP"
    found = differ(chain(one, other), chain(other, one))
    assert found.same
    assert len(found.edits.moved) == 1 and not found.edits.added and not found.edits.removed


def test_a_rule_split_in_two_changes_nothing() -> None:
    found = differ(
        chain("-s 10.0.0.0/8 -j ACCEPT"),
        chain("-s 10.0.0.0/9 -j ACCEPT", "-s 10.128.0.0/9 -j ACCEPT"),
    )
    assert found.same and len(found.edits.added) == 2


def test_a_policy_change_is_what_reaches_the_policy() -> None:
    rule = "-p tcp -m tcp --dport 22 -j ACCEPT"
    found = differ(chain(rule), chain(rule, policy="ACCEPT"))
    assert words(found) == [("DROP", "ACCEPT", "any packet, except tcp to port 22")]


def test_the_connection_state_is_part_of_the_answer() -> None:
    found = differ(chain("-m state --state NEW -j ACCEPT"), chain())
    assert words(found) == [("ACCEPT", "DROP", "any packet in state NEW")]


def test_interfaces_of_either_side_are_told_apart() -> None:
    found = differ(chain("-i eth0 -j ACCEPT"), chain("-i eth+ -j ACCEPT"))
    ((was, now, text),) = words(found)
    assert (was, now) == ("DROP", "ACCEPT") and text == "any packet arriving on eth+"


def test_address_types_are_named_whatever_else_the_field_could_hold() -> None:
    types = "-m addrtype --dst-type {} -j ACCEPT"
    for old, new, said in (
        ("LOCAL", "BROADCAST", "to address type LOCAL"),
        ("LOCAL", "LOCAL --limit-iface-in", ""),
    ):
        found = compare(
            read_text(chain(types.format(old))), read_text(chain(types.format(new))), INPUT
        )
        assert found is not None
        assert any(said in text for _, _, text in words(found))
    rest = differ(chain("-m addrtype ! --dst-type LOCAL -j ACCEPT"), chain())
    assert words(rest) == [("ACCEPT", "DROP", "any packet to address type other than LOCAL")]


def test_packets_in_many_pieces_are_said_as_what_holds_them() -> None:
    """What a drop list of many networks leaves of a service: the service, not the pieces."""
    listed = [f"-s 198.18.{n * 7}.{n * 9}/32 -d 10.{n}.{n * 3}.0/24 -j DROP" for n in range(20)]
    service = "-p tcp --syn -m tcp --dport 443 -m conntrack --ctstate NEW -j ACCEPT"
    old, new = chain(*listed, service), chain(*listed)
    found = differ(old, new)
    (change,) = found.changes
    assert change.within is not None
    said = box_words(change.within, found.space)
    assert said == "tcp to port 443 with TCP flags SYN, not FIN, RST, ACK in state NEW"
    document = difference_document(read_text(old), read_text(new), [found])
    (shown,) = document["chains"][0]["changes"]
    assert shown["within"] == said
    assert shown["example"] == "tcp 203.0.113.7:40000 → 198.51.100.1:443, state NEW"


def test_a_dynamic_rule_is_named_not_guessed() -> None:
    limited = "-p icmp -m limit --limit 1/sec -j ACCEPT"
    found = differ(chain(limited), chain(limited, "-p icmp -j ACCEPT"))
    (change,) = found.changes
    assert change.of_verdict and change.old.passed == change.new.passed == (limited,)


def test_what_a_dynamic_rule_sees_is_a_change_too() -> None:
    log = "-p tcp -j LOG"
    found = differ(chain(log), chain())
    (change,) = found.changes
    assert not change.of_verdict and not found.same


def test_a_rule_that_loses_all_its_packets_is_named() -> None:
    rule = "-s 10.1.2.3/32 -j ACCEPT"
    found = differ(chain(rule), chain("-s 10.1.0.0/16 -j DROP", rule))
    assert found.newly_unreachable == (RuleRef("filter", "INPUT", 2),)


def test_a_user_chain_is_followed_with_its_returns() -> None:
    def text(port: int) -> str:
        body = chain("-p tcp -j W", "-p tcp -m tcp --dport 80 -j ACCEPT")
        made = body.replace("-A INPUT -p tcp -j W", ":W - [0:0]\n-A INPUT -p tcp -j W")
        return made.replace(
            "COMMIT", f"-A W -p tcp -m tcp --dport {port} -j RETURN\n-A W -j DROP\nCOMMIT"
        )

    found = differ(text(80), text(81))
    assert words(found) == [("ACCEPT", "DROP", "tcp to port 80")]


def test_what_cannot_be_followed_in_time_is_named_and_nothing_is_called_the_same() -> None:
    lines = rules(Style.FW, 3000, 1)
    broad = "-p tcp -m tcp --dport 1024:65535 -j REJECT"
    found = compare(read_text(chain(*lines)), read_text(chain(*lines, broad)), INPUT, seconds=0.01)
    assert found is not None
    assert not found.complete and not found.same
    assert [rule.number for rule in found.undecided] == [3001]


def test_the_document_counts_changes_and_names_both_rules() -> None:
    old, new = read_text(chain()), read_text(chain("-p udp -j ACCEPT"))
    found = compare(old, new, INPUT)
    assert found is not None
    document = difference_document(old, new, [found])
    assert document["changed_verdicts"] == 1 and not document["same"]
    (change,) = document["chains"][0]["changes"]
    assert change["old"]["rule"]["text"] == "-P INPUT DROP"
    assert change["new"]["rule"]["text"] == "-A INPUT -p udp -j ACCEPT"
    assert change["packets"] == ["udp"]


def test_fields_that_no_rule_names_are_in_no_box() -> None:
    found = differ(chain(), chain("-p udp -j ACCEPT"))
    assert found.changes[0].boxes[0].fields.keys() == {Field.PROTOCOL}
