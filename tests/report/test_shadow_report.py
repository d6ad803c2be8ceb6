"""The shadow report's forms: mismatches with their packets, causes, gates, hostile names."""

from __future__ import annotations

import html
import io
import json
from typing import Any

from bpfilter.compiler.ir import Space
from bpfilter.lab.packets import encode
from bpfilter.report.asked import asked_packet, sample_packet
from bpfilter.report.page import shadow_page
from bpfilter.report.shadow import causes, packet_line, shadow_document, span
from bpfilter.report.shadow_markdown import shadow_markdown
from bpfilter.report.shadow_text import render_shadow
from bpfilter.report.terminal import SafeConsole
from bpfilter.ruleset.fields import Family, State
from tests.report.reading import Tags

HOSTILE = "x\x1b]0;owned\x07[bold]|`<b>"


def header(*words: str) -> bytes:
    question = asked_packet(words[0], words[1], words[2])
    return encode(question.packet(Space(question.family)), question.family, 1, bytes(6))[14:]


def rule(number: int, **changes: Any) -> dict[str, Any]:
    nothing = {"packets": 0, "bytes": 0, "possible": 0}
    return {
        "family": "ipv4", "table": "filter", "chain": "INPUT", "number": number,
        "text": f"-m comment --comment {HOSTILE} -j DROP", "matches": 0, "mismatches": 0, "open": 0,
        "first_seen": None, "decides": True, "item": False, "predicted": nothing,
        "decided": nothing, **changes,
    }  # fmt: skip


SAMPLE = {
    "id": "0123abcd", "at": 1.0, "family": "ipv4", "rule": "filter/INPUT/1", "via": [HOSTILE],
    "in": "eth0", "out": "", "state": "ESTABLISHED", "predicted": "ACCEPT", "actual": "DROP",
    "header": header("tcp", "203.0.113.7:40000", "10.0.0.5:22").hex(),
}  # fmt: skip


def detail(mismatches: int) -> dict[str, Any]:
    comparison = {
        "mechanism": "packets", "share": 1.0, "compared": 10, "matches": 7, "lost_samples": 0,
        "mismatches": mismatches, "unseen": {"before": 2, "lost": 0},
        "not_comparable": {"open": 1}, "samples": [SAMPLE] if mismatches else [],
    }  # fmt: skip
    rules = [
        rule(1, matches=7, first_seen=2.0),
        rule(2, mismatches=mismatches, first_seen=5.5 if mismatches else None),
        rule(3),
    ]
    counted = {"chain": "INPUT", "number": 1, "least": 5, "most": 9, "iptables": 7, "holds": True}
    counters = {"at": 11.0, "chains": [
        {"family": "ipv4", "table": "filter", "chain": "INPUT", "judged": 12, "unseen": 2,
         "left_out": 0, "rules": [counted, {**counted, "number": 2, "holds": False}]}
    ]}  # fmt: skip
    return {"at": 11.0, "stage": "shadow", "since": 1.0, "packets": 12, "punted": {"fragment": 2},
            "comparison": comparison, "rules": rules, "counters": counters}  # fmt: skip


GATE = {"name": "packets", "passed": False, "sentence": "12 packets looked at, 50 needed"}
WAIVER = {
    "rule": "ipv4:filter/INPUT/2", "predicted": "ACCEPT", "actual": "DROP",
    "reason": f"known {HOSTILE}", "expires": 10.0,
}  # fmt: skip
FORMS = (shadow_markdown, shadow_page)


def test_a_mismatch_stands_against_promotion_and_shows_its_packet() -> None:
    document = shadow_document({}, detail(1), {"0123abcd": ["filter/INPUT/2 -j DROP"]})
    assert not document["promotion"]["allowed"]
    (sample,) = document["comparison"]["samples"]
    assert sample["packet"] == "IP 203.0.113.7.40000 > 10.0.0.5.22: Flags [S], length 40, ttl 64"
    assert document["coverage"]["exercised"] == 2
    text = shown(document)
    assert "1 packet was judged unlike" in text and "filter/INPUT/2 -j DROP" in text
    assert "dropped or consumed before filter" in text


def test_without_a_mismatch_and_closed_gates_promotion_is_allowed() -> None:
    assert shadow_document({}, detail(0))["promotion"]["allowed"]
    document = shadow_document({"gates": [GATE]}, detail(0))
    assert document["promotion"] == {"allowed": False, "why": [GATE["sentence"]]}


def test_every_form_names_gates_waivers_causes_counters_and_what_saw_nothing() -> None:
    status = {"gates": [GATE], "waivers": [WAIVER]}
    document = shadow_document(status, detail(1), {"0123abcd": ["filter/INPUT/2 -j DROP"]})
    assert document["waivers"][0]["over"]
    for form in (*FORMS, shown):
        said = " ".join(html.unescape(form(document)).replace("\\", "").split())
        for words in (
            GATE["sentence"], "known x", "fragments", "dynamic rules decide", "203.0.113.7.40000",
            "filter/INPUT/2 -j DROP", "does not fit", "ESTABLISHED on",
        ):  # fmt: skip
            assert words in said, (form, words)
    assert "1 rule saw no packet yet" in shown(document)
    assert "1 rule saw no packet" in shadow_page(document)


def test_coverage_over_time_ends_now() -> None:
    over_time = shadow_document({}, detail(1))["coverage"]["over_time"]
    assert over_time == [[1.0, 1], [4.5, 2], [10.0, 2]]
    many = {**detail(0), "rules": [rule(n, first_seen=1.0 + n) for n in range(5000)]}
    found = shadow_document({}, many)["coverage"]["over_time"]
    assert len(found) < 250 and found[-1] == [10.0, 5000]


def test_causes_are_listed_by_their_size() -> None:
    found = causes(shadow_document({}, detail(1)))
    assert [packets for _, _, packets in found] == [2, 2, 1]
    assert {what for what, _, _ in found} == {"unseen", "punted", "not comparable"}


def test_nothing_compared_is_a_report_too() -> None:
    bare = {**detail(0), "comparison": None, "counters": None, "rules": []}
    for form in (*FORMS, shown):
        assert "othing is compared now" in form(shadow_document({}, bare))


def test_spans_have_two_units() -> None:
    assert [span(s) for s in (0, 59.9, 60, 3725, 90000)] == [
        "0 s", "59 s", "1 min", "1 h 2 min", "1 d 1 h",
    ]  # fmt: skip


def test_hostile_names_are_harmless_in_every_form() -> None:
    document = shadow_document({}, detail(1))
    for form in (shown(document), *(form(document) for form in FORMS), json.dumps(document)):
        assert "\x1b" not in form and "\x07" not in form
    assert not Tags(shadow_page(document)).active
    assert "<b>" not in shadow_markdown(document).replace("`", "").split("|")[0]
    assert "[bold]" in shown(document)


def test_a_mismatch_is_explained_in_the_state_that_it_had() -> None:
    question = sample_packet(SAMPLE)
    assert (question.family, question.states) == (Family.IPV4, State.ESTABLISHED)
    assert question.in_interface == "eth0"


def test_packets_are_written_as_tcpdump_writes_them() -> None:
    six = header("udp", "[2001:db8::1]:5000", "[2001:db8::2]:53")
    assert packet_line(six) == "IP6 2001:db8::1.5000 > 2001:db8::2.53: UDP, length 48, ttl 64"
    ping = header("icmp", "10.0.0.1", "10.0.0.2")
    assert packet_line(ping).startswith("IP 10.0.0.1 > 10.0.0.2: ICMP type 8 code 0")
    assert packet_line(b"") == "packet " and packet_line(b"\x4f\x00") == "packet 4f00"


def shown(document: dict[str, Any]) -> str:
    written = io.StringIO()
    render_shadow(document, SafeConsole(file=written, width=100))
    return written.getvalue()
