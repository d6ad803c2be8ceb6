"""What a plan says of its host, in every form; names of interfaces and rules do no harm there."""

from __future__ import annotations

import io
import re

import pytest

from bpfilter.report.document import Document
from bpfilter.report.making import make_document
from bpfilter.report.markdown import plan_markdown
from bpfilter.report.page import plan_page
from bpfilter.report.terminal import SafeConsole
from bpfilter.report.text import render_plan
from bpfilter.ruleset.read import read_text
from tests.report.hostile import CELL, ESCAPE, OVERRIDE, SCRIPT
from tests.report.reading import HIDDEN, Tags

HOST = {
    "kernel": "6.18",
    "features": [{"name": "bounded loops", "there": True}, {"name": "tcx links", "there": False}],
    "findings": [
        {"level": "problem", "subject": "mark", "what": SCRIPT, "hint": f"try {ESCAPE}"},
        {"level": "good", "subject": "kernel", "what": "loads", "hint": ""},
    ],
    "interfaces": [{"name": CELL, "kind": "veth", "attached": True, "why": OVERRIDE}],
    "hooks": [{"where": f"TC ingress of {CELL}", "what": "classifies", "stages": "shadow"}],
    "mark": "0xff000000",
    "dispatch": f"*filter\n-I INPUT -i {CELL} -j BPF-INPUT\n-A F {SCRIPT}\nCOMMIT\n",
    "notices": [f"will be noticed {SCRIPT}"],
}


@pytest.fixture(scope="module")
def document() -> Document:
    rules = read_text("*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -j ACCEPT\nCOMMIT\n")
    return make_document(rules, 0.0, 30.0, host=lambda _plan: HOST)


def text(document: Document, *, verbose: bool) -> str:
    written = io.StringIO()
    render_plan(document, SafeConsole(file=written, width=80), verbose=verbose)
    return written.getvalue()


def test_every_form_has_findings_hooks_interfaces_and_the_dispatch(document: Document) -> None:
    for form in (plan_page(document), plan_markdown(document), text(document, verbose=True)):
        plain = form.replace("\\", "")
        for words in ("TC ingress of", "will be noticed", "0xff000000", "-I INPUT", "tcx links"):
            assert words in plain, words
    assert "2 rules" in text(document, verbose=False)
    assert "1 more, which --verbose lists" in text(document, verbose=False)


def test_names_do_no_harm_in_any_form(document: Document) -> None:
    page = plan_page(document)
    assert not Tags(page).active
    for form in (page, plan_markdown(document), text(document, verbose=True)):
        assert not HIDDEN.search(form)
    # What is indented by four is a code block: nothing in it is markup.
    lines = [line for line in plan_markdown(document).splitlines() if not line.startswith("    ")]
    assert "<script>" not in re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", "\n".join(lines))
