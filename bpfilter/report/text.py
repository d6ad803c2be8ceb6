"""The plan report for people: tables on a terminal, plain text elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bpfilter.report.document import (
    FATES,
    Document,
    chains_of,
    proof_sentence,
    redundant_rules,
    states_told_apart,
)
from bpfilter.report.host_text import render_cost, render_host
from bpfilter.report.terminal import indented

_MOST = 40
_MOST_REDUNDANT = 5

STYLES = {
    "native": "green",
    "residual": "cyan",
    "punt": "yellow",
    "unreachable": "magenta",
    "kept": "dim",
}

MEANING = {
    "native": "decided in BPF alone",
    "residual": "BPF decides the static part; iptables runs the dynamic rest",
    "punt": "packets that reach it run the original rules from the start",
    "unreachable": "no packet gets here",
    "kept": "stays with iptables; its table or chain is not taken over",
}


def render_plan(document: Document, console: Console, *, verbose: bool = False) -> None:
    """Print the report; `verbose` lists every rule, otherwise those that are not native."""
    console.print(_head(document))
    console.print()
    console.print(_fates(document))
    console.print()
    console.print(_chains(document))
    console.print()
    shown = [
        rule
        for rule in document["rule_fates"]
        if verbose or rule["fate"] in ("punt", "unreachable")
    ]
    most = len(shown) if verbose else _MOST
    if shown:
        console.print(_rules(shown[:most], "Rules" if verbose else "Rules to look at"))
    if len(shown) > most:
        console.print(f"and {len(shown) - most:,} more: --verbose lists them")
    if shown:
        console.print()
    if found := redundant_rules(document):
        _redundant(found, console, len(found) if verbose else _MOST_REDUNDANT)
    if document["cost"] is not None:
        render_cost(document["cost"], console)
        console.print()
    if document["host"] is not None:
        render_host(document["host"], console, verbose=verbose)
        console.print()
    console.print(_verdict(document))
    for warning in document["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"))


def _head(document: Document) -> RenderableType:
    backend = document["backend"] or "backend not stated"
    return Group(
        Text(f"Plan of {document['source']}", style="bold"),
        Text(
            f"{document['family']} ({document['family_reason']}), {backend}, "
            f"{document['rules']} rules, digest {document['digest'][:12]}"
        ),
    )


def _fates(document: Document) -> Table:
    table = Table(title="Fates", title_justify="left", box=None, pad_edge=False)
    table.add_column("fate")
    table.add_column("rules", justify="right")
    table.add_column("share", justify="right")
    table.add_column("meaning")
    total = max(document["rules"], 1)
    for fate in FATES:
        count = document["fates"][fate]
        table.add_row(
            Text(fate, style=STYLES[fate]), str(count), f"{count / total:.1%}", MEANING[fate]
        )
    return table


def _chains(document: Document) -> Table:
    table = Table(title="Chains taken over", title_justify="left", box=None, pad_edge=False)
    for name in ("chain", "policy", "entries", "codes", "tables", "states", "proof"):
        table.add_column(
            name, justify="right" if name in ("entries", "codes", "tables") else "left"
        )
    for chain in chains_of(document):
        proof = chain["proof"]
        table.add_row(
            f"{chain['table']} {chain['chain']}",
            chain["policy"],
            str(chain["entries"]),
            str(sum(function["code"] is not None for function in chain["functions"])),
            f"{chain['tables_bytes'] / 1024:.0f} KiB",
            states_told_apart(chain),
            _proof_text(proof),
        )
    return table


def _proof_text(proof: Document | None) -> Text:
    if proof is None:
        return Text("not run", style="yellow")
    if not proof["complete"]:
        return Text(f"incomplete: {proof['covered']}", style="yellow")
    return Text("holds", style="green") if proof["holds"] else Text("FAILS", style="bold red")


def _rules(rules: list[Document], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("rule", no_wrap=True)
    table.add_column("fate")
    table.add_column("text and reason", overflow="fold")
    for rule in rules:
        name = Text(f"{rule['table']} {rule['chain']} {rule['number']}")
        reason = rule["reason"]
        text = Text(rule["text"])
        if reason:
            text.append(f"\n→ {reason}", style="dim")
        table.add_row(name, Text(rule["fate"], style=STYLES[rule["fate"]]), text)
    return table


def _redundant(rules: Sequence[Document], console: Console, most: int) -> None:
    one = len(rules) == 1
    console.print(
        Text("Redundant: ", style="italic").append(
            f"{len(rules):,} rule{'' if one else 's'} could go, a later one decides alike", "none"
        )
    )
    for rule in rules[:most]:
        by = rule["redundant_with"]
        name = f"{rule['table']} {rule['chain']} {rule['number']}"
        indented(console, f"{name}, as {by['chain']} {by['number'] or 'policy'}: {rule['text']}", 2)
    if len(rules) > most:
        console.print(f"  and {len(rules) - most:,} more: --verbose lists them")
    console.print()


def _verdict(document: Document) -> Text:
    proof = document["proof"]
    holds = "green" if proof["holds"] else "bold red"
    return Text(proof_sentence(document), style=holds if proof["complete"] else "yellow")
