"""What `explain` says of a packet, against the proof's definition and hostile rulesets."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfilter.analysis.explain import Question, explain
from bpfilter.errors import UsageError
from bpfilter.lab.packets import encode
from bpfilter.report.asked import asked_packet, frame_packet, header_frame
from bpfilter.report.explain import explanation_document, render_explanation
from bpfilter.report.making import make_document
from bpfilter.report.stored import ruleset_of
from bpfilter.report.terminal import SafeConsole
from bpfilter.ruleset.fields import Family, Field, State
from bpfilter.ruleset.read import read_text
from tests.analysis.random_rulesets import packets, rulesets

HOSTILE = "x\x1b]0;owned\x07[bold red]\u202e</script>|`"
RULES = f"""*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:SSH - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp --dport 22 -m comment --comment "{HOSTILE}" -j SSH
-A INPUT -p udp -m recent --name seen --rcheck -j ACCEPT
-A INPUT -p icmp -m limit --limit 5/min -j ACCEPT
-A SSH -s 198.51.100.0/24 -j DROP
-A SSH -j ACCEPT
COMMIT
"""
RULESET = read_text(RULES, family=Family.IPV4)
WORDS = ("tcp", "203.0.113.7:40000", "10.0.0.5:22")


def names(steps: list[dict[str, object]]) -> list[str]:
    return [f"{step['chain']}/{step['number']}" for step in steps]


def test_every_state_has_its_path_rule_by_rule_and_both_sides_agree() -> None:
    found = explanation_document(explain(RULESET, asked_packet(*WORDS, in_interface="eth0")))
    new, known = found["paths"]
    assert new["states"] == ["NEW", "INVALID", "UNTRACKED"]
    assert names(new["iptables"]["steps"]) == ["INPUT/3", "SSH/2"]
    assert new["iptables"]["verdict"] == new["program"]["then"] == "ACCEPT"
    assert known["states"] == ["ESTABLISHED", "RELATED"]
    assert names(known["iptables"]["steps"]) == ["INPUT/2"]
    assert found["agree"]
    over = new["iptables"]["steps"][1]["passed_over"]
    assert [(rule["number"], rule["because"]) for rule in over] == [(1, "-s 198.51.100.0/24")]


def test_a_dynamic_rule_leaves_the_end_open_and_says_who_decides() -> None:
    found = explain(RULESET, asked_packet("udp", "1.1.1.1:5", "10.0.0.5:53", states=State.NEW))
    (path,) = explanation_document(found)["paths"]
    assert [rule["number"] for rule in path["iptables"]["dynamic_rules"]] == [4]
    assert names(path["iptables"]["steps"]) == ["INPUT/4", "INPUT/0"]
    assert "may end in ACCEPT" in path["iptables"]["steps"][0]["effect"]


def test_what_the_program_leaves_to_iptables_ends_there_with_the_reason() -> None:
    found = explanation_document(explain(RULESET, asked_packet("icmp", "1.1.1.1", "10.0.0.5")))
    new = found["paths"][0]
    assert names(new["iptables"]["steps"]) == ["INPUT/5"]
    assert "the program leaves it to iptables" in new["iptables"]["steps"][0]["effect"]
    assert new["iptables"]["verdict"] == new["program"]["then"] == "PUNT"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_both_sides_agree_on_random_rulesets(data: st.DataObject) -> None:
    ruleset = data.draw(rulesets("INPUT"))
    drawn = data.draw(packets(ruleset.family, 1))
    fields = {
        field: value
        for field, value in drawn.items()
        if field not in (Field.IN_INTERFACE, Field.OUT_INTERFACE, Field.MASKS, Field.FRAGMENT)
    }
    question = Question(ruleset.family, ("filter", "INPUT"), fields, "eth0")
    assert explain(ruleset, question).agree


def test_no_control_character_of_a_rule_reaches_the_terminal() -> None:
    document = explanation_document(explain(RULESET, asked_packet(*WORDS)))
    for width in (80, 140):
        written = io.StringIO()
        console = SafeConsole(file=written, width=width, force_terminal=True)
        render_explanation(document, console, verbose=True)
        shown = written.getvalue()
        assert "\x1b]0" not in shown and "\x07" not in shown and "\u202e" not in shown
        assert "[bold" in shown
    assert "\x1b" not in json.dumps(document)


def test_a_frame_and_its_header_alone_name_the_same_packet() -> None:
    question = asked_packet(*WORDS, in_interface="eth0", length=60, mac="02:00:00:00:00:01")
    packet = question.packet(explain(RULESET, question).chain.flat.space)
    frame = encode(packet, Family.IPV4, 1, bytes(6))
    for other in (frame_packet(frame, in_interface="eth0"), frame_packet(header_frame(frame[14:]))):
        for field in (Field.SOURCE, Field.DESTINATION_PORT, Field.TCP_FLAGS, Field.LENGTH):
            assert other.fields[field] == packet[field]


def test_a_forwarded_frame_is_explained_as_its_hook_sees_it() -> None:
    question = asked_packet(*WORDS, in_interface="a", out_interface="b", ttl=63)
    assert question.hook == ("filter", "FORWARD")
    packet = question.packet(explain(RULESET, question).chain.flat.space)
    frame = encode(packet, Family.IPV4, 1, bytes(6), forwarded=True)
    assert frame_packet(frame, in_interface="a", out_interface="b").fields[Field.TTL] == 63


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tcp", "10.0.0.1:http0", "10.0.0.2:22"), "http0"),
        (("tcp", "10.0.0.300", "10.0.0.2:22"), "10.0.0.300"),
        (("tcp", "10.0.0.1", "[::1]:22"), "two families"),
        (("icmp", "10.0.0.1:5", "10.0.0.2"), "no ports"),
        (("tpc", "10.0.0.1", "10.0.0.2"), "no such protocol"),
    ],
)
def test_a_word_that_makes_no_sense_is_named(words: tuple[str, str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        asked_packet(*words)


def test_a_plan_document_holds_the_rules_it_was_made_of() -> None:
    ruleset = read_text(RULES.replace(HOSTILE, "[red]"), family=Family.IPV4)
    document = json.loads(json.dumps(make_document(ruleset, 0.0, 30.0)))
    again = ruleset_of(document, "plan.json")
    assert again.digest == ruleset.digest
    document["rule_fates"].pop()
    with pytest.raises(UsageError, match="does not hold the rules"):
        ruleset_of(document, "plan.json")
    with pytest.raises(UsageError, match="no plan document"):
        ruleset_of({"chains": []}, "plan.json")
