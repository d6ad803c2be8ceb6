"""What a plan says of the cost of packets: honest where nothing is gained, in every form."""

from __future__ import annotations

import io

import pytest

from bpfilter.lab.cost import Cost, Costs
from bpfilter.report.cost import cost_document
from bpfilter.report.document import Document
from bpfilter.report.making import make_document
from bpfilter.report.markdown import plan_markdown
from bpfilter.report.page import plan_page
from bpfilter.report.terminal import SafeConsole
from bpfilter.report.text import render_plan
from bpfilter.ruleset.model import Backend
from bpfilter.ruleset.read import read_text

SLOW, FAST = Cost(9_000.0, 1_500.0, 200.0), Cost(1_300.0, 1_290.0, 180.0)


def costs(own: Cost | None, counted: int = 5_000) -> Costs:
    return Costs("INPUT", Backend.NFT, 1_000.0, {1_000: SLOW, 10: FAST}, own, counted)


def planned(found: Costs) -> Document:
    rules = read_text("*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -j ACCEPT\nCOMMIT\n")
    return make_document(rules, 0.0, 30.0, cost=lambda _plan: cost_document(found))


def test_a_gain_is_said_with_its_share() -> None:
    found = cost_document(costs(SLOW))
    assert found["worth"] and "83% less" in found["sentence"]
    assert found["rules"] == [10, 1_000]
    assert [path["ns"] for path in found["paths"]] == [[1000, 1000], [1300, 9000], [1290, 1500]]


def test_what_is_not_worth_it_is_said_though_other_traffic_would_gain() -> None:
    found = cost_document(costs(FAST))
    assert not found["worth"]
    assert "Not worth it for speed" in found["sentence"]
    assert "It would be if traffic met all rules alike" in found["sentence"]


def test_without_counters_the_assumption_is_named() -> None:
    found = cost_document(costs(None, 3))
    assert found["worth"] and found["sentence"].startswith("If every rule were met alike")
    assert "counted too few packets" in found["sentence"]


@pytest.mark.parametrize("own", [None, FAST])
def test_every_form_has_the_figures(own: Cost | None) -> None:
    document = planned(costs(own))
    written = io.StringIO()
    render_plan(document, SafeConsole(file=written, width=100))
    for form in (plan_page(document), plan_markdown(document), written.getvalue()):
        for words in ("9,000 ns", "1,500 ns", "BPF + iptables", "1,000 rules"):
            assert words in form.replace("\\", ""), words
        assert ("own traffic" in form.lower()) == (own is not None)
    assert plan_page(document).count("<circle") == 6
