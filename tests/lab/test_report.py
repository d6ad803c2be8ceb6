"""What a verification says of rules that it did not reach."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from bpfilter.cli.verify import render_report
from bpfilter.lab.report import ChainReport, Missed, Report, Tally

SHADOWED = "unreachable: shadowed by filter/TRUSTED/3"
COUNTS = "it only counts, so no packet was made for it"


def said(*missed: Missed, verbose: bool = False) -> str:
    tally = Tally(10, 0, {}, {})
    chain = ChainReport("filter INPUT", tally, {}, {}, None, "none", 9, 4, missed, 4, ())
    report = Report("rules", "digest", "ipv4", "nft", 1, (chain,), (), {})
    console = Console(file=StringIO(), width=200)
    render_report(report, console, verbose)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_rules_missed_for_one_reason_share_a_line() -> None:
    shadowed = [Missed(f"filter/COUNTRY/{number}", SHADOWED) for number in range(1, 5)]
    text = said(Missed("filter/INPUT/2", COUNTS), *shadowed)
    assert "4 rules can be reached by no packet" in text
    first = f"filter/COUNTRY/1, filter/COUNTRY/2, filter/COUNTRY/3 and 1 more — {SHADOWED}"
    assert f"not reached: {first}" in text
    assert text.index(SHADOWED) < text.index(COUNTS)
    assert "filter/COUNTRY/4" in said(*shadowed, verbose=True)


def test_more_reasons_than_fit_are_counted() -> None:
    text = said(*(Missed(f"filter/INPUT/{n}", f"reason {n}") for n in range(1, 24)))
    assert text.count("not reached") == 20
    assert "… and 3 more rules; --verbose lists them" in text
