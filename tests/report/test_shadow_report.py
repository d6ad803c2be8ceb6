"""The shadow report's forms: mismatches with their packets, causes, gates, hostile names."""

from __future__ import annotations

import io
import json
from typing import Any

from bpfilter.compiler.ir import Space
from bpfilter.lab.packets import encode
from bpfilter.report.asked import asked_packet, sample_packet
from bpfilter.report.shadow import packet_line, render_shadow, shadow_document, shadow_markdown
from bpfilter.report.terminal import SafeConsole
from bpfilter.ruleset.fields import Family, State

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
    rules = [rule(1, matches=7), rule(2, mismatches=mismatches), rule(3)]
    return {"at": 11.0, "stage": "shadow", "since": 1.0, "packets": 12, "punted": {"fragment": 2},
            "comparison": comparison, "rules": rules}  # fmt: skip


def test_a_mismatch_stands_against_promotion_and_shows_its_packet() -> None:
    document = shadow_document({}, detail(1), {"0123abcd": ["filter/INPUT/2 -j DROP"]})
    assert not document["promotion"]["allowed"]
    (sample,) = document["comparison"]["samples"]
    assert sample["packet"] == "IP 203.0.113.7.40000 > 10.0.0.5.22: Flags [S], length 40, ttl 64"
    assert document["coverage"]["exercised"] == 2
    text = shown(document)
    assert "1 packets were judged unlike" in text and "filter/INPUT/2 -j DROP" in text
    assert "dropped or consumed before filter" in text


def test_without_a_mismatch_and_closed_gates_promotion_is_allowed() -> None:
    assert shadow_document({}, detail(0))["promotion"]["allowed"]
    gate = {"name": "packets", "passed": False, "sentence": "12 packets looked at, 50 needed"}
    document = shadow_document({"gates": [gate]}, detail(0))
    assert document["promotion"] == {"allowed": False, "why": [gate["sentence"]]}


def test_hostile_names_are_harmless_in_every_form() -> None:
    document = shadow_document({}, detail(1))
    for form in (shown(document), shadow_markdown(document), json.dumps(document)):
        assert "\x1b" not in form and "\x07" not in form
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
