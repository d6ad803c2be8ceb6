"""Every form of a report says the same, and what others wrote does no harm in any of them."""

from __future__ import annotations

import html.parser
import io
import json
import re

import pytest
from rich.console import Console

from bpfilter.analysis.difference import HOOKS, compare
from bpfilter.report.difference import difference_document, render_difference
from bpfilter.report.document import Document
from bpfilter.report.making import make_document
from bpfilter.report.markdown import difference_markdown, plan_markdown
from bpfilter.report.page import difference_page, plan_page
from bpfilter.report.pictures import Curve, curves, heat
from bpfilter.report.safe import markdown, markdown_code, printable
from bpfilter.report.text import render_plan
from bpfilter.ruleset.read import read_text
from tests.report.hostile import RULES
from tests.report.reading import HIDDEN, Tags


@pytest.fixture(scope="module")
def document() -> Document:
    return make_document(read_text(RULES), 0.0, 30.0)


@pytest.fixture(scope="module")
def change() -> Document:
    old = read_text(RULES)
    new = read_text(RULES.replace("--dport 22", "--dport 23"))
    found = [compare(old, new, hook, seconds=4.0) for hook in HOOKS]
    return difference_document(old, new, [each for each in found if each is not None])


def test_a_page_holds_nothing_that_acts(document: Document, change: Document) -> None:
    for page, shown in (
        (plan_page(document), "&lt;script&gt;"),
        (difference_page(change), "&lt;b&gt;"),
    ):
        tags = Tags(page)
        assert not tags.active
        assert tags.names.count("h1") == 1
        assert shown in page
        assert not HIDDEN.search(page)


def test_a_page_allows_its_own_style_only(document: Document) -> None:
    page = plan_page(document)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    words = html.parser.unescape(policy.group(1))
    assert "default-src 'none'" in words
    assert "unsafe" not in words


def test_a_page_tells_each_rule_with_its_fate_and_traffic(document: Document) -> None:
    page = plan_page(document)
    for rule in document["rule_fates"]:
        assert f'<span class="fate {rule["fate"]}">' in page
    assert re.search(r'class="count h5">7<', page)
    assert "Proven:" in page


def test_markdown_shows_foreign_text_as_it_is(document: Document, change: Document) -> None:
    for text in (plan_markdown(document), difference_markdown(change)):
        assert not HIDDEN.search(text)
        outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
        assert "<script>" not in outside
        assert "](http" not in outside
        bars = 0
        for line in text.splitlines():
            found = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
            assert not bars or not found or found == bars
            bars = found


def test_a_terminal_gets_no_escapes_and_no_markup(document: Document, change: Document) -> None:
    plan, difference = io.StringIO(), io.StringIO()
    render_plan(document, Console(file=plan, width=80, highlight=False), verbose=True)
    render_difference(change, Console(file=difference, width=80, highlight=False))
    for written in (plan, difference):
        assert not HIDDEN.search(written.getvalue())
    assert "filter [red]x[/] 1" in plan.getvalue()


def test_redundant_rules_are_named_with_what_decides_alike() -> None:
    chains = ":INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n"
    text = f"*filter\n{chains}-A INPUT -s 192.0.2.7 -j DROP\nCOMMIT\n"
    found = make_document(read_text(text), 0.0, 30.0)
    (rule,) = found["rule_fates"]
    assert rule["redundant_with"] == {"table": "filter", "chain": "INPUT", "number": 0}
    written = io.StringIO()
    render_plan(found, Console(file=written, width=80))
    for form in (plan_page(found), plan_markdown(found), written.getvalue()):
        assert "edundant" in form and "INPUT policy" in form


def test_ten_thousand_odd_rules_stay_readable() -> None:
    """The page below 5 MB; what is to be looked at does not bury what comes behind it."""
    comment = '-m comment --comment "ticket 4711: the partner network, ask before you touch it"'
    rules = "".join(f"[9:540] -A INPUT -s 10.0.0.0/8 {comment} -j DROP\n" for _ in range(10_000))
    text = f"*filter\n:INPUT ACCEPT [1:60]\n{rules}COMMIT\n"
    many = make_document(read_text(text), 0.0, 30.0)
    assert many["fates"]["unreachable"] == 9_999
    assert len(plan_page(many).encode()) < 5_000_000
    written = io.StringIO()
    render_plan(many, Console(file=written, width=80))
    assert len(written.getvalue().splitlines()) < 300
    assert "and 9,959 more" in written.getvalue()
    assert len(plan_markdown(many).splitlines()) < 300


def test_json_holds_the_same(document: Document) -> None:
    again = json.loads(json.dumps(document))
    assert again == document
    assert sum(again["fates"].values()) == again["rules"] == 7


def test_residuals_name_a_packet_that_meets_them(document: Document) -> None:
    chain = next(chain for chain in document["chains"] if chain["chain"] == "INPUT")
    residuals = [f for f in chain["functions"] if f["outcome"] == "RESIDUAL"]
    assert residuals
    assert any("→" in function["example"] for function in residuals)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("tab\tline\n", "tab\\tline\\n"),
        ("\udc80", "\\x80"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202eabc", "\\u202eabc"),
        ("é 漢", "é 漢"),
    ],
)
def test_hidden_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_markdown_code_cannot_be_left() -> None:
    assert markdown_code("a`b") == "``a`b``"
    assert markdown_code("`a") == "`` `a ``"
    assert markdown_code("a|b") == "`a\\|b`"
    assert markdown("<a>*b*") == "\\<a\\>\\*b\\*"


def test_heat_grows_with_traffic() -> None:
    steps = [heat(value, 10_000) for value in (None, 0, 1, 10, 100, 10_000)]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 5)


def test_curves_place_every_point_inside_the_picture() -> None:
    drawn = curves([Curve("<x>", [(10, 900), (10_000, 23_000)])], "cost", "rules", "ns")
    assert drawn.count("<circle") == 2
    assert "&lt;x&gt;" in drawn
    for x in re.findall(r'cx="([\d.]+)"', drawn):
        assert 84 <= float(x) <= 644


def test_the_names_of_curves_that_end_together_are_apart() -> None:
    lines = [Curve(name, [(10, 100.0), (100, value)]) for name, value in (("a", 100), ("b", 101))]
    drawn = curves(lines, "cost", "rules", "ns")
    ys = [int(y) for y in re.findall(r'y="(\d+)" text-anchor="start">[ab]<', drawn)]
    assert len(ys) == 2 and abs(ys[0] - ys[1]) >= 14
