"""The shadow report on a terminal, 80 columns wide or more."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bpfilter.report.document import Document
from bpfilter.report.shadow import (
    busiest,
    causes,
    counted,
    head,
    moment,
    rule_name,
    unexercised,
    verdict,
    way,
)

_MOST_RULES = 40
_MOST_COUNTED = 10
_MOST_WITHOUT = 10


def render_shadow(document: Document, console: Console, *, every: bool = False) -> None:
    """Print the report; `every`: all rules, otherwise the busiest and those with mismatches."""
    for line in head(document):
        console.print(Text(line))
    if found := causes(document):
        console.print()
        table = Table("not judged", "why", box=None, pad_edge=False)
        table.add_column("packets", justify="right")
        for title, why, packets in found:
            table.add_row(title, why, f"{packets:,}")
        console.print(table)
    compared = document["comparison"]
    for sample in () if compared is None else compared["samples"]:
        console.print()
        console.print(_sample(sample))
    console.print()
    rules = document["coverage"]["rules"]
    console.print(_rules(rules if every else busiest(rules, _MOST_RULES), every))
    _without(unexercised(document), console, every)
    if rows := counted(document, _MOST_COUNTED):
        console.print()
        console.print(_counted(rows))
    console.print()
    for gate in document["gates"]:
        state = ("open", "green") if gate["passed"] else ("closed", "yellow")
        console.print(Text(f"gate {gate['name']}: ").append(*state).append(f", {gate['sentence']}"))
    for waiver in document["waivers"]:
        console.print(Text(waiver_sentence(waiver), "dim" if waiver["over"] else ""))
    allowed = document["promotion"]["allowed"]
    console.print(Text(verdict(document), "green" if allowed else "bold yellow"))


def waiver_sentence(waiver: Document) -> str:
    """What a waiver accepts, until when, and why."""
    until = "over since" if waiver["over"] else "holds until"
    return (
        f"waiver {waiver['rule']}, predicted {waiver['predicted']}, was {waiver['actual']}:"
        f" {until} {moment(waiver['expires'])}, {waiver['reason']}"
    )


def _sample(sample: Document) -> Text:
    shown = Text(f"mismatch {sample['id']}: ", "bold red").append(sample["packet"], "")
    shown.append(f"\n  {sample['state']} on {way(sample)}", "")
    shown.append(f"\n  the program: {sample['predicted']}")
    for step in sample["program_path"]:
        shown.append(f"\n    {step}", "")
    shown.append(f"\n  iptables: {sample['actual']}")
    for step in sample["iptables_path"]:
        shown.append(f"\n    {step}", "")
    return shown


def _rules(rules: Sequence[Document], every: bool) -> Table:
    table = Table("rule", box=None, pad_edge=False, title_justify="left")
    table.title = "Rules" if every else "Rules, busiest first"
    for name in ("seen", "matches", "differ", "open"):
        table.add_column(name, justify="right")
    table.add_column("text", overflow="fold")
    for rule in rules:
        numbers = [str(rule[name]) for name in ("seen", "matches", "mismatches", "open")]
        table.add_row(Text(rule_name(rule)), *numbers, Text(rule["text"]))
    return table


def _without(rules: Sequence[Document], console: Console, every: bool) -> None:
    """Rules that nothing is known of yet."""
    if every or not rules:
        return
    console.print(
        Text(f"{len(rules):,} rule{'s' * (len(rules) != 1)} saw no packet yet", style="bold")
    )
    for rule in rules[:_MOST_WITHOUT]:
        console.print(
            Text(f"  {rule_name(rule)}  {rule['text']}"), overflow="ellipsis", no_wrap=True
        )
    if len(rules) > _MOST_WITHOUT:
        console.print(f"  and {len(rules) - _MOST_WITHOUT:,} more: --all lists them")


def _counted(rows: Sequence[Document]) -> Table:
    table = Table("rule", box=None, pad_edge=False, title_justify="left")
    table.title = "Counters, and the program's bounds"
    for name in ("at least", "at most", "iptables"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in rows:
        fits = Text("fits", "green") if row["holds"] else Text("does not fit", "bold red")
        numbers = [f"{row[name]:,}" for name in ("least", "most", "iptables")]
        table.add_row(Text(row["name"]), *numbers, fits)
    return table
