"""Every gate at its boundary, and what an operator's waivers let through until when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from bpfilter.errors import UsageError
from bpfilter.kernel.config import Reason
from bpfilter.rollout.comparison import Comparison, Mechanism, Pairs, RuleKey, Unseen, Verdict
from bpfilter.rollout.gates import Gate, Gates, judge, parse_gates
from bpfilter.rollout.waivers import Waiver, parse_waiver, still_meant, unexplained
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.model import RuleRef
from bpfilter.ruleset.read import read_text

SINCE = 1000.0


def key(number: int) -> RuleKey:
    return RuleKey(Family.IPV4, RuleRef("filter", "INPUT", number))


def comparison(
    counts: Mapping[int, Mapping[tuple[Verdict, Verdict], int]] | None = None, **changes: Any
) -> Comparison:
    values: dict[str, Any] = {
        "mechanism": Mechanism.PACKETS,
        "since": SINCE,
        "share": 1.0,
        "predicted": 100,
        "punted": {},
        "rules": {key(n): Pairs(pairs) for n, pairs in (counts or {}).items()},
        "unseen": {},
        "incomparable": {},
        "samples": (),
        "remembered": 100,
    }
    return Comparison(**values | changes)


SAME = (Verdict.ACCEPT, Verdict.ACCEPT)
WRONG = (Verdict.ACCEPT, Verdict.DROP)
OPEN = (Verdict.OPEN, Verdict.DROP)
WAIVER = Waiver(key(1), *WRONG, "the upgrade of March", 2000.0)


def gate(name: str, gates: Gates, seen: Comparison, now: float = SINCE, *waivers: Waiver) -> Gate:
    answers = judge(gates, seen, [key(0), key(1)], waivers, now)
    (answer,) = [answer for answer in answers if answer.name.startswith(name)]
    return answer


@pytest.mark.parametrize(
    ("name", "gates", "below", "at"),
    [
        ("packets", Gates(packets=100), comparison(predicted=99), comparison(predicted=100)),
        ("exercised", Gates(exercised=0.5), comparison(), comparison({1: {SAME: 1}})),
        ("exercised", Gates(exercised=0.5), comparison({7: {SAME: 1}}), comparison({1: {OPEN: 1}})),
        ("rule", Gates(rules=(key(1),)), comparison({0: {SAME: 1}}), comparison({1: {SAME: 1}})),
        (
            "punted",
            Gates(punted=0.05),
            comparison(punted={Reason.RULE: 6}),
            comparison(punted={Reason.RULE: 5, Reason.SCOPE: 50}),
        ),
        (
            "unseen",
            Gates(unseen=0.01),
            comparison(unseen={Unseen.LOST: 1, Unseen.QUEUED: 1}),
            comparison(unseen={Unseen.LOST: 1}),
        ),
        ("mismatches", Gates(), comparison({1: {WRONG: 1}}), comparison({1: {OPEN: 3, SAME: 3}})),
    ],
)
def test_a_gate_opens_at_its_boundary(
    name: str, gates: Gates, below: Comparison, at: Comparison
) -> None:
    assert not gate(name, gates, below).passed
    assert gate(name, gates, at).passed


def test_seconds_count_from_the_beginning_of_the_stage() -> None:
    gates = Gates(seconds=60)
    assert not gate("seconds", gates, comparison(), SINCE + 59.9).passed
    assert gate("seconds", gates, comparison(), SINCE + 60).passed


def test_nothing_that_can_decide_is_all_exercised() -> None:
    answers = judge(Gates(exercised=1.0), comparison(), [], (), SINCE)
    assert all(answer.passed for answer in answers if answer.name == "exercised")


def test_waiting_helps_with_every_gate_but_mismatches() -> None:
    strict = Gates(99, 1000, 1.0, (key(1),), 0.0, 0.0)
    seen = comparison({0: {WRONG: 2}}, punted={Reason.RULE: 1}, unseen={Unseen.LOST: 1})
    answers = judge(strict, seen, [key(0), key(1)], (), SINCE)
    assert not any(answer.passed for answer in answers)
    assert [answer.name for answer in answers if answer.hopeless] == ["mismatches"]
    assert (
        "filter/INPUT/0: 2 packets predicted ACCEPT, were DROP"
        in gate("mismatches", strict, seen).sentence
    )


def test_a_waived_difference_opens_the_gate_until_the_waiver_expires() -> None:
    seen = comparison({1: {WRONG: 5}})
    assert gate("mismatches", Gates(), seen, 1999.9, WAIVER).passed
    assert not gate("mismatches", Gates(), seen, 2000.0, WAIVER).passed


@pytest.mark.parametrize(
    ("rule", "pair"), [(2, WRONG), (1, (Verdict.DROP, Verdict.ACCEPT))], ids=["rule", "pair"]
)
def test_a_waiver_covers_its_rule_and_pair_alone(rule: int, pair: tuple[Verdict, Verdict]) -> None:
    found = unexplained(comparison({rule: {pair: 3}}), [WAIVER], SINCE)
    assert found == {(key(rule), *pair): 3}


def test_a_waiver_ends_when_another_rule_stands_in_its_place() -> None:
    def rules(*lines: str) -> Any:
        text = "\n".join(["*filter", ":INPUT DROP [0:0]", *lines, "COMMIT", ""])
        return {Family.IPV4: read_text(text, family=Family.IPV4)}

    web, dns = "-A INPUT -p tcp --dport 80 -j ACCEPT", "-A INPUT -p udp --dport 53 -j ACCEPT"
    assert still_meant([WAIVER], rules(web), rules(web, dns)) == (WAIVER,)
    assert still_meant([WAIVER], rules(web), rules(dns, web)) == ()
    assert still_meant([WAIVER], rules(web), {}) == ()


def test_gates_and_waivers_are_read_from_words() -> None:
    assert parse_gates(["seconds=5", "rule=ipv4:filter/INPUT/1", "unseen=0.5"]) == Gates(
        seconds=5.0, rules=(key(1),), unseen=0.5
    )
    waiver = parse_waiver("ipv4:filter/INPUT/1, ACCEPT, DROP, 1970-01-01T00:33:20, a, b")
    assert (waiver.expires, waiver.reason) == (2000.0, "a, b")


@pytest.mark.parametrize("word", ["speed=1", "punted=2", "packets=x", "rule=INPUT/1", "seconds=-1"])
def test_a_gate_that_makes_no_sense_is_refused(word: str) -> None:
    with pytest.raises(UsageError):
        parse_gates([word])


@pytest.mark.parametrize(
    "text",
    [
        "ipv4:filter/INPUT/1,ACCEPT,DROP,2030-01-01",
        "x,ACCEPT,DROP,2030-01-01,y",
        "ipv4:filter/INPUT/1,ACCEPT,LOST,2030-01-01,y",
    ],
)
def test_a_waiver_without_reason_rule_or_verdict_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_waiver(text)
